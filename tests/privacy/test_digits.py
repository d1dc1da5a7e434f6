"""The whole way on real networks and images: a known leak is found, and none where there is none."""

import pytest
import torch

from condensate import Streams, build_network, coresets, fit, load_data
from condensate.data import Split
from condensate.examples import Held
from condensate.privacy import ATTACKS, Record, draw_members, measure, nearness, share

SHADOWS = 6
DRAWS = 40
every_attack = pytest.mark.parametrize("name", ATTACKS)


def choose(per_class: int, stream: str) -> Split:
    real = load_data("digits").train
    return real.subset(torch.cat([real.sample(label, per_class, Streams(0)(stream, label)) for label in range(10)]))


@pytest.fixture(scope="module")
def pool() -> Split:
    return choose(8, "pool")


def record(sets: list[Held], pool: Split, epochs: int) -> Record:
    """Of two networks trained on each set."""
    parts = []
    for shadow, examples in enumerate(sets):
        logits = []
        for number in range(2):
            network = build_network("mlp", (1, 8, 8), 10, Streams(0)("network", shadow, number))
            generator = Streams(0)("fit", shadow, number)
            fit(network, examples, epochs=epochs, generator=generator, lr=0.05, batch=32, weight_decay=0.0)
            logits.append(network.eval()(pool.images()).detach())
        parts.append(Record.of(torch.stack(logits), pool.labels))
    return Record.stack(parts)


@pytest.fixture(scope="module")
def members(pool: Split) -> torch.Tensor:
    return draw_members(pool.labels, SHADOWS, Streams(0))


@pytest.fixture(scope="module")
def overfitted(pool: Split, members: torch.Tensor) -> Record:
    """Networks trained on the members themselves."""
    return record([Held(pool.images()[own], pool.labels[own]) for own in members], pool, epochs=60)


@pytest.fixture(scope="module")
def unrelated(pool: Split) -> Record:
    """Networks trained on images that are not of the pool."""
    away = load_data("digits").test
    sets = [Held(part.images(), part.labels) for part in (away.subset(torch.arange(s, 500, 6)) for s in range(SHADOWS))]
    return record(sets, pool, epochs=20)


@every_attack
def test_attack__finds_what_overfitted_networks_were_trained_on(name: str, overfitted: Record, members: torch.Tensor):
    leakage = measure(ATTACKS[name](overfitted, members.numpy()), members.numpy(), streams=Streams(0), resamples=300)
    assert leakage.auc.value > 0.75
    assert leakage.auc.low > 0.6


@every_attack
def test_attack__finds_nothing_in_networks_that_saw_none_of_it(name: str, unrelated: Record, pool: Split):
    """The networks know no members: any draw of them will do, and 95 % of the intervals are to hold 0.5."""
    held = []
    for seed in range(DRAWS):
        drawn = draw_members(pool.labels, SHADOWS, Streams(seed)).numpy()
        leakage = measure(ATTACKS[name](unrelated, drawn), drawn, streams=Streams(seed), resamples=150)
        held.append([part.low <= 0.5 <= part.high for part in (leakage.auc, leakage.balanced_accuracy)])
    assert min(map(sum, zip(*held))) >= 0.85 * DRAWS


def test_nearness__finds_real_images_stored_as_they_are(pool: Split, members: torch.Tensor):
    images, found = pool.images().flatten(1), []
    for shadow, own in enumerate(members):
        part = pool.subset(own.nonzero().flatten())
        stored = part.images(coresets.random(part, 2, Streams(shadow))).flatten(1)
        found.append(nearness(stored, images[own], images[~own], Streams(0)("nearness", shadow)))
    assert share(found, Streams(0)).low == 1.0
    assert all((part.to_member == 0).all() for part in found)


def test_nearness__finds_nothing_in_other_images(pool: Split):
    images, away = pool.images().flatten(1), load_data("digits").test.images().flatten(1)
    held = []
    for seed in range(DRAWS):
        found = [
            nearness(away[shadow::SHADOWS], images[own], images[~own], Streams(seed)("nearness", shadow))
            for shadow, own in enumerate(draw_members(pool.labels, SHADOWS, Streams(seed)))
        ]
        estimate = share(found, Streams(seed))
        held.append(estimate.low <= 0.5 <= estimate.high)
    assert sum(held) >= 0.85 * DRAWS
