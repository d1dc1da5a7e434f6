"""What every storage promises, whatever it is; then what each one promises of its own."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from condensate import SyntheticDataset, UserError, from_arrays, load
from condensate.parameterizations import PARAMETERIZATIONS, Cost, LowRank, Parameterization, Pixels, Shape, Uint8
from condensate.parameterizations import capacity as images_per_class

SHAPES: tuple[Shape, ...] = ((1, 8, 8), (3, 32, 32), (3, 6, 10))
N = 6


def variants(name: str, shape: Shape) -> list[dict[str, Any]]:
    """Options to test a storage under; one that is not named here is tested under its defaults."""
    channels, height, width = shape
    mean, std = (0.49, 0.48, 0.45)[:channels], (0.2, 0.19, 0.21)[:channels]
    return {
        "lowrank": [{}, {"rank": 1}, {"rank": 3}, {"rank": min(height, width)}],
        "uint8": [{}, {"mean": mean, "std": std}],
    }.get(name, [{}])


CASES = {
    f"{name}-{shape}-{options}": (storage, shape, options)
    for name, storage in PARAMETERIZATIONS.items()
    for shape in SHAPES
    for options in variants(name, shape)
}
SAVING = {case: it for case, it in CASES.items() if it[0].saves_nothing(it[1], **it[2]) is None}
every_case = pytest.mark.parametrize(("storage", "shape", "options"), CASES.values(), ids=CASES)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(storage: type[Parameterization], shape: Shape, options: dict[str, Any], n: int = N) -> Parameterization:
    stored = storage(n, shape, **options)
    stored.reset_(seeded())
    return stored


def everything(stored: Parameterization) -> Tensor:
    return stored.decode(torch.arange(len(stored)))


def equal(one: Parameterization, other: Parameterization) -> bool:
    a, b = one.stored(), other.stored()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@every_case
def test_decode__gives_images_of_the_shape(storage: type[Parameterization], shape: Shape, options: dict[str, Any]):
    images = filled(storage, shape, options).decode(torch.tensor([3, 0]))
    assert images.shape == (2, *shape)
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    assert len(images.flatten().unique()) > 1


@every_case
def test_decode__one_image_is_that_image_of_all(storage: type[Parameterization], shape: Shape, options: dict[str, Any]):
    stored = filled(storage, shape, options)
    images = everything(stored)
    for i in range(N):
        torch.testing.assert_close(stored.decode(torch.tensor([i])), images[i : i + 1])
    for index in ([5, 4, 3, 2, 1, 0], [2, 2, 0, 2], []):
        torch.testing.assert_close(stored.decode(torch.tensor(index, dtype=torch.int64)), images[index])


@every_case
def test_decode__differentiable_to_every_parameter(
    storage: type[Parameterization], shape: Shape, options: dict[str, Any]
):
    stored = filled(storage, shape, options)
    images = everything(stored)
    if not list(stored.parameters()):
        assert not images.requires_grad
        return
    (images * torch.randn(images.shape, generator=seeded(1))).sum().backward()
    for name, parameter in stored.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).all(), name


@every_case
def test_cost__is_what_is_stored(storage: type[Parameterization], shape: Shape, options: dict[str, Any]):
    for n in (1, N):
        tensors = filled(storage, shape, options, n).stored().values()
        numbers = sum(tensor.numel() for tensor in tensors)
        bits = sum(8 * len(tensor.numpy().tobytes()) for tensor in tensors)
        assert storage.cost(n, shape, **options) == Cost(numbers, bits)


@pytest.mark.parametrize(("storage", "shape", "options"), SAVING.values(), ids=SAVING)
def test_capacity__one_more_image_exceeds_budget(
    storage: type[Parameterization], shape: Shape, options: dict[str, Any]
):
    classes = 3
    for budget in (40_001, 10**6, 10**6 + 7):
        k = images_per_class(storage, 8 * budget, classes, shape, **options)
        held, more = (
            sum(len(tensor.numpy().tobytes()) for tensor in storage(classes * n, shape, **options).stored().values())
            for n in (k, k + 1)
        )
        assert held <= budget < more


@every_case
def test_encode__of_what_was_decoded_changes_no_image(
    storage: type[Parameterization], shape: Shape, options: dict[str, Any]
):
    images = everything(filled(storage, shape, options)).detach()
    other = storage(N, shape, **options)
    other.encode_(images)
    torch.testing.assert_close(everything(other), images, rtol=1e-4, atol=1e-4)


@every_case
def test_encode__refuses_images_of_another_shape(
    storage: type[Parameterization], shape: Shape, options: dict[str, Any]
):
    stored = storage(N, shape, **options)
    for wrong in (torch.zeros(N + 1, *shape), torch.zeros(N, shape[0], shape[1], shape[2] + 1)):
        with pytest.raises(UserError, match=f"expected {N} images of shape"):
            stored.encode_(wrong)


@every_case
def test_restore__is_the_inverse_of_stored(storage: type[Parameterization], shape: Shape, options: dict[str, Any]):
    stored, other = filled(storage, shape, options), storage(N, shape, **options)
    assert not equal(stored, other)
    other.restore_({name: tensor.clone() for name, tensor in stored.stored().items()})
    assert equal(stored, other)
    assert torch.equal(everything(stored), everything(other))


@every_case
def test_restore__refuses_tensors_of_another_shape_or_name(
    storage: type[Parameterization], shape: Shape, options: dict[str, Any]
):
    stored = filled(storage, shape, options)
    with pytest.raises(RuntimeError, match="size mismatch"):
        stored.restore_(filled(storage, shape, options, N + 1).stored())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        stored.restore_(stored.stored() | {"other": torch.zeros(1)})


@every_case
def test_subset__is_these_images_alone(storage: type[Parameterization], shape: Shape, options: dict[str, Any]):
    stored, index = filled(storage, shape, options), torch.tensor([4, 0, 4])
    some = stored.subset(index)
    assert type(some) is storage
    assert (len(some), some.shape, some.options()) == (3, shape, stored.options())
    assert torch.equal(everything(some), everything(stored)[index])
    before = everything(stored).clone()
    some.reset_(seeded(1))
    assert torch.equal(everything(stored), before)  # nothing is shared


class Scaled(Pixels):
    """A storage as a user may write one: what it decodes with is made anew, and it writes half precision."""

    def __init__(self, n: int, shape: Shape) -> None:
        super().__init__(n, shape)
        self.register_buffer("scale", torch.tensor([2.0]), persistent=False)

    def decode(self, index: Tensor) -> Tensor:
        return super().decode(index) * self.scale

    def stored(self) -> dict[str, Tensor]:
        return {name: tensor.half() for name, tensor in super().stored().items()}

    def restore_(self, tensors: dict[str, Tensor]) -> None:
        super().restore_({name: tensor.float() for name, tensor in tensors.items()})


def test_subset__of_a_storage_with_constants_and_a_format_of_its_own():
    stored, index = filled(Scaled, (1, 4, 4), {}), torch.tensor([1, 3])
    some = stored.subset(index)
    assert all(parameter.dtype == torch.float32 for parameter in some.parameters())
    assert torch.equal(everything(some), 2 * stored.pixels[index].half().float())


@every_case
def test_save_and_load__give_the_same_storage(
    storage: type[Parameterization], shape: Shape, options: dict[str, Any], tmp_path: Path
):
    stored = filled(storage, shape, options)
    SyntheticDataset(stored, torch.arange(3).repeat(2)).save(tmp_path / "set.safetensors")
    read = load(tmp_path / "set.safetensors").parameterization
    assert type(read) is storage
    assert (read.n, read.shape) == (N, shape)
    assert equal(stored, read)
    assert torch.equal(everything(stored), everything(read))


@every_case
def test_keyword_only_arguments__are_attributes(storage: type[Parameterization], shape: Shape, options: dict[str, Any]):
    stored = storage(N, shape, **options)
    for parameter in inspect.signature(storage).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert getattr(stored, parameter.name) == options.get(parameter.name, parameter.default)


@every_case
def test_global_random_state__is_untouched(
    storage: type[Parameterization], shape: Shape, options: dict[str, Any], random_state: Callable[[], object]
):
    before = random_state()
    stored = filled(storage, shape, options)
    stored.encode_(everything(stored).detach())
    assert random_state() == before


@every_case
def test_reset__repeats_for_a_seed_only(storage: type[Parameterization], shape: Shape, options: dict[str, Any]):
    first, again, other = (storage(N, shape, **options) for _ in range(3))
    first.reset_(seeded(1))
    again.reset_(seeded(5))
    again.reset_(seeded(1))
    other.reset_(seeded(2))
    assert equal(first, again)
    assert not equal(first, other)


@pytest.mark.parametrize("storage", PARAMETERIZATIONS.values(), ids=PARAMETERIZATIONS)
@pytest.mark.parametrize(("n", "shape"), [(0, (1, 8, 8)), (1, (0, 8, 8)), (1, (1, 8, 0)), (1, (8, 8))], ids=str)
def test_nothing_to_store__is_refused(storage: type[Parameterization], n: int, shape: Shape):
    with pytest.raises(UserError, match=r"at least one image of at least one pixel, \(C, H, W\), got"):
        storage(n, shape)


# Noise.


@pytest.mark.parametrize("rank", [1, 2, 8])
def test_lowrank_reset__published_noise_has_pixels_of_variance_rank(rank: int):
    stored = LowRank(400, (3, 16, 16), rank=rank)
    stored.reset_(seeded())
    images = everything(stored).detach()
    assert float(images.var()) == pytest.approx(rank, rel=0.03)
    assert float(images.mean()) == pytest.approx(0, abs=0.02)
    for factor in (stored.a, stored.b):
        assert float(factor.detach().std()) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("pixel_std", [0.25, 1.0, 3.0])
@pytest.mark.parametrize(
    ("storage", "options"), [(Pixels, {}), (LowRank, {"rank": 1}), (LowRank, {"rank": 8})], ids=str
)
def test_reset__pixel_std_is_honoured(storage: type[Parameterization], options: dict[str, Any], pixel_std: float):
    stored = storage(400, (3, 16, 16), **options)
    stored.reset_(seeded(), pixel_std)
    assert float(everything(stored).detach().std()) == pytest.approx(pixel_std, rel=0.02)


def test_lowrank_reset__pixel_std_is_shared_evenly_by_the_factors():
    stored = LowRank(400, (3, 16, 16), rank=4)
    stored.reset_(seeded(), 0.5)
    assert float(stored.a.detach().std()) == pytest.approx(float(stored.b.detach().std()), rel=0.02)


def test_pixels_reset__published_noise_is_standard_normal():
    stored = Pixels(100, (3, 16, 16))
    stored.reset_(seeded())
    images = everything(stored).detach()
    assert float(images.std()) == pytest.approx(1, rel=0.01)
    assert float(images.mean()) == pytest.approx(0, abs=0.02)
    assert float((images.abs() < 1).float().mean()) == pytest.approx(0.6827, abs=0.01)


def test_uint8_reset__draws_every_byte():
    stored = Uint8(100, (1, 16, 16))
    stored.reset_(seeded())
    counts = stored.values.flatten().bincount(minlength=256)
    assert counts.shape == (256,)
    assert counts.min() > 50  # of 100 expected


# Images that are stored.


def truncated(images: Tensor, rank: int) -> Tensor:
    """The best rank-r fit of each channel (Eckart-Young), one at a time."""
    fits = np.zeros(images.shape)
    for i, image in enumerate(images.double().numpy()):
        for c, channel in enumerate(image):
            u, s, vh = np.linalg.svd(channel)
            fits[i, c] = sum(s[k] * np.outer(u[:, k], vh[k]) for k in range(rank))
    return torch.from_numpy(fits)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lowrank_encode__is_the_best_fit_of_its_rank(shape: Shape):
    images = torch.randn(N, *shape, dtype=torch.float64, generator=seeded())
    for rank in (1, 2, 3, min(shape[1:])):
        best = truncated(images, rank)
        double = LowRank(N, shape, rank=rank).double()
        double.encode_(images)
        torch.testing.assert_close(everything(double), best, rtol=0, atol=1e-9)
        single = LowRank(N, shape, rank=rank)
        single.encode_(images.float())
        # Where two singular values are close, float32 may turn the fit, but it stays as good.
        misses, least = (everything(single) - images).norm(), (best - images).norm()
        torch.testing.assert_close(misses, least, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_lowrank_encode__exact_for_images_of_its_rank(rank: int):
    images = torch.randn(N, 3, 12, rank, generator=seeded()) @ torch.randn(N, 3, rank, 9, generator=seeded(1))
    stored = LowRank(N, (3, 12, 9), rank=rank)
    stored.encode_(images)
    torch.testing.assert_close(everything(stored), images, rtol=0, atol=2e-5)


def test_lowrank_encode__blank_images_stay_blank():
    stored = filled(LowRank, (1, 8, 8), {})
    stored.encode_(torch.zeros(N, 1, 8, 8))
    assert torch.equal(everything(stored), torch.zeros(N, 1, 8, 8))


def test_lowrank_encode__factors_are_of_equal_scale():
    stored = LowRank(N, (3, 12, 9), rank=3)
    stored.encode_(torch.randn(N, 3, 12, 9, generator=seeded()))
    torch.testing.assert_close(stored.a.norm(dim=2), stored.b.norm(dim=3))


def test_lowrank_decode__is_the_product_of_the_factors():
    stored = filled(LowRank, (2, 4, 5), {"rank": 3})
    a, b, images = stored.stored()["a"], stored.stored()["b"], everything(stored).detach()
    for i, c, h, w in np.ndindex(N, 2, 4, 5):
        expected = sum(float(a[i, c, h, k]) * float(b[i, c, k, w]) for k in range(3))
        assert float(images[i, c, h, w]) == pytest.approx(expected, abs=1e-5)


def test_lowrank__nothing_is_shared_between_images_or_channels():
    stored = filled(LowRank, (3, 6, 10), {})
    stored.decode(torch.tensor([2]))[0, 1].sum().backward()
    for factor in (stored.a, stored.b):
        touched = factor.grad.flatten(2).abs().sum(2).nonzero()
        assert touched.tolist() == [[2, 1]]


def test_pixels_encode__is_exact():
    images = torch.randn(N, 3, 6, 10, generator=seeded())
    stored = Pixels(N, (3, 6, 10))
    stored.encode_(images)
    assert torch.equal(everything(stored), images)
    images.zero_()
    assert everything(stored).any()


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (None, None),
        ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ((-2.0, 0.5, 3.0), (0.001, 30.0, 1 / 255)),
    ],
    ids=str,
)
def test_uint8_encode__exact_for_images_of_a_data_set(mean: tuple[float, ...] | None, std: tuple[float, ...] | None):
    raw = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, 16, 16).repeat(2, 1, 1, 1)
    data = from_arrays(raw, torch.tensor([0, 1]), raw, torch.tensor([0, 1]), mean=mean, std=std)
    stored = Uint8(2, (3, 16, 16), mean=data.mean, std=data.std)
    images = data.train.images()
    stored.encode_(images)
    assert torch.equal(stored.values, raw)
    torch.testing.assert_close(everything(stored), images, rtol=1e-5, atol=1e-5)


def test_uint8_encode__takes_the_nearest_byte_in_range():
    stored = Uint8(1, (1, 2, 3), mean=(0.5,), std=(0.25,))
    bytes_ = torch.tensor([[-7.0, 0.4, 0.6], [99.6, 254.6, 400.0]])
    stored.encode_(((bytes_ / 255 - 0.5) / 0.25)[None, None])
    assert stored.values.flatten().tolist() == [0, 0, 1, 100, 255, 255]


def test_uint8__one_normalisation_for_all_channels_or_one_for_each():
    for count in (1, 3):
        assert Uint8(1, (3, 2, 2), mean=(0.5,) * count, std=(0.5,) * count).decode(torch.tensor([0])).eq(-1).all()
    for mean, std in (((0.5,) * 2, (0.5,) * 2), ((0.5,) * 3, (0.5,)), ((0.5,) * 4, (0.5,) * 4)):
        with pytest.raises(UserError, match=f"must have 1 or 3 values, got {len(mean)} and {len(std)}"):
            Uint8(1, (3, 2, 2), mean=mean, std=std)


# Ranks.


def test_rank__not_whole__is_refused():
    with pytest.raises(UserError, match=r"rank must be in \[1, 8\] and a whole number for 8x8 images, got 1.5"):
        LowRank(1, (1, 8, 8), rank=1.5)


@pytest.mark.parametrize(("shape", "rank"), [((1, 8, 8), 0), ((1, 8, 8), -1), ((1, 8, 8), 9), ((3, 6, 10), 7)], ids=str)
def test_rank__outside_the_image_is_refused(shape: Shape, rank: int):
    largest = min(shape[1:])
    message = rf"rank must be in \[1, {largest}\] for {shape[1]}x{shape[2]} images, got {rank}"
    with pytest.raises(UserError, match=message):
        LowRank(1, shape, rank=rank)
    with pytest.raises(UserError, match=message):
        LowRank.cost(1, shape, rank=rank)
    with pytest.raises(UserError, match=message):
        images_per_class(LowRank, 10**9, 1, shape, rank=rank)


def test_rank__that_saves_nothing_is_allowed_by_the_storage():
    stored = LowRank(1, (1, 8, 8), rank=8)
    images = torch.randn(1, 1, 8, 8, generator=seeded())
    stored.encode_(images)
    torch.testing.assert_close(everything(stored), images, rtol=0, atol=1e-5)
