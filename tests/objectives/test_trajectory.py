"""MTT against a naive unroll with one graph over all steps, and what chunks, types and bounds must not change."""

from collections.abc import Callable
from itertools import accumulate

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy, one_hot
from torch.profiler import ProfilerActivity, profile

from condensate import (
    Augment,
    Compute,
    LowRank,
    Pixels,
    Streams,
    SyntheticDataset,
    TrajectoryMatching,
    UserError,
    build_network,
    class_major,
    condense,
)
from condensate.capabilities import can_compile
from condensate.networks import TiledConvolution
from condensate.parameterizations import Parameterization
from tests.launches import Launches

CLASSES, SHAPE, EACH = 3, (3, 8, 12), 3
NETWORKS = {
    "instance": ("convnet", {"width": 8, "depth": 2}),
    "batch": ("convnet", {"width": 8, "depth": 2, "norm": "batch"}),
    "layer, swish": ("convnet", {"width": 8, "depth": 1, "norm": "layer", "activation": "swish", "pooling": "max"}),
    "mlp": ("mlp", {}),
    "wide": ("convnet", {"width": 64, "depth": 2, "pooling": "none"}),
}


class Wandering:
    """Experts made up: every epoch moves all parameters at random."""

    def __init__(self, name: str = "convnet", count: int = 2, epochs: int = 4, still: bool = False, **options) -> None:
        self.epochs = epochs
        network = build_network(name, SHAPE, CLASSES, Streams(0)("net"), **options).double()
        generator = Streams(0)("walk")
        self.paths = []
        for _ in range(count):
            network.reset_(generator)
            path = [{name: p.detach().clone() for name, p in network.named_parameters()}]
            for _ in range(epochs):
                move = 0 if still else 0.02
                path.append(
                    {
                        name: p + move * torch.randn(p.shape, generator=generator, dtype=p.dtype)
                        for name, p in path[-1].items()
                    }
                )
            self.paths.append(path)

    def __len__(self) -> int:
        return len(self.paths)

    def parameters(self, expert: int, epoch: int) -> dict[str, Tensor]:
        return self.paths[expert][epoch]


def synthetic(kind: str = "lowrank", soft: bool = False, step_size: float | None = 0.03) -> SyntheticDataset:
    """Nine images in float64 whose labels and step size want their gradients, where they have any."""
    n = CLASSES * EACH
    stored: Parameterization = Pixels(n, SHAPE) if kind == "pixels" else LowRank(n, SHAPE, rank=2)
    stored.reset_(Streams(1)("start"))
    labels = class_major(CLASSES, EACH)
    if soft:
        labels = 0.8 * one_hot(labels, CLASSES) + 0.1 * torch.rand(n, CLASSES, generator=Streams(2)("labels"))
    made = SyntheticDataset(stored, labels, step_size=step_size).double()
    if soft:
        made.labels.requires_grad_(True)
    return made


def matching(compute: Compute | None = None, augment: Augment | None = None, network: str = "instance", **options):
    """Matching in float64."""
    name, keywords = NETWORKS[network]
    net = build_network(name, SHAPE, CLASSES, Streams(2)("net"), **keywords).double()
    options = {"syn_steps": 4, "expert_epochs": 2, "max_start_epoch": 2, "batch_syn": 4} | options
    return TrajectoryMatching(
        Wandering(name, **keywords), net, Augment() if augment is None else augment, Streams(3), compute, **options
    )


def gradients(of: SyntheticDataset) -> list[Tensor]:
    found = [p.grad for p in of.parameters()] + ([of.labels.grad] if of.labels.requires_grad else [])
    assert all(gradient is not None for gradient in found)
    return [gradient.clone() for gradient in found]


def naive(objective: TrajectoryMatching, of: SyntheticDataset, number: int) -> Tensor:
    """The equation with one graph over all steps: the loss, its gradients added to what ``of`` holds."""
    total = torch.zeros((), dtype=torch.float64)
    streams, experts = objective.streams, objective.experts
    for which in range(objective.experts_per_step):
        turn, place = divmod(number * objective.experts_per_step + which, len(experts))
        expert = int(torch.randperm(len(experts), generator=streams("experts", turn))[place])
        start = int(torch.randint(objective.max_start_epoch, (), generator=streams("start epoch", number, which)))
        first, target = (experts.parameters(expert, epoch) for epoch in (start, start + objective.expert_epochs))
        theta = {name: value.clone().requires_grad_() for name, value in first.items()}
        generator, waiting = streams("batches", number, which), []
        images = of.images()
        for _ in range(objective.syn_steps):
            if not waiting:
                order = torch.randperm(len(of), generator=generator)
                waiting = list(order.split(objective.batch_syn or len(of)))
            index = waiting.pop()
            drawn = objective.augment.draw(generator, len(index), SHAPE[1:], shared_op=True)
            loss = cross_entropy(functional_call(objective.network, theta, drawn(images[index])), of.labels[index])
            slope = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
            theta = {name: value - of.step_size * g for (name, value), g in zip(theta.items(), slope, strict=True)}
        gone = sum((theta[name] - target[name]).square().sum() for name in theta)
        whole = sum((first[name] - target[name]).square().sum() for name in theta)
        total = total + gone / whole / objective.experts_per_step
    wanted = [*of.parameters()] + ([of.labels] if of.labels.requires_grad else [])
    total.backward(inputs=wanted)
    return total.detach()


def assert_equals_naive(objective: TrajectoryMatching, make: Callable[[], SyntheticDataset], number: int = 0) -> None:
    ours, theirs = make(), make()
    (loss,) = objective.episode(ours, number)
    assert float(loss) == pytest.approx(float(naive(objective, theirs, number)), rel=1e-10)
    for found, expected in zip(gradients(ours), gradients(theirs), strict=True):
        assert float(expected.abs().max()) > 0
        assert float((found - expected).norm() / expected.norm()) < 1e-10


def test_episode__a_step_asks_for_little_beside_its_programs():
    """Drawing a batch is some ten operations, and the rest goes through the programs."""
    counts = []
    for steps in (2, 10):
        launches = Launches()
        objective = matching(launches.compute(), syn_steps=steps)
        with launches:
            list(objective.episode(synthetic(), 0))
        counts.append(launches.beside)
        assert launches.programs == 2 * steps
    assert (counts[1] - counts[0]) / 8 <= 20


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", ["pixels", "lowrank"])
def test_episode__adjoint_equals_the_naive_unroll(network, kind):
    assert_equals_naive(matching(network=network), lambda: synthetic(kind))


@pytest.mark.parametrize("batch", [None, 1, 4, 9])
def test_episode__any_batch_and_soft_labels__equals_the_naive_unroll(batch):
    assert_equals_naive(matching(batch_syn=batch), lambda: synthetic(soft=True))


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_episode__any_chunk__equals_the_naive_unroll(chunk):
    assert_equals_naive(matching(Compute(chunk=chunk), batch_syn=7), lambda: synthetic(soft=True))


def test_episode__no_augmentation_one_step__equals_the_naive_unroll():
    assert_equals_naive(matching(augment=Augment([]), syn_steps=1), synthetic)


@pytest.mark.parametrize("number", [0, 3])
def test_episode__several_experts__equals_the_naive_mean(number):
    assert_equals_naive(matching(experts_per_step=2), lambda: synthetic(soft=True), number)


def test_episode__batch_norm__whole_batch_whatever_the_chunk():
    assert_equals_naive(matching(Compute(chunk=2), network="batch"), synthetic)


def test_episode__gradients__agree_with_finite_differences():
    objective, width = matching(syn_steps=3), 1e-6
    of = synthetic(soft=True)
    list(objective.episode(of, 0))
    found = gradients(of)
    tensors = [*of.parameters(), of.labels]
    for tensor, gradient in zip(tensors, found, strict=True):
        at = int(gradient.abs().argmax())
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor.view(-1)[at] += sign * width
            losses.append(float(next(iter(objective.episode(of, 0)))))
            with torch.no_grad():
                tensor.view(-1)[at] -= sign * width
        expected = (losses[0] - losses[1]) / (2 * width)
        assert float(gradient.view(-1)[at]) == pytest.approx(expected, rel=1e-5)


def test_episode__hard_labels_and_fixed_step_size__get_no_gradient():
    of = synthetic()
    of.step_size.requires_grad_(False)
    list(matching().episode(of, 0))
    assert of.step_size.grad is None
    assert of.labels.grad is None


def test_episode__one_hot_labels__equal_hard_ones():
    hard, soft = synthetic(), synthetic()
    soft.labels = one_hot(soft.labels, CLASSES).double()
    for of in (hard, soft):
        list(matching().episode(of, 0))
    for a, b in zip(hard.parameters(), soft.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_episode__depends_on_its_number_alone():
    def losses(numbers):
        objective = matching()
        return [float(next(iter(objective.episode(synthetic(), n)))) for n in numbers]

    assert losses([5, 2]) == losses([2, 5])[::-1]


def test_episode__all_experts_come_up_before_one_comes_again():
    objective = matching()
    seen = []
    objective.experts.parameters = lambda expert, epoch, old=objective.experts.parameters: (
        seen.append(expert) or old(expert, epoch)
    )
    for number in range(4):
        list(objective.episode(synthetic(), number))
    turns = [seen[:4], seen[4:]]
    assert all(sorted(set(turn)) == [0, 1] for turn in turns)


def test_condense__labels_and_step_size_are_learned_and_loss_falls():
    of, steps, losses = synthetic(soft=True), [], []
    objective = matching(max_start_epoch=1, batch_syn=None, augment=Augment([]))
    objective.experts = Wandering(count=1, width=8, depth=2)  # and so every episode is the same
    labels = of.labels.detach().clone()

    def after(progress):
        steps.extend(progress.step_sizes)
        losses.extend(progress.losses)

    condense(of, objective, episodes=40, lr=5.0, lr_labels=1.0, lr_step=1e-3, after=after)
    assert not torch.equal(labels, of.labels)
    assert not of.labels.requires_grad
    assert len(set(steps)) == 40
    assert losses[-1] < losses[0] - 0.01


@pytest.mark.parametrize("rate", [1e6, 1e12])
def test_condense__step_size_under_a_large_rate__stays_within_its_bounds(rate):
    of, hits = synthetic(), []
    condense(of, matching(), episodes=6, lr=1e-3, lr_step=rate, after=lambda p: hits.append(p.projected))
    assert 1e-6 <= of.step_size.item() <= 1
    assert sum(hits) > 0


def test_condense__rates_of_zero__leave_labels_and_step_size():
    of = synthetic()
    condense(of, matching(), episodes=2, lr=1.0)
    assert of.step_size.item() == pytest.approx(0.03)
    assert of.labels.dtype == torch.int64


def test_condense__hard_labels_cannot_be_learned():
    with pytest.raises(UserError, match="only soft labels"):
        condense(synthetic(), matching(), episodes=1, lr=1.0, lr_labels=0.1)


def test_episode__on_tiles__equals_the_naive_unroll(monkeypatch):
    seen = []
    monkeypatch.setattr(
        TiledConvolution, "forward", lambda self, maps: seen.append(len(maps)) or TiledConvolution.tiled(self, maps)
    )
    ours, theirs = synthetic(), synthetic()
    naive(matching(network="wide"), theirs, 0)
    assert not seen
    list(matching(Compute(tiled=True), network="wide").episode(ours, 0))
    assert seen
    for found, expected in zip(gradients(ours), gradients(theirs), strict=True):
        assert float((found - expected).norm() / expected.norm()) < 1e-10


def test_episode__float32__close_to_float64():
    exact, rough = synthetic(), synthetic().float()
    objective = matching()
    low = matching()
    low.network.float()
    low.dtype = torch.float32
    list(objective.episode(exact, 0))
    list(low.episode(rough, 0))
    for a, b in zip(exact.parameters(), rough.parameters(), strict=True):
        torch.testing.assert_close(a.grad.float(), b.grad, rtol=1e-3, atol=1e-4 * float(a.grad.abs().max()))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="no C++ compiler")
@pytest.mark.parametrize(("soft", "network"), [(False, "instance"), (True, "instance"), (False, "wide")])
def test_episode__compiled__equals_eager(soft, network):
    """The wide one on tiles."""
    eager, compiled = synthetic(soft=soft), synthetic(soft=soft)
    list(matching(network=network).episode(eager, 0))
    list(matching(Compute(compiled=True, tiled=network == "wide"), network=network).episode(compiled, 0))
    for found, expected in zip(gradients(compiled), gradients(eager), strict=True):
        assert float((found - expected).norm() / expected.norm()) < 1e-10


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes of tensors alive at once during ``work``, by the allocator's own record, autograd's among them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    events = found.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(accumulate(size for _, size in changes))


def test_memory__a_step_keeps_one_copy_of_the_parameters():
    """And nothing else of it: 24 steps take what 4 take and 20 copies more, where the unroll takes far more."""

    def grown(way: Callable[[TrajectoryMatching], object]) -> int:
        few, many = (peak_bytes(lambda made=made: way(made)) for made in (matching(syn_steps=s) for s in (4, 24)))
        return many - few

    size = 8 * sum(p.numel() for p in matching().network.parameters())
    assert grown(lambda made: list(made.episode(synthetic(), 0))) <= 20 * size * 1.1
    assert grown(lambda made: naive(made, synthetic(), 0)) > 100 * size


@pytest.mark.parametrize("key", ["syn_steps", "expert_epochs", "max_start_epoch", "batch_syn", "experts_per_step"])
def test_init__count_below_one__refused(key):
    with pytest.raises(UserError, match=f"objective.{key} must be at least 1, got 0"):
        matching(**{key: 0})


def test_init__window_past_the_last_snapshot__refused():
    with pytest.raises(UserError, match=r"is 5, past the experts' last snapshot, of epoch 4; set experts.epochs to 5"):
        matching(max_start_epoch=4)


@pytest.mark.parametrize("size", [0.0, -1.0, 2.0, float("nan")])
def test_init__step_size_out_of_bounds__refused(size):
    with pytest.raises(UserError, match=r"objective\.step_size must be from 1e-06 to 1"):
        matching(step_size=size)


def test_init__more_experts_a_step_than_there_are__refused():
    with pytest.raises(UserError, match="experts_per_step is 3, but there are 2"):
        matching(experts_per_step=3)


def test_episode__batch_larger_than_the_set__refused():
    with pytest.raises(UserError, match="batch_syn is 10, but the synthetic set has 9 images"):
        list(matching(batch_syn=10).episode(synthetic(), 0))


def test_episode__no_step_size__refused():
    with pytest.raises(UserError, match="needs a set with a step size"):
        list(matching().episode(synthetic(step_size=None), 0))


def test_episode__experts_that_stand_still__refused():
    objective = matching()
    objective.experts = Wandering("convnet", still=True, width=8, depth=2)
    with pytest.raises(UserError, match="stands still"):
        list(objective.episode(synthetic(), 0))
