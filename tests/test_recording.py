"""Work that is recorded in the third time and replayed from there on."""

import pytest
import torch

from condensate import recording
from condensate.recording import BEFORE, Repeated, reason
from tests.recorded import recorder


@pytest.fixture(autouse=True)
def nothing_refused(monkeypatch):
    monkeypatch.setattr(recording, "REFUSED", set())


def drawing(generators: list[torch.Generator], total: torch.Tensor, asked: list[int]):
    def work(given: torch.Tensor) -> torch.Tensor:
        asked.append(len(given))
        total.add_(torch.rand(3, generator=generators[0])).add_(given.sum())
        return total.square()

    return work


def made(times: int, recorder=None, refresh: int | None = None, shapes: int = 1):
    generators, total, asked = [torch.Generator().manual_seed(3)], torch.zeros(3), []
    work = drawing(generators, total, asked)
    again = work if recorder is None else Repeated(work, generators, recorder)
    given = []
    for number in range(times):
        if number == refresh:
            again.anew()
        given.append(again(torch.full((1 + number % shapes,), float(number))).clone())
    return given, asked


def test_repeated__gives_what_the_work_gives__asked_three_times():
    plain, _ = made(7)
    given, asked = made(7, recorder)
    assert all(torch.equal(one, other) for one, other in zip(plain, given, strict=True))
    assert len(asked) == BEFORE + 1


def test_repeated__anew__is_recorded_again():
    plain, _ = made(7)
    given, asked = made(7, recorder, refresh=5)
    assert all(torch.equal(one, other) for one, other in zip(plain, given, strict=True))
    assert len(asked) == BEFORE + 2


def test_repeated__of_two_shapes__each_has_its_recording():
    plain, _ = made(12, shapes=2)
    given, asked = made(12, recorder, shapes=2)
    assert all(torch.equal(one, other) for one, other in zip(plain, given, strict=True))
    assert sorted(asked) == [1] * (BEFORE + 1) + [2] * (BEFORE + 1)


def test_repeated__that_cannot_be_recorded__is_done_as_it_is_and_says_so():
    spoilt = []

    def failing(device):
        def record(work, generators):
            spoilt.extend(generators)
            torch.rand(100, generator=generators[0])
            raise RuntimeError("operation not permitted when stream is capturing")

        return record

    plain, _ = made(5)
    generators, total = [torch.Generator().manual_seed(3)], torch.zeros(3)
    again = Repeated(drawing(generators, total, []), generators, failing)
    with pytest.warns(UserWarning, match="cannot be recorded.*not permitted") as told:
        given = [again(torch.full((1,), float(number))).clone() for number in range(5)]
    assert len(told) == 1
    assert generators[0] is not spoilt[0]
    assert all(torch.equal(one, other) for one, other in zip(plain, given, strict=True))


def test_repeated__that_cannot_be_recorded__nor_can_the_like_of_it():
    """For memory of a recording that failed may be lost, and networks are trained by the thousand."""
    tried = []

    def failing(device):
        tried.append(device)
        raise RuntimeError("operation not permitted when stream is capturing")

    plain, _ = made(5)
    with pytest.warns(UserWarning, match="cannot be recorded"):
        made(5, failing)
    for _ in range(3):  # and does not say so again
        given, _ = made(5, failing)
        assert all(torch.equal(one, other) for one, other in zip(plain, given, strict=True))
    assert len(tried) == 1
    other = Repeated(lambda given: given + 1, [], recorder)
    assert float([other(torch.ones(1)) for _ in range(BEFORE + 2)][-1]) == 2
    assert len(other._recorded) == 1


def test_reason__is_what_ended_the_work__not_what_came_of_it():
    with pytest.raises(RuntimeError) as told:  # noqa: PT012
        try:
            raise ValueError("a number was read")
        finally:
            raise RuntimeError("the recording is invalid")
    assert reason(told.value) == "a number was read"
    assert reason(RuntimeError("itself")) == "itself"


def test_repeated__each_recording__has_a_recorder_of_its_own():
    """Memory of CUDA graphs is not to be taken once all graphs in it are forgotten."""
    made_anew = []
    again = Repeated(lambda given: given + 1, [], lambda device: made_anew.append(1) or recorder(device))
    for number in range(4):
        again(torch.ones(2)), again(torch.ones(3))
        assert len(made_anew) == (0 if number < BEFORE else 2)
    again.anew()
    assert torch.equal(again(torch.ones(2)), torch.full((2,), 2.0))
    assert len(made_anew) == 3


def test_repeated__that_reads_a_result_on_the_host__cannot_be_recorded():
    again = Repeated(lambda given: torch.tensor(float(given.sum())), [], recorder)
    again(torch.ones(2)), again(torch.ones(2))
    with pytest.warns(UserWarning, match="the host reads"):
        assert float(again(torch.ones(2))) == 2
