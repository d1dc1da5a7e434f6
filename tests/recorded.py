"""A CUDA graph that is pretended on the CPU: operations are noted once and done again in the same places of memory.

As on a GPU, what the host decided on the way is not decided anew, and recording changes nothing that was there before.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

READ = ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "_unique2")
RESHAPED = ("unsqueeze_", "squeeze_", "transpose_", "t_", "as_strided_")  # in place, the numbers stay


class Recorded(TorchDispatchMode):
    """Operations noted, views apart, which stay what they were."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[Any, Any, Any, Any]] = []
        self._before: dict[int, tuple[Any, Any]] = {}  # storages as they were, by where they are
        self._states: dict[torch.Generator, Tensor] = {}
        self._own: dict[
            int, Any
        ] = {}  # storages made within, by where they are; held, so that no other gets their place

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the wrapper costs as much as the operation

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        if function.__name__.split(".")[0] in READ:
            raise RuntimeError(f"the host reads a result of work that is only recorded: {function}")
        self._keep(function, given, named or {})
        seen = _as_they_are((given, named or {}))
        made = function(*given, **(named or {}))
        if not function.is_view and function.__name__.split(".")[0] not in RESHAPED:
            self.noted.append((function, *seen, _as_they_are(made)))
            for part in leaves(made, Tensor):
                storage = part.untyped_storage()
                self._own[storage.data_ptr()] = storage
        return made

    def _keep(self, function: Any, given: Any, named: Any) -> None:
        """Note how what the operation changes was before."""
        for part in leaves((given, named), torch.Generator):
            if part not in self._states:
                self._states[part] = part.get_state()
        for place, name in _written(function):
            for part in leaves(given[place] if place < len(given) else named.get(name), Tensor):
                storage = part.untyped_storage()
                if storage.data_ptr() not in self._own and storage.data_ptr() not in self._before:
                    self._before[storage.data_ptr()] = storage, storage.clone()

    def put_back(self) -> None:
        """Undo what was done while it was recorded."""
        for storage, before in self._before.values():
            storage.copy_(before)
        for generator, state in self._states.items():
            generator.set_state(state)

    @torch.no_grad()
    def replay(self) -> None:
        with _disable_current_modes(), torch._C.DisableTorchFunction():  # the host asks for none of it
            for function, given, named, made in self.noted:
                for there, anew in zip(leaves(made, Tensor), leaves(function(*given, **named), Tensor), strict=True):
                    if there.data_ptr() != anew.data_ptr():
                        there.copy_(anew)


@cache
def _written(function: Any) -> list[tuple[int, str]]:
    """Places and names of the arguments that an operation writes to."""
    arguments = enumerate(function._schema.arguments)
    return [(place, told.name) for place, told in arguments if told.alias_info and told.alias_info.is_write]


def leaves(tree: Any, kind: type) -> list[Any]:
    """What is of a kind in tuples, lists and dictionaries; faster than PyTorch's own."""
    if isinstance(tree, kind):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, tuple | list):
        return []
    found = []
    for part in tree:
        if isinstance(part, kind):
            found.append(part)
        elif isinstance(part, tuple | list | dict):
            found += leaves(part, kind)
    return found


def _as_they_are(tree: Any) -> Any:
    """Tensors with the shapes they have now, which an operation in place may change."""
    if isinstance(tree, Tensor):
        return tree.detach()
    if isinstance(tree, dict):
        return {key: _as_they_are(part) for key, part in tree.items()}
    if isinstance(tree, tuple | list):
        parts = [_as_they_are(part) for part in tree]
        return parts if isinstance(tree, list) else tuple(parts)
    return tree


def recorder(device: torch.device) -> Callable[[Callable[[], None], Sequence[torch.Generator]], Recorded]:
    """In place of ``cuda_recorder``."""

    def record(work: Callable[[], None], generators: Sequence[torch.Generator]) -> Recorded:
        recorded = Recorded()
        with recorded:
            work()
        recorded.put_back()
        return recorded

    return record
