"""Chosen real images, against brute force over the definitions."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from condensate import ImageData, Streams, build_network, coresets
from condensate.data import Split

PER_CLASS = 5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def split(labels: list[int]) -> Split:
    """Images that differ, of these labels."""
    raw = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
    return Split(raw, torch.tensor(labels), [str(label) for label in range(max(labels) + 1)], [0.0], [1.0])


@pytest.fixture
def real() -> Split:
    """Three classes of 9, 12 and 7 images, in disorder."""
    labels = torch.tensor([0] * 9 + [1] * 12 + [2] * 7)
    return split(labels[torch.randperm(len(labels), generator=seeded())].tolist())


@pytest.fixture
def points(real: Split) -> Tensor:
    return torch.randn(len(real), 4, generator=seeded(1))


def of_class(real: Split, label: int) -> list[int]:
    return [i for i, own in enumerate(real.labels.tolist()) if own == label]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(((a - b) ** 2).sum()))


def choose(name: str, real: Split, points: Tensor, per_class: int, seed: int = 0) -> Tensor:
    if name == "random":
        return coresets.random(real, per_class, Streams(seed))
    return {"herding": coresets.herding, "k-centre": coresets.k_centre}[name](real, per_class, lambda i: points[i])


every_choice = pytest.mark.parametrize("name", ["random", "herding", "k-centre"])


@every_choice
@pytest.mark.parametrize("per_class", [1, 5, 7])
def test_choice__is_class_major_and_names_no_image_twice(name: str, per_class: int, real: Split, points: Tensor):
    chosen = choose(name, real, points, per_class)
    assert real.labels[chosen].tolist() == [0] * per_class + [1] * per_class + [2] * per_class
    assert len(set(chosen.tolist())) == 3 * per_class
    assert choose(name, real, points, per_class).tolist() == chosen.tolist()


@every_choice
def test_choice__of_fewer_is_the_beginning_of_the_choice_of_more(name: str, real: Split, points: Tensor):
    few, more = (choose(name, real, points, k).view(3, k).tolist() for k in (2, 6))
    assert few == [chosen[:2] for chosen in more]


@every_choice
def test_choice__of_more_than_a_class_has__all_of_it_and_again(name: str, real: Split, points: Tensor):
    with pytest.warns(UserWarning, match=r"10 images of each class are asked for, but . has 7: some are repeated"):
        chosen = choose(name, real, points, 10).view(3, 10)
    for label, of_class_ in enumerate(chosen.tolist()):
        assert set(of_class_) <= set(of_class(real, label))
        assert len(set(of_class_)) == min(10, len(of_class(real, label)))


# Herding.


def test_herding__keeps_the_running_mean_closest_to_the_class_mean(real: Split, points: Tensor):
    chosen = coresets.herding(real, PER_CLASS, lambda i: points[i]).view(3, PER_CLASS).tolist()
    values = points.double().numpy()
    for label in range(3):
        members, sofar = of_class(real, label), list[int]()
        mean = np.mean([values[i] for i in members], axis=0)
        for _ in range(PER_CLASS):
            left = [i for i in members if i not in sofar]
            gaps = {i: distance(mean, np.mean([values[j] for j in [*sofar, i]], axis=0)) for i in left}
            sofar.append(min(gaps, key=gaps.__getitem__))
        assert chosen[label] == sofar


def test_herding__of_a_whole_class_is_all_of_it(points: Tensor):
    real = split([0, 1, 0, 1, 0, 1])
    chosen = coresets.herding(real, 3, lambda i: points[i]).tolist()
    assert sorted(chosen[:3]) == [0, 2, 4]
    assert sorted(chosen[3:]) == [1, 3, 5]


# k-centre.


def test_k_centre__starts_at_the_mean_and_goes_to_the_farthest(real: Split, points: Tensor):
    chosen = coresets.k_centre(real, PER_CLASS, lambda i: points[i]).view(3, PER_CLASS).tolist()
    values = points.double().numpy()
    for label in range(3):
        members = of_class(real, label)
        mean = np.mean([values[i] for i in members], axis=0)
        assert chosen[label][0] == min(members, key=lambda i: distance(values[i], mean))
        for count in range(1, PER_CLASS):
            gaps = {i: min(distance(values[i], values[j]) for j in chosen[label][:count]) for i in members}
            assert chosen[label][count] == max(gaps, key=gaps.__getitem__)


def test_k_centre__takes_one_of_each_cluster():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    points = (centres.repeat(5, 1) + 0.1 * torch.randn(20, 2, generator=seeded())).repeat(2, 1)
    real = split([0] * 20 + [1] * 20)
    chosen = coresets.k_centre(real, 4, lambda i: points[i])
    assert sorted((chosen[:4] % 4).tolist()) == [0, 1, 2, 3]
    assert sorted((chosen[4:] % 4).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "name",
    [
        "herding",
        "k-centre",
    ],
)
def test_choice__among_images_that_are_alike_names_none_twice(name: str):
    real = split([0, 0, 0, 1, 1, 1])
    chosen = choose(name, real, torch.ones(6, 2), 3)
    assert len(set(chosen.tolist())) == 6


# Random.


def test_random__repeats_for_a_seed_only(real: Split):
    first, again, other = (coresets.random(real, PER_CLASS, Streams(seed)).tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_random__a_class_does_not_depend_on_the_others():
    few, many = split([1] * 20 + [2] * 20 + [0] * 6), split([1] * 20 + [2] * 20 + [0] * 30)
    one, other = (coresets.random(real, 6, Streams(0)) for real in (few, many))
    assert one[6:].tolist() == other[6:].tolist()
    assert one[:6].tolist() != other[:6].tolist()


def test_random__classes_are_chosen_independently():
    real = split([0] * 20 + [1] * 20 + [2] * 20)
    places = coresets.random(real, 6, Streams(0)).view(3, 6) % 20
    assert len({tuple(row) for row in places.tolist()}) == 3


def test_random__every_image_is_as_likely():
    real = split([0] * 10 + [1] * 10)
    often = torch.zeros(20)
    for seed in range(300):
        often[coresets.random(real, 3, Streams(seed))] += 1
    assert float(often.sum()) == 300 * 6
    assert often.min() > 60  # of 90 expected, with a deviation of 8
    assert often.max() < 120


def test_random__leaves_the_global_random_state_untouched(real: Split, random_state: Callable[[], object]):
    before = random_state()
    coresets.random(real, PER_CLASS, Streams(0))
    assert random_state() == before


# Features.


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_embed__gives_each_image_its_features_whatever_the_chunk(norm: str, toy_data: ImageData):
    network = build_network("convnet", toy_data.shape, 3, seeded(), width=8, depth=2, norm=norm)
    network.train()
    network(toy_data.train.images())  # running statistics of its own
    index = torch.tensor([40, 3, 3, 17, 59])
    found = [coresets.embed(network, toy_data.train, chunk)(index) for chunk in (1, 2, 512)]
    network.eval()
    one_by_one = torch.cat([network.features(toy_data.train.images(index[i : i + 1])) for i in range(5)]).detach()
    for features in found:
        assert not features.requires_grad
        torch.testing.assert_close(features, one_by_one)
