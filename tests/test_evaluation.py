"""What a score promises."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import condensate
from condensate import (
    Augment,
    ClassicAugment,
    ImageData,
    Network,
    Score,
    Streams,
    UserError,
    build_network,
    evaluate,
    evaluation,
    fit,
)
from condensate.capabilities import can_compile
from condensate.compute import Compute
from condensate.examples import Examples, Held
from condensate.together import Together
from condensate.training import accuracy

SMALL: dict[str, Any] = {"network_options": {"width": 8, "depth": 2}, "epochs": 2}


def score(toy: ImageData, repeats: int, seed: int = 0, **options: Any) -> Score:
    return evaluate(toy.train, toy.test, 3, Streams(seed), repeats=repeats, **(SMALL | options))


def test_score__has_the_mean_and_the_sample_deviation():
    found = Score("convnet", 1, (), (0.5, 0.7, 0.9, 0.6))
    mean = (0.5 + 0.7 + 0.9 + 0.6) / 4
    assert found.mean == pytest.approx(mean)
    assert found.std == pytest.approx(math.sqrt(sum((a - mean) ** 2 for a in found.accuracies) / 3))


def test_score__of_one_network_has_no_deviation():
    assert Score("convnet", 1, (), (0.5,)).std is None
    assert Score("convnet", 1, (), (0.5, 0.5)).std == 0


def test_evaluate__scores_as_many_networks_as_asked_for(toy_data: ImageData):
    found = score(toy_data, 3, augment=Augment(("flip", "crop")))
    assert (found.network, found.epochs, found.augment) == ("convnet", 2, ("flip", "crop"))
    assert len(found.accuracies) == 3
    assert len(set(found.accuracies)) > 1
    assert all(0 <= a <= 1 for a in found.accuracies)
    assert found.augmentation == "dsa"
    for none in (score(toy_data, 1), score(toy_data, 1, augment=Augment(()))):
        assert (none.augmentation, none.augment) == (None, ())


def test_evaluate__under_dc_augmentation__says_so_and_scores_otherwise(toy_data: ImageData):
    plain, dsa, dc, again = (
        score(toy_data, 3, augment=augment, epochs=8)
        for augment in (None, Augment(("crop", "scale", "rotate")), ClassicAugment(crop=1), ClassicAugment(crop=1))
    )
    assert (dc.augmentation, dc.augment) == ("dc", ("crop", "scale", "rotate"))
    assert dc == again
    assert len({plain.accuracies, dsa.accuracies, dc.accuracies}) == 3


def test_evaluate__each_network_is_trained_from_its_own_stream_and_scored_at_the_end(
    toy_data: ImageData, monkeypatch: pytest.MonkeyPatch
):
    augment, scored = Augment(("crop",)), list[Tensor]()

    def noted(network: Network, test: Examples) -> float:
        assert test is toy_data.test
        scored.append(network.classifier.weight.detach().clone())
        return accuracy(network, test)

    monkeypatch.setattr(evaluation, "accuracy", noted)
    found = score(toy_data, 3, 4, epochs=3, lr=0.03, augment=augment)
    for k in range(3):
        generator = Streams(4)("evaluate", "convnet", k)
        network = build_network("convnet", toy_data.shape, 3, generator, width=8, depth=2)
        fit(network, toy_data.train, epochs=3, generator=generator, lr=0.03, augment=augment)
        assert torch.equal(scored[k], network.classifier.weight)
        assert found.accuracies[k] == accuracy(network, toy_data.test)
    assert len(scored) == 3


def test_evaluate__a_network_does_not_depend_on_how_many_there_are(toy_data: ImageData):
    assert score(toy_data, 3).accuracies[:2] == score(toy_data, 2).accuracies


def test_evaluate__repeats_for_a_seed_only(toy_data: ImageData):
    first, again, other = (score(toy_data, 4, seed).accuracies for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_evaluate__goes_on_after_what_is_done(toy_data: ImageData):
    whole, after = score(toy_data, 3), list[Sequence[float]]()
    rest = score(toy_data, 3, done=whole.accuracies[:2], after=lambda sofar: after.append(tuple(sofar)))
    assert rest == whole
    assert after == [whole.accuracies]


def test_evaluate__trains_nothing_when_all_is_done(toy_data: ImageData, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evaluation, "fit", lambda *_, **__: pytest.fail("trained"))
    assert score(toy_data, 2, done=(0.25, 0.5)).accuracies == (0.25, 0.5)
    assert score(toy_data, 2, done=(0.25, 0.5, 0.75)).accuracies == (0.25, 0.5)


def test_evaluate__tells_the_accuracies_after_each_network(toy_data: ImageData):
    after = list[Sequence[float]]()
    found = score(toy_data, 3, after=lambda sofar: after.append(tuple(sofar)))
    assert after == [found.accuracies[:1], found.accuracies[:2], found.accuracies]


def test_evaluate__learns(toy_data: ImageData):
    found = score(toy_data, 2, epochs=100, lr=0.05)
    assert min(found.accuracies) > 0.9


def test_evaluate__is_the_same_whether_images_are_held_or_read_every_step(
    toy_data: ImageData, monkeypatch: pytest.MonkeyPatch
):
    held = score(toy_data, 2)
    monkeypatch.setattr(evaluation, "HELD_BYTES", 0)
    assert score(toy_data, 2) == held


def test_evaluate__leaves_the_global_random_state_untouched(toy_data: ImageData, random_state: Callable[[], object]):
    before = random_state()
    score(toy_data, 1, augment=Augment())
    assert random_state() == before


@pytest.mark.parametrize(("repeats", "epochs"), [(0, 2), (-1, 2), (1, 0)])
def test_evaluate__nothing_to_do_is_refused(toy_data: ImageData, repeats: int, epochs: int):
    with pytest.raises(UserError, match=f"at least one network and one epoch, got {repeats} and {epochs}"):
        score(toy_data, repeats, epochs=epochs)


def test_evaluate__training_diverges_in_its_last_step__is_no_score(toy_data: ImageData):
    with pytest.raises(UserError, match="diverged"):
        score(toy_data, 1, lr=1e30, epochs=1)


def test_evaluate__training_diverges__says_which_keys_are_of_its_learning_rate(toy_data: ImageData):
    keys = r"smaller one, as in 1e\+29: --evaluate\.lr .* --objective\.lr_net .*, lr in Python"
    with pytest.raises(UserError, match=rf"diverged at learning rate 1e\+30; try a {keys}"):
        score(toy_data, 1, lr=1e30, epochs=4)


@pytest.mark.parametrize("lr", [math.nan, math.inf, 0.0, -1.0])
def test_evaluate__learning_rate_of_no_meaning__is_refused(toy_data: ImageData, lr: float):
    with pytest.raises(UserError, match="learning rate above 0 and finite, got"):
        score(toy_data, 1, lr=lr)


def test_accuracy__of_scores_that_are_not_finite__is_none(toy_data: ImageData):
    network = build_network("convnet", (3, 8, 8), 3, Streams(0)("x"), width=8, depth=2)
    network.classifier.bias.data[1] = math.nan
    with pytest.raises(UserError, match=r"scores are not finite: .* smaller learning rate: --evaluate\.lr"):
        accuracy(network, toy_data.test)


@pytest.mark.parametrize(("train", "test"), [("soft", "hard"), ("hard", "more"), ("more", "hard"), ("none", "hard")])
def test_evaluate__labels_of_other_classes_are_refused(toy_data: ImageData, train: str, test: str):
    images, labels = toy_data.train.images(), toy_data.train.labels
    kinds = {
        "hard": Held(images, labels),
        "soft": Held(images, functional.one_hot(labels, 4).float()),
        "more": Held(images, labels + 1),
        "none": Held(images[:0], labels[:0]),
    }
    message = "are none" if train == "none" else "are of 4 classes, but the networks are to tell 3 apart"
    with pytest.raises(UserError, match=message):
        evaluate(kinds[train], kinds[test], 3, Streams(0), repeats=1, epochs=1)


def test_evaluate__images_normalised_otherwise_are_refused(toy_data: ImageData):
    other = toy_data.test.normalised([0.1] * 3, [0.2] * 3)
    with pytest.raises(UserError, match=r"normalised .* as those to train on are, as by data\.test\.normalised"):
        evaluate(toy_data.train, other, 3, Streams(0), repeats=1, **SMALL)
    alike = other.normalised(toy_data.train.mean, toy_data.train.std)
    assert evaluate(toy_data.train, alike, 3, Streams(0), repeats=1, **SMALL) == score(toy_data, 1)


def test_evaluate__images_whitened_otherwise_are_refused(toy_data: ImageData):
    whitening = condensate.whitening.fit(torch.rand(8, *toy_data.shape))
    whitened = toy_data.seen_through(whitening)
    plain = toy_data.train.seen_through(None)
    with pytest.raises(UserError, match=r"data\.seen_through\(synthetic\.whitening\)"):
        evaluate(plain, whitened.test, 3, Streams(0), repeats=1, **SMALL)
    assert evaluate(whitened.train, whitened.test, 3, Streams(0), repeats=1, **SMALL).accuracies


class Linear(Network):
    """Pixels are its features."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.scores = torch.nn.Linear(math.prod(shape), classes)

    def features(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.scores(self.features(images))


@pytest.mark.parametrize("together", [1, 2])
def test_evaluate__a_network_of_ones_own__by_the_name_it_was_registered_under(
    toy_data: ImageData, monkeypatch: pytest.MonkeyPatch, together: int
):
    monkeypatch.setitem(condensate.networks.NETWORKS, "mine", Linear)
    found = score(toy_data, 2, network="mine", network_options={}, epochs=20, together=together)
    assert found.network == "mine"
    assert min(found.accuracies) > 0.5  # of three classes


def test_evaluate__unknown_network_is_refused(toy_data: ImageData):
    with pytest.raises(UserError, match="did you mean 'convnet'"):
        score(toy_data, 1, network="convnets")


def test_evaluate__soft_labels_that_are_one_hot_equal_hard_ones(toy_data: ImageData):
    soft = Held(toy_data.train.images(), functional.one_hot(toy_data.train.labels, 3).float())
    found = evaluate(soft, toy_data.test, 3, Streams(0), repeats=2, **SMALL)
    assert found.accuracies == pytest.approx(score(toy_data, 2).accuracies)


# Together, and in other ways.


@pytest.mark.parametrize("together", [2, 3, 5, 64])
def test_together__every_network_scores_as_alone(toy_data: ImageData, together: int):
    options: dict[str, Any] = {"epochs": 6, "lr": 0.05, "augment": Augment()}
    alone = score(toy_data, 5, **options).accuracies
    beside = score(toy_data, 5, together=together, **options).accuracies
    assert len(set(alone)) > 1
    assert beside == pytest.approx(alone, abs=1.01 / 30)  # one image of 30 may fall on the other side by rounding


def test_together__goes_on_after_those_that_are_done(toy_data: ImageData):
    whole = score(toy_data, 5, together=2).accuracies
    told: list[int] = []
    rest = score(toy_data, 5, together=2, done=whole[:3], after=lambda a: told.append(len(a)))
    assert rest.accuracies == pytest.approx(whole, abs=1.01 / 30)
    assert told == [4, 5]


@pytest.mark.parametrize(
    ("start", "repeats", "together", "sizes"),
    [
        (0, 20, 16, [10, 10]),
        (10, 20, 16, [10]),
        (0, 34, 16, [12, 11, 11]),
        (12, 34, 16, [11, 11]),
        (0, 5, 64, [5]),
        (0, 4, 2, [2, 2]),
    ],
)
def test_together__more_than_a_group__groups_are_even_and_stay_so_where_it_goes_on(
    toy_data: ImageData, monkeypatch: pytest.MonkeyPatch, start: int, repeats: int, together: int, sizes: list[int]
):
    seen: list[int] = []

    class Counted(Together):
        def __init__(self, networks: Sequence[Network], *rest: Any) -> None:
            seen.append(len(networks))
            super().__init__(networks, *rest)

    monkeypatch.setattr(evaluation, "Together", Counted)
    one: dict[str, Any] = {"epochs": 1, "augment": Augment(()), "network_options": {"width": 2, "depth": 1}}
    trained = evaluation.train_networks(
        toy_data.train, 3, Streams(0), network="convnet", repeats=repeats, start=start, together=together, **one
    )
    assert len(list(trained)) == repeats - start
    assert seen == sizes


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="no C++ compiler")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "way",
    [{"together": 10}, {"compute": Compute(compiled=True)}, {"together": 10, "compute": Compute(compiled=True)}],
    ids=["together", "compiled", "both"],
)
def test_way__scores_are_distributed_as_one_by_one(way: dict[str, Any]):
    """Of 20 networks on 10 digits a class: each is near itself alone, mean and spread are those one by one."""
    data = condensate.load_data("digits")
    index = torch.cat([data.train.sample(label, 10, Streams(0)("few", label)) for label in range(10)])
    options: dict[str, Any] = {"repeats": 20, "epochs": 60, "network_options": {"width": 16, "depth": 2}}
    few, augment = data.train.subset(index), Augment(("crop", "rotate"))
    alone = evaluate(few, data.test, 10, Streams(0), augment=augment, **options)
    beside = evaluate(few, data.test, 10, Streams(0), augment=augment, **options, **way)
    differences = torch.tensor(beside.accuracies) - torch.tensor(alone.accuracies)
    assert alone.std is not None
    assert beside.std is not None
    assert alone.std > 0.005
    assert abs(float(differences.mean())) < 0.25 * alone.std
    assert float(differences.std()) < 0.5 * alone.std  # networks keep their seeds: pairs differ less than networks do
    assert 0.7 < beside.std / alone.std < 1.4


@pytest.mark.parametrize(
    ("compiled", "together", "norm", "chunk"),
    [
        (True, 1, "instance", 512),
        (False, 1, "instance", 64 * 16),
        (True, 2, "instance", None),
        (True, 1, "batch", None),
    ],
)
def test_evaluate__alone_and_without_batch_statistics__trains_on_so_many_at_once(
    toy_data: ImageData,
    monkeypatch: pytest.MonkeyPatch,
    compiled: bool,
    together: int,
    norm: str,
    chunk: int | None,
):
    told = []
    monkeypatch.setattr("torch.compile", lambda function, **_: function)
    monkeypatch.setattr(evaluation, "fit", lambda *given, **options: told.append(options["loss"].chunk))
    options = {"width": 8, "depth": 2, "norm": norm}
    score(toy_data, 2, network_options=options, together=together, compute=Compute(compiled))
    assert set(told) == {chunk}
