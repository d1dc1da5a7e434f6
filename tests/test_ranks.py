"""Several processes, by a real torchrun on the CPU: the results of one, and an end when one of them ends.

Started as a program, this file forks into processes that work through ``CASES`` and keep what they found.
"""

import importlib
import io
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from condensate import (
    Augment,
    DistributionMatching,
    GradientMatching,
    LowRank,
    Pixels,
    PrivateDistributionMatching,
    Streams,
    SyntheticDataset,
    TrajectoryMatching,
    UserError,
    assemble,
    build_network,
    class_major,
    cli,
    condense,
    evaluate,
    from_arrays,
    load,
    runs,
)
from condensate.console import Display
from condensate.experts import ExpertOptions, Store, trajectory
from condensate.ranks import ALONE, Ranks
from condensate.sessions import Session
from condensate.sheets import resolve

SHAPE, CLASSES, EACH, EPISODES, EXPERTS = (1, 8, 8), 5, 2, 3, 4
MEAN, STD = [0.5], [0.29]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
SMALL = {
    "network": {"width": 8, "depth": 1},
    "condense": {"episodes": 4, "checkpoint": 2},
    "evaluate": {"repeats": 3, "epochs": 2},
    "compare": [],
}
RUNS = {
    "digits-lodm": SMALL | {"objective": {"batch_real": 8}, "compare": ["random", "full"]},
    "digits-lomtt": SMALL
    | {
        "objective": {"syn_steps": 2, "expert_epochs": 1, "max_start_epoch": 2, "batch_syn": 8, "experts_per_step": 2},
        "experts": {"count": EXPERTS, "epochs": None},
    },
}
RUNS["digits-lodm"]["evaluate"] = SMALL["evaluate"] | {"epochs_full": 1}


def images():
    generator = Streams(0)("images")
    labels = class_major(CLASSES, 20)
    drawn = torch.randint(0, 256, (len(labels), *SHAPE), dtype=torch.uint8, generator=generator)
    return from_arrays(drawn, labels, drawn, labels, mean=MEAN, std=STD)


def network(norm: str = "instance"):
    return build_network("convnet", SHAPE, CLASSES, Streams(0)("net"), width=6, depth=1, norm=norm)


class Experts:
    """Trajectories that go straight through parameter space."""

    epochs = 3

    def __len__(self) -> int:
        return EXPERTS

    def parameters(self, expert: int, epoch: int) -> dict[str, Tensor]:
        named = {name: value.detach() for name, value in network().named_parameters()}
        generator = Streams(expert)("way")
        return {n: v + 0.05 * epoch * torch.randn(v.shape, generator=generator) for n, v in named.items()}


def matching(method: str, ranks: Ranks):
    real, streams, augment = images().train, Streams(7), Augment(["crop", "scale"])
    if method == "dm":
        return DistributionMatching(real, network(), augment, streams, None, ranks, batch_real=6)
    if method.startswith("mtt"):
        options = {"syn_steps": 3, "max_start_epoch": 2, "batch_syn": 4, "experts_per_step": int(method[-1])}
        return TrajectoryMatching(Experts(), network(), augment, streams, None, ranks, **options)
    norm = "batch" if method == "dc-batch" else "instance"
    options = {"siamese": method == "dsa", "outer_loop": 2, "batch_real": 6}
    return GradientMatching(real, network(norm), augment, streams, None, ranks, **options)


def start(storage: str, method: str) -> SyntheticDataset:
    stored = {"pixels": Pixels, "lowrank": partial(LowRank, rank=1)}[storage](CLASSES * EACH, SHAPE)
    stored.reset_(Streams(3)("start"))
    labels = class_major(CLASSES, EACH)
    if method.startswith("mtt"):
        return SyntheticDataset(stored, torch.nn.functional.one_hot(labels, CLASSES).float(), step_size=0.05)
    return SyntheticDataset(stored, labels, mean=MEAN, std=STD)


def condensed(method: str, storage: str, ranks: Ranks, folder: Path) -> dict[str, Tensor]:
    synthetic, losses = start(storage, method), []
    learned = {"lr_labels": 0.1, "lr_step": 1e-3} if method.startswith("mtt") else {}
    after = lambda progress: losses.extend(progress.losses)  # noqa: E731
    options = {"episodes": EPISODES, "lr": 0.5, "after": after, "ranks": ranks, **learned}
    condense(synthetic, matching(method, ranks), **options)
    return {"losses": torch.tensor(losses), **synthetic.stored()}


def scored(ranks: Ranks, folder: Path) -> dict[str, Tensor]:
    data, told = images(), []
    keep = lambda accuracies: told.append(len(accuracies))  # noqa: E731
    options = {"repeats": 6, "epochs": 2, "network_options": {"width": 6, "depth": 1}, "lr": 0.1}
    score = evaluate(data.train, data.test, CLASSES, Streams(1), done=[0.5], after=keep, ranks=ranks, **options)
    assert told[-1] == 6
    assert len(told) == (5 if ranks.world == 1 else -(-5 // ranks.world))
    return {"accuracies": torch.tensor(score.accuracies)}


def made(ranks: Ranks, folder: Path) -> dict[str, Tensor]:
    """Experts, each made once and by the process it falls to, unless another had nothing to do."""
    store, options, mine = Store(folder / "store", {"data": "these"}, 7, 1, ""), ExpertOptions(batch=16), []

    def train(number: int):
        mine.append(number)
        return trajectory(network(), images().train, Streams(0), number, 1, Augment([]), options)

    missing = ranks.once(store.missing)
    store.make(train, first=ranks.share(missing))
    everyone = [number for each in ranks.gather(mine) for number in each]
    assert sorted(everyone) == list(range(7))
    assert mine
    assert mine[0] == ranks.rank
    return {f"{number} {name}": value for number in range(7) for name, value in store.parameters(number, 1).items()}


def carried_out(name: str, ranks: Ranks, folder: Path) -> dict[str, Tensor]:
    """A whole run in its folder."""
    session = Session(torch.device("cpu"), Display(Console(file=io.StringIO())), {}, ranks=ranks)
    recipe = resolve(name, RUNS[name])
    if recipe.experts is not None:
        recipe = recipe.with_values(experts={"store": str(folder / "experts")})
    results = runs.prepare(recipe, session).at(folder / name, 0).run()
    if ranks.first:
        told = json.loads((folder / name / "result.json").read_text())
        assert told == results[name]
        assert told["processes"] == json.loads((folder / name / "environment.json").read_text())["processes"]
        assert told["processes"] == ranks.world
        assert len((folder / name / "log.jsonl").read_text().splitlines()) == 4
        assert not (folder / name / "checkpoints").exists()
    found = {row: torch.tensor(result["evaluation"][0]["accuracies"]) for row, result in results.items()}
    return found | load(folder / name).stored()


def gone_on_with(ranks: Ranks, folder: Path) -> dict[str, Tensor]:
    """A run that one process began, see ``stopped``."""
    display = Display(Console(file=io.StringIO()))
    runs.reopen(folder / "stopped", torch.device("cpu"), display, ranks=ranks).run()
    return dict(load(folder / "stopped").stored())


def refused(ranks: Ranks, folder: Path) -> dict[str, Tensor]:
    if ranks.world == 1:
        return {}
    real, streams = images().train, Streams(0)
    with pytest.raises(UserError, match=r"batch normalisation sees all classes in one batch.*--network.norm instance"):
        DistributionMatching(real, network("batch"), Augment([]), streams, None, ranks)
    with pytest.raises(UserError, match=r"private matching draws its noise once.*without torchrun"):
        PrivateDistributionMatching(real, network(), Augment([]), streams, None, ranks)
    return {}


def told_apart(ranks: Ranks, folder: Path) -> dict[str, Tensor]:
    """What processes tell each other."""
    assert ranks.gather(ranks.rank) == list(range(ranks.world))
    assert ranks.once(lambda: ranks.rank) == 0

    def mistake() -> None:
        raise UserError(f"made by {ranks.rank}")

    with pytest.raises(UserError, match="made by 0"):
        ranks.once(mistake)
    shared = [torch.full((2, 3), float(ranks.rank)), torch.tensor(ranks.rank)]
    ranks.same_(shared)
    assert not shared[0].any()
    assert not shared[1].any()
    parameters = [torch.zeros(2, 2, dtype=torch.float64, requires_grad=True), torch.zeros(3, requires_grad=True)]
    if ranks.first:
        parameters[0].grad = torch.ones(2, 2, dtype=torch.float64)
    parameters[1].grad = torch.arange(3.0)
    loss = torch.tensor(2.0)
    ranks.sum_gradients_(parameters, loss)
    assert loss == 2 * ranks.world
    assert torch.equal(parameters[0].grad, torch.ones(2, 2, dtype=torch.float64))
    assert torch.equal(parameters[1].grad, torch.arange(3.0) * ranks.world)
    assert ranks.tell(f"said by all of {ranks.world}", grace=20.0)
    return {}


METHODS = ["dm pixels", "dm lowrank", "dsa pixels", "dsa lowrank", "mtt3 pixels", "mtt3 lowrank"]
METHODS += ["dc-batch pixels", "mtt1 lowrank"]
CASES = {
    **{method: partial(condensed, *method.split()) for method in METHODS},
    "evaluation": scored,
    "experts": made,
    **{f"run {name}": partial(carried_out, name) for name in RUNS},
    "gone on with": gone_on_with,
    "refused": refused,
    "told": told_apart,
}


class Fails:
    """An objective that does ``last`` in one of two processes after an episode."""

    def __init__(self, ranks: Ranks, last) -> None:
        self.ranks, self.last = ranks, last

    def episode(self, synthetic, number):
        if number and self.ranks.rank == self.ranks.world - 1:
            self.last()
        index = torch.arange(len(synthetic))
        synthetic.backward(index, synthetic.images(index).detach())
        yield torch.ones(())


def raises() -> None:
    raise ValueError("one process alone made a mistake")


def hangs(folder: Path) -> None:
    """Until the others have given up."""
    until = time.monotonic() + 60
    while len(list(folder.glob("lost *"))) < 2 and time.monotonic() < until:
        time.sleep(0.1)


def work(folder: Path) -> None:
    """What one of the processes does."""
    with Ranks.of_torchrun().joined(60.0) as ranks:
        found = {}
        for name, case in CASES.items():
            found |= {f"{name}: {key}": value for key, value in case(ranks, folder).items()}
        torch.save(found, folder / f"{ranks.rank}.pt")
        ranks.gather(None)
    again = replace(ranks, store=torch.distributed.PrefixStore("again", ranks.store))
    (folder / f"began {ranks.rank}").write_text(str(time.time()))
    last = raises if ranks.world == 2 else partial(hangs, folder)
    try:
        with again.joined(4.0) as ranks:
            condense(start("pixels", "dm"), Fails(ranks, last), episodes=2, lr=0.1, ranks=ranks)
    except ConnectionAbortedError as error:
        (folder / f"lost {ranks.rank}").write_text(str(error))
        raise


def main(top: Path) -> None:
    """Fork into two processes, and into three, with what all of them import."""
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")
    assemble.image_data(resolve("digits-lodm"), torch.device("cpu"))
    started = []
    for world in (2, 3):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        for rank in range(world):
            pid = os.fork()
            if not pid:
                place = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": world, "RANK": rank}
                os.environ |= {key: str(value) for key, value in place.items()}
                work(top / str(world))
                return
            started.append(pid)
    sys.exit(max(os.waitpid(pid, 0)[1] for pid in started) != 0)


def torchrun(world: int, *words: str | Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={world}",
        *map(str, words),
    ]


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    paths = [str(Path(runs.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def stopped(folder: Path) -> None:
    """A run that one process began and stopped in its fourth episode."""

    class Stopped(Exception):
        pass

    def stop(self, synthetic, number):
        if number == 3:
            raise Stopped
        return episode(self, synthetic, number)

    episode = DistributionMatching.episode
    session = Session(torch.device("cpu"), Display(Console(file=io.StringIO())), {})
    recipe = resolve("digits-lodm", RUNS["digits-lodm"]).with_values(compare=[])
    run = runs.prepare(recipe, session).at(folder / "stopped", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistributionMatching, "episode", stop)
        with pytest.raises(Stopped):
            run.run()


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, Tensor]:
    """What one process finds."""
    folder = tmp_path_factory.mktemp("alone")
    stopped(folder)
    found = {}
    for name, case in CASES.items():
        found |= {f"{name}: {key}": value for key, value in case(ALONE, folder).items()}
    return found


@pytest.fixture(scope="module")
def together(tmp_path_factory, environment):
    """Two processes, and three, that have ended: their folders lie in one, and what they said."""
    top = tmp_path_factory.mktemp("together")
    for world in ("2", "3"):
        stopped(top / world)
    program = [sys.executable, __file__, top]
    return top, subprocess.run(program, env=environment, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module", params=[2, 3])
def several(request, together):
    """The folder of so many processes, and what each found."""
    top, done = together
    files = [top / str(request.param) / f"{rank}.pt" for rank in range(request.param)]
    assert all(file.is_file() for file in files), done.stderr
    return files[0].parent, [torch.load(file) for file in files]


@pytest.mark.parametrize("case", CASES)
def test_several__find_what_one_finds(case, alone, several):
    keys = [key for key in alone if key.startswith(f"{case}: ")]
    assert bool(keys) == (case not in ("refused", "told"))
    for found in several[1]:
        assert found.keys() == alone.keys()
        for key in keys:
            exact = "accuracies" in key or case == "experts"
            torch.testing.assert_close(found[key], alone[key], rtol=0 if exact else 1e-4, atol=0 if exact else 1e-5)


def test_several__hold_the_same_numbers(several):
    first, *others = several[1]
    assert all(torch.equal(other[key], first[key]) for other in others for key in first)


def test_condensed__moved(alone):
    for name in METHODS:
        method, storage = name.split()
        for key, before in start(storage, method).stored().items():
            assert not torch.allclose(alone[f"{name}: {key}"], before, atol=1e-5), (name, key)


def test_several__same_words__said_once(together):
    _, done = together
    assert done.stderr.count("said by all of 2") == done.stderr.count("said by all of 3") == 1


def test_one_ends_or_hangs__the_others_end_with_an_error(several, together):
    """Without torchrun, which would end them sooner."""
    folder, found = several
    _, done = together
    assert done.returncode != 0
    assert "one process alone made a mistake" in done.stderr
    for rank in range(len(found) - 1):
        said = (folder / f"lost {rank}").read_text()
        assert said.startswith(f"process {rank} of {len(found)} lost another one")
        assert (folder / f"lost {rank}").stat().st_mtime - float((folder / f"began {rank}").read_text()) < 30


KEYS = [
    "--network.width", "8", "--network.depth", "1", "--objective.batch_real", "8", "--condense.episodes", "300",
    "--condense.checkpoint", "5", "--evaluate.repeats", "2", "--evaluate.epochs", "1", "--compare", "[]",
]  # fmt: skip


def pid_of(rank: int, parent: int) -> int:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    (found,) = [pid for pid in children if f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text()]
    return int(found)


@LINUX
def test_killed__run_ends_at_once_and_goes_on_in_one_process(tmp_path, environment):
    folder = tmp_path / "run"
    command = torchrun(2, "-m", "condensate", "run", "digits-lodm", *KEYS, "--out", folder)
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while not (folder / "checkpoints" / "condense.safetensors").is_file():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        os.kill(pid_of(0, process.pid), 9)
        killed = time.monotonic()
        _, said = process.communicate(timeout=60)
        assert time.monotonic() - killed < 20
    assert process.returncode != 0
    assert "exitcode  : -9" in said
    assert json.loads((folder / "environment.json").read_text())["processes"] == 2
    assert not (folder / "result.json").exists()
    assert cli.main(["run", "--resume", str(folder)]) == 0
    assert cli.main(["run", "digits-lodm", *KEYS, "--out", str(tmp_path / "whole")]) == 0
    pairs = zip(load(folder).stored().values(), load(tmp_path / "whole").stored().values(), strict=True)
    for went_on, whole in pairs:
        torch.testing.assert_close(went_on, whole, rtol=1e-3, atol=1e-4)
    numbers = [json.loads(line)["episode"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert numbers == list(range(300))


class Met:
    """A place to meet where all have come."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def add(self, key: str, amount: int) -> int:
        self.counts[key] = self.counts.get(key, 0) + (2 if amount else 0)
        return self.counts[key] - 1 if amount else self.counts[key]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipes"], "condensate recipes is not for several processes: start it without torchrun"),
        (["plan", "digits-lodm"], "condensate plan is not for several processes"),
        (["continual", "digits-lodm"], "leave torchrun out and say how many with --jobs N"),
        (["privacy", "digits-lodm"], "leave torchrun out and say how many with --jobs N"),
    ],
)
def test_command_of_one_process__refused(words, message, monkeypatch, capsys):
    monkeypatch.setattr(cli.Ranks, "of_torchrun", lambda: Ranks(0, 2, 0, Met()))
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_of_torchrun__nothing_set__this_process_alone():
    assert Ranks.of_torchrun({}) is ALONE
    assert Ranks.of_torchrun({"WORLD_SIZE": "1", "RANK": "0"}) is ALONE
    assert ALONE.first


def test_of_torchrun__nobody_to_meet__says_so(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"WORLD_SIZE is 2, but .*torchrun"):
        Ranks.of_torchrun()


@pytest.mark.parametrize(("items", "world"), [(10, 3), (10, 4), (7, 8), (1000, 64), (0, 2)])
def test_share__every_item_once_and_counts_differ_by_one_at_most(items, world):
    shares = [Ranks(rank, world).share(range(items)) for rank in range(world)]
    assert sorted(number for share in shares for number in share) == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
