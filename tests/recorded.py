"""A CUDA graph that is pretended on the CPU: operations are noted once and done again in the same places of memory.

As on a GPU, what the host decided on the way is not decided anew, and recording changes nothing that was there before.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

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

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        if function.__name__.split(".")[0] in READ:
            raise RuntimeError(f"the host reads a result of work that is only recorded: {function}")
        self._keep(function, given, named or {})
        seen = tree_map_only(Tensor, _as_it_is, (given, named or {}))
        made = function(*given, **(named or {}))
        if not function.is_view and function.__name__.split(".")[0] not in RESHAPED:
            self.noted.append((function, *seen, tree_map_only(Tensor, _as_it_is, made)))
            storages = [part.untyped_storage() for part in tree_leaves(made) if isinstance(part, Tensor)]
            self._own |= {storage.data_ptr(): storage for storage in storages}
        return made

    def _keep(self, function: Any, given: Any, named: Any) -> None:
        """Note how what the operation changes was before."""
        for part in tree_leaves((given, named)):
            if isinstance(part, torch.Generator):
                self._states.setdefault(part, part.get_state())
        for place, argument in enumerate(function._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = given[place] if place < len(given) else named.get(argument.name)
                for part in tree_leaves(written):
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
                for there, anew in zip(tree_leaves(made), tree_leaves(function(*given, **named)), strict=True):
                    if isinstance(there, Tensor) and there.data_ptr() != anew.data_ptr():
                        there.copy_(anew)


def _as_it_is(tensor: Tensor) -> Tensor:
    """The tensor with the shape it has now, which an operation in place may change."""
    return tensor.detach()


def recorder(device: torch.device) -> Callable[[Callable[[], None], Sequence[torch.Generator]], Recorded]:
    """In place of ``cuda_recorder``."""

    def record(work: Callable[[], None], generators: Sequence[torch.Generator]) -> Recorded:
        recorded = Recorded()
        with recorded:
            work()
        recorded.put_back()
        return recorded

    return record
