"""DC and DSA against a slow restatement of their equations, and what chunks and precisions must not change."""

from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from condensate import (
    Augment,
    Compute,
    GradientMatching,
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
from condensate.capabilities import can_compile
from condensate.data import measure
from condensate.losses import MeanLoss
from condensate.networks import TiledConvolution
from condensate.parameterizations import Parameterization
from tests.launches import Launches

CLASSES, SHAPE, BATCH = 3, (3, 8, 12), 7
IMAGES = torch.randint(0, 256, (CLASSES * 20, *SHAPE), dtype=torch.uint8, generator=Streams(5)("images"))
MEAN, STD = measure(IMAGES)
NONE = Augment([])


@pytest.fixture(scope="module")
def real():
    labels = torch.arange(CLASSES).repeat(20)
    return from_arrays(IMAGES, labels, IMAGES, labels, mean=MEAN, std=STD).train


def synthetic(kind: str = "lowrank", labels: Tensor | None = None) -> SyntheticDataset:
    """Three images a class, stored in float64."""
    labels = class_major(CLASSES, 3) if labels is None else labels
    n = len(labels)
    stored: Parameterization = Pixels(n, SHAPE) if kind == "pixels" else LowRank(n, SHAPE, rank=2)
    stored.reset_(Streams(1)("start"))
    return SyntheticDataset(stored, labels, mean=MEAN, std=STD).double()


def matching(real, compute=None, augment=None, network=None, **options) -> GradientMatching:
    """Matching in float64."""
    convnet = {"width": 8, "depth": 2} | (network or {})
    net = build_network("convnet", SHAPE, CLASSES, Streams(2)("net"), **convnet).double()
    return GradientMatching(
        real,
        net,
        augment or Augment(),
        Streams(3),
        compute,
        **{"batch_real": BATCH, "siamese": augment is None or bool(augment.ops)} | options,
    )


def walk(losses: Iterator[Tensor], of: SyntheticDataset, lr: float = 0.1) -> list[tuple[float, list[Tensor]]]:
    """Loss and gradients at every yield, with a step of plain gradient descent after each."""
    steps = []
    of.zero_grad()
    for loss in losses:
        steps.append((float(loss), [p.grad.clone() for p in of.parameters()]))
        with torch.no_grad():
            for parameter in of.parameters():
                parameter -= lr * parameter.grad
        of.zero_grad()
    return steps


def assert_same(found, expected, rtol: float = 1e-8) -> None:
    assert len(found) == len(expected) > 0
    for (loss, gradients), (other, references) in zip(found, expected, strict=True):
        assert loss == pytest.approx(other, rel=rtol)
        for gradient, reference in zip(gradients, references, strict=True):
            torch.testing.assert_close(gradient, reference, rtol=rtol, atol=rtol * float(reference.abs().max()))


def test_episode__a_class_asks_for_little_beside_its_programs(real):
    """To read its images, and its part of one sum of what goes to the storage."""
    counts = []
    for labels in (torch.zeros(3, dtype=torch.int64), class_major(CLASSES, 3)):
        launches, stored = Launches(), Pixels(len(labels), SHAPE)
        of = SyntheticDataset(stored, labels, classes=("a", "b", "c"), mean=MEAN, std=STD).double()
        objective = matching(real, launches.compute())
        with launches:
            list(objective.episode(of, 0))
        counts.append(launches.beside)
        assert launches.programs == 2 * len(labels.unique())
    assert (counts[1] - counts[0]) / 2 <= 16


def by_rows(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for a, b in zip(ours, theirs, strict=True):
        if a.ndim > 1:
            for output in range(len(a)):
                s, r = a[output].reshape(-1), b[output].reshape(-1)
                total = total + 1 - (s * r).sum() / (s.norm() * r.norm() + 1e-6)
    return total


def by_angle(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    dot = sum((a * b).sum() for a, b in zip(ours, theirs, strict=True))
    lengths = sum(a.square().sum() for a in ours).sqrt() * sum(b.square().sum() for b in theirs).sqrt()
    return 1 - dot / (lengths + 1e-6)


def by_squares(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    return sum((a - b).square().sum() for a, b in zip(ours, theirs, strict=True))


DISTANCES = {"layerwise": by_rows, "cosine": by_angle, "mse": by_squares}


def restated(objective: GradientMatching, of: SyntheticDataset, number: int, distance: str) -> Iterator[Tensor]:
    """The published loop with a network of its own: the graphs of all classes, then one backward."""
    net, streams, real = deepcopy(objective.network), objective.streams, objective.real
    net.reset_(streams("network", number))
    parameters = list(net.parameters())
    labels = sorted(set(of.labels.tolist()))
    for step in range(objective.outer_loop):
        net.train()
        if net.batch_statistics:
            index = [real.sample(label, 16, streams("statistics", number, step, label)) for label in labels]
            net(real.images(torch.cat(index)).double())
            for module in net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        drawn = objective.augment.draw(streams("augment", number, step), CLASSES, SHAPE[1:])
        loss = torch.zeros((), dtype=torch.float64)
        for label in labels:
            batch = real.images(real.sample(label, objective.batch_real, streams("real", number, step, label))).double()
            images = of.images((of.labels == label).nonzero().flatten())
            theirs, ours = (torch.full((len(x),), label) for x in (batch, images))
            target = torch.autograd.grad(cross_entropy(net(drawn(batch, theirs)), theirs), parameters)
            given = torch.autograd.grad(cross_entropy(net(drawn(images, ours)), ours), parameters, create_graph=True)
            loss = loss + DISTANCES[distance](given, target)
        loss.backward(inputs=list(of.parameters()))
        yield loss.detach()
        if step + 1 < objective.outer_loop:
            descend(net, objective, of.images().detach(), of.labels, streams("inner", number, step))


def descend(net: nn.Module, objective: GradientMatching, images: Tensor, labels: Tensor, generator) -> None:
    """Train a network by plain gradient descent on shuffled batches."""
    net.train()
    for _ in range(objective.inner_loop):
        for index in torch.randperm(len(images), generator=generator).split(objective.batch_train):
            batch = images[index]
            if objective.augment.ops:
                batch = objective.augment.draw(generator, len(index), SHAPE[1:], shared_op=True)(batch)
            gradients = torch.autograd.grad(cross_entropy(net(batch), labels[index]), list(net.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                    parameter -= objective.lr_net * gradient


def assert_equals_restatement(objective, kind="lowrank", distance="layerwise", labels=None) -> None:
    ours, theirs = synthetic(kind, labels), synthetic(kind, labels)
    found = walk(objective.episode(ours, 3), ours)
    assert_same(found, walk(restated(objective, theirs, 3, distance), theirs))


TRAINED = {"outer_loop": 3, "inner_loop": 2, "batch_train": 4, "lr_net": 0.05}


@pytest.mark.parametrize("augment", [NONE, Augment()], ids=["dc", "dsa"])
@pytest.mark.parametrize(
    ("kind", "chunk", "piece"),
    [("pixels", 2, None), *(("lowrank", *sizes) for sizes in [(1, None), (2, None), (5, None), (2, 1), (1000, 2)])],
)
def test_episode__any_chunk__equals_the_published_loop(real, chunk, piece, kind, augment):
    assert_equals_restatement(matching(real, Compute(chunk=chunk, piece=piece), augment, **TRAINED), kind)


@pytest.mark.parametrize("distance", list(DISTANCES))
@pytest.mark.parametrize("chunk", [2, 1000])
def test_episode__any_distance__equals_the_published_loop(real, chunk, distance):
    assert_equals_restatement(matching(real, Compute(chunk=chunk), distance=distance, **TRAINED), distance=distance)


@pytest.mark.parametrize("options", [{"norm": "layer"}, {"norm": "none", "pooling": "max"}], ids=str)
def test_episode__other_networks__equal_the_published_loop(real, options):
    assert_equals_restatement(matching(real, Compute(chunk=2), network=options))


@pytest.mark.parametrize("chunk", [2, 1000])
def test_episode__batch_norm__running_statistics_of_real_images_as_published(real, chunk):
    assert_equals_restatement(matching(real, Compute(chunk=chunk), network={"norm": "batch"}, **TRAINED))


def test_episode__batch_norm__matching_moves_no_statistics(real):
    objective, of = matching(real, network={"norm": "batch"}), synthetic()
    next(objective.episode(of, 0))
    assert {int(value) for name, value in objective.network.named_buffers() if "tracked" in name} == {1}


def test_condense__batch_norm_and_one_image_a_class__does_not_explode(real):
    objective = matching(real, network={"norm": "batch"}, outer_loop=3, inner_loop=5)
    of = synthetic(labels=torch.arange(CLASSES))
    condense(of, objective, episodes=4, lr=0.1)
    assert float(of.images().detach().abs().max()) < 100


def test_episode__labels_in_any_order_and_number__equals_the_published_loop(real):
    labels = torch.tensor([2, 0, 1, 0, 2, 2, 2])
    assert_equals_restatement(matching(real, Compute(chunk=3), **TRAINED), labels=labels)


def test_episode__classes_absent_from_the_set__are_skipped(real):
    some = real.subset((real.labels != 1).nonzero().flatten())  # nor are there real images of them
    for norm in ("instance", "batch"):
        assert_equals_restatement(matching(some, network={"norm": norm}), labels=torch.tensor([2, 0, 2]))


@pytest.mark.parametrize("distance", list(DISTANCES))
def test_episode__gradient_to_factors__agrees_with_finite_differences(real, distance):
    objective = matching(real, Compute(chunk=2), network={"activation": "sigmoid"}, distance=distance)
    of = synthetic()
    ((_, found),) = walk(objective.episode(of, 0), of, lr=0.0)
    generator = Streams(4)("direction")
    for parameter, gradient in zip(of.parameters(), found, strict=True):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        losses = []
        for sign in (1, -2):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * 1e-5)
            losses.append(walk(objective.episode(of, 0), of, lr=0.0)[0][0])
        with torch.no_grad():
            parameter.add_(direction, alpha=1e-5)
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(float((gradient * direction).sum()), rel=1e-5)


def test_episode__rows_of_zero_gradient__stay_finite(real):
    of = synthetic("pixels")
    with torch.no_grad():
        of.parameterization.pixels.zero_()
    for distance in DISTANCES:
        objective = matching(real, augment=NONE, network={"norm": "none"}, distance=distance)
        ((loss, (gradient,)),) = walk(objective.episode(of, 0), of, lr=0.0)
        assert loss == loss
        assert bool(gradient.isfinite().all())


def test_episode__float32_set_and_float64_network__computes_in_the_type_of_the_network(real):
    objective, of, exact = matching(real, **TRAINED), synthetic().float(), synthetic()
    found, expected = (walk(objective.episode(each, 0), each) for each in (of, exact))
    assert_same([(loss, [g.double() for g in gradients]) for loss, gradients in found], expected, rtol=1e-4)


def test_episode__bfloat16_real_gradients__close_to_exact(real):
    of = synthetic()
    ((exact, reference),) = walk(matching(real).episode(of, 0), of, lr=0.0)
    ((rounded, found),) = walk(matching(real, Compute(precision=torch.bfloat16)).episode(of, 0), of, lr=0.0)
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.02)
    for a, b in zip(found, reference, strict=True):
        assert a.dtype == torch.float64
        assert float(cosine_similarity(a.flatten(), b.flatten(), dim=0)) > 0.999


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("chunk", [2, 64])
def test_episode__on_tiles__equal(real, monkeypatch, norm, chunk):
    wide, seen = {"width": 64, "pooling": "none", "norm": norm}, []
    monkeypatch.setattr(
        TiledConvolution, "forward", lambda self, maps: seen.append(len(maps)) or TiledConvolution.tiled(self, maps)
    )
    expected, found = (
        walk(matching(real, Compute(chunk=chunk, tiled=tiles), network=wide, **TRAINED).episode(of, 0), of)
        for tiles, of in ((False, synthetic()), (True, synthetic()))
    )
    assert_same(found, expected)
    assert sum(seen) > TRAINED["outer_loop"] * CLASSES * BATCH  # real and synthetic images


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="no C++ compiler")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_episode__compiled__equals_eager(real, norm):
    torch._dynamo.reset()

    def steps(compiled: bool):
        objective = matching(real, Compute(compiled, chunk=2), network={"norm": norm}, **TRAINED)
        of = synthetic()
        return walk(objective.episode(of, 0), of)

    assert_same(steps(True), steps(False))


def test_episode__compiled__trains_by_a_program_too(real, monkeypatch):
    """Most of the published schedules at 10 and 50 images a class is training between matches."""
    ran = []
    monkeypatch.setattr(
        "torch.compile", lambda function, **_: lambda *given: ran.append(function.__qualname__) or function(*given)
    )
    of = synthetic()
    list(matching(real, Compute(compiled=True), **TRAINED).episode(of, 0))
    batches = -(-len(of) // TRAINED["batch_train"])
    trained = (TRAINED["outer_loop"] - 1) * TRAINED["inner_loop"] * batches
    assert len([name for name in ran if name.startswith(MeanLoss.__name__)]) == trained


def test_episode__network_can_be_trained_and_holds_no_gradient(real):
    objective, of = matching(real, **TRAINED), synthetic()
    objective.network.requires_grad_(False)
    objective = GradientMatching(real, objective.network, Augment(), Streams(3), outer_loop=2, batch_real=BATCH)
    for _ in objective.episode(of, 0):
        assert torch.is_grad_enabled()
        assert all(p.grad is None and p.requires_grad for p in objective.network.parameters())


def test_episode__depends_on_its_number_alone(real):
    objective = matching(real, **TRAINED)

    def steps(number: int) -> list[float]:
        of = synthetic()
        return [loss for loss, _ in walk(objective.episode(of, number), of)]

    first = steps(7)
    assert steps(2) != first
    assert steps(7) == first
    assert len(set(first)) == 3


def test_condense__loss_falls(real):
    of, objective = synthetic(), matching(real, augment=NONE, batch_real=20)
    unseen = range(100, 105)  # networks that were not matched, the same before and after
    before = [walk(objective.episode(of, number), of, lr=0.0)[0][0] for number in unseen]
    condense(of, objective, episodes=20, lr=0.2)
    after = [walk(objective.episode(of, number), of, lr=0.0)[0][0] for number in unseen]
    assert all(late < 0.9 * early for early, late in zip(before, after, strict=True))


@pytest.mark.parametrize("each", [2, 11])
def test_activation_memory__matching_and_training_see_no_more_than_a_chunk(real, each):
    objective = matching(real, Compute(chunk=5), batch_real=19, outer_loop=2)
    seen, forward = [], objective.network.forward
    objective.network.forward = lambda images: (seen.append(len(images)), forward(images))[1]
    list(objective.episode(synthetic(labels=class_major(CLASSES, each)), 0))
    assert max(seen) == 5


def test_episode__soft_labels__refused(real):
    of = SyntheticDataset(Pixels(3, SHAPE), torch.eye(3), mean=MEAN, std=STD)
    with pytest.raises(UserError, match="one class an image, not soft labels"):
        list(matching(real).episode(of, 0))


@pytest.mark.parametrize("key", ["outer_loop", "inner_loop", "batch_real", "batch_train"])
def test_init__count_below_one__refused(real, key):
    with pytest.raises(UserError, match=f"objective.{key} must be at least 1, got 0"):
        matching(real, **{key: 0})


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan")])
def test_init__no_learning_rate__refused(real, lr):
    with pytest.raises(UserError, match=r"objective.lr_net must be above 0"):
        matching(real, lr_net=lr)


def test_init__unknown_distance__refused_naming_the_nearest(real):
    with pytest.raises(UserError, match=r"unknown objective.distance 'cosin'; did you mean 'cosine'"):
        matching(real, distance="cosin")
