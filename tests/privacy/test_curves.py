"""The curve under weights, against scikit-learn's; intervals that hold what they promise."""

import math
import time
from statistics import NormalDist

import numpy as np
import pytest
import torch
from sklearn.metrics import auc, roc_auc_score, roc_curve

from condensate import Streams, UserError
from condensate.privacy import among_nearest, draw_members, lira, measure, roc, threshold
from condensate.privacy.curves import _area, _Curve, _rate
from tests.privacy.planted import area, planted


@pytest.mark.parametrize("step", [None, 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_curve__under_weights_is_that_of_repeated_scores(seed: int, step: float | None):
    record, members = planted(8, 41, shift=0.5, seed=seed)
    scores = -record.loss if step is None else np.round(record.confidence / step)  # ties or none
    rng = np.random.default_rng(seed)
    targets, images = rng.integers(0, 4, 8), rng.integers(0, 4, 41)
    repeated = [part.repeat(targets, 0).repeat(images, 1).ravel() for part in (members, scores)]
    found, wrong = _Curve(scores, members).counts(targets, images)
    fpr, tpr, _ = roc_curve(*repeated, drop_intermediate=False)
    assert _area(found, wrong) == pytest.approx(roc_auc_score(*repeated))
    for rate in (0.0, 0.01, 0.05, 0.3, float(fpr[len(fpr) // 2]), 1.0):
        assert _rate(found, wrong, rate) == pytest.approx(tpr[fpr <= rate].max())


def test_measure__values_are_those_of_all_scores_together():
    record, members = planted(6, 700, shift=1.0)
    scores = threshold(record, members)
    leakage = measure(scores, members, streams=Streams(0), fprs=[0.05], resamples=50)
    fpr, tpr, _ = roc_curve(members.ravel(), scores.ravel())
    assert leakage.auc.value == pytest.approx(area(scores, members))
    assert leakage.tpr[0.05].value == pytest.approx(tpr[fpr <= 0.05].max())
    assert leakage.balanced_accuracy.value == pytest.approx(NormalDist().cdf(0.5), abs=0.02)
    assert leakage.tpr[0.05].value == pytest.approx(NormalDist().cdf(1 + NormalDist().inv_cdf(0.05)), abs=0.03)
    assert (leakage.targets, leakage.members, leakage.others) == (6, 2100, 2100)
    for estimate in (leakage.auc, leakage.balanced_accuracy, leakage.tpr[0.05]):
        assert estimate.low < estimate.value < estimate.high


def test_measure__a_target_does_not_choose_its_own_threshold():
    members = draw_members(torch.zeros(4, dtype=torch.int64), 4, Streams(0)).numpy()
    scores = np.where(members, 1.0, 0.0)
    scores[2:] += 10.0  # all above the best threshold of the first pair, and theirs above all of the first
    leakage = measure(scores, members, streams=Streams(0), resamples=20)
    assert leakage.balanced_accuracy.value == 0.5
    assert leakage.auc.value == 0.75


def test_measure__of_equal_scores_finds_nothing():
    _, members = planted(4, 500, shift=0.0)
    leakage = measure(np.zeros(members.shape), members, streams=Streams(0), resamples=20)
    assert leakage.auc.value == leakage.auc.low == leakage.auc.high == 0.5
    assert leakage.balanced_accuracy.value == pytest.approx(0.5)
    assert leakage.tpr[0.01].value == 0.0


def test_measure__of_members_above_all_others_finds_all():
    _, members = planted(4, 500, shift=0.0)
    leakage = measure(members * 1.0, members, streams=Streams(0), resamples=20)
    assert leakage.auc == leakage.balanced_accuracy == leakage.tpr[0.01]
    assert leakage.auc.low == leakage.auc.high == 1.0


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_measure__intervals_hold_the_truth(shift: float):
    truth, held = NormalDist().cdf(shift / math.sqrt(2)), 0
    for seed in range(40):
        record, members = planted(8, 60, shift=shift, seed=seed)
        area_under = measure(threshold(record, members), members, streams=Streams(seed), resamples=200).auc
        held += area_under.low <= truth <= area_under.high
    assert held >= 36


def test_measure__takes_the_rates_there_are_scores_for():
    for images, rates in ((498, []), (500, [0.01]), (4998, [0.01]), (5000, [0.01, 0.001])):
        record, members = planted(4, images, shift=0.0)
        assert list(measure(record.confidence, members, streams=Streams(0), resamples=2).tpr) == rates


def test_measure__a_rate_with_too_few_scores_says_how_many_shadows_would_do():
    record, members = planted(4, 100, shift=0.0)
    message = "0.001 needs the scores of 10,000 non-members, got 200; 200 shadows of this pool would do, in place of 4"
    with pytest.raises(UserError, match=message):
        measure(record.confidence, members, streams=Streams(0), fprs=[0.1, 0.001])
    enough, drawn = planted(200, 100, shift=0.0)
    assert list(measure(enough.confidence, drawn, streams=Streams(0), fprs=[0.001], resamples=2).tpr) == [0.001]
    for rate in (0.0, 1.0, -0.1):
        with pytest.raises(UserError, match="above 0 and below 1"):
            measure(record.confidence, members, streams=Streams(0), fprs=[rate])


def test_measure__says_what_does_not_fit():
    record, members = planted(4, 10, shift=0.0)
    with pytest.raises(UserError, match="one shape"):
        measure(record.confidence[:, :5], members, streams=Streams(0))
    with pytest.raises(UserError, match="share out the pool"):
        measure(record.confidence, ~members[[0, 2, 1, 3]], streams=Streams(0))


def test_measure__a_seed_repeats_and_the_global_generators_are_left_alone(random_state):
    record, members = planted(4, 50, shift=1.0)
    before = random_state()
    first, again, other = (
        measure(record.confidence, members, streams=Streams(seed), resamples=50) for seed in (0, 0, 1)
    )
    assert random_state() == before
    assert first == again != other


def test_measure__a_thousand_resamples_of_forty_thousand_scores_take_seconds():
    record, members = planted(32, 1300, shift=0.5)
    started = time.process_time()
    measure(record.confidence, members, streams=Streams(0))
    assert time.process_time() - started < 15


def test_roc__is_scikit_learns_thinned():
    record, members = planted(8, 1000, shift=1.0)
    fpr, tpr = roc(record.confidence, members)
    full = dict.fromkeys(zip(*roc_curve(members.ravel(), record.confidence.ravel(), drop_intermediate=False)[:2]), True)
    assert len(fpr) <= 1000
    assert all(point in full for point in zip(fpr, tpr))
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert fpr[1:][fpr[1:] > 0].min() == pytest.approx(1 / 4000)
    assert (np.diff(fpr) >= 0).all()
    assert (np.diff(tpr) >= 0).all()
    assert auc(fpr, tpr) == pytest.approx(area(record.confidence, members), abs=0.002)


def test_roc__of_equal_scores_is_the_diagonal():
    _, members = planted(4, 50, shift=0.0)
    assert [part.tolist() for part in roc(np.zeros(members.shape), members)] == [[0, 1], [0, 1]]


def nearest(members: np.ndarray, pool: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of every shadow the members and the others among the same few images."""
    return [pool[row[pool]] for row in members], [pool[~row[pool]] for row in members]


def test_among_nearest__is_scikit_learns_area_among_these():
    record, members = planted(8, 40, shift=0.5)
    inside, outside = nearest(members, np.arange(0, 40, 3))
    sides = [np.concatenate([row[index] for row, index in zip(record.confidence, one)]) for one in (inside, outside)]
    expected = roc_auc_score(np.repeat([1, 0], [len(side) for side in sides]), np.concatenate(sides))
    assert among_nearest(record.confidence, inside, outside, Streams(0), 10).value == pytest.approx(expected)


@pytest.mark.parametrize("attack", [lira, threshold])
@pytest.mark.parametrize("difficulty", [0.0, 2.0])
def test_among_nearest__intervals_hold_the_truth_where_the_same_images_are_nearest_to_all(attack, difficulty: float):
    held = 0
    for seed in range(40):
        record, members = planted(16, 100, 0.0, difficulty, seed)
        found = among_nearest(attack(record, members), *nearest(members, np.arange(24)), Streams(seed), 200)
        held += found.low <= 0.5 <= found.high
    assert held >= 36


def test_among_nearest__a_few_images_that_stand_out():
    """Five of a hundred members are found out wholly: nothing over the pool, everything among the nearest."""
    streams = Streams(0)
    members = draw_members(torch.zeros(200, dtype=torch.int64), 8, streams).numpy()
    scores = torch.randn(8, 200, generator=streams("scores"), dtype=torch.float64).numpy()
    inside = [np.flatnonzero(row)[:5] for row in members]
    outside = [np.flatnonzero(~row)[:5] for row in members]
    nothing = among_nearest(scores, inside, outside, streams)
    assert nothing.low < 0.5 < nothing.high
    for row, chosen in zip(scores, inside, strict=True):
        row[chosen] = 10.0
    found = among_nearest(scores, inside, outside, streams)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    assert measure(scores, members, streams=streams, resamples=10).auc.value < 0.6
    repeated = [np.repeat(index, 3) for index in outside]
    assert among_nearest(scores, inside, repeated, streams) == found
