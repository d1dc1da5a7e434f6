"""How many images a budget holds."""

import re
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from condensate import UserError
from condensate.parameterizations import (
    PARAMETERIZATIONS,
    LowRank,
    Parameterization,
    Pixels,
    Shape,
    Uint8,
    capacity,
    pixel_bits,
)

SIDES = st.integers(1, 64)
SHAPES = st.tuples(st.integers(1, 4), SIDES, SIDES)


@st.composite
def storages(draw: st.DrawFn) -> tuple[type[Parameterization], Shape, dict[str, Any]]:
    """Any storage that saves something over pixels, or is pixels."""
    name, shape = draw(st.sampled_from(list(PARAMETERIZATIONS))), draw(SHAPES)
    options = {}
    if name == "lowrank":
        useful = [r for r in range(1, min(shape[1:]) + 1) if r * (shape[1] + shape[2]) < shape[1] * shape[2]]
        assume(useful)
        options["rank"] = draw(st.sampled_from(useful))
    return PARAMETERIZATIONS[name], shape, options


@given(storages(), st.integers(1, 10**9), st.integers(1, 300))
def test_capacity__never_over_budget_and_tight(
    case: tuple[type[Parameterization], Shape, dict[str, Any]], budget: int, classes: int
):
    storage, shape, options = case
    assume(storage.cost(classes, shape, **options).bits <= budget)
    k = capacity(storage, budget, classes, shape, **options)
    assert k >= 1
    assert storage.cost(classes * k, shape, **options).bits <= budget
    assert storage.cost(classes * (k + 1), shape, **options).bits > budget


@given(storages(), st.integers(1, 50), st.integers(0, 10**5), st.integers(1, 20))
def test_capacity__does_not_fall_as_the_budget_grows(
    case: tuple[type[Parameterization], Shape, dict[str, Any]], ipc: int, more: int, classes: int
):
    storage, shape, options = case
    budget = classes * pixel_bits(ipc, shape)
    assert capacity(storage, budget, classes, shape, **options) <= capacity(
        storage, budget + more, classes, shape, **options
    )


@given(storages(), st.integers(1, 200), st.integers(1, 200))
def test_capacity__by_ipc_is_at_least_ipc_and_the_same_for_any_number_of_classes(
    case: tuple[type[Parameterization], Shape, dict[str, Any]], ipc: int, classes: int
):
    storage, shape, options = case
    one = capacity(storage, pixel_bits(ipc, shape), 1, shape, **options)
    assert one >= ipc
    assert capacity(storage, classes * pixel_bits(ipc, shape), classes, shape, **options) == one


@given(SHAPES, st.integers(1, 200), st.data())
def test_capacity__of_lowrank_is_the_published_formula(shape: Shape, ipc: int, data: st.DataObject):
    _, height, width = shape
    rank = data.draw(st.integers(1, min(height, width)))
    assume(rank * (height + width) < height * width)
    expected = ipc * height * width // (rank * (height + width))
    assert capacity(LowRank, pixel_bits(ipc, shape), 1, shape, rank=rank) == expected


@given(SHAPES, st.integers(1, 500), st.integers(1, 100))
def test_capacity__of_pixels_is_ipc_and_of_bytes_four_times_that(shape: Shape, ipc: int, classes: int):
    budget = classes * pixel_bits(ipc, shape)
    assert capacity(Pixels, budget, classes, shape) == ipc
    assert capacity(Uint8, budget, classes, shape) == 4 * ipc


@pytest.mark.parametrize(
    ("shape", "rank", "expected"),
    [
        ((1, 28, 28), 8, {10: 17, 50: 87}),
        ((1, 28, 28), 2, {1: 7, 10: 70}),
        ((3, 32, 32), 2, {1: 8, 10: 80, 50: 400}),
        ((3, 32, 32), 4, {50: 200}),
        ((3, 32, 32), 8, {10: 20}),
        ((3, 64, 64), 4, {1: 8, 10: 80}),
        ((1, 8, 8), 1, {1: 4}),
        ((1, 8, 8), 2, {1: 2}),
    ],
    ids=str,
)
def test_capacity__of_published_settings(shape: Shape, rank: int, expected: dict[int, int]):
    found = {ipc: capacity(LowRank, 10 * pixel_bits(ipc, shape), 10, shape, rank=rank) for ipc in expected}
    assert found == expected


def test_capacity__of_a_byte_budget_is_of_the_whole_set():
    # 8x8 gray images of rank 1 take 64 bytes; five of each of three classes take 960.
    assert capacity(LowRank, 8 * 960, 3, (1, 8, 8), rank=1) == 5
    assert capacity(LowRank, 8 * 960 - 1, 3, (1, 8, 8), rank=1) == 4


@pytest.mark.parametrize(
    ("shape", "rank", "remedy"),
    [
        ((1, 8, 8), 4, "the largest rank that helps is 3"),
        ((1, 8, 8), 8, "the largest rank that helps is 3"),
        ((3, 32, 32), 16, "the largest rank that helps is 15"),
        ((1, 28, 28), 14, "the largest rank that helps is 13"),
        ((3, 6, 10), 4, "the largest rank that helps is 3"),
        ((1, 1, 9), 1, "no rank helps: use pixels"),
        ((1, 2, 2), 1, "no rank helps: use pixels"),
    ],
    ids=str,
)
def test_capacity__rank_that_saves_nothing_names_the_largest_that_helps(shape: Shape, rank: int, remedy: str):
    _, height, width = shape
    message = f"rank {rank} saves nothing over pixels for {height}x{width} images; {remedy}"
    with pytest.raises(UserError, match=f"^{message}$"):
        capacity(LowRank, 10**12, 1, shape, rank=rank)


@given(st.tuples(st.just(1), SIDES, SIDES))
def test_capacity__the_rank_it_names_is_the_largest_that_helps(shape: Shape):
    _, height, width = shape
    with pytest.raises(UserError) as caught:
        capacity(LowRank, 10**12, 1, shape, rank=min(height, width))
    largest = max((r for r in range(min(height, width)) if r * (height + width) < height * width), default=0)
    said = re.search(r"largest rank that helps is (\d+)", str(caught.value))
    assert (int(said[1]) if said else 0) == largest


@given(storages(), st.integers(1, 300), st.data())
def test_capacity__under_one_image_says_what_would_do(
    case: tuple[type[Parameterization], Shape, dict[str, Any]], classes: int, data: st.DataObject
):
    storage, shape, options = case
    budget = data.draw(st.integers(0, storage.cost(classes, shape, **options).bits - 1))
    with pytest.raises(UserError, match=f"less than one image of each of {classes} classes") as caught:
        capacity(storage, budget, classes, shape, **options)
    need = int(re.search(r"set --budget\.bytes (\d+)$", str(caught.value))[1])
    assert f"{need:,} bytes would" in str(caught.value)
    assert capacity(storage, 8 * need, classes, shape, **options) == 1
    with pytest.raises(UserError, match="less than one image"):
        capacity(storage, 8 * (need - 1), classes, shape, **options)


@given(storages(), st.integers(1, 500), st.integers(1, 500))
def test_cost__adds_up(case: tuple[type[Parameterization], Shape, dict[str, Any]], n: int, more: int):
    storage, shape, options = case
    one, two, both = (storage.cost(k, shape, **options) for k in (n, more, n + more))
    assert both.numbers == one.numbers + two.numbers
    assert both.bits == one.bits + two.bits


def test_pixel_bits__are_of_float32_images():
    assert pixel_bits(1, (1, 28, 28)) == 1 * 28 * 28 * 32
    assert pixel_bits(50, (3, 32, 32)) == 50 * 3 * 32 * 32 * 32


def test_capacity__no_class__refused():
    with pytest.raises(UserError, match="at least one class, got 0"):
        capacity(Pixels, 10**6, 0, (1, 8, 8))
