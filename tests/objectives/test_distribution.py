"""DM against a slow restatement of its equation, and what its chunks and precisions must not change."""

import pytest
import torch
from torch import Tensor

from condensate import (
    Augment,
    Compute,
    DistributionMatching,
    LowRank,
    Pixels,
    Streams,
    SyntheticDataset,
    UserError,
    build_network,
    class_major,
    condense,
    from_arrays,
)
from condensate.networks import TiledConvolution
from condensate.objectives.distribution import _whole_classes
from condensate.parameterizations import Parameterization
from condensate.ranks import ALONE, Ranks

CLASSES, SHAPE, BATCH = 4, (3, 8, 12), 9
MEAN, STD = [0.5] * 3, [0.29] * 3


@pytest.fixture(scope="module")
def real():
    images = torch.randint(0, 256, (CLASSES * 20, *SHAPE), dtype=torch.uint8, generator=Streams(5)("images"))
    labels = torch.arange(CLASSES).repeat(20)
    return from_arrays(images, labels, images, labels, mean=MEAN, std=STD).train


def synthetic(kind: str = "lowrank", each: int = 3, order: Tensor | None = None) -> SyntheticDataset:
    n = CLASSES * each
    stored: Parameterization = Pixels(n, SHAPE) if kind == "pixels" else LowRank(n, SHAPE, rank=2)
    stored.reset_(Streams(1)("start"))
    labels = class_major(CLASSES, each)
    return SyntheticDataset(stored, labels if order is None else labels[order], mean=MEAN, std=STD)


def matching(real, compute=None, augment=None, batch_real=BATCH, updates=1, **options) -> DistributionMatching:
    options = {"norm": "instance", "width": 8, "depth": 2} | options
    network = build_network("convnet", SHAPE, CLASSES, Streams(2)("net"), **options)
    return DistributionMatching(
        real, network, augment or Augment(), Streams(3), compute, batch_real=batch_real, updates=updates
    )


def gradients(objective: DistributionMatching, of: SyntheticDataset, number: int = 0) -> tuple[float, list[Tensor]]:
    of.zero_grad()
    (loss,) = list(objective.episode(of, number))
    return float(loss), [p.grad.clone() for p in of.parameters()]


def restated(objective: DistributionMatching, of: SyntheticDataset, number: int) -> Tensor:
    """The published loss as one graph: class by class, no chunk, the same draws."""
    objective.network.reset_(objective.streams("network", number))
    drawn = objective.augment.draw(objective.streams("augment", number), CLASSES, objective.size)
    total = torch.zeros(())
    for label in range(CLASSES):
        index = objective.real.sample(label, BATCH, objective.streams("real", number, label))
        batch = objective.real.images(index)
        mine = (of.labels == label).nonzero().flatten()
        images = of.images(mine)
        theirs = objective.network.features(drawn(batch, torch.full((len(batch),), label)))
        ours = objective.network.features(drawn(images, torch.full((len(images),), label)))
        for feature in range(theirs.shape[1]):
            total = total + (theirs[:, feature].sum() / BATCH - ours[:, feature].sum() / len(mine)) ** 2
    return total


@pytest.mark.parametrize("kind", ["pixels", "lowrank"])
def test_condense__several_updates__are_as_many_by_hand_on_one_network(real, kind):
    objective, of, by_hand = matching(real, updates=3), synthetic(kind), synthetic(kind)
    condense(of, objective, episodes=2, lr=0.03, momentum=0.5)
    velocity = [torch.zeros_like(p) for p in by_hand.parameters()]
    for number in (0, 1):
        for _ in range(3):
            by_hand.zero_grad()
            restated(objective, by_hand, number).backward()
            with torch.no_grad():
                for parameter, speed in zip(by_hand.parameters(), velocity, strict=True):
                    speed.mul_(0.5).add_(parameter.grad)
                    parameter.sub_(speed, alpha=0.03)
    torch.testing.assert_close(of.images(), by_hand.images(), rtol=1e-4, atol=1e-5)


def test_episode__several_updates__real_images_go_through_the_network_once(real, monkeypatch):
    objective, of, seen = matching(real, updates=4), synthetic(), []
    features = objective.real_features
    monkeypatch.setattr(objective, "real_features", lambda index, *a: (seen.append(len(index)), features(index, *a))[1])
    losses = list(objective.episode(of, 0))
    assert sum(seen) == CLASSES * BATCH
    assert len(losses) == 4
    assert float(losses[0]) == float(losses[3])  # nothing was stepped between them


@pytest.mark.parametrize("key", ["batch_real", "updates"])
def test_matching__less_than_one__refused(real, key):
    with pytest.raises(UserError, match=rf"objective.{key} must be at least 1, got 0"):
        matching(real, **{key: 0})


@pytest.mark.parametrize("kind", ["pixels", "lowrank"])
@pytest.mark.parametrize(
    ("chunk", "piece"), [(1, None), (2, None), (5, None), (7, None), (1000, None), (5, 2), (1000, 2)]
)
def test_episode__any_chunk__equals_the_equation_as_one_graph(real, kind, chunk, piece):
    objective, of = matching(real, Compute(chunk=chunk, piece=piece)), synthetic(kind)
    for number in (0, 3):
        loss, found = gradients(objective, of, number)
        of.zero_grad()
        expected = restated(objective, of, number)
        expected.backward()
        assert loss == pytest.approx(expected.item(), rel=1e-4)
        for gradient, parameter in zip(found, of.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5)


def test_episode__batch_statistics__one_forward_of_all_classes_a_side(real):
    objective, of = matching(real, Compute(chunk=2), norm="batch"), synthetic()
    loss, found = gradients(objective, of)
    of.zero_grad()
    drawn = objective.augment.draw(objective.streams("augment", 0), CLASSES, objective.size)
    objective.network.reset_(objective.streams("network", 0))
    index = [real.sample(label, BATCH, objective.streams("real", 0, label)) for label in range(CLASSES)]
    theirs = objective.network.features(drawn(real.images(torch.cat(index)), class_major(CLASSES, BATCH)))
    ours = objective.network.features(drawn(of.images(), of.labels))
    means = [theirs[of_class].mean(0) for of_class in torch.arange(CLASSES * BATCH).split(BATCH)]
    mine = [ours[of.labels == label].mean(0) for label in range(CLASSES)]
    expected = sum((a - b).square().sum() for a, b in zip(means, mine, strict=True))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    for gradient, parameter in zip(found, of.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5)


def test_episode__labels_in_any_order__same_gradient_for_the_same_images(real):
    objective, straight = matching(real), synthetic("pixels")
    order = torch.randperm(len(straight), generator=Streams(9)("order"))
    shuffled = synthetic("pixels", order=order)
    shuffled.parameterization.encode_(straight.images().detach()[order])
    loss, (ordered,) = gradients(objective, straight)
    other, (mixed,) = gradients(objective, shuffled)
    assert loss == pytest.approx(other, rel=1e-4)
    torch.testing.assert_close(mixed, ordered[order], rtol=1e-4, atol=1e-6)


def test_episode__gradient_to_factors__agrees_with_finite_differences(real):
    objective, of = matching(real, activation="sigmoid"), synthetic()
    _, found = gradients(objective, of)
    generator = Streams(4)("direction")
    for parameter, gradient in zip(of.parameters(), found, strict=True):
        direction = torch.randn(parameter.shape, generator=generator)
        slope = float((gradient * direction).sum())
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * 1e-3)
            losses.append(gradients(objective, of)[0])
            with torch.no_grad():
                parameter.add_(direction, alpha=-sign * 1e-3)
        assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(slope, rel=0.03)


def test_episode__bfloat16_real_features__close_to_float32_and_float32_gradient(real):
    of = synthetic()
    exact, reference = gradients(matching(real), of)
    rounded, found = gradients(matching(real, Compute(precision=torch.bfloat16)), of)
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.02)
    for a, b in zip(found, reference, strict=True):
        assert a.dtype == torch.float32
        assert float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0)) > 0.999


@pytest.mark.parametrize("each", [3, 9])
def test_episode__on_tiles__equal_but_for_rounding(real, monkeypatch, each):
    wide, seen = {"width": 64, "pooling": "none"}, []
    monkeypatch.setattr(
        TiledConvolution, "forward", lambda self, maps: seen.append(len(maps)) or TiledConvolution.tiled(self, maps)
    )
    for number in (0, 1):  # the network is drawn anew in place
        exact, reference = gradients(matching(real, Compute(chunk=8), **wide), synthetic(each=each), number)
        assert not seen
        rounded, found = gradients(matching(real, Compute(chunk=8, tiled=True), **wide), synthetic(each=each), number)
        twice = 2 if each > 8 else 1  # for a class's mean, then piece by piece
        assert sum(seen) == CLASSES * (BATCH + twice * each)
        seen.clear()
        assert rounded == pytest.approx(exact, rel=1e-4)
        for a, b in zip(found, reference, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


def test_episode__no_operators__images_as_they_are(real):
    objective, of = matching(real, augment=Augment([])), synthetic()
    loss, _ = gradients(objective, of)
    network = objective.network
    network.reset_(objective.streams("network", 0))
    expected = 0.0
    for label in range(CLASSES):
        batch = real.images(real.sample(label, BATCH, objective.streams("real", 0, label)))
        mine = of.images((of.labels == label).nonzero().flatten())
        difference = network.features(batch).mean(0) - network.features(mine).mean(0)
        expected += difference.square().sum().item()
    assert loss == pytest.approx(expected, rel=1e-4)


def test_episode__depends_on_its_number_alone(real):
    objective, of = matching(real), synthetic()
    first = gradients(objective, of, 7)
    gradients(objective, of, 2)
    again = gradients(objective, of, 7)
    assert first[0] == again[0]
    assert all(torch.equal(a, b) for a, b in zip(first[1], again[1], strict=True))
    assert gradients(objective, of, 8)[0] != first[0]


def test_episode__network_parameters_get_no_gradient(real):
    objective, of = matching(real), synthetic()
    gradients(objective, of)
    assert all(p.grad is None and not p.requires_grad for p in objective.network.parameters())


def test_episode__gradient_mode_of_the_caller_is_untouched(real):
    for _ in matching(real).episode(synthetic(), 0):
        assert torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_condense__loss_falls(real):
    of, objective = synthetic(), matching(real, augment=Augment([]), batch_real=20)
    unseen = range(100, 110)  # networks that were not trained on, the same before and after
    before = [gradients(objective, of, number)[0] for number in unseen]
    of.zero_grad()
    condense(of, objective, episodes=60, lr=1.0)
    after = [gradients(objective, of, number)[0] for number in unseen]
    assert all(late < 0.8 * early for early, late in zip(before, after, strict=True))


def test_episode__soft_labels__refused(real):
    of = SyntheticDataset(Pixels(4, SHAPE), torch.eye(4), mean=MEAN, std=STD)
    with pytest.raises(UserError, match="one class an image"):
        list(matching(real).episode(of, 0))


def test_activation_memory__does_not_grow_with_batch_classes_or_images(real):
    """The largest batch a network sees is within a chunk, whatever is asked for."""
    seen = []
    objective = matching(real, Compute(chunk=5))
    original = objective.network.blocks.forward
    objective.network.blocks.forward = lambda images: (seen.append(len(images)), original(images))[1]
    list(objective.episode(synthetic(each=11), 0))
    assert 3 < max(seen) <= 5


@pytest.mark.parametrize("updates", [1, 3])
def test_planned__counts_what_goes_through_the_network(real, updates):
    objective, of = matching(real, Compute(precision=torch.bfloat16), updates=updates), synthetic()
    seen = {False: 0, True: 0}
    for network in (objective.network, objective.low):
        original = network.features

        def counting(images, original=original):
            seen[torch.is_grad_enabled()] += len(images)
            return original(images)

        network.features = counting
    list(objective.episode(of, 0))
    work = DistributionMatching.planned(CLASSES, len(of), batch_real=BATCH, updates=updates)
    assert (seen[False], seen[True]) == (work.features, work.gradients)


@pytest.mark.parametrize("chunk", [64, 7])
def test_dm__real_means_of_another_run__same_gradients_and_no_real_image_read(real, tmp_path, monkeypatch, chunk):
    compute = Compute(chunk=chunk)
    wanted = [gradients(matching(real, compute, updates=1), synthetic("pixels", 1), n) for n in (0, 3)]
    first = matching(real, compute)
    first.reuse(tmp_path, {"of": "this test"})
    for number in (3, 0):
        gradients(first, synthetic("lowrank"), number)
    other = matching(real, compute)
    other.reuse(tmp_path, {"of": "this test"})
    monkeypatch.setattr(DistributionMatching, "real_features", lambda *given: pytest.fail("a real image was read"))
    for number, (loss, wanted_gradients) in zip((0, 3), wanted, strict=True):
        found, found_gradients = gradients(other, synthetic("pixels", 1), number)
        assert found == loss
        assert all(torch.equal(a, b) for a, b in zip(found_gradients, wanted_gradients, strict=True))


@pytest.mark.parametrize("other", [{"batch_real": 8}, {"kind": {"of": "another"}}])
def test_dm__real_means_of_something_else__computed(real, tmp_path, other):
    first = matching(real)
    first.reuse(tmp_path, {"of": "this test"})
    gradients(first, synthetic(), 0)
    second = matching(real, batch_real=other.get("batch_real", BATCH))
    second.reuse(tmp_path, other.get("kind", {"of": "this test"}))
    assert second.kept.get(0) is None
    assert first.kept.get(0) is not None


def test_dm__groups_of_a_set__not_those_of_another_nor_of_its_labels_before(real):
    objective, one, other = matching(real), synthetic("pixels"), synthetic("pixels", order=torch.arange(12).flip(0))
    wanted = [gradients(matching(real), data)[1] for data in (one, other)]
    for data, expected in ((one, wanted[0]), (other, wanted[1]), (one, wanted[0])):
        assert all(torch.equal(a, b) for a, b in zip(gradients(objective, data)[1], expected, strict=True))
    one.labels.copy_(other.labels)
    assert all(torch.equal(a, b) for a, b in zip(gradients(objective, one)[1], wanted[1], strict=True))


@pytest.mark.parametrize(
    ("counts", "piece", "sizes"),
    [
        ([8] * 10, 32, [16] * 5),  # one size is one program, where four classes at a time would leave two
        ([8] * 8, 32, [32, 32]),
        ([10] * 10, 32, [20] * 5),
        ([1] * 10, 32, [10]),
        ([1] * 7, 4, [4, 3]),  # nothing divides seven
        ([40] * 3, 32, [40] * 3),
        ([8, 0, 8, 8, 8], 16, [16, 16]),
        ([8, 3, 8, 8], 16, [11, 16]),
    ],
)
def test_whole_classes__in_groups_of_one_size_where_classes_have_one(counts, piece, sizes):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=Streams(0)("order"))]
    groups = _whole_classes(labels, piece, list(range(len(counts))))
    assert [len(group) for group in groups] == sizes
    assert torch.cat(groups).sort().values.tolist() == list(range(len(labels)))
    seen = [set(labels[group].tolist()) for group in groups]
    assert sum(map(len, seen)) == len(set().union(*seen))


def test_whole_classes__of_one_process__its_own_alone():
    labels = torch.arange(10).repeat_interleave(8)
    groups = _whole_classes(labels, 32, [1, 4, 7])
    assert [sorted(set(labels[group].tolist())) for group in groups] == [[1, 4, 7]]


class AsOnGpu(Streams):
    """Says that it draws on a GPU, and draws here."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.device = torch.device("cuda")

    def __call__(self, *names: str | int) -> torch.Generator:
        return Streams(self.seed)(*names)


def test_real_batches__on_a_gpu__one_draw_that_does_not_depend_on_the_number_of_processes(real):
    def drawn(ranks: Ranks = ALONE) -> Tensor:
        network = build_network("convnet", SHAPE, CLASSES, Streams(2)("net"), width=8, depth=2)
        objective = DistributionMatching(real, network, Augment(), AsOnGpu(3), ranks=ranks, batch_real=BATCH)
        index, labels = (torch.cat(parts) for parts in zip(*objective._real_batches(7), strict=True))
        assert torch.equal(real.labels[index], labels)
        return index.unflatten(0, (-1, BATCH))

    whole = drawn()
    assert len(whole.unique()) == CLASSES * BATCH
    for rank in range(3):
        assert torch.equal(drawn(Ranks(rank, 3)), whole[rank::3])
