"""What an episode of LoDM should take on many GPUs, on paper: the model in docs/scale.md and its numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from condensate import build_network
from condensate.compute import ComputeOptions
from condensate.networks import forward_operations
from condensate.parameterizations import LowRank
from condensate.streams import Streams

CLASSES, IPC, BATCH_REAL, RANK, EPISODES = 1000, 50, 256, 4, 20_000
RATE = 50e12  # operations a second that one GPU reaches
BANDWIDTHS = (20e9, 5e9)  # bytes a second and GPU
GPUS = (1, 8, 16, 64)
HEAD = ("side, S", "GPUs", "classes each", "computing", "summing at 20, 5 GB/s", "times faster", "20,000 episodes")


@dataclass(frozen=True)
class Model:
    """An episode of LoDM on ImageNet-1K at IPC 50.

    Args:
        side: Of the square images.
        depth: Of the ConvNet of width 128.
    """

    side: int
    depth: int

    @property
    def forward(self) -> float:
        """Operations of one image's way through the network, F."""
        return _forward(self.side, self.depth)

    @property
    def budget(self) -> int:
        """Bytes to sum, S: the factors of all images."""
        return CLASSES * IPC * 4 * 3 * self.side**2

    @property
    def images(self) -> int:
        """Synthetic images a class, n."""
        shape = (3, self.side, self.side)
        return self.budget // CLASSES * 8 // LowRank.cost(1, shape, rank=RANK).bits

    @property
    def passes(self) -> int:
        """Forwards' work of a synthetic image: forward and back, and forward before where a class exceeds a chunk."""
        chunk = ComputeOptions().resolve(torch.device("cuda"), 0.0, self.side**2).chunk
        return 2 if self.images <= chunk else 3

    @property
    def work(self) -> float:
        """Operations of an episode, W."""
        return self.forward * CLASSES * (BATCH_REAL + self.passes * self.images)

    def computing(self, gpus: int) -> float:
        """Seconds of the busiest of so many GPUs."""
        return math.ceil(CLASSES / gpus) / CLASSES * self.work / RATE

    def summing(self, gpus: int, bandwidth: float) -> float:
        """Seconds of a ring."""
        return 2 * (gpus - 1) / gpus * self.budget / bandwidth


@cache
def _forward(side: int, depth: int) -> float:
    shape = (3, side, side)
    network = build_network("convnet", shape, CLASSES, Streams(0)("paper"), width=128, depth=depth)
    return forward_operations(network, shape)


def table(models: Sequence[Model] = (Model(64, 4), Model(128, 5))) -> list[Sequence[str]]:
    """The model's numbers."""
    lines: list[Sequence[str]] = [HEAD]
    for model in models:
        alone = model.computing(1)
        for gpus in GPUS:
            least, most = CLASSES // gpus, math.ceil(CLASSES / gpus)
            summing = [model.summing(gpus, bandwidth) for bandwidth in BANDWIDTHS]
            whole = [model.computing(gpus) + each for each in summing]
            one = gpus == 1
            lines.append(
                (
                    f"{model.side}, {model.budget / 1e9:.2f} GB" if one else "",
                    str(gpus),
                    f"{most:,}" if least == most else f"{least} or {most}",
                    f"{model.computing(gpus):.3g} s",
                    "0" if one else ", ".join(f"{each:.2f}" for each in summing) + " s",
                    "1" if one else ", ".join(f"{alone / each:.1f}" for each in whole),
                    ", ".join(dict.fromkeys(f"{each * EPISODES / 3600:.3g}" for each in whole)) + " h",
                )
            )
    return lines
