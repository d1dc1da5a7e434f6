"""Private DM: its target against a slow restatement, what bounds one image, what noise it is, what it promises."""

import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from condensate import (
    Augment,
    Compute,
    LowRank,
    PrivateDistributionMatching,
    Streams,
    SyntheticDataset,
    UserError,
    build_network,
    class_major,
    condense,
    from_arrays,
)
from condensate.objectives.private import clipped, epsilon

CLASSES, SHAPE, EACH = 3, (1, 8, 8), 12
TINY = 1e-9


@pytest.fixture(scope="module")
def real():
    labels = torch.arange(CLASSES).repeat(EACH)
    levels = torch.tensor([40, 120, 200])[labels].view(-1, 1, 1, 1)
    noise = torch.randint(-40, 40, (len(labels), *SHAPE), generator=Streams(5)("images"))
    images = (levels + noise).to(torch.uint8)
    return from_arrays(images, labels, images, labels, mean=[0.5], std=[0.5]).train


def synthetic() -> SyntheticDataset:
    stored = LowRank(CLASSES * 2, SHAPE, rank=1)
    stored.reset_(Streams(1)("start"))
    return SyntheticDataset(stored, class_major(CLASSES, 2), mean=[0.5], std=[0.5])


def matching(real, compute=None, norm="instance", **options) -> PrivateDistributionMatching:
    network = build_network("convnet", SHAPE, CLASSES, Streams(2)("net"), width=8, depth=1, norm=norm)
    options = {"batch_real": EACH} | options
    return PrivateDistributionMatching(real, network, Augment(), Streams(3), compute or Compute(chunk=5), **options)


def drawn(objective, number: int = 0):
    inner = objective.matching
    inner.network.reset_(inner.streams("network", number))
    return inner.augment.draw(inner.streams("augment", number), CLASSES, inner.size)


def closed_form(noise: float, rate: float, episodes: int, delta: float) -> float:
    """Mironov, Talwar & Zhang, section 3.3, at whole orders alone; to epsilon as in Balle et al. 2020, theorem 21."""

    def renyi(order: int) -> float:
        terms = [
            math.lgamma(order + 1)
            - math.lgamma(k + 1)
            - math.lgamma(order - k + 1)
            + (k * math.log(rate) if k else 0.0)
            + ((order - k) * math.log1p(-rate) if order > k else 0.0)
            + (k * k - k) / (2 * noise**2)
            for k in range(order + 1)
        ]
        return (max(terms) + math.log(sum(math.exp(t - max(terms)) for t in terms))) / (order - 1)

    return min(
        episodes * renyi(order) + math.log((order - 1) / order) - (math.log(delta) + math.log(order)) / (order - 1)
        for order in range(2, 200)
    )


@pytest.mark.parametrize("chunk", [1, 5, 36, 100])
@pytest.mark.parametrize("clip", [0.5, 2.0, 100.0])
def test_target__all_join_and_hardly_any_noise__mean_of_clipped_distances_from_the_synthetic_mean(real, chunk, clip):
    objective, of = matching(real, Compute(chunk=chunk), clip=clip, noise_multiplier=TINY), synthetic()
    augment = drawn(objective)
    found = objective._noised_means(of, augment)
    features, images = objective.network.features, of.images().detach()
    for label in range(CLASSES):
        mine, theirs = images[of.labels == label], real.images()[real.labels == label]
        centre = features(augment(mine, torch.full((len(mine),), label))).mean(0)
        total = torch.zeros_like(centre)
        for image in theirs:
            away = features(augment(image[None], torch.tensor([label])))[0] - centre
            total += away * min(1.0, clip / float(away.square().sum().sqrt()))
        torch.testing.assert_close(found[label], centre + total / EACH, rtol=1e-4, atol=1e-5)


def test_episode__all_join_nothing_clipped_and_hardly_any_noise__is_dm(real):
    objective, of = matching(real, clip=1e4, noise_multiplier=1e-12), synthetic()
    (private,) = objective.episode(of, 4)
    found = [p.grad.clone() for p in of.parameters()]
    of.zero_grad()
    (plain,) = objective.matching.episode(of, 4)
    assert float(private) == pytest.approx(float(plain), rel=1e-4)
    for gradient, parameter in zip(found, of.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5)


@given(norm=st.floats(1e-3, 1e3), scale=st.floats(1e-6, 1e6), seed=st.integers(0, 1000))
def test_clipped__never_longer_than_the_norm_and_of_the_same_direction(norm, scale, seed):
    features = torch.randn(4, 6, generator=Streams(seed)("features")) * scale
    found = clipped(features, norm)
    assert float(found.norm(dim=1).max()) <= norm * (1 + 1e-12)
    along = torch.nn.functional.cosine_similarity(found, features.double(), dim=1)
    torch.testing.assert_close(along, torch.ones(4, dtype=torch.float64))
    short = features.double().norm(dim=1) <= norm
    torch.testing.assert_close(found[short], features.double()[short])


def test_clipped__not_finite_or_zero__adds_nothing():
    features = torch.tensor([[math.nan, 1.0], [math.inf, 0.0], [3e38, 3e38], [0.0, 0.0]])
    found = clipped(features, 2.0)
    assert found[[0, 1, 3]].count_nonzero() == 0
    assert float(found[2].norm()) == pytest.approx(2.0)


@pytest.mark.parametrize("compute", [Compute(chunk=5), Compute(chunk=5, precision=torch.bfloat16)], ids=str)
def test_sums__one_image_left_out__moves_all_of_them_together_by_no_more_than_clip(real, compute):
    for clip in (0.3, 2.0, 50.0):
        objective, of = matching(real, compute, clip=clip), synthetic()
        augment = drawn(objective)
        objective.matching.low.load_state_dict(objective.network.state_dict())
        centre = objective.matching.synthetic_means(of, augment)
        everyone = torch.arange(len(real))
        whole = objective._clipped_sums(everyone, centre, augment)
        moved = []
        for left_out in range(0, len(real), 5):
            rest = objective._clipped_sums(everyone[everyone != left_out], centre, augment)
            moved.append(float((whole - rest).norm()))
            others = [label for label in range(CLASSES) if label != real.labels[left_out]]
            torch.testing.assert_close(whole[others], rest[others])
        assert 0 < max(moved) <= clip * (1 + 1e-9)


def test_sums__nobody_joined__zero(real):
    objective, of = matching(real), synthetic()
    augment = drawn(objective)
    centre = objective.matching.synthetic_means(of, augment)
    assert objective._clipped_sums(torch.arange(0), centre, augment).count_nonzero() == 0


def test_noise__has_the_promised_spread_at_every_class_and_feature(real):
    clip, noise = 3.0, 7.0
    objective, of = matching(real, clip=clip, noise_multiplier=noise), synthetic()
    augment = drawn(objective)
    still = matching(real, clip=clip, noise_multiplier=TINY)
    drawn(still)
    repeats = 200
    off = torch.stack([objective._noised_means(of, augment) for _ in range(repeats)]) - still._noised_means(of, augment)
    expected = noise * clip / EACH  # q is 1, and each class has EACH images
    assert float(off.std()) == pytest.approx(expected, rel=6 / (2 * off.numel()) ** 0.5)
    assert off.mean().abs() < 6 * expected / off.numel() ** 0.5
    each = off.std(0) / expected
    assert 0.6 < float(each.min()) <= float(each.max()) < 1.5


def test_joining__every_image_by_itself_at_the_rate(real):
    objective = matching(real, batch_real=3)
    assert objective.rate == 0.25
    assert objective.expected.tolist() == [3.0] * CLASSES
    seen = []
    objective._clipped_sums = lambda index, centre, drawn: (seen.append(index), centre.double())[1]
    of, augment, repeats = synthetic(), drawn(objective), 400
    for _ in range(repeats):
        objective._noised_means(of, augment)
    often = torch.cat(seen).bincount(minlength=len(real)) / repeats
    assert float(often.mean()) == pytest.approx(0.25, abs=6 * (0.1875 / repeats / len(real)) ** 0.5)
    assert float((often - 0.25).abs().max()) < 6 * (0.1875 / repeats) ** 0.5
    sizes = torch.tensor([len(index) for index in seen]).double()
    assert float(sizes.var()) == pytest.approx(len(real) * 0.1875, rel=0.5)  # binomial, not of one size


def test_joining__batch_above_the_images_there_are__all(real):
    assert matching(real, batch_real=1000).rate == 1.0


def test_episode__no_seed_draws_the_noise_again(real):
    losses = {float(next(matching(real).episode(synthetic(), 0))) for _ in range(4)}
    assert len(losses) == 4


def test_condense__little_noise__loss_falls(real):
    of = synthetic()
    seen: list[float] = []
    objective = matching(real, clip=5.0, noise_multiplier=0.01)
    condense(of, objective, episodes=60, lr=0.3, after=lambda progress: seen.extend(progress.losses))
    assert sum(seen[-10:]) < 0.7 * sum(seen[:10])


@pytest.mark.parametrize(
    ("noise", "rate", "episodes"), [(1.0, 0.01, 1000), (0.8, 0.1, 10), (2.0, 0.5, 50), (5.0, 0.25, 300), (1.5, 0.9, 3)]
)
def test_epsilon__is_the_closed_form_over_more_orders(noise, rate, episodes):
    whole = closed_form(noise, rate, episodes, 1e-5)
    found = epsilon(noise, rate, episodes, 1e-5)
    assert 0.85 * whole < found <= whole * (1 + 1e-9)


@pytest.mark.parametrize(("noise", "episodes"), [(1.0, 1), (6.0, 100), (40.0, 5)])
def test_epsilon__all_join__is_a_little_above_the_plain_gaussians(noise, episodes):
    """Balle & Wang 2018, theorem 8: the smallest delta of a Gaussian mechanism at an epsilon, exactly."""
    found, mu = epsilon(noise, 1.0, episodes, 1e-5), math.sqrt(episodes) / noise

    def normal(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    def delta(at: float) -> float:
        return normal(mu / 2 - at / mu) - math.exp(at) * normal(-mu / 2 - at / mu)

    assert delta(found) < 1e-5 < delta(0.85 * found)


def test_epsilon__grows_with_rate_and_episodes_and_falls_with_noise_and_delta():
    usual = epsilon(2.0, 0.2, 100, 1e-5)
    assert epsilon(2.0, 0.3, 100, 1e-5) > usual
    assert epsilon(2.0, 0.2, 200, 1e-5) > usual
    assert epsilon(3.0, 0.2, 100, 1e-5) < usual
    assert epsilon(2.0, 0.2, 100, 1e-4) < usual


def test_epsilon__no_accountant__says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(UserError, match=r"pip install 'opacus>=1.5'"):
        epsilon(1.0, 0.1, 1, 1e-5)


def test_guarantee__says_all_that_epsilon_follows_from():
    options = {"batch_real": 10, "clip": 2.0, "noise_multiplier": 3.0, "delta": 1e-6}
    said = PrivateDistributionMatching.guarantee(5, 200, 40, **options)
    assert said["epsilon"] == epsilon(3.0, 0.25, 40, 1e-6)
    assert (said["sample_rate"], said["episodes"], said["clip"], said["noise_multiplier"]) == (0.25, 40, 2.0, 3.0)
    assert said["delta"] == 1e-6
    assert said["accountant"].startswith("RDP, opacus ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 0.0}, r"objective\.clip must be above 0 and finite, got 0\.0"),
        ({"noise_multiplier": 0.0}, r"objective\.noise_multiplier must be above 0"),
        ({"noise_multiplier": math.inf}, "above 0 and finite, got inf"),
        ({"delta": 1.0}, r"objective\.delta must be above 0 and below 1, got 1\.0"),
        ({"batch_real": 0}, r"batch_real must be at least 1, got 0"),
        ({"norm": "batch"}, r"batch normalisation mixes.*--network\.norm instance"),
    ],
)
def test_init__what_promises_nothing__refused(real, options, message):
    with pytest.raises(UserError, match=message):
        matching(real, **options)


def test_init__whitened_images__refused():
    images = torch.randint(0, 256, (40, *SHAPE), dtype=torch.uint8, generator=Streams(5)("images"))
    labels = torch.arange(40) % CLASSES
    with pytest.raises(UserError, match="whitening"):
        matching(from_arrays(images, labels, images, labels, zca=True).train)


def test_init__class_without_images__refused(real):
    with pytest.raises(UserError, match="class 1 has no images"):
        matching(real.subset((real.labels != 1).nonzero().flatten()))


def test_init__delta_above_one_over_the_images__warned_of(real):
    with pytest.warns(UserWarning, match="choose it below 1 / 36"):
        matching(real, delta=0.03)
