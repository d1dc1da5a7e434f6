"""What every objective promises over every storage that can be optimised: a table over both registries."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from condensate import (
    Augment,
    Compute,
    Objective,
    Pixels,
    Streams,
    SyntheticDataset,
    UserError,
    build_network,
    class_major,
    condense,
    from_arrays,
)
from condensate.experts import ExpertOptions, trajectory
from condensate.objectives import OBJECTIVES, Layers
from condensate.parameterizations import PARAMETERIZATIONS
from condensate.peaks import peaks
from condensate.settling import settle_compute
from condensate.sheets import resolve
from condensate.whitening import fit

SHAPES = [(1, 8, 8), (3, 6, 10)]
OPTIONS = {"lowrank": {"rank": 1}}
MATCHED = {
    "dm": {"batch_real": 6},
    "dm-private": {"batch_real": 6, "clip": 2.0, "noise_multiplier": 0.5},
    "dc": {"batch_real": 6, "outer_loop": 2, "inner_loop": 3},
    "mtt": {"syn_steps": 3, "expert_epochs": 1, "max_start_epoch": 2, "batch_syn": 6},
}
STORAGES = [
    name for name, cls in PARAMETERIZATIONS.items() if list(cls(1, (1, 8, 8), **OPTIONS.get(name, {})).parameters())
]


@pytest.fixture(params=SHAPES, ids=str)
def data(request):
    return data_of(request.param)


def data_of(shape):
    """Twelve images of each of three classes, lighter and lighter."""
    generator = Streams(0)("images")
    labels = torch.arange(3).repeat(12)
    levels = torch.tensor([40, 120, 200])[labels].view(-1, 1, 1, 1)
    noise = torch.randint(-40, 40, (36, *shape), generator=generator)
    images = (levels + noise).to(torch.uint8)
    return from_arrays(images, labels, images, labels)


class Experts:
    """Two short trajectories."""

    epochs = 2

    def __init__(self, network, real) -> None:
        options = ExpertOptions(count=2, batch=8, lr=0.1)
        self.paths = [trajectory(network, real, Streams(0), number, 2, Augment([]), options) for number in range(2)]

    def __len__(self) -> int:
        return len(self.paths)

    def parameters(self, expert, epoch):
        return self.paths[expert][epoch]


def parts(objective: str, storage: str, data, compute: Compute | None = None, **options):
    stored = PARAMETERIZATIONS[storage](6, data.shape, **OPTIONS.get(storage, {}))
    stored.reset_(Streams(1)("start"))
    matched = OBJECTIVES[objective]
    step_size = 0.01 if matched.matches_experts else None
    seen = {"mean": data.mean, "std": data.std} if data.whitening is None else {"whitening": data.whitening}
    synthetic = SyntheticDataset(stored, class_major(3, 2), step_size=step_size, **seen)
    network = build_network("convnet", data.shape, 3, Streams(2)("net"), width=8, depth=2)
    source = Experts(network, data.train) if matched.matches_experts else data.train
    options = MATCHED[objective] | options
    return synthetic, matched(source, network, Augment(), Streams(3), compute or Compute(chunk=4), **options)


every = pytest.mark.parametrize(("objective", "storage"), [(o, s) for o in OBJECTIVES for s in STORAGES])
PUBLIC = [name for name, cls in OBJECTIVES.items() if not cls.private]  # under secret noise, no episode repeats
every_public = pytest.mark.parametrize(("objective", "storage"), [(o, s) for o in PUBLIC for s in STORAGES])


@every
def test_episode__finite_scalar_that_reaches_every_stored_tensor(objective, storage, data):
    synthetic, matching = parts(objective, storage, data)
    for loss in matching.episode(synthetic, 0):
        assert loss.shape == ()
        assert math.isfinite(loss)
        assert not loss.requires_grad
        for parameter in synthetic.parameterization.parameters():
            assert parameter.grad is not None
            of_image = parameter.grad.flatten(1).abs().sum(1)
            assert bool((of_image > 0).all())


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_episode__compiled__once_for_all_networks(objective, monkeypatch):
    """Networks are drawn anew in the same place: later episodes find their programs compiled."""
    programs = []

    def compiler(graph, inputs):
        programs.append(graph)
        return graph.forward

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **how: original(function, **how, backend=compiler))
    torch._dynamo.reset()
    synthetic, matching = parts(objective, "lowrank", data_of((3, 6, 10)), Compute(compiled=True, chunk=4))
    compiled = []
    for number in range(4):
        losses = [float(loss) for loss in matching.episode(synthetic, number)]
        compiled.append(len(programs))
        assert all(map(math.isfinite, losses))
    assert compiled[0] > 0
    assert set(compiled) == {compiled[0]}


@every_public
def test_episode__adds_to_what_is_there(objective, storage, data):
    synthetic, matching = parts(objective, storage, data)
    next(iter(matching.episode(synthetic, 0)))
    once = [p.grad.clone() for p in synthetic.parameters()]
    next(iter(matching.episode(synthetic, 0)))
    for parameter, first in zip(synthetic.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * first)


@every_public
def test_episode__repeats_and_leaves_global_randomness_alone(objective, storage, data, random_state):
    before = random_state()
    losses = [
        [float(loss) for loss in parts(objective, storage, data)[1].episode(parts(objective, storage, data)[0], 5)]
    ]
    losses.append(
        [float(loss) for loss in parts(objective, storage, data)[1].episode(parts(objective, storage, data)[0], 5)]
    )
    assert losses[0] == losses[1]
    assert random_state() == before


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_planned__is_about_what_an_episode_computes(objective, data):
    options = {"batch_real": 12} if "batch_real" in MATCHED[objective] else {"experts_per_step": 2}
    synthetic, matching = parts(objective, "pixels", data, **options)
    planned = OBJECTIVES[objective].planned(3, 6, **MATCHED[objective] | options)
    with FlopCounterMode(display=False) as image, torch.no_grad():
        matching.network(data.train.images(torch.arange(10)))
    with FlopCounterMode(display=False) as episode:
        list(matching.episode(synthetic, 0))
    computed = 10 * episode.get_total_flops() / image.get_total_flops()
    assert computed == pytest.approx(planned.forwards, rel=0.3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_planned__parts__are_what_processes_can_share(objective):
    """Classes, or experts; the noise of the private objective is that of one process."""
    options = MATCHED[objective] | {"batch_real": 12, "batch_syn": None, "experts_per_step": 2}
    parts = OBJECTIVES[objective].planned(3, 6, **options).parts
    assert parts == {"mtt": 2, "dm-private": 1}.get(objective, 3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_room__grows_with_the_chunk_and_not_with_the_work(objective):
    layers = Layers(image=1, largest=1000, every=5000, parameters=100)

    def activations(chunk: int, images: int) -> float:
        """Beside what is a set's own: its images, decoded, and their gradients."""
        options = MATCHED[objective] | {"batch_real": 256, "batch_syn": None}
        room = OBJECTIVES[objective].room(layers, Compute(chunk=chunk), 10, images, **options)
        assert room.lasting == (3 * layers.parameters if objective == "mtt" else 0)
        return room.activations - (3 * images * layers.image if OBJECTIVES[objective].matches_experts else 0)

    assert activations(64, 6400) == activations(64, 64000) >= layers.every * 64
    assert activations(128, 6400) == 2 * activations(64, 6400)


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name not in PUBLIC])
def test_episode__private__never_repeats_and_leaves_global_randomness_alone(objective, data, random_state):
    before = random_state()
    losses = {float(next(iter(parts(objective, "pixels", data)[1].episode(parts(objective, "pixels", data)[0], 5))))}
    losses |= {float(next(iter(parts(objective, "pixels", data)[1].episode(parts(objective, "pixels", data)[0], 5))))}
    assert len(losses) == 2
    assert random_state() == before


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_guarantee__given_by_private_objectives_alone(objective):
    options = MATCHED[objective] | {"delta": 1e-5}
    assert (OBJECTIVES[objective].guarantee(3, 36, 4, **options) is not None) == OBJECTIVES[objective].private


REAL = [name for name, cls in OBJECTIVES.items() if not cls.matches_experts]


@pytest.mark.parametrize("objective", REAL)
@pytest.mark.parametrize("other", ["shape", "more classes", "fewer classes", "whitening", "mean"])
def test_episode__a_set_of_other_images__refused(objective, other, data):
    _, matching = parts(objective, "pixels", data)
    shape = (1, 4, 4) if other == "shape" else data.shape
    classes = {"more classes": 4, "fewer classes": 2}.get(other, 3)
    stored = PARAMETERIZATIONS["pixels"](2 * classes, shape)
    stored.reset_(Streams(1)("start"))
    whitening = fit(torch.rand(8, *data.shape)) if other == "whitening" else None
    seen = {"whitening": whitening} if whitening else {"mean": [0.1] * shape[0], "std": [0.2] * shape[0]}
    synthetic = SyntheticDataset(stored, class_major(classes, 2), **seen)
    alike = other in ("whitening", "mean")
    expected = "must be normalised and whitened alike" if alike else f"of {classes} classes, the real ones are .* of 3"
    with pytest.raises(UserError, match=expected):
        next(iter(matching.episode(synthetic, 0)))


@pytest.mark.parametrize("objective", [name for name in REAL if not OBJECTIVES[name].private])
def test_episode__of_whitened_images__takes_a_set_whitened_alike(objective, data):
    images, labels = (
        torch.randint(0, 256, (36, 3, 4, 4), generator=Streams(0)("x"), dtype=torch.uint8),
        data.train.labels,
    )
    whitened = from_arrays(images, labels, images, labels, zca=True)
    _, matching = parts(objective, "pixels", whitened)
    stored = PARAMETERIZATIONS["pixels"](6, whitened.shape)
    stored.reset_(Streams(1)("start"))
    own = replace(whitened.whitening)  # as from another file: equal, not the same
    (loss, *_) = matching.episode(SyntheticDataset(stored, class_major(3, 2), whitening=own), 0)
    assert loss.isfinite()


class Brighter(Objective):
    """One's own, of ``gradients`` alone: draws all pixels to one."""

    def __init__(self, real=None, network=None, augment=None, streams=None, compute=None, *, pull: float = 1.0) -> None:
        self.pull = pull

    def gradients(self, synthetic, number):
        loss = self.pull * (synthetic.images() - 1).square().sum()
        loss.backward()
        yield loss.detach()


def test_own__gradients_alone__is_enough_to_condense():
    synthetic = SyntheticDataset(Pixels(4, (1, 2, 2)), class_major(2, 2))
    condense(synthetic, Brighter(), episodes=20, lr=0.3, momentum=0.0)
    torch.testing.assert_close(synthetic.images().detach(), torch.ones(4, 1, 2, 2))


def test_own__registered__a_recipe_names_it_and_says_what_it_lacks(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "brighter", Brighter)
    recipe = resolve("digits-lodm", {"objective": {"name": "brighter", "pull": 2.0}})
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match=r"^Brighter does not say what an episode takes.* class method planned, as"):
        settle_compute(recipe, (1, 8, 8), 10, 10, cpu, 1297)
    with pytest.raises(UserError, match=r"^Brighter does not say what an episode takes.* class method room, as"):
        peaks(recipe, (1, 8, 8), 10, 10, 10, None, cpu)
