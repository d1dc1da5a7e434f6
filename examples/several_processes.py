"""Condense random images of CIFAR-10's shape in several processes, from Python.

python examples/several_processes.py
torchrun --nproc-per-node 2 examples/several_processes.py
"""

import sys

import torch

import condensate


def main(episodes: int = 5, width: int = 32, ipc: int = 10) -> None:
    """Join the others, if there are any."""
    with condensate.Ranks.of_torchrun().joined() as ranks:
        made = condensed(ranks, episodes, width, ipc)
        if ranks.first:  # all have the same set
            print(f"{len(made)} images condensed; processes: {ranks.world}")


def condensed(ranks: condensate.Ranks, episodes: int, width: int, ipc: int) -> condensate.SyntheticDataset:
    """The objective is told its share of the classes, and the loop to sum their gradients."""
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
    augment = condensate.Augment()
    objective = condensate.DistributionMatching(data.train, network, augment, streams, ranks=ranks, batch_real=256)
    condensate.condense(synthetic, objective, episodes=episodes, lr=0.1, ranks=ranks)
    return synthetic


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
