"""Every start fills every storage."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from condensate import ImageData, LowRank, Pixels, Streams, Uint8, coresets, starts
from condensate.parameterizations import PARAMETERIZATIONS, Parameterization
from condensate.starts import STARTS, centres

EACH = 4
FROM_REAL = [name for name in STARTS if name not in ("noise", "k-means")]


def embed_of(toy: ImageData) -> Callable[[], Callable[[Tensor], Tensor]]:
    """Features that need no network: the pixels."""
    return lambda: lambda index: toy.train.images(index).flatten(1)


def never() -> Callable[[Tensor], Tensor]:
    raise AssertionError("features were asked for")


def started(name: str, stored: Parameterization, toy: ImageData, seed: int = 0, **options: Any) -> Tensor:
    STARTS[name](stored, toy.train, embed_of(toy), Streams(seed), **options)
    return stored.decode(torch.arange(len(stored))).detach()


def chosen(name: str, toy: ImageData) -> Tensor:
    features = embed_of(toy)()
    if name == "real":
        return coresets.random(toy.train, EACH, Streams(0))
    return {"herding": coresets.herding, "k-centre": coresets.k_centre}[name](toy.train, EACH, features)


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("storage", PARAMETERIZATIONS.values(), ids=PARAMETERIZATIONS)
def test_start__fills_every_storage(
    name: str, storage: type[Parameterization], toy_data: ImageData, random_state: Callable[[], object]
):
    before = random_state()
    stored = storage(3 * EACH, toy_data.shape)
    images = started(name, stored, toy_data)
    assert images.isfinite().all()
    assert len(images.unique(dim=0)) == 3 * EACH
    assert all(len(image.unique()) > 1 for image in images)
    assert torch.equal(started(name, storage(3 * EACH, toy_data.shape), toy_data), images)
    assert random_state() == before


@pytest.mark.parametrize("name", ["noise", "real", "k-means"])
def test_random_start__differs_between_seeds_and_needs_no_features(name: str, toy_data: ImageData):
    stored = Pixels(3 * EACH, toy_data.shape)
    STARTS[name](stored, toy_data.train, never, Streams(0))
    other = started(name, Pixels(3 * EACH, toy_data.shape), toy_data, seed=1)
    assert not torch.equal(stored.pixels, other)


@pytest.mark.parametrize("name", FROM_REAL)
def test_start_from_real__pixels_are_the_chosen_images_class_after_class(name: str, toy_data: ImageData):
    images = started(name, Pixels(3 * EACH, toy_data.shape), toy_data)
    index = chosen(name, toy_data)
    assert toy_data.train.labels[index].tolist() == [0] * EACH + [1] * EACH + [2] * EACH
    assert torch.equal(images, toy_data.train.images(index))


@pytest.mark.parametrize("name", FROM_REAL)
def test_start_from_real__bytes_are_those_of_the_chosen_images(name: str, toy_data: ImageData):
    stored = Uint8(3 * EACH, toy_data.shape, mean=toy_data.mean, std=toy_data.std)
    started(name, stored, toy_data)
    assert torch.equal(stored.values, toy_data.train.raw[chosen(name, toy_data)])


@pytest.mark.parametrize("name", FROM_REAL)
def test_start_from_real__factors_miss_what_the_largest_singular_values_leave(name: str, toy_data: ImageData):
    images = started(name, LowRank(3 * EACH, toy_data.shape, rank=2), toy_data)
    real = toy_data.train.images(chosen(name, toy_data))
    for image, fit in zip(real.double().flatten(0, 1).numpy(), images.double().flatten(0, 1).numpy(), strict=True):
        left_out = np.linalg.svd(image, compute_uv=False)[2:]
        assert np.linalg.norm(image - fit) == pytest.approx(np.linalg.norm(left_out), rel=1e-4)


def test_noise__has_the_pixel_std_asked_for(toy_data: ImageData):
    for storage in (Pixels, LowRank):
        images = started("noise", storage(300, toy_data.shape), toy_data, pixel_std=0.5)
        assert float(images.std()) == pytest.approx(0.5, rel=0.05)


def test_noise__published_is_that_of_the_storage(toy_data: ImageData):
    assert float(started("noise", Pixels(300, toy_data.shape), toy_data).var()) == pytest.approx(1, rel=0.05)
    lowrank = LowRank(300, toy_data.shape, rank=3)
    assert float(started("noise", lowrank, toy_data).var()) == pytest.approx(3, rel=0.05)


def test_k_means__centres_are_means_of_the_points_closest_to_them():
    blobs = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = blobs.repeat_interleave(30, 0) + torch.randn(90, 2, generator=Streams(3)("points"))
    found = centres(points, 5, Streams(0)("k-means"))
    closest = torch.stack([(points - centre).square().sum(1) for centre in found]).argmin(0)
    for number, centre in enumerate(found):
        torch.testing.assert_close(centre, points[closest == number].mean(0))


def test_k_means__each_class_by_itself_and_as_many_clusters_as_points__the_points(toy_data: ImageData):
    images = started("k-means", Pixels(3 * 20, toy_data.shape), toy_data).flatten(1)
    for label in range(3):
        own = toy_data.train.images((toy_data.train.labels == label).nonzero().flatten()).flatten(1)
        torch.testing.assert_close(images[20 * label : 20 * label + 20].sum(0), own.sum(0), rtol=1e-4, atol=1e-4)
        assert float(torch.cdist(images[20 * label : 20 * label + 20], own).min(1).values.max()) < 1e-3


def test_k_means__one_image_a_class__the_class_mean(toy_data: ImageData):
    images = started("k-means", Pixels(3, toy_data.shape), toy_data)
    for label, image in enumerate(images):
        own = toy_data.train.images((toy_data.train.labels == label).nonzero().flatten())
        torch.testing.assert_close(image, own.mean(0))


def test_k_means__more_pixels_than_are_clustered__random_images_of_the_class(
    toy_data: ImageData, monkeypatch: pytest.MonkeyPatch
):
    """Of as many clusters as points the centres are the points: those that were drawn."""
    monkeypatch.setattr(starts, "CLUSTERED_BYTES", 7 * 4 * math.prod(toy_data.shape))
    images = started("k-means", Pixels(3 * 7, toy_data.shape), toy_data).flatten(1)
    for label, own in enumerate(images.split(7)):
        drawn = toy_data.train.images(toy_data.train.sample(label, 7, Streams(0)("k-means", label))).flatten(1)
        assert len(drawn) < toy_data.train.counts()[label]
        assert torch.cdist(drawn, own).min(1).values.max() < 1e-5


def test_k_means__smaller_class_than_asked_for__its_images_again(toy_data: ImageData):
    images = started("k-means", Pixels(3 * 30, toy_data.shape), toy_data)
    assert torch.equal(images[20:30], images[:10])


def test_k_means__a_centre_that_no_point_is_closest_to__stays():
    points = torch.tensor([[1.0], [1.0], [1.0], [5.0]])
    found = centres(points, 3, Streams(0)("k-means"))
    assert found.isfinite().all()
    assert set(found.flatten().tolist()) <= {1.0, 5.0}
