"""What a training step works out: the mean cross-entropy of a batch and its gradient, as a program, piece by piece."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from condensate.compute import Compute, cached, parts
from condensate.networks import Network, on_tiles
from condensate.together import Together

# Of images of a batch that go through a network at once where nothing else bounds them, so that memory does not grow
# with them: a CPU is as quick with fewer, down to some eight images (docs/performance.md, "At a time").
PIXELS_TRAINED = 64 * 32 * 32


class MeanLoss:
    """A network's mean cross-entropy, compiled and in the precision ``compute`` says.

    In bfloat16 parameters, their gradients and the loss stay float32: what a layer multiplies is rounded. On tiles the
    parameters, and so their gradients, are those of ``network`` itself.

    Args:
        network: One, or several together.
        compute: Compilation, precision and tiles; eager in float32 if absent.
        chunk: Images that go through the network at once, see ``add_gradient``; all of a batch if absent, as batch
            statistics and networks together need it.

    Raises:
        ValueError: For a chunk where batches must be whole.
    """

    def __init__(self, network: Network | Together, compute: Compute | None = None, chunk: int | None = None) -> None:
        if chunk and (isinstance(network, Together) or network.batch_statistics):
            raise ValueError(
                f"chunk must be None, got {chunk}: networks together and batch statistics need whole batches"
            )
        compute = compute or Compute()
        low = compute.precision != torch.float32
        pupil = on_tiles(network) if compute.tiled and isinstance(network, Network) else network

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            with torch.autocast(images.device.type, compute.precision, enabled=low):
                scores = pupil(images)
            return cross_entropy(scores.to(torch.promote_types(scores.dtype, torch.float32)), labels)

        self.network, self.chunk = network, chunk
        self._program = compute.program(loss)

    @classmethod
    def laid_out(
        cls,
        network: Network,
        compute: Compute,
        shape: Sequence[int],
        device: torch.device,
        most: int | None = None,
    ) -> Self:
        """That of a network, which is laid out as it takes it best, for images (C, H, W), at most ``most`` at once.

        Programs that this process compiled before are compiled anew where they are still called.
        """
        if compute.compiled:
            torch._dynamo.reset()  # a process may compile a program a few times only, and every kind of network is one
        network.to(memory_format=compute.memory_format)  # type: ignore[call-overload]
        chunk = None if network.batch_statistics else trained_at_once(shape, compute, device)
        return cls(network, compute, min(chunk, most) if chunk and most else chunk)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Of images (n, C, H, W) and their classes (n) or soft labels (n, classes): a scalar."""
        loss: Tensor = self._program(images, labels)
        return loss

    def add_gradient(self, images: Tensor, labels: Tensor, networks: int = 1) -> Tensor:
        """Add the gradient of the mean loss over images, chunk by chunk, to the parameters' .grad; the loss.

        Images are those of all networks that train together, of each equally many, and each has a mean of its own.
        """
        images, labels, total = images.detach(), labels.detach(), images.new_zeros(())
        pieces = parts(len(images), self.chunk or len(images))
        for seen, wanted in zip(images.tensor_split(pieces), labels.tensor_split(pieces), strict=True):
            share = len(seen) / len(images)
            value = self(seen, wanted)
            (value * (networks * share)).backward()
            total += value.detach() * share
        return total


def trained_at_once(shape: Sequence[int], compute: Compute, device: torch.device) -> int | None:
    """Images (C, H, W) of a batch that go through a network at once on a CPU; all of them, None, on a GPU."""
    pixels = shape[1] * shape[2]
    if compute.compiled or device.type != "cpu":
        return cached(device, pixels, compute.precision)
    return max(1, PIXELS_TRAINED // pixels)
