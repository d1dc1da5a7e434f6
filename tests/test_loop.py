"""The loop knows neither objective nor storage; these are toys."""

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from condensate import Pixels, SyntheticDataset, Uint8, UserError, class_major, condense, loop
from condensate.loop import SCHEDULES
from condensate.ranks import Ranks


class Toy:
    """Pulls every image to one; two updates an episode."""

    def __init__(self, bad: int = -1) -> None:
        self.bad, self.seen = bad, []

    def episode(self, synthetic, number):
        for _ in range(2):
            self.seen.append(number)
            index = torch.arange(len(synthetic))
            images = synthetic.images(index).detach()
            synthetic.backward(index, 2 * (images - 1))
            loss = (images - 1).square().mean()
            yield loss * float("nan") if number == self.bad else loss


def toy_set(step_size: float | None = None) -> SyntheticDataset:
    return SyntheticDataset(Pixels(4, (1, 2, 2)), class_major(2, 2), step_size=step_size)


def by_hand(updates: int, lr: float, momentum: float) -> Tensor:
    x, velocity = torch.zeros(4, 1, 2, 2), torch.zeros(4, 1, 2, 2)
    for _ in range(updates):
        velocity = momentum * velocity + 2 * (x - 1)
        x = x - lr * velocity
    return x


def test_condense__is_sgd_with_momentum():
    synthetic, toy = toy_set(), Toy()
    condense(synthetic, toy, episodes=5, lr=0.03, momentum=0.5)
    assert toy.seen == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    torch.testing.assert_close(synthetic.images().detach(), by_hand(10, 0.03, 0.5))


def test_condense__cosine__falls_to_zero_over_the_episodes():
    synthetic, x = toy_set(), torch.zeros(4, 1, 2, 2)
    condense(synthetic, Toy(), episodes=4, lr=0.1, momentum=0.0, schedule="cosine")
    for rate in (0.1, 0.1 * (2 + 2**0.5) / 4, 0.05, 0.1 * (2 - 2**0.5) / 4):
        for _ in range(2):  # updates an episode
            x = x - rate * 2 * (x - 1)
    torch.testing.assert_close(synthetic.images().detach(), x)


@pytest.mark.parametrize(
    ("seconds", "looks"),
    [(0.0, [3, 6]), (0.4, [2, 5, 6]), (2.0, [0, 1, 2, 3, 4, 5, 6])],
    ids=["fast", "slower", "slow"],
)
def test_condense__where_looking_waits__several_episodes_at_once_but_one_look_a_second(monkeypatch, seconds, looks):
    """Four at once here; checkpoints and the end of a session's time wait for a look."""
    clock, toy, found = [0.0], Toy(), []
    episode = toy.episode

    def slow(synthetic, number):
        clock[0] += seconds
        yield from episode(synthetic, number)

    toy.episode = slow
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
    monkeypatch.setitem(loop.LOOKED_AT_TOGETHER, "cpu", 4)
    condense(toy_set(), toy, episodes=7, lr=0.03, after=lambda p: found.append((p.episode, len(p.losses))))
    assert [number for number, _ in found] == looks
    assert sum(count for _, count in found) == 7


class OneOfTwo(Ranks):
    """A process beside another that adds nothing; what the first says, the second hears, who runs after it."""

    said: ClassVar[list[object]] = []

    def sum_gradients_(self, parameters, loss):
        """Of the other there are none."""

    def once(self, function):
        if not self.first:
            return self.said.pop(0)
        self.said.append(function())
        return self.said[-1]


@pytest.mark.parametrize(("seconds", "looks"), [(0.0, [0, 4, 6]), (0.4, [0, 2, 4, 6]), (2.0, [0, 1, 2, 3, 4, 5, 6])])
def test_condense__where_looking_waits__all_processes_look_at_the_same_episodes(monkeypatch, seconds, looks):
    """By the clock of the first, which says after every look when the next one is; another's says nothing."""
    toy, clock = Toy(), [0.0]
    episode, pace = toy.episode, {0: seconds, 1: 9.0}
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
    monkeypatch.setitem(loop.LOOKED_AT_TOGETHER, "cpu", 4)
    for rank in range(2):
        found: list[int] = []

        def slow(synthetic, number, rank=rank):
            clock[0] += pace[rank]
            yield from episode(synthetic, number)

        toy.episode = slow
        ranks = OneOfTwo(rank, 2)
        condense(toy_set(), toy, episodes=7, lr=0.03, after=lambda p, f=found: f.append(p.episode), ranks=ranks)
        assert found == looks
    assert not OneOfTwo.said


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_condense__stopped_and_gone_on__equals_uninterrupted(schedule):
    options = {"episodes": 6, "lr": 0.03, "schedule": schedule}
    whole, parts, states = toy_set(), toy_set(), []

    def stop(progress):
        states.append(progress.velocity())
        if progress.episode == 2:
            raise InterruptedError

    condense(whole, Toy(), **options)
    with pytest.raises(InterruptedError):
        condense(parts, Toy(), **options, after=stop)
    condense(parts, Toy(), **options, start=3, velocity=states[-1])
    assert torch.equal(whole.images(), parts.images())


def test_condense__unknown_schedule__named():
    with pytest.raises(UserError, match=r"unknown condense\.schedule 'cosin'; did you mean 'cosine'"):
        condense(toy_set(), Toy(), episodes=1, lr=0.1, schedule="cosin")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": float("nan")}, "lr must be a number of at least 0, got nan"),
        ({"momentum": float("inf")}, "momentum must be a number of at least 0, got inf"),
        ({"momentum": 1.0}, "momentum must be below 1, got 1.0"),
        ({"lr_step": -1.0}, "lr_step must be a number of at least 0, got -1.0"),
        ({"episodes": -5}, "episodes of at least 0 and a start among them, got -5 and 0"),
        ({"start": 9}, "episodes of at least 0 and a start among them, got 4 and 9"),
    ],
)
def test_condense__number_without_meaning__named_and_nothing_changed(wrong, message):
    synthetic, toy = toy_set(), Toy()
    with pytest.raises(UserError, match=message):
        condense(synthetic, toy, **({"episodes": 4, "lr": 0.1} | wrong))
    assert not toy.seen


def test_condense__reports_each_episode_once_with_its_mean_loss():
    reports = []
    condense(toy_set(), Toy(), episodes=3, lr=0.1, momentum=0.0, after=lambda p: reports.append((p.episode, p.losses)))
    assert [number for number, _ in reports] == [0, 1, 2]
    assert reports[0][1] == pytest.approx(((1 + 0.8**2) / 2,))


def test_condense__loss_not_finite__names_episode_and_learning_rate():
    with pytest.raises(UserError, match=r"loss is nan in episode 2 at condense.lr 0.25; .*--condense.lr 0.025"):
        condense(toy_set(), Toy(bad=2), episodes=9, lr=0.25)


def test_condense__nothing_to_optimise__refused():
    with pytest.raises(UserError, match="Uint8 holds real images"):
        condense(SyntheticDataset(Uint8(2, (1, 2, 2)), class_major(2, 1)), Toy(), episodes=1, lr=1.0)


def test_condense__keeps_constraints():
    synthetic = toy_set(step_size=-3.0)
    condense(synthetic, Toy(), episodes=1, lr=0.1)
    assert synthetic.step_size.item() == pytest.approx(1e-6)
