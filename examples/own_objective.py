"""Condense digits by an objective of your own, class means under one network. Run: python examples/own_objective.py."""

from collections.abc import Iterator

import torch
from torch import Tensor

import condensate


class FixedFeatures(condensate.Objective):
    """Match the mean features of each class under one network that is never drawn again."""

    def __init__(self, real: condensate.data.Split, network: condensate.Network) -> None:
        self.network = network.requires_grad_(False)
        self.real = self.means(real.images(), real.labels, len(real.classes))

    def means(self, images: Tensor, labels: Tensor, classes: int) -> Tensor:
        """Of the features of each class: (n, C, H, W), (n,) -> (K, D)."""
        features = self.network.features(images)
        return torch.stack([features[labels == label].mean(0) for label in range(classes)])

    def gradients(self, synthetic: condensate.SyntheticDataset, number: int) -> Iterator[Tensor]:
        """One update an episode: add the gradient to what is stored, then yield the loss."""
        loss = (self.means(synthetic.images(), synthetic.labels, len(self.real)) - self.real).square().sum()
        loss.backward()
        yield loss.detach()


data, streams = condensate.load_data("digits"), condensate.Streams(seed=0)
stored = condensate.LowRank(10 * 4, data.shape, rank=1)  # any storage: the objective does not know which
stored.reset_(streams("start"))
synthetic = condensate.SyntheticDataset(
    stored, condensate.class_major(10, 4), classes=data.classes, mean=data.mean, std=data.std
)
network = condensate.build_network("convnet", data.shape, 10, streams("network"), width=32, depth=2)
losses: list[float] = []
condensate.condense(
    synthetic,
    FixedFeatures(data.train, network),
    episodes=100,
    lr=3.0,
    after=lambda progress: losses.extend(progress.losses),
)
options = {"width": 16, "depth": 2}
score = condensate.evaluate(synthetic, data.test, 10, streams, repeats=2, epochs=100, network_options=options)
print(f"{len(synthetic)} images, loss {losses[0]:.0f} to {losses[-1]:.0f}, accuracy {100 * score.mean:.0f} %")
