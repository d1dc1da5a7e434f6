"""PyTorch's compiler, which here works out once what it asks many times."""

from collections.abc import Callable
from functools import cache, lru_cache
from hashlib import sha256
from importlib import import_module
from inspect import getsource
from typing import Any

import torch

# Of the source of the two functions that are replaced, as PyTorch 2.13 has it; another is left alone.
KNOWN = "758b2c66165568d40b9e44f21e5b1cb5a753f6693f29615b8545888f3d63b462"


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` as a compiled program; call it with few different shapes, for each of them is compiled."""
    work_out_once()
    return torch.compile(function, dynamic=False, fullgraph=True)


@cache
def work_out_once() -> bool:
    """Have the compiler keep what it knows of indices; whether this PyTorch has what is replaced, else nothing is.

    For every read of a CPU program the compiler asks how far it lies from its neighbours in each variable. It keeps 128
    answers where a step on tiles needs thousands, and first has sympy simplify all of the index, which can change
    nothing where the variable is nowhere divided and rounded in it. The answers, and so the programs, are the same.
    All that this process compiles is compiled so.
    """
    try:
        sizes: Any = import_module("torch._inductor.sizevars")
        cpp: Any = import_module("torch._inductor.codegen.cpp")
        functions = import_module("torch.utils._sympy.functions")
        rounding = functions.FloorDiv, functions.ModularIndexing
        simplify, stride = sizes.simplify_index_in_vec_range, sizes.stride_at_vec_range
        work_out_stride = stride.__wrapped__
        source = getsource(simplify) + getsource(stride)
    except (ImportError, AttributeError, OSError, TypeError):
        return False
    if sha256(source.encode()).hexdigest() != KNOWN or cpp.stride_at_vec_range is not stride:
        return False

    def simplified(index: Any, var: Any, vec_length: int) -> Any:
        rounded = any(part.has(var) for part in index.atoms(*rounding))
        return simplify(index, var, vec_length) if rounded else index

    sizes.simplify_index_in_vec_range = simplified
    sizes.stride_at_vec_range = cpp.stride_at_vec_range = lru_cache(maxsize=2**16)(work_out_stride)
    return True
