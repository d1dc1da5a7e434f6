"""Condense random images of CIFAR-10's shape in several processes; how long an episode takes, and what goes over.

python examples/several_processes.py dm
torchrun --nproc-per-node 2 examples/several_processes.py dsa
"""

import sys
import time
from pathlib import Path

import torch

import condensate


def sent() -> int:
    """Bytes that this process has written, to files and to other processes; 0 where the system does not count them."""
    counts = Path("/proc/self/io")
    return int(counts.read_text().split("wchar:")[1].split()[0]) if counts.is_file() else 0


def main(method: str, episodes: int = 6, width: int = 32, ipc: int = 10) -> None:
    """Join the others, if there are any."""
    with condensate.Ranks.of_torchrun().joined() as ranks:
        measure(ranks, method, episodes, width, ipc)


def measure(ranks: condensate.Ranks, method: str, episodes: int, width: int, ipc: int) -> None:
    """The first episode warms up and is not counted."""
    device = torch.device("cuda", ranks.local) if torch.cuda.is_available() else torch.device("cpu")
    streams = condensate.Streams(0, device)
    labels = condensate.class_major(10, 300)
    images = torch.randint(0, 256, (3000, 3, 32, 32), dtype=torch.uint8, generator=condensate.Streams(0)("images"))
    data = condensate.from_arrays(images, labels, images[:10], labels[:10]).to(device)
    stored = condensate.LowRank(10 * 8 * ipc, data.shape, rank=2).to(device)
    stored.reset_(streams("start"))
    places = condensate.class_major(10, 8 * ipc).to(device)
    synthetic = condensate.SyntheticDataset(stored, places, mean=data.mean, std=data.std)
    network = condensate.build_network("convnet", data.shape, 10, streams("network"), width=width)
    matching = {"dm": condensate.DistributionMatching, "dsa": condensate.GradientMatching}[method]
    objective = matching(data.train, network, condensate.Augment(), streams, None, ranks, batch_real=256)
    seen = []
    condensate.condense(
        synthetic,
        objective,
        episodes=episodes + 1,
        lr=0.1,
        after=lambda progress: seen.append((time.perf_counter(), time.process_time(), sent())),
        ranks=ranks,
    )
    took, busy, wrote = ((last - first) / episodes for first, last in zip(seen[0], seen[-1], strict=True))
    busiest, most = (max(each) for each in zip(*ranks.gather((busy, wrote)), strict=True))
    if ranks.first:
        numbers = sum(parameter.numel() for parameter in stored.parameters())
        print(
            f"{method}, {ranks.world} processes: {took:.3f} s an episode, {busiest:.3f} s of it computed by "
            f"the busiest; {4 * (numbers + 1):,} bytes to sum, {most:,.0f} written by one"
        )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
