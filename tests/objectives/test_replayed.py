"""Episodes that are recorded and replayed are those of the objective: a table over both registries."""

import pytest
import torch

from condensate import Replayed, Streams, UserError
from condensate.objectives import OBJECTIVES
from condensate.recording import BEFORE
from condensate.streams import HeldStreams
from tests.objectives.test_contract import MATCHED, STORAGES, data_of, parts
from tests.recorded import Recorded, recorder

OPTIONS = {"dc": {"outer_loop": 1}, "mtt": {"experts_per_step": 2, "syn_steps": 2}}
RECORDED = [name for name, cls in OBJECTIVES.items() if not cls.private]
EPISODES = range(3, 8)


@pytest.fixture
def data():
    return data_of((3, 6, 10))


def condensed(synthetic, matching):
    """Losses of every update, and what is stored in the end."""
    learned = [*synthetic.parameterization.parameters()]
    groups = [{"params": learned, "lr": 0.05}]
    if synthetic.step_size is not None:
        groups.append({"params": [synthetic.step_size], "lr": 1e-7})
    optimizer = torch.optim.SGD(groups, momentum=0.5)
    losses = []
    for number in EPISODES:
        for loss in matching.episode(synthetic, number):
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss))
    return losses, [parameter.detach().clone() for group in groups for parameter in group["params"]]


@pytest.mark.parametrize(
    ("storage", "shape"), [*((storage, (3, 6, 10)) for storage in STORAGES), ("lowrank", (1, 8, 8))]
)
@pytest.mark.parametrize("objective", RECORDED)
def test_episode__replayed__is_that_of_the_objective(objective, storage, shape):
    data = data_of(shape)
    (losses, stored), (again, others) = (
        condensed(synthetic, matching if plain else Replayed(matching, recorder))
        for plain in (True, False)
        for synthetic, matching in [parts(objective, storage, data, **OPTIONS.get(objective, {}))]
    )
    assert again == losses
    assert len(set(losses)) == len(losses)
    assert all(torch.equal(one, other) for one, other in zip(stored, others, strict=True))


@pytest.mark.parametrize("objective", RECORDED)
def test_episode__recorded_and_replayed__adds_to_what_is_there(objective, data):
    found = []
    for plain in (True, False):
        synthetic, matching = parts(objective, "pixels", data, **OPTIONS.get(objective, {}))
        matching = matching if plain else Replayed(matching, recorder)
        for number in range(BEFORE + 2):  # the last two are recorded and replayed
            list(matching.episode(synthetic, number))
        found.append([parameter.grad for parameter in synthetic.parameterization.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one)


@pytest.mark.parametrize("objective", RECORDED)
def test_episode__replayed_twice__adds_up(objective, data):
    found = []
    for plain in (True, False):
        synthetic, matching = parts(objective, "pixels", data, **OPTIONS.get(objective, {}))
        matching = matching if plain else Replayed(matching, recorder)
        for number in range(BEFORE + 1):
            list(matching.episode(synthetic, number))
        synthetic.zero_grad()
        for number in (5, 6):
            list(matching.episode(synthetic, number))
        found.append([parameter.grad for parameter in synthetic.parameterization.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one)


@pytest.mark.parametrize("objective", RECORDED)
def test_episode__once_recorded__asks_nothing_of_the_objective(objective, data, monkeypatch):
    synthetic, matching = parts(objective, "pixels", data, **OPTIONS.get(objective, {}))
    replays = []
    monkeypatch.setattr(Recorded, "replay", lambda self: replays.append(len(self.noted)))
    asked = matching.gradients
    monkeypatch.setattr(matching, "gradients", lambda *given: replays.append("asked") or asked(*given))
    condensed(synthetic, Replayed(matching, recorder))
    assert replays[:3] == ["asked"] * 3  # two episodes as they are, and the recording
    assert "asked" not in replays[3:]
    assert len(replays) == 3 + len(EPISODES) - BEFORE
    assert min(replays[3:]) > 50


def test_episode__of_several_updates__one_recording_each(data):
    (losses, stored), (again, others) = (
        condensed(synthetic, matching if plain else Replayed(matching, recorder))
        for plain in (True, False)
        for synthetic, matching in [parts("dm", "lowrank", data, updates=3)]
    )
    assert len(losses) == 3 * len(EPISODES)
    assert again == losses
    assert all(torch.equal(one, other) for one, other in zip(stored, others, strict=True))


@pytest.mark.parametrize("objective", ["dc", "dm-private"])
def test_episode__where_the_host_takes_part__is_never_recorded(objective, data):
    synthetic, matching = parts(objective, "pixels", data)
    assert not matching.recordable

    def refuse(device):
        raise AssertionError("nothing is to be recorded")

    condensed(synthetic, Replayed(matching, refuse))


def test_episode__that_cannot_be_recorded__runs_as_it_is_and_says_so(data):
    def failing(device):
        def record(work, generators):
            work()
            raise RuntimeError("operation not permitted when stream is capturing")

        return record

    losses, stored = condensed(*parts("dm", "lowrank", data))
    synthetic, matching = parts("dm", "lowrank", data)
    with pytest.warns(UserWarning, match="no episode can be recorded.*not permitted when stream is capturing") as told:
        again, others = condensed(synthetic, Replayed(matching, failing))
    assert len(told) == 1
    assert again == losses
    assert all(torch.equal(one, other) for one, other in zip(stored, others, strict=True))


def test_episode__of_another_set__is_recorded_anew(data):
    synthetic, matching = parts("dm", "pixels", data)
    other, _ = parts("dm", "lowrank", data)
    both = Replayed(matching, recorder)
    condensed(synthetic, both)
    losses, _ = condensed(other, both)
    assert losses == condensed(*parts("dm", "lowrank", data))[0]


def test_episode__of_a_wrong_set__refused_as_by_the_objective(data):
    synthetic, matching = parts("mtt", "pixels", data)
    synthetic.step_size = None
    with pytest.raises(UserError, match="step size"):
        condensed(synthetic, Replayed(matching, recorder))


def test_held_streams__give_the_numbers_of_streams():
    plain, held = Streams(5), HeldStreams(Streams(5))
    assert [held(*n).initial_seed() for n in [("a", 1), ("a", 1, 2), ("a", 2)]] == [
        plain(*n).initial_seed() for n in [("a", 1), ("a", 1, 2), ("a", 2)]
    ]
    assert held("a", 3) is held("a", 4)
    assert held("a", 3) is not held("a", 3, 1)
    held.turn(7)
    held.recording = True
    assert torch.equal(torch.rand(4, generator=held("a", 0)), torch.rand(4, generator=plain("a", 7)))
    with pytest.raises(RuntimeError, match="drawn from twice"):
        held("a", 0)
    assert held.on_host()("a", 1).initial_seed() == plain("a", 1).initial_seed()


def test_every_objective_is_here():
    assert set(RECORDED) == set(MATCHED) - {"dm-private"}
