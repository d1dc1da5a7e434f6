"""Several hosts, each with a network of its own: as root on Linux, in network namespaces that a switch connects."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from condensate import cli, load, runs

WORDS = [
    "digits-lodm", "--network.width", "8", "--network.depth", "1", "--objective.batch_real", "8",
    "--condense.checkpoint", "5", "--evaluate.repeats", "3", "--evaluate.epochs", "2", "--compare", "[]",
]  # fmt: skip


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Hosts:
    """Hosts that see the same files but have names, addresses and loopback devices of their own.

    Args:
        count: How many.
        folder: Of what they need.
    """

    def __init__(self, count: int, folder: Path) -> None:
        self.names = [f"c{os.getpid()}-host{number}" for number in range(count)]
        self.switch, self.file = f"c{os.getpid()}-switch", folder / "hosts"
        named = [f"10.213.77.{number + 1} host{number}\n" for number in range(count)]
        self.file.write_text("127.0.0.1 localhost\n" + "".join(named))

    def __enter__(self) -> "Hosts":
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "switch", "type", "bridge")
        ip("-n", self.switch, "link", "set", "switch", "up")
        for number, name in enumerate(self.names):
            ip("netns", "add", name)
            ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", f"port{number}", "netns", self.switch)
            ip("-n", self.switch, "link", "set", f"port{number}", "master", "switch", "up")
            ip("-n", name, "addr", "add", f"10.213.77.{number + 1}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", name, "link", "set", device, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in [*self.names, self.switch]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def vanish(self, number: int) -> None:
        """Nothing reaches a host or leaves it from now on, and nobody is told."""
        ip("-n", self.switch, "link", "set", f"port{number}", "down")

    def sent(self, number: int) -> int:
        """Bytes that a host has sent."""
        (told,) = json.loads(ip("-n", self.names[number], "-s", "-j", "link", "show", "eth0").stdout)
        return int(told["stats64"]["tx"]["bytes"])

    def at_most(self, bits: str) -> None:
        """Let every host send so many bits a second at most."""
        for name in self.names:
            shape = ["root", "tbf", "rate", bits, "burst", "64kb", "latency", "400ms"]
            subprocess.run(["tc", "-n", name, "qdisc", "replace", "dev", "eth0", *shape], check=True)

    def start(self, number: int, command: list[str | Path]) -> subprocess.Popen[str]:
        """Start a command on a host."""
        own = f'mount --bind {self.file} /etc/hosts && hostname host{number} && exec "$@"'
        inside = ["ip", "netns", "exec", self.names[number], "unshare", "--uts", "--mount", "sh", "-c", own, "sh"]
        paths = [str(Path(runs.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        return subprocess.Popen(
            [*inside, *map(str, command)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def torchrun(self, each: int, *words: str | Path) -> list[subprocess.Popen[str]]:
        """The line of docs/scale.md on every host."""
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", str(len(self.names)), "--nproc-per-node",
            str(each), "--rdzv-backend", "c10d", "--rdzv-endpoint", "host0:29500", "--rdzv-id", "1", *words,
        ]  # fmt: skip
        return [self.start(number, command) for number in range(len(self.names))]


def possible() -> bool:
    """Whether this machine lets us make such hosts."""
    if sys.platform != "linux" or os.geteuid() or not all(map(shutil.which, ("ip", "unshare", "tc"))):
        return False
    name = f"c{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    return made and subprocess.run(["ip", "netns", "del", name], capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not possible(), reason="needs root and network namespaces of Linux (iproute2)"),
]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    with Hosts(2, tmp_path) as made:
        yield made


def until(true, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@contextmanager
def running(processes: list[subprocess.Popen[str]]) -> Iterator[None]:
    """Processes that do not outlive the block."""
    with ExitStack() as stack:
        for process in processes:
            stack.enter_context(process)
            stack.callback(process.kill)
        yield


def test_two_hosts__find_what_one_process_finds(hosts, tmp_path):
    words = [*WORDS, "--condense.episodes", "20"]
    processes = hosts.torchrun(2, "-m", "condensate", "run", *words, "--out", tmp_path / "run")
    with running(processes):
        said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["processes"] == 4
    assert cli.main(["run", *words, "--out", str(tmp_path / "alone")]) == 0
    alone = json.loads((tmp_path / "alone" / "result.json").read_text())
    for one, other in zip(load(tmp_path / "run").stored().values(), load(tmp_path / "alone").stored().values()):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert result["evaluation"][0]["accuracies"] == pytest.approx(alone["evaluation"][0]["accuracies"], abs=0.02)


def test_host_vanishes__the_other_gives_up_and_says_why(hosts, tmp_path):
    folder = tmp_path / "run"
    words = [*WORDS, "--condense.episodes", "100000", "--timeout", "5", "--out", folder]
    processes = hosts.torchrun(1, "-m", "condensate", "run", *words)
    with running(processes):
        until((folder / "checkpoints" / "condense.safetensors").is_file)
        hosts.vanish(1)
        began = time.monotonic()
        said = processes[0].communicate(timeout=90)[1]
        assert time.monotonic() - began < 30
    assert processes[0].returncode != 0
    assert "process 0 of 2 lost another one" in said
    assert not (folder / "result.json").exists()


SUM = """
import time, torch
from condensate import Ranks
with Ranks.of_torchrun().joined() as ranks:
    parameter, took = torch.zeros(1228800, requires_grad=True), []
    for _ in range(4):
        parameter.grad = torch.ones_like(parameter)
        ranks.gather(None)
        began = time.perf_counter()
        ranks.sum_gradients_([parameter], torch.zeros(()))
        took.append(time.perf_counter() - began)
    print(sorted(took)[1])
"""


def test_sum_over_a_slow_link__takes_what_docs_say(hosts, tmp_path):
    """2 (N - 1) / N of what is summed goes out of every host: docs/scale.md, on paper to 64 GPUs."""
    (tmp_path / "sum.py").write_text(SUM)
    hosts.at_most("100mbit")
    before = hosts.sent(0)
    processes = hosts.torchrun(1, tmp_path / "sum.py")
    with running(processes):
        said = [process.communicate(timeout=120) for process in processes]
    assert 1 < float(said[0][0]) / (4 * 1228800 / 12.5e6) < 1.5
    assert 4 < (hosts.sent(0) - before) / (4 * 1228800) < 4.5
