"""Augmentation against its definition, written out pixel by pixel."""

import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from condensate.augment import OPS, Augment, Transform, transform
from condensate.classic import ClassicAugment
from condensate.errors import UserError

SIZES = [(8, 8), (7, 10), (12, 6)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int, channels: int, size: tuple[int, int], dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(n, channels, *size, dtype=dtype, generator=seeded(seed))


def identity(n: int) -> tuple[Tensor, Tensor, Tensor]:
    theta = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).repeat(n, 1, 1)
    return theta, torch.tensor([0.0, 1.0, 1.0]).repeat(n, 1), torch.zeros(n, 4, dtype=torch.int64)


def kinds(drawn: Transform) -> list[set[str]]:
    """The operators that show in each set's parameters; a flip, crop or the like of no effect shows none."""
    found = []
    for theta, color, box in zip(drawn.theta.tolist(), drawn.color.tolist(), drawn.box.tolist()):
        (xx, xy, dx), (yx, yy, dy) = theta
        flags = {
            "color": color != [0.0, 1.0, 1.0],
            "crop": (dx, dy) != (0.0, 0.0),
            "cutout": box != [0, 0, 0, 0],
            "flip": xx == -1.0,
            "scale": xx != -1.0 and xy == yx == 0.0 and (xx, yy) != (1.0, 1.0),
            "rotate": (xy, yx) != (0.0, 0.0),
        }
        found.append({op for op, shown in flags.items() if shown})
    return found


# The oracle: one image, one operator, loops over pixels.


def bilinear(plane: np.ndarray, y: float, x: float) -> float:
    """The value between the four pixels around (y, x); pixels beyond the border count as zero."""
    total = 0.0
    for i in (math.floor(y), math.floor(y) + 1):
        for j in (math.floor(x), math.floor(x) + 1):
            if 0 <= i < plane.shape[0] and 0 <= j < plane.shape[1]:
                total += plane[i, j] * (1 - abs(y - i)) * (1 - abs(x - j))
    return total


def oracle_color(image: np.ndarray, brightness: float, saturation: float, contrast: float) -> np.ndarray:
    image = image + brightness
    out = np.zeros_like(image)
    for i in range(image.shape[1]):
        for j in range(image.shape[2]):
            gray = sum(image[k, i, j] for k in range(len(image))) / len(image)
            for k in range(len(image)):
                out[k, i, j] = (image[k, i, j] - gray) * saturation + gray
    mean = out.sum() / out.size
    return (out - mean) * contrast + mean


def oracle_crop(image: np.ndarray, down: int, right: int) -> np.ndarray:
    out = np.zeros_like(image)
    _, height, width = image.shape
    for i in range(height):
        for j in range(width):
            if 0 <= i + down < height and 0 <= j + right < width:
                out[:, i, j] = image[:, i + down, j + right]
    return out


def oracle_cutout(image: np.ndarray, rows: set[int], columns: set[int]) -> np.ndarray:
    out = image.copy()
    for i in rows:
        for j in columns:
            out[:, i, j] = 0.0
    return out


def oracle_flip(image: np.ndarray) -> np.ndarray:
    out = np.zeros_like(image)
    for j in range(image.shape[2]):
        out[:, :, j] = image[:, :, image.shape[2] - 1 - j]
    return out


def oracle_affine(image: np.ndarray, matrix: list[list[float]]) -> np.ndarray:
    """Reads each pixel at matrix @ (x, y), counted in pixels from the centre."""
    out = np.zeros_like(image)
    channels, height, width = image.shape
    for i in range(height):
        for j in range(width):
            x, y = j - (width - 1) / 2, i - (height - 1) / 2
            at_x = matrix[0][0] * x + matrix[0][1] * y + (width - 1) / 2
            at_y = matrix[1][0] * x + matrix[1][1] * y + (height - 1) / 2
            for k in range(channels):
                out[k, i, j] = bilinear(image[k], at_y, at_x)
    return out


def oracle(op: str, image: np.ndarray, theta: list[list[float]], color: list[float], box: list[int]) -> np.ndarray:
    """What the operator should give, its strength read from what was drawn."""
    if op == "color":
        return oracle_color(image, *color)
    if op == "crop":
        return oracle_crop(image, int(theta[1][2]), int(theta[0][2]))
    if op == "cutout":
        return oracle_cutout(image, set(range(box[0], box[1])), set(range(box[2], box[3])))
    if op == "flip":
        return oracle_flip(image) if theta[0][0] < 0 else image
    if op == "scale":
        return oracle_affine(image, [[theta[0][0], 0.0], [0.0, theta[1][1]]])
    angle = math.atan2(theta[1][0], theta[0][0])
    return oracle_affine(image, [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_operator__matches_its_definition(op: str, size: tuple[int, int], channels: int) -> None:
    images = pictures(4, channels, size)
    drawn = Augment((op,), crop=0.3).draw(seeded(3), 4, size)
    assert all(shown <= {op} for shown in kinds(drawn))
    assert any(shown == {op} for shown in kinds(drawn))
    theta, color, box = (part.tolist() for part in drawn.parameters())
    want = np.stack([oracle(op, images[i].numpy(), theta[i], color[i], box[i]) for i in range(4)])
    # A rotation's angle is read back from float32 cosines.
    np.testing.assert_allclose(drawn(images).numpy(), want, rtol=0, atol=2e-6 if op == "rotate" else 1e-12)


def test_rotate_and_scale__on_a_square_are_the_published_affine_grid() -> None:
    images = pictures(5, 3, (9, 9))
    for op in ("rotate", "scale"):
        drawn = Augment((op,)).draw(seeded(), 5, (9, 9))
        grid = functional.affine_grid(drawn.theta.double(), [5, 3, 9, 9], align_corners=False)
        want = functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
        torch.testing.assert_close(drawn(images), want, rtol=0, atol=1e-12)


def test_rotate__on_a_wide_image_keeps_lengths() -> None:
    theta, color, box = identity(1)
    theta[0, :, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    image, want = torch.zeros(1, 1, 5, 11), torch.zeros(1, 1, 5, 11)
    image[0, 0, 2, 5 + 2] = 1.0
    want[0, 0, 2 - 2, 5] = 1.0
    torch.testing.assert_close(transform(image, theta, color, box), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32), (20, 48), (64, 64), (96, 96), (128, 128)], ids=str)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
def test_identity_and_shift__true_to_rounding(size: tuple[int, int], dtype: torch.dtype, atol: float) -> None:
    images = torch.rand(2, 3, *size, dtype=dtype, generator=seeded())
    theta, color, box = identity(2)
    theta[1, :, 2] = torch.tensor([3.0, -2.0])
    got = transform(images, theta, color, box)
    want = torch.stack((images[0], torch.zeros_like(images[1])))
    want[1, :, 2:, :-3] = images[1, :, :-2, 3:]
    torch.testing.assert_close(got, want, rtol=0, atol=0 if all(side & (side - 1) == 0 for side in size) else atol)


def test_operators__as_one_text__are_refused() -> None:
    with pytest.raises(UserError, match=r"must be a list of names, got 'crop'; name one as \('crop',\)"):
        Augment("crop")


def test_no_operators__returns_the_images_themselves() -> None:
    images = pictures(3, 1, (8, 8))
    assert Augment(()).draw(seeded(), 3, (8, 8))(images) is images
    parameters = Augment(()).draw(seeded(), 3, (8, 8)).parameters()
    torch.testing.assert_close(transform(images, *parameters), images, rtol=0, atol=1e-12)


# What is drawn.


@pytest.mark.parametrize(("size", "reach"), [((28, 28), (4, 4)), ((32, 64), (4, 8)), ((12, 3), (2, 0))], ids=str)
def test_crop__draws_every_whole_shift_within_reach(size: tuple[int, int], reach: tuple[int, int]) -> None:
    shifts = Augment(("crop",)).draw(seeded(), 3000, size).theta[:, :, 2]
    assert set(shifts[:, 1].tolist()) == set(range(-reach[0], reach[0] + 1))
    assert set(shifts[:, 0].tolist()) == set(range(-reach[1], reach[1] + 1))


@pytest.mark.parametrize("size", [(8, 8), (10, 7), (32, 28), (5, 1)], ids=str)
def test_cutout__draws_exactly_the_clamped_squares(size: tuple[int, int]) -> None:
    drawn = Augment(("cutout",)).draw(seeded(), 3000, size)
    for axis, side in enumerate(size):
        hole = math.floor(0.5 * side + 0.5)
        centres = range(side + 1) if hole % 2 == 0 else range(side)
        want = set()
        for centre in centres:
            indices = [min(max(centre - hole // 2 + k, 0), side - 1) for k in range(hole)]
            want.add((min(indices), max(indices) + 1))
        assert set(map(tuple, drawn.box[:, 2 * axis : 2 * axis + 2].tolist())) == want


def test_cutout__of_no_pixel_changes_nothing() -> None:
    images = pictures(200, 1, (8, 8))
    torch.testing.assert_close(Augment(("cutout",), cutout=0.0).draw(seeded(), 200, (8, 8))(images), images)


@pytest.mark.parametrize(("probability", "low", "high"), [(0.0, 0, 0), (0.5, 900, 1100), (1.0, 2000, 2000)])
def test_flip__happens_with_its_probability(probability: float, low: int, high: int) -> None:
    drawn = Augment(("flip",), flip=probability).draw(seeded(), 2000, (8, 8))
    assert low <= (drawn.theta[:, 0, 0] == -1).sum() <= high


def assert_spans(values: Tensor, low: float, high: float) -> None:
    """Within [low, high], uniform by its mean and its ends."""
    assert low - 1e-6 <= values.min() < low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) < values.max() <= high + 1e-6
    assert abs(values.double().mean() - (low + high) / 2) < 0.03 * (high - low)


def test_strengths__are_uniform_over_their_ranges() -> None:
    def draw(op: str) -> Transform:
        return Augment((op,)).draw(seeded(), 4000, (32, 32))

    theta = draw("rotate").theta
    assert_spans(torch.atan2(theta[:, 1, 0], theta[:, 0, 0]), -math.radians(15), math.radians(15))
    torch.testing.assert_close(theta[:, 0, :2], torch.stack((theta[:, 1, 1], -theta[:, 1, 0]), 1))
    theta = draw("scale").theta
    for factor in (theta[:, 0, 0], theta[:, 1, 1]):
        assert_spans(factor, 1 / 1.2, 1.2)
    assert torch.corrcoef(torch.stack((theta[:, 0, 0], theta[:, 1, 1])))[0, 1].abs() < 0.1
    brightness, saturation, contrast = draw("color").color.unbind(1)
    assert_spans(brightness, -0.5, 0.5)
    assert_spans(saturation, 0.0, 2.0)
    assert_spans(contrast, 0.5, 1.5)


def test_operators__one_a_set_and_equally_often() -> None:
    shown = kinds(Augment(flip=1.0).draw(seeded(), 6000, (128, 128)))
    assert all(len(ops) <= 1 for ops in shown)
    assert sum(not ops for ops in shown) < 20  # a crop by (0, 0)
    for op in OPS:
        assert abs(shown.count({op}) - 1000) < 5 * math.sqrt(6000 / 6 * 5 / 6)


def test_operators__only_named_ones_are_drawn() -> None:
    shown = kinds(Augment(("rotate", "color")).draw(seeded(), 500, (16, 16)))
    assert {op for ops in shown for op in ops} == {"rotate", "color"}
    assert all(len(ops) == 1 for ops in shown)


def test_shared_op__one_for_all_sets_with_a_strength_each() -> None:
    seen = set()
    for seed in range(60):
        drawn = Augment().draw(seeded(seed), 50, (32, 32), shared_op=True)
        (op,) = set().union(*kinds(drawn))
        seen.add(op)
        parameters = torch.cat([part.flatten(1).double() for part in drawn.parameters()], 1)
        assert len(parameters.unique(dim=0)) > (1 if op == "flip" else 10)
    assert seen == set(OPS)


def test_draw__repeats_by_seed_and_leaves_global_generators_alone() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    first, again, other = (Augment().draw(seeded(seed), 40, (32, 32)) for seed in (5, 5, 6))
    first(pictures(40, 3, (32, 32)))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])
    for a, b in zip(first.parameters(), again.parameters()):
        assert torch.equal(a, b)
    assert not torch.equal(first.theta, other.theta)


def test_draw__takes_as_much_from_the_generator_whatever_the_operators() -> None:
    states = []
    for ops in (OPS, ("flip",), ("color", "cutout"), ()):
        generator = seeded()
        Augment(ops).draw(generator, 7, (32, 32))
        states.append(generator.get_state())
    assert all(torch.equal(state, states[0]) for state in states)


# How it is applied.


def test_siamese__a_class_changes_alike_in_any_batch() -> None:
    drawn = Augment().draw(seeded(), 12, (16, 16))
    picture = pictures(1, 3, (16, 16))
    real_labels = torch.arange(12).repeat_interleave(5)
    real = drawn(picture.expand(60, -1, -1, -1), real_labels)
    synthetic_labels = torch.tensor([11, 3, 0, 7, 3])
    synthetic = drawn(picture.expand(5, -1, -1, -1), synthetic_labels)
    for image, label in zip(synthetic, synthetic_labels):
        for other in real[real_labels == label]:
            assert torch.equal(image, other)
    assert len(real.flatten(1).unique(dim=0)) > 6


def test_which__none_means_set_i_for_image_i() -> None:
    drawn = Augment().draw(seeded(), 9, (8, 8))
    images = pictures(9, 1, (8, 8))
    assert torch.equal(drawn(images), drawn(images, torch.arange(9)))


def test_images__are_not_changed_and_may_be_strided() -> None:
    drawn = Augment().draw(seeded(), 20, (8, 12))
    images = pictures(20, 3, (8, 12))
    copy = images.clone()
    got = drawn(images)
    assert torch.equal(images, copy)
    torch.testing.assert_close(drawn(images.to(memory_format=torch.channels_last)), got, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtype__is_kept_and_narrow_ones_place_pixels_exactly(dtype: torch.dtype) -> None:
    images = pictures(30, 3, (32, 32), dtype)
    drawn = Augment().draw(seeded(), 30, (32, 32))
    got = drawn(images)
    assert got.dtype == dtype
    torch.testing.assert_close(got, drawn(images.double()).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-4)


def test_gradient__reaches_the_images_through_every_operator() -> None:
    drawn = Augment(flip=1.0, crop=0.3).draw(seeded(), 16, (4, 5))
    assert set().union(*kinds(drawn)) == set(OPS)
    images = pictures(16, 2, (4, 5)).requires_grad_()
    assert torch.autograd.gradcheck(drawn, (images,))


# What is refused.


def test_unknown_operator__names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown augmentation 'colour'; did you mean 'color'"):
        Augment(("flip", "colour"))


def test_repeated_operator__is_refused() -> None:
    with pytest.raises(UserError, match="each augmentation may be named once"):
        Augment(("flip", "crop", "flip"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"flip": 1.5}, r"flip must be in \[0, 1\], got 1.5"),
        ({"crop": -0.1}, r"crop must be in \[0, 1\], got -0.1"),
        ({"cutout": 2}, r"cutout must be in \[0, 1\], got 2"),
        ({"scale": 0.5}, r"scale must be at least 1, got 0.5"),
    ],
)
def test_strength__out_of_range_is_refused(option: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Augment(**option)


def test_images__that_were_not_drawn_for_are_refused() -> None:
    drawn = Augment().draw(seeded(), 4, (8, 8))
    with pytest.raises(ValueError, match=r"expected images \(4, C, 8, 8\) as drawn for, got \(4, 3, 8, 9\)"):
        drawn(torch.zeros(4, 3, 8, 9))
    with pytest.raises(ValueError, match=r"got \(5, 3, 8, 8\)"):
        drawn(torch.zeros(5, 3, 8, 8))


@pytest.mark.parametrize("shared_op", [False, True])
def test_draw_each__what_every_generator_draws_alone_one_after_another(shared_op: bool) -> None:
    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (3, 1, 2)]

    augment, apart, together = Augment(), generators(), generators()
    wanted = [augment.draw(own, 5, (8, 12), shared_op=shared_op) for own in apart]
    found = augment.draw_each(together, 5, (8, 12), shared_op=shared_op)
    for part, parts in zip(found.parameters(), zip(*(one.parameters() for one in wanted), strict=True), strict=True):
        assert torch.equal(part, torch.cat(parts))
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(apart, together, strict=True))


@pytest.mark.parametrize("augment", [Augment(), ClassicAugment(("crop", "scale", "rotate", "noise"))], ids=str)
def test_unpaired__of_several_generators__each_its_own_batch(augment: Augment | ClassicAugment) -> None:
    images = torch.rand(12, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    together = augment.unpaired(images, *(torch.Generator().manual_seed(seed) for seed in (5, 6, 7)))
    for part, seen, seed in zip(images.split(4), together.split(4), (5, 6, 7), strict=True):
        torch.testing.assert_close(seen, augment.unpaired(part, torch.Generator().manual_seed(seed)))


@pytest.mark.cuda
def test_cuda__draws_there_and_agrees_with_the_cpu() -> None:
    drawn = Augment().draw(torch.Generator("cuda").manual_seed(0), 60, (32, 32))
    assert all(part.is_cuda for part in drawn.parameters())
    images = pictures(60, 3, (32, 32), torch.float32)
    torch.testing.assert_close(drawn(images.cuda()).cpu(), drawn(images), rtol=0, atol=1e-4)
