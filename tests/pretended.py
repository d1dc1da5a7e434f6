"""A GPU that is pretended on the CPU: every tensor knows where it was put, and what a GPU would refuse fails.

The numbers are the CPU's, so that whole runs go through. It shows neither speed nor what a GPU's kernels give, but that
nothing put on the GPU meets what was not, and where the host waits to read from it.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from condensate import Streams, augment, classic
from tests.recorded import leaves, recorder

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
DEVICE_OF, IS_CUDA_OF = torch.Tensor.device.__get__, torch.Tensor.is_cuda.__get__
LIKE = ("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like")
NEW = ("new_tensor", "new_empty", "new_zeros", "new_ones", "new_full")
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")  # by indices on the CPU, too
READ = ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "_unique2", "unique_dim")


class Generator(torch.Generator):
    """Draws on the CPU and says it is a GPU's."""

    device = CUDA


class Gpu:
    """What lies on it, and what the host waited for: names of operations and lines of the package, counted."""

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self._storages: dict[int, Any] = {}  # held, so that no other gets the place in memory of one
        self._pinned: dict[int, Any] = {}
        self._moving_to: bool | None = None
        self._inside = False

    def put(self, tree: Any) -> Any:
        for tensor in leaves(tree, Tensor):
            storage = _innermost(tensor).untyped_storage()
            self._storages[storage._cdata] = storage
        return tree

    def holds(self, tensor: Tensor) -> bool:
        return _innermost(tensor).untyped_storage()._cdata in self._storages

    def pin(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._pinned[storage._cdata] = storage
        return tensor

    def pins(self, tensor: Tensor) -> bool:
        return _innermost(tensor).untyped_storage()._cdata in self._pinned

    def waited(self, what: str) -> None:
        frame: Any = sys._getframe(1)
        while frame and "condensate/" not in frame.f_globals.get("__file__", ""):
            frame = frame.f_back
        self.waits[f"{what} in {frame.f_globals['__name__']}:{frame.f_lineno}" if frame else what] += 1


class _Asked(TorchFunctionMode):
    """What Python asks of PyTorch: to make and to move tensors, and where they are."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        named, name = dict(named or {}), getattr(function, "__name__", "")
        if name == "pin_memory":
            return self.gpu.pin(given[0].clone())
        if named.pop("pin_memory", False):
            return self.gpu.pin(function(*given, **named))
        if function == DEVICE_OF:
            return CUDA if self.gpu.holds(given[0]) else function(*given)
        if function == IS_CUDA_OF:
            return self.gpu.holds(given[0])
        if name in ("to", "cpu", "cuda"):
            return self._moved(name, *given, **named)
        if name in LIKE or name in NEW:
            device = named.pop("device", None)
            there = self.gpu.holds(given[0]) if device is None else _is_cuda(device)
            if there and name == "new_tensor":
                self.gpu.waited("to the GPU")
            made = function(*given, **named, **({} if device is None or there else {"device": device}))
            return self.gpu.put(made) if there else made
        if _is_cuda(named.get("device")):
            if name in ("tensor", "as_tensor"):
                self.gpu.waited("to the GPU")
            return self.gpu.put(function(*given, **named | {"device": CPU}))
        before, waits = self.gpu._inside, self.gpu.waits.copy() if name == "one_hot" else None
        self.gpu._inside = any(self.gpu.holds(tensor) for tensor in leaves((given, named), Tensor))
        try:
            return function(*given, **named)
        finally:
            self.gpu._inside = before
            if waits is not None:  # looks at its values on a CPU alone
                self.gpu.waits = waits

    def _moved(self, name: str, tensor: Tensor, *given: Any, **named: Any) -> Tensor:
        named.pop("copy", None)
        if name != "to":
            device, dtype, at_once, layout = torch.device(name), None, bool(named.get("non_blocking")), None
        elif given and isinstance(given[0], Tensor):
            device, dtype, at_once, layout = given[0].device, given[0].dtype, bool(named.get("non_blocking")), None
        else:
            device, dtype, at_once, layout = torch._C._nn._parse_to(*given, **named)
        before = self.gpu.holds(tensor)
        after = before if device is None else _is_cuda(device)
        if before and not after:
            self.gpu.waited("to the CPU")
        elif after and not before and not (at_once and self.gpu.pins(tensor)):  # else it waits for all asked before
            self.gpu.waited("to the GPU")
        self.gpu._moving_to = after if after != before else None
        try:
            layout = layout or torch.preserve_format
            return torch.Tensor.to(tensor, dtype=dtype or tensor.dtype, copy=after != before, memory_format=layout)
        finally:
            self.gpu._moving_to = None


class _Ran(TorchDispatchMode):
    """What is computed: all of it in one place, and what comes of it lies there."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the wrapper costs as much as the operation

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        named, name, gpu = named or {}, function._opname, self.gpu
        tensors = leaves((given, named), Tensor)
        if any(tensor.is_meta for tensor in tensors):
            with torch._C.DisableTorchFunction():
                return function(*given, **named)
        there = [gpu.holds(tensor) for tensor in tensors]
        if any(there) and name != "copy_":
            strays = [t for t, on in zip(tensors, there, strict=True) if not on and t.ndim]
            if strays and not (name in INDEXED and there[0]):
                said = [f"{'cuda' if on else 'cpu'} {tuple(t.shape)}" for t, on in zip(tensors, there, strict=True)]
                raise RuntimeError(f"{name}: expected all tensors on one device, got {', '.join(said)}")
            if strays:
                gpu.waited("indices to the GPU")
        if any(there) and (name in READ or (name in INDEXED and any(t.dtype == torch.bool for t in tensors[1:]))):
            gpu.waited(name)
        if name == "copy_" and there in ([False, True], [True, False]):
            if there[0] and not (_non_blocking(given, named) and gpu.pins(given[1])):
                gpu.waited("to the GPU")
            if there[1]:
                gpu.waited("to the CPU")
        result = function(*given, **named)
        target = there[0] if name == "copy_" else any(there) or (not tensors and gpu._inside)
        if name == "_to_copy" and gpu._moving_to is not None:
            target = gpu._moving_to
        if target:
            gpu.put(result)
        return result


@contextmanager
def pretended_gpu() -> Iterator[Gpu]:
    """Within, ``cuda`` is a device, with what PyTorch says of one."""
    gpu, drawn = Gpu(), Streams.__call__

    def draw(self: Streams, *names: str | int) -> torch.Generator:
        if self.device.type == "cpu":
            return drawn(self, *names)
        own = Generator()
        own.manual_seed(drawn(self.on_host(), *names).initial_seed())
        return own

    told = {
        "get_device_name": "pretended",
        "get_device_properties": SimpleNamespace(total_memory=2**36),
        "is_bf16_supported": True,
        "max_memory_allocated": 1,
        "reset_peak_memory_stats": None,
        "synchronize": None,
    }
    kept = augment._column, classic._numbers  # constants, of which those of one pretended GPU are not another's
    for constants in kept:
        constants.cache_clear()
    with pytest.MonkeyPatch.context() as patch, _Asked(gpu), _Ran(gpu):
        patch.setattr(Streams, "__call__", draw)
        patch.setattr("condensate.recording.cuda_recorder", recorder)
        for name, value in told.items():
            patch.setattr(torch.cuda, name, lambda *_, value=value, **__: value)
        yield gpu
    for constants in kept:
        constants.cache_clear()


def _innermost(tensor: Tensor) -> Tensor:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def _non_blocking(given: Any, named: Any) -> bool:
    return bool(given[2] if len(given) > 2 else named.get("non_blocking"))


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"
