"""Distances to the nearest real images, against brute force."""

import pytest
import torch
from torch import Tensor

from condensate import Streams, UserError
from condensate.privacy import Nearness, nearest, nearness, neighbours, share


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def near(to_member: list[float], to_other: list[float]) -> Nearness:
    index = torch.zeros(len(to_member), dtype=torch.int64)
    return Nearness(torch.tensor(to_member), torch.tensor(to_other), index, index)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "HELD_VALUES", 30)


@pytest.mark.usefixtures("small_parts")
def test_nearest__is_the_minimum_over_all():
    queries, reals = torch.randn(23, 5, generator=seeded(0)), torch.randn(13, 5, generator=seeded(1))
    distances, index = nearest(queries, reals)
    every = [[float(((a - b) ** 2).sum().sqrt()) for b in reals] for a in queries]
    assert distances.tolist() == pytest.approx([min(row) for row in every])
    assert index.tolist() == [row.index(min(row)) for row in every]


def test_nearest__of_an_image_to_itself_is_nought_and_small_distances_stay():
    reals = 100 + torch.randn(40, 3072, generator=seeded())
    assert nearest(reals, reals)[0].tolist() == [0.0] * 40
    shifted = reals.clone()
    shifted[:, 0] += 2**-10
    distances, index = nearest(shifted, reals)
    assert distances.tolist() == pytest.approx([2**-10] * 40)
    assert index.tolist() == list(range(40))


@pytest.mark.parametrize(
    ("queries", "reals"),
    [
        (torch.zeros(2, 3), torch.zeros(0, 3)),
        (torch.zeros(2, 3), torch.zeros(2, 4)),
        (torch.zeros(2, 1, 3), torch.zeros(2, 3)),
    ],
)
def test_nearest__says_what_does_not_fit(queries: Tensor, reals: Tensor):
    with pytest.raises(UserError, match="at least one real image"):
        nearest(queries, reals)


def test_share__counts_ties_half():
    assert near([1, 3, 2, 5], [2, 2, 2, 6]).share == (1 + 0 + 0.5 + 1) / 4


def test_nearness__compares_with_as_many_of_either_kind():
    synthetic, few, many = (torch.randn(n, 4, generator=seeded(n)) for n in (50, 20, 60))
    found = nearness(synthetic, few, many, seeded())
    assert found.to_member.equal(nearest(synthetic, few)[0])
    assert found.member.equal(nearest(synthetic, few)[1])
    assert len(found.other.unique()) <= 20
    assert (found.to_other >= nearest(synthetic, many)[0]).all()
    assert found.to_other.tolist() == pytest.approx((synthetic - many[found.other]).norm(dim=1).tolist())
    turned = nearness(synthetic, many, few, seeded())
    assert turned.to_member.equal(found.to_other)
    assert turned.share == pytest.approx(1 - found.share)


def test_nearness__an_unequal_count_is_no_leak():
    """All from one distribution: with 10 times as many members, most nearest images would be members."""
    draws = [
        [torch.randn(n, 4, generator=seeded(3 * seed + i)) for i, n in enumerate((50, 200, 20))] for seed in range(20)
    ]
    shares = [nearness(*images, seeded()).share for images in draws]
    naive = [float((nearest(a, b)[0] < nearest(a, c)[0]).double().mean()) for a, b, c in draws]
    assert sum(shares) / 20 == pytest.approx(0.5, abs=0.06)
    assert sum(naive) / 20 > 0.8


def test_share_of_shadows__is_their_mean_between_the_ends_of_its_interval():
    parts = [near([1.0] * k + [3.0] * (10 - k), [2.0] * 10) for k in (4, 5, 6, 7)]
    estimate = share(parts, Streams(0))
    assert estimate.value == pytest.approx(0.55)
    assert 0.4 <= estimate.low < 0.55 < estimate.high <= 0.7
    assert estimate == share(parts, Streams(0))
