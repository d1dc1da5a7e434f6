"""What the compiler works out once."""

import importlib.util
import random
from types import ModuleType
from typing import Any

import pytest
import sympy
import torch
import torch._inductor.sizevars as sizes
from torch._inductor.codegen import cpp
from torch.utils._sympy.functions import FloorDiv, ModularIndexing

from condensate import Compute, compiler
from condensate.compiler import work_out_once

known = pytest.mark.skipif(not str(torch.__version__).startswith("2.13."), reason="of another PyTorch than is known")
LOOKED_UP = sympy.Symbol("tmp0", integer=True)
VARIABLES = sympy.symbols("d0:4", integer=True, nonnegative=True)


def as_shipped() -> ModuleType:
    """The compiler's module anew, of which nothing is replaced."""
    assert sizes.__file__
    spec = importlib.util.spec_from_file_location("torch._inductor.sizes_as_shipped", sizes.__file__)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def indices(count: int) -> list[Any]:
    """Indices of the kinds that programs on tiles, pooling and augmentation have."""
    drawn = random.Random(0)

    def term() -> Any:
        one, other = drawn.sample(VARIABLES, 2)
        by, scale = drawn.choice([2, 4, 8, 16, 32]), drawn.choice([1, 3, 128, 4096])
        return scale * drawn.choice(
            [
                one,
                one,
                FloorDiv(one - drawn.randrange(4), by),
                ModularIndexing(one, 1, by),
                ModularIndexing(one, by, 4),
                FloorDiv(32 * one + other, by),
                ModularIndexing(FloorDiv(one, 2), 1, by),
                FloorDiv(other + ModularIndexing(one, 1, 4), by),
                LOOKED_UP,
                one * LOOKED_UP,
            ]
        )

    def index() -> Any:
        return sum((term() for _ in range(drawn.randrange(1, 5))), sympy.Integer(drawn.randrange(99)))

    return [index() for _ in range(count)]


@known
def test_strides__are_those_of_the_compiler_as_shipped():
    assert work_out_once()
    shipped = as_shipped()
    for index in indices(20):
        for variable in VARIABLES:
            for length in (8, None):
                expected = shipped.stride_at_vec_range(index, variable, length)
                assert sizes.stride_at_vec_range(index, variable, length) == expected, (index, variable, length)


@known
def test_strides__are_worked_out_once(monkeypatch: pytest.MonkeyPatch):
    assert work_out_once()
    assert cpp.stride_at_vec_range is sizes.stride_at_vec_range  # type: ignore[attr-defined]
    asked = [(index, variable, 8) for index in indices(35) for variable in VARIABLES]
    before = [sizes.stride_at_vec_range(*each) for each in asked]
    monkeypatch.setattr(sizes, "stride_at", None)
    assert [sizes.stride_at_vec_range(*each) for each in asked] == before


@pytest.mark.parametrize("missing", ["simplify_index_in_vec_range", "stride_at_vec_range"])
def test_another_compiler__is_left_as_it_is(monkeypatch: pytest.MonkeyPatch, missing: str):
    monkeypatch.delattr(sizes, missing)
    left = dict(vars(sizes))
    assert not work_out_once.__wrapped__()
    assert vars(sizes) == left


def test_a_compiler_that_works_otherwise__is_left_as_it_is(monkeypatch: pytest.MonkeyPatch):
    shipped = as_shipped()
    for module in (sizes, cpp):
        monkeypatch.setattr(module, "stride_at_vec_range", shipped.stride_at_vec_range)
    monkeypatch.setattr(sizes, "simplify_index_in_vec_range", lambda index, var, vec_length: index)
    left = dict(vars(sizes))
    assert not work_out_once.__wrapped__()
    assert vars(sizes) == left


@known
def test_an_index_whose_variable_is_nowhere_rounded__is_not_simplified(monkeypatch: pytest.MonkeyPatch):
    shipped, simplified = as_shipped(), []
    monkeypatch.setattr(shipped.sympy, "simplify", lambda index: simplified.append(index) or index)
    for module in (sizes, cpp):
        monkeypatch.setattr(module, "stride_at_vec_range", shipped.stride_at_vec_range)
    monkeypatch.setattr(sizes, "simplify_index_in_vec_range", shipped.simplify_index_in_vec_range)
    assert work_out_once.__wrapped__()
    one, other, *_ = VARIABLES
    assert sizes.simplify_index_in_vec_range(128 * one + FloorDiv(other, 4), one, 8) == 128 * one + FloorDiv(other, 4)
    assert not simplified
    sizes.simplify_index_in_vec_range(128 * one + FloorDiv(other, 4), other, 8)
    assert simplified


def test_programs__are_compiled_so(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    monkeypatch.setattr(compiler, "work_out_once", lambda: asked.append("once"))
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append("compile") or function)
    Compute(compiled=False).program(abs)
    assert not asked
    Compute(compiled=True).program(abs)
    assert asked == ["once", "compile"]
