"""DC augmentation against its definition, written out for one image and one operator."""

import math
import re

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from condensate.classic import OPS, ClassicAugment, Distortion
from condensate.errors import UserError

SHAPES = [(1, 8, 8), (3, 32, 32), (2, 7, 10), (3, 28, 12)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int, shape: tuple[int, int, int], seed: int = 1) -> Tensor:
    return torch.randn(n, *shape, dtype=torch.float64, generator=seeded(seed)) + 0.3


def smooth(n: int, shape: tuple[int, int, int]) -> Tensor:
    """Waves of at least eight pixels."""
    channels, height, width = shape
    rows, columns = torch.arange(height).double()[:, None], torch.arange(width).double()
    phase, slow = torch.rand(2, n, channels, 1, 1, dtype=torch.float64, generator=seeded(2)) * 6
    return torch.sin(2 * math.pi * rows / (8 + slow) + phase) * torch.cos(2 * math.pi * columns / 11 + phase) + 0.5


# The oracle: one image, one operator, loops over pixels.


def oracle_crop(image: np.ndarray, means: np.ndarray, offset: tuple[int, int]) -> np.ndarray:
    """Padded by four pixels with the channel means and cut at the offset, 0 to 8."""
    channels, height, width = image.shape
    padded = np.empty((channels, height + 8, width + 8))
    padded[:] = means[:, None, None]
    padded[:, 4 : 4 + height, 4 : 4 + width] = image
    return padded[:, offset[0] : offset[0] + height, offset[1] : offset[1] + width]


def oracle_scale(image: np.ndarray, high: int, wide: int) -> np.ndarray:
    """The released code's steps: resize, paste in the middle of a black square, cut out the middle."""
    channels, height, width = image.shape
    resized = np.empty((channels, high, wide))
    for i in range(high):
        for j in range(wide):
            resized[:, i, j] = image[:, int(i * height / high), int(j * width / wide)]
    square = max(high, wide, height, width)
    canvas = np.zeros((channels, square, square))
    top, left = int((square - high) / 2), int((square - wide) / 2)
    canvas[:, top : top + high, left : left + wide] = resized
    top, left = int((square - height) / 2), int((square - width) / 2)
    return canvas[:, top : top + height, left : left + width]


def cubic(t: float) -> float:
    """Keys' kernel with a = -3/4."""
    t, a = abs(t), -0.75
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def oracle_rotate(image: np.ndarray, means: np.ndarray, degrees: int) -> np.ndarray:
    """Turned counter-clockwise about the centre; outside, the mean of the channel means."""
    height, width = image.shape[1:]
    out = np.full(image.shape, means.mean())
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    for i in range(height):
        for j in range(width):
            down, right = i - (height - 1) / 2, j - (width - 1) / 2
            y, x = c * down + s * right + (height - 1) / 2, c * right - s * down + (width - 1) / 2
            if not (-1e-9 <= y <= height - 1 + 1e-9 and -1e-9 <= x <= width - 1 + 1e-9):
                continue
            out[:, i, j] = 0
            for k in range(math.floor(y) - 1, math.floor(y) + 3):
                for m in range(math.floor(x) - 1, math.floor(x) + 3):
                    pixel = image[:, min(max(k, 0), height - 1), min(max(m, 0), width - 1)]
                    out[:, i, j] += cubic(y - k) * cubic(x - m) * pixel
    return out


# Each operator against it.


def shown_offset(drawn: Distortion, number: int) -> tuple[int, int]:
    down, right = drawn.shift[number].tolist()
    return down + 4, right + 4


@pytest.mark.parametrize("shape", SHAPES)
def test_crop__is_the_padded_image_cut_at_an_offset(shape):
    images, drawn = pictures(60, shape), ClassicAugment(["crop"]).draw(seeded(), 60, shape)
    means = images.numpy().mean((0, 2, 3))
    for number, image in enumerate(drawn(images)):
        expected = oracle_crop(images[number].numpy(), means, shown_offset(drawn, number))
        np.testing.assert_allclose(image, expected, rtol=0, atol=1e-12)


def test_crop__offsets_reach_both_ends_on_each_axis_and_are_even():
    drawn = ClassicAugment(["crop"]).draw(seeded(), 9000, (1, 32, 32))
    for axis in (0, 1):
        counts = torch.bincount(drawn.shift[:, axis] + 4)
        assert len(counts) == 9
        assert (counts - 1000).abs().max() < 5 * math.sqrt(9000 / 9 * 8 / 9)
    assert torch.corrcoef(drawn.shift.T.double())[0, 1].abs() < 0.05


@pytest.mark.parametrize("shape", SHAPES)
def test_scale__is_the_published_paste_and_cut(shape):
    images, drawn = pictures(60, shape), ClassicAugment(["scale"]).draw(seeded(), 60, shape)
    for number, image in enumerate(drawn(images)):
        expected = oracle_scale(images[number].numpy(), *drawn.sides[number].tolist())
        np.testing.assert_allclose(image, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", [8, 28, 32, 64])
def test_scale__reads_the_pixels_that_torch_reads(side):
    for new in range(int(0.8 * side), int(1.2 * side) + 1):
        by_torch = functional.interpolate(torch.arange(side).float()[None, None], new)[0, 0]
        assert by_torch.tolist() == [k * side // new for k in range(new)]


def test_scale__each_axis_by_its_own_side_and_factor():
    height, width = ClassicAugment(["scale"]).draw(seeded(), 8000, (1, 40, 20)).sides.unbind(1)
    assert (height.min(), height.max(), width.min(), width.max()) == (32, 47, 16, 23)
    assert torch.corrcoef(torch.stack((height, width)).double())[0, 1].abs() < 0.05
    for drawn, least in ((height, 32), (width, 16)):
        counts = torch.bincount(drawn - least).double()
        assert (counts / 8000 - 1 / len(counts)).abs().max() < 0.02


@pytest.mark.parametrize("shape", SHAPES)
def test_rotate__is_bicubic_about_the_centre(shape):
    images, drawn = pictures(8, shape), ClassicAugment(["rotate"]).draw(seeded(), 8, shape)
    means = images.numpy().mean((0, 2, 3))
    for number, image in enumerate(drawn(images)):
        expected = oracle_rotate(images[number].numpy(), means, int(drawn.degrees[number]))
        np.testing.assert_allclose(image, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 24, 40)])
def test_rotate__is_close_to_the_cubic_spline_on_smooth_images(shape):
    images, drawn = smooth(24, shape), ClassicAugment(["rotate"]).draw(seeded(), 24, shape)
    fill = images.mean().item()
    differences = []
    for number, image in enumerate(drawn(images)):
        degrees = int(drawn.degrees[number])
        spline = ndimage.rotate(images[number].numpy(), degrees, axes=(-2, -1), reshape=False, cval=fill)
        differences.append(np.abs(image.numpy() - spline))
    assert np.max(differences) < 0.1  # of values from -0.5 to 1.5
    assert np.mean(differences) < 0.015  # 0.02 if it were bilinear


def test_rotate__integer_degrees_from_45_below_to_44_above():
    degrees = ClassicAugment(["rotate"]).draw(seeded(), 9000, (1, 8, 8)).degrees
    assert degrees.dtype == torch.int64
    assert len(degrees.unique()) == 90
    assert (degrees.min(), degrees.max()) == (-45, 44)
    assert abs(degrees.double().mean() + 0.5) < 5 * 26 / math.sqrt(9000)


def test_noise__is_normal_of_its_deviation_and_new_for_every_value():
    images = pictures(64, (3, 16, 16))
    added = ClassicAugment(["noise"]).unpaired(images, seeded()) - images
    assert abs(added.mean()) < 5 * 0.001 / math.sqrt(added.numel())
    assert added.std().item() == pytest.approx(0.001, rel=0.02)
    assert (added.abs() < 0.001).double().mean().item() == pytest.approx(0.6827, abs=0.01)
    assert len(added.unique()) > 0.99 * added.numel()
    assert (ClassicAugment(["noise"], noise=0.5).unpaired(images, seeded()) - images).std() > 0.4


# What is drawn.


def kinds(drawn: Distortion) -> list[str]:
    """The operator that shows for each image; one of no effect shows as none."""
    height, width = drawn.shape[1:]
    shown = {
        "crop": (drawn.shift != 0).any(1),
        "scale": (drawn.sides != torch.tensor([height, width])).any(1),
        "rotate": drawn.degrees != 0,
        "noise": torch.zeros(1) if drawn.noise is None else drawn.noise.flatten(1).any(1),
    }
    return [
        "+".join(op for op, flags in shown.items() if flags.expand(len(drawn.degrees))[number])
        for number in range(len(drawn.degrees))
    ]


@pytest.mark.parametrize("ops", [OPS, ("crop", "scale", "rotate"), ("noise", "crop"), ("rotate",)])
def test_operators__one_an_image_and_equally_often(ops):
    n = 6000
    shown = kinds(ClassicAugment(ops).draw(seeded(), n, (1, 64, 64)))
    assert set(shown) - {""} == set(ops)
    for op in ops:
        idle = {"crop": 1 / 81, "rotate": 1 / 90, "scale": 0.002, "noise": 0}[op]
        share = (1 - idle) / len(ops)
        assert abs(shown.count(op) - n * share) < 5 * math.sqrt(n * share * (1 - share)) + 1


def test_no_operator__leaves_images_as_they_are():
    images = pictures(5, (3, 8, 8))
    assert torch.equal(ClassicAugment([]).unpaired(images, seeded()), images)


def test_draw__repeats_by_seed_and_leaves_global_generators_alone(random_state):
    before, images = random_state(), pictures(40, (3, 32, 32))
    first, again, other = (ClassicAugment(OPS).unpaired(images, seeded(seed)) for seed in (5, 5, 6))
    assert random_state() == before
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_unpaired__differs_within_a_batch_and_between_batches():
    generator, images = seeded(), pictures(1, (3, 32, 32)).repeat(30, 1, 1, 1)
    first, second = (ClassicAugment().unpaired(images, generator) for _ in range(2))
    assert len(first.flatten(1).unique(dim=0)) > 25
    assert not torch.equal(first, second)


# How it is applied.


@pytest.mark.parametrize("ops", [(op,) for op in OPS] + [OPS])
def test_images__are_not_changed_and_may_be_strided(ops):
    images = pictures(20, (3, 8, 12))
    copy, drawn = images.clone(), ClassicAugment(ops).draw(seeded(), 20, (3, 8, 12))
    got = drawn(images)
    assert torch.equal(images, copy)
    assert got.data_ptr() != images.data_ptr()
    torch.testing.assert_close(drawn(images.to(memory_format=torch.channels_last)), got, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 9), (2, 5, 1), (4, 3, 64)])
def test_images__of_any_sides_and_channels(shape):
    images = torch.ones(50, *shape)
    for op in OPS:
        out = ClassicAugment([op]).unpaired(images, seeded())
        assert out.shape == images.shape
        assert out.dtype == images.dtype
        assert (out.min() >= 0) if op == "scale" else torch.allclose(out, images, atol=0.01)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 25, 47)])
def test_float32__places_pixels_as_float64_does(shape):
    images, drawn = pictures(90, shape), ClassicAugment().draw(seeded(), 90, shape)
    torch.testing.assert_close(drawn(images.float()).double(), drawn(images), rtol=0, atol=5e-5)


# What is refused.


def test_unknown_operator__names_the_known():
    with pytest.raises(UserError, match=re.escape("dc augmentation 'flip'; known: crop, noise, rotate, scale")):
        ClassicAugment(["crop", "flip"])


def test_repeated_operator__is_refused():
    with pytest.raises(UserError, match="each augmentation may be named once"):
        ClassicAugment(["crop", "crop"])


@pytest.mark.parametrize("option", [{"crop": -1}, {"scale": 1.0}, {"rotate": 0}, {"noise": math.inf}])
def test_strength__out_of_range_is_refused(option):
    with pytest.raises(UserError, match=r"dc augmentation needs crop >= 0, .* got"):
        ClassicAugment(**option)


def test_images__that_were_not_drawn_for_are_refused():
    drawn = ClassicAugment().draw(seeded(), 4, (3, 8, 8))
    with pytest.raises(ValueError, match=r"expected images \(4, 3, 8, 8\) as drawn for, got \(4, 3, 8, 9\)"):
        drawn(torch.zeros(4, 3, 8, 9))


@pytest.mark.cuda
def test_cuda__draws_there_and_agrees_with_the_cpu():
    drawn = ClassicAugment(OPS).draw(torch.Generator("cuda").manual_seed(0), 200, (3, 32, 32))
    assert drawn.degrees.is_cuda
    images = pictures(200, (3, 32, 32)).float()
    torch.testing.assert_close(drawn(images.cuda()).cpu(), drawn(images), rtol=0, atol=1e-4)
