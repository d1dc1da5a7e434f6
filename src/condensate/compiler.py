"""PyTorch's compiler, which here works out once what it asks many times."""

from collections.abc import Callable
from functools import cache, lru_cache
from importlib import import_module
from inspect import signature
from typing import Any

import torch


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
    """
    try:
        sizes: Any = import_module("torch._inductor.sizevars")
        cpp: Any = import_module("torch._inductor.codegen.cpp")
        functions = import_module("torch.utils._sympy.functions")
        rounding = functions.FloorDiv, functions.ModularIndexing
        simplify, stride = sizes.simplify_index_in_vec_range, sizes.stride_at_vec_range
        work_out_stride = stride.__wrapped__
        as_known = list(signature(simplify).parameters) == ["index", "var", "vec_length"]
    except (ImportError, AttributeError):
        return False
    if not as_known or cpp.stride_at_vec_range is not stride:
        return False

    def simplified(index: Any, var: Any, vec_length: int) -> Any:
        rounded = any(part.has(var) for part in index.atoms(*rounding))
        return simplify(index, var, vec_length) if rounded else index

    sizes.simplify_index_in_vec_range = simplified
    sizes.stride_at_vec_range = cpp.stride_at_vec_range = lru_cache(maxsize=None)(work_out_stride)
    return True
