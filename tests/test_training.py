"""The one training loop, against SGD written out by hand."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from condensate import Augment, ClassicAugment, ImageData, Network, UserError, build_network, fit
from condensate.capabilities import can_compile
from condensate.compute import Compute
from condensate.examples import Examples, Held
from condensate.losses import MeanLoss
from condensate.networks import TiledConvolution
from condensate.together import Together
from condensate.training import accuracy, scored_at_once


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int = 0, **options: Any) -> Network:
    return build_network("convnet", (2, 8, 8), 3, seeded(seed), **({"width": 8, "depth": 2} | options))


def examples(n: int = 11, dtype: torch.dtype = torch.float64) -> Held:
    return Held(torch.randn(n, 2, 8, 8, dtype=dtype, generator=seeded(1)), torch.arange(n) % 3)


def weights(trained: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trained.parameters()])


class Recorded:
    """Examples that note which of them were asked for."""

    def __init__(self, held: Held) -> None:
        self.held, self.labels, self.batches = held, held.labels, list[list[int]]()

    def __len__(self) -> int:
        return len(self.held)

    def images(self, index: Tensor | None = None) -> Tensor:
        assert index is not None
        self.batches.append(index.tolist())
        return self.held.images(index)


class Seen(Network):
    """A linear classifier that notes the images it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(2 * 8 * 8, 3)
        self.shown = list[Tensor]()
        self.reset_(seeded())

    def features(self, images: Tensor) -> Tensor:
        self.shown.append(images.detach().clone())
        return images.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


def by_hand(
    trained: nn.Module,
    held: Held,
    batches: Sequence[list[int]],
    epochs: int,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    drop: bool = True,
    forget_momentum: bool = False,
) -> None:
    """g = gradient + decay * w; v = momentum * v + g; w = w - rate * v; the rate falls to a tenth at half."""
    parameters = list(trained.parameters())
    velocity = [torch.zeros_like(w) for w in parameters]
    steps = len(batches) // epochs
    for number, batch in enumerate(batches):
        rate = lr / 10 if drop and number // steps >= epochs // 2 else lr
        if forget_momentum and number == steps * (epochs // 2):
            velocity = [torch.zeros_like(w) for w in parameters]
        logs = functional.log_softmax(trained(held.decoded[batch]), 1)
        loss = -sum(logs[i, held.labels[j]] for i, j in enumerate(batch)) / len(batch)
        with torch.no_grad():
            for i, (w, g) in enumerate(zip(parameters, torch.autograd.grad(loss, parameters))):
                velocity[i] = momentum * velocity[i] + g + weight_decay * w
                w -= rate * velocity[i]


# Schedule.


@pytest.mark.parametrize("epochs", [1, 2, 5, 6])
@pytest.mark.parametrize("batch", [4, 11, 256])
def test_fit__every_epoch_sees_every_image_once_and_the_last_batch_is_smaller(epochs: int, batch: int):
    recorded = Recorded(examples())
    fit(network().double(), recorded, epochs=epochs, generator=seeded(), batch=batch)
    sizes = {4: [4, 4, 3], 11: [11], 256: [11]}[batch]
    assert [len(indices) for indices in recorded.batches] == sizes * epochs
    seen = [index for batch in recorded.batches for index in batch]
    orders = [seen[start : start + 11] for start in range(0, len(seen), 11)]
    assert [sorted(order) for order in orders] == [list(range(11))] * epochs
    assert len(set(map(tuple, orders))) == epochs  # shuffled anew


@pytest.mark.parametrize(("norm", "sizes"), [("batch", [5, 6]), ("instance", [5, 5, 1])])
def test_fit__a_last_batch_of_one_image__joins_the_one_before_under_batch_statistics(norm: str, sizes: list[int]):
    made = network(norm=norm)
    for one in (made, Together([made])):
        recorded = Recorded(examples(dtype=torch.float32))
        fit(one, recorded, epochs=2, generator=[seeded()], batch=5, join_last=True)
        assert [len(indices) for indices in recorded.batches] == sizes * 2


@pytest.mark.parametrize("epochs", [2, 5, 6])
@pytest.mark.parametrize("drop", [True, False])
def test_fit__is_sgd_with_a_tenth_of_the_rate_from_half_on(epochs: int, drop: bool):
    hyper = {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.02, "drop": drop}
    recorded, trained, expected = Recorded(examples()), network().double(), network().double()
    fit(trained, recorded, epochs=epochs, generator=seeded(), batch=4, **hyper)
    by_hand(expected, recorded.held, recorded.batches, epochs, **hyper)
    torch.testing.assert_close(weights(trained), weights(expected), rtol=1e-9, atol=1e-11)


def test_fit__defaults_are_the_published_ones():
    recorded, trained, expected = Recorded(examples()), network().double(), network().double()
    fit(trained, recorded, epochs=4, generator=seeded())
    by_hand(expected, recorded.held, recorded.batches, 4, lr=0.01, momentum=0.9, weight_decay=5e-4)
    torch.testing.assert_close(weights(trained), weights(expected), rtol=1e-9, atol=1e-11)


def test_fit__keeps_the_momentum_when_the_rate_drops():
    hyper = {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.02}
    recorded, trained, forgetful = Recorded(examples()), network().double(), network().double()
    fit(trained, recorded, epochs=6, generator=seeded(), batch=4, **hyper)
    by_hand(forgetful, recorded.held, recorded.batches, 6, forget_momentum=True, **hyper)
    assert (weights(trained) - weights(forgetful)).abs().max() > 1e-4


def test_fit__calls_after_every_epoch():
    called, recorded = list[tuple[int, int]](), Recorded(examples())
    fit(
        network().double(),
        recorded,
        epochs=3,
        generator=seeded(),
        batch=4,
        after_epoch=lambda epoch: called.append((epoch, len(recorded.batches))),
    )
    assert called == [(0, 3), (1, 6), (2, 9)]


def test_fit__no_epochs_changes_nothing():
    trained = network()
    before = weights(trained)
    fit(trained, examples(dtype=torch.float32), epochs=0, generator=seeded())
    assert torch.equal(weights(trained), before)


# Labels.


def test_soft_labels__that_are_one_hot_equal_hard_ones():
    hard, trained, expected = examples(), network().double(), network().double()
    soft = Held(hard.decoded, functional.one_hot(hard.labels, 3).double())
    fit(expected, hard, epochs=3, generator=seeded(), batch=4)
    fit(trained, soft, epochs=3, generator=seeded(), batch=4)
    torch.testing.assert_close(weights(trained), weights(expected), rtol=1e-9, atol=1e-11)


def test_soft_labels__are_learned_as_probabilities():
    share = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
    one = Held(torch.ones(1, 2, 8, 8, dtype=torch.float64), share)
    trained = Seen().double()
    fit(trained, one, epochs=200, generator=seeded(), lr=0.05, weight_decay=0.0, drop=False)
    torch.testing.assert_close(trained(one.decoded).softmax(1).detach(), share, rtol=0, atol=1e-3)


# Randomness.


def test_fit__repeats_for_a_seed_only():
    first, again, other = (network() for _ in range(3))
    for trained, seed in ((first, 1), (again, 1), (other, 2)):
        fit(
            trained,
            examples(dtype=torch.float32),
            epochs=3,
            generator=seeded(seed),
            batch=4,
            augment=Augment(("crop", "color")),
        )
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


def test_fit__leaves_the_global_random_state_and_the_images_untouched(random_state: Callable[[], object]):
    held = examples(dtype=torch.float32)
    images, before = held.decoded.clone(), random_state()
    fit(network(), held, epochs=2, generator=seeded(), augment=Augment())
    assert random_state() == before
    assert torch.equal(held.decoded, images)


# Augmentation.


def test_augmentation__is_what_the_network_is_trained_on():
    held, trained, expected = examples(), network().double(), network().double()
    fit(trained, held, epochs=4, generator=seeded(), augment=Augment(("flip",), flip=1.0))
    fit(expected, Held(held.decoded.flip(3), held.labels), epochs=4, generator=seeded())
    torch.testing.assert_close(weights(trained), weights(expected), rtol=1e-9, atol=1e-11)


def test_augmentation__is_drawn_for_every_image_of_every_batch():
    ones = Held(torch.ones(20, 2, 8, 8), torch.arange(20) % 3)
    seen = Seen()
    fit(seen, ones, epochs=5, generator=seeded(), batch=10, augment=Augment(("cutout",)))
    assert len(seen.shown) == 10
    assert all((images == 0).any() for images in seen.shown)
    assert all(len(images.unique(dim=0)) > 1 for images in seen.shown)
    assert not any(torch.equal(seen.shown[0], later) for later in seen.shown[1:])


def test_augmentation__has_one_operator_a_batch():
    ones = Held(torch.ones(12, 2, 8, 8), torch.arange(12) % 3)
    seen = Seen()
    fit(seen, ones, epochs=40, generator=seeded(), batch=6, augment=Augment(("cutout", "color")))
    cut = [[bool((image == 0).any()) for image in images] for images in seen.shown]
    assert {any(batch) for batch in cut} == {True, False}
    assert all(len(set(batch)) == 1 for batch in cut)


# Learning.


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_fit__learns_the_toy_data(toy_data: ImageData, norm: str):
    learner = build_network("convnet", toy_data.shape, 3, seeded(), width=8, depth=2, norm=norm)
    before = accuracy(learner, toy_data.test)
    fit(learner, toy_data.train, epochs=30, generator=seeded(), lr=0.05, batch=20)
    assert before < 0.6
    assert accuracy(learner, toy_data.test) > 0.9


def test_accuracy__is_the_share_of_right_answers(toy_data: ImageData):
    learner = build_network("convnet", toy_data.shape, 3, seeded(), width=8, depth=2)
    right = 0
    for i in range(len(toy_data.test)):
        scores = learner(toy_data.test.images(torch.tensor([i])))[0].tolist()
        right += scores.index(max(scores)) == int(toy_data.test.labels[i])
    assert 0 < right < 30
    assert accuracy(learner, toy_data.test) == right / 30


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_accuracy__does_not_depend_on_the_batch(toy_data: ImageData, norm: str):
    learner = build_network("convnet", toy_data.shape, 3, seeded(), width=8, depth=2, norm=norm)
    fit(learner, toy_data.train, epochs=2, generator=seeded())
    order: Examples = toy_data.test.subset(torch.randperm(30, generator=seeded()))
    found = {accuracy(learner, split, batch) for split in (toy_data.test, order) for batch in (1, 7, 30, 512)}
    assert len(found) == 1
    assert 0 < found.pop() < 1


@pytest.mark.parametrize(
    ("side", "on_cpu", "on_gpu"),
    [(4, 512, 512), (8, 512, 512), (32, 32, 512), (64, 8, 128), (128, 8, 32), (512, 2, 2), (2000, 1, 1)],
)
def test_accuracy__goes_through_fewer_images_at_once_the_larger_they_are_and_on_a_cpu(
    side: int, on_cpu: int, on_gpu: int
):
    assert scored_at_once((3, side, side), torch.device("cpu")) == on_cpu
    assert scored_at_once((3, side, side), torch.device("cuda")) == on_gpu


def test_accuracy__of_large_images__goes_by_pixels():
    large = build_network("convnet", (1, 128, 128), 2, seeded(), width=2, depth=2)
    seen: list[int] = []
    large.register_forward_hook(lambda module, given, output: seen.append(len(output)))
    accuracy(large, Held(torch.randn(20, 1, 128, 128), torch.zeros(20, dtype=torch.int64)))
    assert seen == [8, 8, 4]


def test_fit_after_accuracy__trains_in_training_mode():
    trained, expected = network(norm="batch"), network(norm="batch")
    held = examples(dtype=torch.float32)
    accuracy(trained, held)
    for learner in (trained, expected):
        fit(learner, held, epochs=2, generator=seeded())
    assert torch.equal(weights(trained), weights(expected))


def test_fit__scoring_after_an_epoch_does_not_change_the_training():
    trained, expected = network(norm="batch"), network(norm="batch")
    held = examples(dtype=torch.float32)
    fit(trained, held, epochs=3, generator=seeded(), after_epoch=lambda epoch: accuracy(trained, held) and None)
    fit(expected, held, epochs=3, generator=seeded())
    assert torch.equal(weights(trained), weights(expected))


def test_fit__gradients_left_from_before_have_no_effect():
    trained, expected = network(), network()
    held = examples(dtype=torch.float32)
    trained(held.decoded).sum().backward()
    for learner in (trained, expected):
        fit(learner, held, epochs=1, generator=seeded())
    assert torch.equal(weights(trained), weights(expected))


# Together.


def stack(count: int, dtype: torch.dtype = torch.float64, **options: Any) -> list[Network]:
    return [network(seed, **options).to(dtype) for seed in range(count)]


@pytest.mark.parametrize("norm", ["instance", "batch", "layer", "none"])
@pytest.mark.parametrize("augment", [None, Augment(), ClassicAugment()], ids=["none", "dsa", "dc"])
def test_together__is_each_alone(norm: str, augment: Any):
    """Same batches, augmentation, weights and running statistics, whichever networks are beside it."""
    held, hyper = examples(), {"epochs": 4, "batch": 4, "augment": augment}
    alone, beside = stack(3, norm=norm), stack(3, norm=norm)
    for seed, each in enumerate(alone):
        fit(each, held, generator=seeded(seed), **hyper)
    together = Together(beside)
    fit(together, held, generator=[seeded(seed) for seed in range(3)], **hyper)
    together.unstack_()
    for one, other in zip(alone, beside, strict=True):
        for name, value in one.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-8, atol=1e-10, msg=name)
    assert not torch.allclose(weights(beside[0]), weights(beside[1]))


def test_together__of_soft_labels_is_each_alone():
    hard = examples()
    soft = Held(hard.decoded, torch.rand(11, 3, dtype=torch.float64, generator=seeded(5)).softmax(1))
    alone, beside = stack(2), stack(2)
    for seed, each in enumerate(alone):
        fit(each, soft, epochs=2, generator=seeded(seed), batch=4)
    together = Together(beside)
    fit(together, soft, epochs=2, generator=[seeded(0), seeded(1)], batch=4)
    together.unstack_()
    for one, other in zip(alone, beside, strict=True):
        torch.testing.assert_close(weights(other), weights(one), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_fit__batches_piece_by_piece__trains_as_with_whole_ones(chunk: int):
    whole, pieces, seen = network().double(), network().double(), list[int]()
    pieces.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    settings: dict[str, Any] = {"epochs": 3, "batch": 7, "lr": 0.1, "augment": Augment(["crop", "scale"])}
    fit(whole, examples(), generator=seeded(), **settings)
    fit(pieces, examples(), generator=seeded(), loss=MeanLoss(pieces, chunk=chunk), **settings)
    assert max(seen) == chunk
    assert sum(seen) == 3 * 11
    torch.testing.assert_close(weights(pieces), weights(whole), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", ["together", "batch statistics"])
def test_mean_loss__pieces_of_what_needs_whole_batches__refused(case: str):
    trained = {"together": Together(stack(2)), "batch statistics": network(norm="batch")}[case]
    with pytest.raises(ValueError, match="chunk must be None"):
        MeanLoss(trained, chunk=4)


def test_fit__the_loss_of_another_network__refused():
    with pytest.raises(ValueError, match="the loss is another network's"):
        fit(network(), examples(), epochs=1, generator=seeded(), loss=MeanLoss(network()))


@pytest.mark.parametrize("chunk", [None, 1, 5])
@pytest.mark.parametrize("soft", ["none", "remembered", "new", "both"])
def test_fit__replay__is_the_mean_of_both_losses(soft: str, chunk: int | None):
    """Restated: two losses, of the new images and of as many remembered ones, and their mean."""

    def labelled(n: int, seed: int, learned: bool) -> Held:
        labels = torch.rand(n, 3, dtype=torch.float64, generator=seeded(seed)).softmax(1) if learned else None
        images = torch.randn(n, 2, 8, 8, dtype=torch.float64, generator=seeded(seed))
        return Held(images, torch.arange(n) % 3 if labels is None else labels)

    new, old = labelled(11, 1, soft in ("new", "both")), labelled(5, 2, soft in ("remembered", "both"))
    found, expected, generator = network().double(), network().double(), seeded()
    loss = MeanLoss(found, chunk=chunk)
    fit(found, new, epochs=2, generator=seeded(), lr=0.1, batch=4, loss=loss, replay=old, drop=False)
    optimizer = torch.optim.SGD(expected.parameters(), 0.1, 0.9, weight_decay=5e-4)
    for _ in range(2):
        for index in torch.randperm(11, generator=generator).split(4):
            drawn = torch.randint(5, (len(index),), generator=generator)
            losses = [
                functional.cross_entropy(expected(those.images(which)), those.labels[which])
                for those, which in ((new, index), (old, drawn))
            ]
            optimizer.zero_grad()
            (sum(losses) / 2).backward()
            optimizer.step()
    torch.testing.assert_close(weights(found), weights(expected), rtol=1e-10, atol=1e-12)


def test_together__trains_nothing_before_it_is_unstacked():
    networks = stack(2)
    before = [weights(each) for each in networks]
    together = Together(networks)
    fit(together, examples(), epochs=1, generator=[seeded(0), seeded(1)])
    assert all(torch.equal(weights(each), held) for each, held in zip(networks, before, strict=True))
    together.unstack_()
    assert not any(torch.equal(weights(each), held) for each, held in zip(networks, before, strict=True))


# Precision.


def test_mean_loss__in_bfloat16_rounds_products_but_not_parameters():
    held, trained = examples(dtype=torch.float32), network(width=16)
    exact = MeanLoss(trained)(held.decoded, held.labels).detach()
    rounded = MeanLoss(trained, Compute(precision=torch.bfloat16))(held.decoded, held.labels).detach()
    assert rounded.dtype == torch.float32
    assert 0 < abs(float(rounded - exact)) < 0.02 * float(exact)
    fit(trained, held, epochs=2, generator=seeded(), loss=MeanLoss(trained, Compute(precision=torch.bfloat16)))
    assert {p.dtype for p in trained.parameters()} == {torch.float32}


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_mean_loss__on_tiles__trains_the_network_itself(norm: str, monkeypatch: pytest.MonkeyPatch):
    """In float64, so that no activation falls on the other side of zero."""
    monkeypatch.setattr(TiledConvolution, "forward", TiledConvolution.tiled)
    held, (one,), (other,) = examples(), stack(1, width=64, norm=norm), stack(1, width=64, norm=norm)
    fit(one, held, epochs=2, generator=seeded(), batch=4)
    fit(other, held, epochs=2, generator=seeded(), batch=4, loss=MeanLoss(other, Compute(tiled=True)))
    torch.testing.assert_close(weights(other), weights(one), rtol=1e-9, atol=1e-10)
    for buffer, expected in zip(other.buffers(), one.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="no C++ compiler")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("count", [1, 3])
def test_mean_loss__compiled_is_eager(norm: str, count: int):
    held, compute = examples(dtype=torch.float32), Compute(compiled=True)
    alone, compiled = stack(count, torch.float32, norm=norm), stack(count, torch.float32, norm=norm)
    generators = [seeded(seed) for seed in range(count)]
    for each, own in zip(alone, generators, strict=True):
        fit(each, held, epochs=2, generator=own, batch=4)
    pupil = Together(compiled) if count > 1 else compiled[0]
    torch._dynamo.reset()
    generators = [seeded(seed) for seed in range(count)]
    fit(pupil, held, epochs=2, generator=generators, batch=4, loss=MeanLoss(pupil, compute))
    if isinstance(pupil, Together):
        pupil.unstack_()
    for one, other in zip(alone, compiled, strict=True):
        torch.testing.assert_close(weights(other), weights(one), rtol=1e-3, atol=1e-5)


class Stopped(Exception):
    """Stands in for the end of a process."""


class Kept:
    """Keeps the state after some epoch and stops there."""

    def __init__(self, stop: int, state: dict[str, Tensor] | None = None) -> None:
        self.stop, self.state = stop, state

    def last(self) -> dict[str, Tensor] | None:
        return self.state

    def put(self, state: Callable[[], dict[str, Tensor]]) -> None:
        found = state()
        if int(found["epochs"]) == self.stop:
            self.state = {key: value.contiguous().clone() for key, value in found.items()}
            raise Stopped


@pytest.mark.parametrize(("norm", "momentum"), [("instance", 0.9), ("batch", 0.9), ("instance", 0.0)])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("stop", [1, 5])
@pytest.mark.parametrize("channels_last", [False, True])
def test_fit__stopped_and_gone_on_with_elsewhere__is_one_that_was_not(
    norm: str, momentum: float, count: int, stop: int, channels_last: bool
):
    def trained(*stops: int) -> list[Tensor]:
        state = None
        for last in stops or (-1,):  # each in networks of its own, as in a process of its own
            networks = stack(count, torch.float32, norm=norm)
            if channels_last and count == 1:
                networks[0].to(memory_format=torch.channels_last)
            pupil = networks[0] if count == 1 else Together(networks)
            mark = Kept(last, state)
            generators = [seeded(number) for number in range(count)]
            data, way = examples(dtype=torch.float32), {"momentum": momentum, "augment": Augment(), "bookmark": mark}
            try:
                fit(pupil, data, epochs=6, generator=generators, batch=4, lr=0.1, **way)
            except Stopped:
                state = mark.state
        if isinstance(pupil, Together):
            pupil.unstack_()
        return [tensor for each in networks for tensor in (*each.parameters(), *each.buffers())]

    whole, parts = trained(), trained(stop, -1)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_fit__a_frozen_parameter__goes_on_with_the_others():
    def pupil() -> Network:
        made = network().double()
        next(made.parameters()).requires_grad_(False)
        return made

    whole, first, second, mark = pupil(), pupil(), pupil(), Kept(1)
    fit(whole, examples(), epochs=3, generator=seeded())
    with pytest.raises(Stopped):
        fit(first, examples(), epochs=3, generator=seeded(), bookmark=mark)
    fit(second, examples(), epochs=3, generator=seeded(), bookmark=Kept(-1, mark.state))
    assert torch.equal(weights(second), weights(whole))


def test_fit__velocities_that_are_not_all_kept__are_refused():
    mark = Kept(1)
    with pytest.raises(Stopped):
        fit(network().double(), examples(), epochs=3, generator=seeded(), bookmark=mark)
    assert mark.state is not None
    del mark.state["momentum.0"]
    with pytest.raises(KeyError, match=r"momentum\.0"):
        fit(network().double(), examples(), epochs=3, generator=seeded(), bookmark=Kept(-1, mark.state))


@pytest.mark.parametrize("wrong", [{"lr": -0.1}, {"momentum": 1.0}, {"weight_decay": -1.0}])
def test_fit__numbers_without_a_meaning__refused(wrong: dict[str, float]):
    with pytest.raises(UserError, match=f"{next(iter(wrong))} must be"):
        fit(network(), examples(), epochs=1, generator=seeded(), **wrong)
