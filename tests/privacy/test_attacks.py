"""Attacks find what was planted, as much as there is, and nothing where there is nothing."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from scipy.stats import norm

from condensate import Streams, UserError
from condensate.privacy import ATTACKS, Record, confidence, draw_members, lira, loss, measure, regression, threshold
from tests.privacy.planted import Flags, Floats, area, planted

every_attack = pytest.mark.parametrize("name", ATTACKS)


def logits_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 7, 4, generator=generator), torch.randint(4, (7,), generator=generator)


def test_confidence__is_the_mean_log_odds_of_the_label():
    logits, labels = logits_and_labels()
    p = logits.double().softmax(2)[:, torch.arange(7), labels]
    assert confidence(logits, labels) == pytest.approx((p / (1 - p)).log().mean(0).numpy())
    assert confidence(logits, labels).dtype == np.float64


def test_confidence__is_exact_where_probabilities_round_to_one():
    logits = torch.tensor([[[1000.0, 0.0], [0.0, 1000.0], [-3e4, 3e4]]])
    assert confidence(logits, torch.zeros(3, dtype=torch.int64)).tolist() == [1000.0, -1000.0, -6e4]


def test_loss__is_the_mean_cross_entropy():
    logits, labels = logits_and_labels()
    each = [torch.nn.functional.cross_entropy(part.double(), labels, reduction="none") for part in logits]
    assert loss(logits, labels) == pytest.approx(torch.stack(each).mean(0).numpy())
    assert loss(torch.tensor([[[1000.0, 0.0]]]), torch.tensor([1])).tolist() == [1000.0]


def test_record__averages_probabilities_over_networks():
    logits = torch.tensor([[[0.8, 0.1, 0.1]], [[0.1, 0.5, 0.4]]]).log()
    record = Record.of(logits, torch.tensor([1]))
    mean = [0.45, 0.3, 0.25]
    assert record.top == pytest.approx(0.45)
    assert record.entropy == pytest.approx(-sum(p * math.log(p) for p in mean))
    assert record.right.tolist() == [0.0]
    assert Record.of(logits, torch.tensor([0])).right.tolist() == [1.0]
    assert Record.stack([record, record]).loss.shape == (2, 1)


def test_threshold__area_is_that_of_two_shifted_normals():
    record, members = planted(8, 1000, shift=1.0)
    assert area(threshold(record, members), members) == pytest.approx(NormalDist().cdf(1 / math.sqrt(2)), abs=0.015)


def test_lira__finds_what_a_threshold_misses_where_images_differ():
    record, members = planted(32, 300, shift=1.0, difficulty=5.0)
    weak, strong = (area(ATTACKS[name](record, members), members) for name in ("threshold", "lira"))
    assert weak < 0.57
    assert strong > 0.70


@every_attack
def test_attack__finds_a_planted_leak(name: str):
    record, members = planted(6, 200, shift=2.0)
    leakage = measure(ATTACKS[name](record, members), members, streams=Streams(0), resamples=200)
    assert leakage.auc.low > 0.8
    assert leakage.balanced_accuracy.low > 0.7


@every_attack
@pytest.mark.parametrize("difficulty", [0.0, 2.0])
def test_attack__finds_nothing_where_there_is_nothing(name: str, difficulty: float):
    covered = []
    for seed in range(30):
        record, members = planted(8, 60, shift=0.0, difficulty=difficulty, seed=seed)
        auc = measure(ATTACKS[name](record, members), members, streams=Streams(seed), resamples=200).auc
        covered.append(auc.low <= 0.5 <= auc.high)
    assert sum(covered) >= 27


def without_target_alone(phi: Floats, members: Flags) -> Floats:
    """LiRA with the target's complement among its shadows, variances 1."""
    scores = np.empty(phi.shape)
    for target in range(len(phi)):
        rest, inside = np.delete(phi, target, 0), np.delete(members, target, 0)
        means = [np.ma.array(rest, mask=mask).mean(0).data for mask in (~inside, inside)]
        scores[target] = norm.logpdf(phi[target], means[0]) - norm.logpdf(phi[target], means[1])
    return scores


@pytest.mark.parametrize("shadows", [4, 6])
def test_lira__scores_members_and_others_alike_where_nothing_leaks(shadows: int):
    gaps: dict[str, list[float]] = {"ours": [], "with complement": []}
    for seed in range(300):
        record, members = planted(shadows, 40, shift=0.0, seed=seed)
        for name, scores in (
            ("ours", lira(record, members)),
            ("with complement", without_target_alone(record.confidence, members)),
        ):
            gaps[name].append(float(scores[members].mean() - scores[~members].mean()))
    z = {name: abs(np.mean(values)) / (np.std(values) / math.sqrt(len(values))) for name, values in gaps.items()}
    assert z["ours"] < 3
    assert z["with complement"] > 5  # the reason why the complement is left out


@pytest.mark.parametrize("shadows", [6, 64])
def test_lira__is_the_ratio_of_two_normal_densities(shadows: int):
    record, members = planted(shadows, 10, shift=0.5, difficulty=3.0)
    phi, scores = record.confidence, lira(record, members)
    for target in (0, 3, shadows - 1):
        known = [t for t in range(shadows) if t // 2 != target // 2]
        values = [[[phi[t, i] for t in known if members[t, i] == side] for i in range(10)] for side in (True, False)]
        variances = [[np.var(own, ddof=1) for own in side] for side in values]
        if shadows < 64:
            variances = [[np.mean(side)] * 10 for side in variances]
        for i in range(10):
            inside, outside = (
                norm.logpdf(phi[target, i], np.mean(side[i]), math.sqrt(variance[i]))
                for side, variance in zip(values, variances)
            )
            assert scores[target, i] == pytest.approx(inside - outside)


def test_lira__of_constant_confidence_is_finite_and_says_nothing():
    for shadows in (4, 6, 64):
        record, members = planted(shadows, 10, shift=0.0)
        constant = Record(*(np.ones(members.shape) for _ in record.features))
        assert (lira(constant, members) == 0).all()


def test_regression__leaves_target_and_complement_out():
    record, members = planted(6, 30, shift=1.0)
    before = regression(record, members)
    changed = Record(*(feature.copy() for feature in record.features))
    changed.confidence[3] += 5.0  # the complement of shadow 2
    after = regression(changed, members)
    assert after[2] == pytest.approx(before[2])
    assert after[0] != pytest.approx(before[0])


def test_regression__scores_are_log_odds_of_membership():
    record, members = planted(20, 500, shift=2.0)
    linear = Record(*(record.confidence for _ in record.features))  # log-odds are 2 phi - 2 for two unit normals
    scores = regression(linear, members)
    assert np.polyfit(record.confidence.ravel(), scores.ravel(), 1) == pytest.approx([2.0, -2.0], abs=0.15)


@every_attack
def test_attack__says_what_it_cannot_use(name: str):
    record, members = planted(4, 10, shift=0.0)
    with pytest.raises(UserError, match="share out the pool"):
        ATTACKS[name](record, members[[0, 2, 1, 3]])
    broken = Record(*(feature * np.nan for feature in record.features))
    with pytest.raises(UserError, match="finite"):
        ATTACKS[name](broken, members)


def test_attacks__repeat_and_leave_the_global_generators_alone(random_state):
    before = random_state()
    record, members = planted(4, 20, shift=1.0)
    for attack in ATTACKS.values():
        assert (attack(record, members) == attack(record, members)).all()
    assert random_state() == before
    assert draw_members(torch.arange(20) % 2, 4, Streams(0)).numpy().tolist() == members.tolist()
