"""What a name and a seed promise."""

import itertools
from collections.abc import Callable

import pytest
import torch

from condensate import Streams, UserError
from condensate.streams import Secret

NAMES = [
    (),
    ("real",),
    ("start",),
    ("rea", "l"),
    ("real", 0),
    ("real", 1),
    ("real", 10),
    ("real", 0, 1),
    ("real", 1, 0),
]


def drawn(generator: torch.Generator, n: int = 8) -> list[float]:
    return torch.rand(n, generator=generator).tolist()


@pytest.mark.parametrize("names", NAMES, ids=str)
def test_stream__same_names_give_the_same_numbers(names: tuple[str | int, ...]):
    streams = Streams(3)
    assert drawn(streams(*names)) == drawn(streams(*names)) == drawn(Streams(3)(*names))


@pytest.mark.parametrize("seed", ["a", 1.5, None])
def test_streams__seed_that_is_no_whole_number__is_refused(seed: object):
    with pytest.raises(UserError, match="seed must be a whole number, got"):
        Streams(seed)  # type: ignore[arg-type]


def test_stream__other_names_or_seeds_give_others():
    cases = itertools.product([0, 1, 2, 10, -1, 2**40], NAMES)
    numbers = [tuple(drawn(Streams(seed)(*names))) for seed, names in cases]
    assert len(set(numbers)) == 6 * len(NAMES)
    assert len({number for row in numbers for number in row}) > 0.99 * 8 * len(numbers)


def test_stream__seed_and_name_do_not_run_together():
    assert drawn(Streams(1)(23)) != drawn(Streams(12)(3))
    assert drawn(Streams(1)(2, 3)) != drawn(Streams(1)(23))


def test_stream__is_the_same_in_every_version():
    """Published results rest on it."""
    assert Streams(0)("real", 3, 7).initial_seed() == 6874038856291177319


def test_streams__of_neighbouring_names_are_uncorrelated():
    n = 20_000
    rows = [torch.randn(n, generator=Streams(seed)("real", k)) for seed in (0, 1) for k in range(4)]
    correlation = torch.corrcoef(torch.stack(rows)) - torch.eye(8)
    assert correlation.abs().max() < 4 / n**0.5


def test_streams__order_of_use_does_not_matter():
    streams = Streams(0)
    forward = {name: drawn(streams(name)) for name in ("a", "b", "c")}
    backward = {name: drawn(streams(name)) for name in ("c", "b", "a")}
    assert forward == backward
    a, b = streams("a"), streams("b")
    interleaved = [(drawn(a, 1)[0], drawn(b, 1)[0]) for _ in range(4)]
    assert interleaved == list(zip(drawn(streams("a"), 4), drawn(streams("b"), 4)))


def test_stream__drawing_from_one_leaves_another_fresh():
    streams = Streams(0)
    one, other = streams("a"), streams("a")
    drawn(one, 100)
    assert drawn(other) == drawn(streams("a"))


def test_streams__leave_the_global_random_state_untouched(random_state: Callable[[], object]):
    before = random_state()
    drawn(Streams(0)("a", 1))
    assert random_state() == before


def test_streams__do_not_read_the_global_random_state():
    first = drawn(Streams(0)("a"))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        assert drawn(Streams(0)("a")) == first


def test_streams__draw_on_their_device():
    assert Streams(0).device == Streams(0)("a").device == torch.device("cpu")
    if torch.cuda.is_available():
        assert Streams(0, "cuda")("a").device.type == "cuda"


def test_secret__no_two_draws_are_alike():
    rows = [part for secret in (Secret(), Secret()) for part in (secret.normal(50), secret.normal(50))]
    assert len({number for row in rows for number in row.tolist()}) == 200


def test_secret__leaves_and_ignores_global_randomness(random_state):
    before = random_state()
    first = Secret().uniform(20)
    assert random_state() == before
    torch.manual_seed(0)
    again = Secret().uniform(20)
    torch.manual_seed(0)
    assert not torch.equal(again, Secret().uniform(20))
    assert not torch.equal(first, again)


def test_secret__uniform_and_normal():
    n = 200_000
    uniform, normal = Secret().uniform(n), Secret().normal(n)
    assert 0 <= float(uniform.min()) <= float(uniform.max()) < 1
    assert bool(normal.isfinite().all())
    standard = torch.distributions.Normal(0.0, 1.0)
    for drawn, level in ((uniform, lambda x: x), (normal, standard.cdf)):
        ranks = level(drawn.sort().values)
        distance = (ranks - (torch.arange(n, dtype=torch.float64) + 0.5) / n).abs().max()
        assert float(distance) < 3 / n**0.5  # Kolmogorov and Smirnov: exceeded once in ten million
    correlation = torch.corrcoef(torch.stack([normal[:-1], normal[1:]]))[0, 1]
    assert abs(float(correlation)) < 6 / n**0.5


def test_secret__nothing_asked_for():
    assert len(Secret().uniform(0)) == len(Secret().normal(0)) == 0
