"""The interface of every network, and the layers they choose from."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from condensate.errors import UserError, unknown

Shape = tuple[int, int, int]
Activation = Literal["relu", "leaky-relu", "sigmoid", "swish"]
Norm = Literal["none", "instance", "batch", "layer", "group"]
Pooling = Literal["none", "avg", "max"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "swish": nn.SiLU,
}


class AveragePool(nn.Module):
    """Means of 2x2 pixels; of an odd side the last row or column is left out.

    In a compiled program it is a mean over two dimensions, whose way back repeats values. The library's kernel, the
    faster one where nothing is compiled, is traced back into a search for the windows every pixel lies in: with that,
    the layers between convolutions took 29 % of the time of a ConvNet's gradient on a CPU, and take 11 % so.
    """

    def forward(self, images: Tensor) -> Tensor:
        """(n, C, H, W) -> (n, C, H // 2, W // 2)."""
        if not torch.compiler.is_compiling():
            return avg_pool2d(images, 2)
        height, width = images.shape[2] // 2, images.shape[3] // 2
        windows = images[:, :, : 2 * height, : 2 * width]
        if len(images) == 1:  # of one, the library does not know the compiler's channels last from contiguous
            return windows.unflatten(3, (width, 2)).unflatten(2, (height, 2)).mean((3, 5))
        windows = windows.permute(0, 2, 3, 1)  # so that the way back is channels last, too
        return windows.unflatten(2, (width, 2)).unflatten(1, (height, 2)).mean((2, 4)).permute(0, 3, 1, 2)


class FirstConvolution(nn.Conv2d):
    """A convolution of the few channels of an image, stride 1.

    In a program compiled for a GPU it is a matrix product with every pixel's neighbourhood, which is written out for
    it: the library's kernels for so few channels fill a quarter of the memory's bandwidth, on the way back less.
    """

    def forward(self, images: Tensor) -> Tensor:
        """(n, C, H, W) -> (n, width, H', W')."""
        if torch.compiler.is_compiling() and images.is_cuda:
            return self.as_product(images)
        return super().forward(images)

    def as_product(self, images: Tensor) -> Tensor:
        """The same as a matrix product; the result lies channels last."""
        (across, down), (top, left) = self.kernel_size, (int(self.padding[0]), int(self.padding[1]))
        padded = pad(images.permute(0, 2, 3, 1), (0, 0, left, left, top, top))
        patches = padded.unfold(1, across, 1).unfold(2, down, 1).flatten(3)
        lacking = -patches.shape[3] % 8  # in eights, as the units for matrix products take them
        weight = pad(self.weight.flatten(1), (0, lacking)).T.expand(len(images), -1, -1)
        # One product an image: the gradient of the weights is then a sum of as many, not one product of huge depth.
        product = torch.bmm(pad(patches, (0, lacking)).flatten(1, 2), weight)
        product = product if self.bias is None else product + self.bias
        return product.unflatten(1, patches.shape[1:3]).permute(0, 3, 1, 2)


POOLINGS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "avg": AveragePool,
    "max": lambda: nn.MaxPool2d(2),
}

NORMS: dict[str, Callable[[Shape], nn.Module]] = {
    "none": lambda shape: nn.Identity(),
    "instance": lambda shape: nn.GroupNorm(shape[0], shape[0]),
    "batch": lambda shape: nn.BatchNorm2d(shape[0]),
    "layer": lambda shape: nn.LayerNorm(shape),
    "group": lambda shape: nn.GroupNorm(4, shape[0]),
}


class Network(nn.Module, ABC):
    """A classifier with a feature extractor.

    Construction draws nothing and leaves the parameters unset; ``reset_`` initialises them, and again and again in
    place, so that compiled programs that hold them stay valid.

    Every network takes images of any size and number of channels that leave it a feature map: the last one is
    flattened, and the classifier is as wide as that. At the sizes of the papers these are the published networks.
    """

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """What the classifier sees: (n, C, H, W) -> (n, D)."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Class scores: (n, C, H, W) -> (n, K)."""

    def allocate_(self) -> None:
        """Give parameters that were made on the meta device memory on the CPU, unset.

        ``to_empty`` does the same, but imports sympy for it: a third of a run's start.
        """
        self._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))

    @property
    def batch_statistics(self) -> bool:
        """Whether an image's features depend on the other images of its batch."""
        return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.modules())

    @torch.no_grad()
    def reset_(self, generator: torch.Generator) -> None:
        """Draw PyTorch's default initialisation anew, in place, and forget running statistics.

        Weights and biases of linear and convolution layers are uniform within 1/sqrt(fan in); normalisation layers
        start as the identity.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                bound = module.weight[0].numel() ** -0.5
                for parameter in module.parameters(recurse=False):
                    _uniform_(parameter, bound, generator)
            elif isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.modules.batchnorm._BatchNorm):
                module.reset_parameters()


def choose(registry: dict[str, Any], name: str, kind: str) -> Any:
    """The entry of a registry; the error for an unknown name says the nearest."""
    if name not in registry:
        raise unknown(kind, name, registry)
    return registry[name]


def normalisation(norm: str, maps: Shape, image: Shape) -> nn.Module:
    """The layer that normalises feature maps of a shape, in a network for images of a shape.

    Raises:
        UserError: It would make every image zero.
    """
    if norm == "instance" and maps[1] * maps[2] == 1:
        raise UserError(
            f"a {image[1]}x{image[2]} image is too small for this network with instance normalisation: it shrinks to "
            "one pixel a channel, which becomes zero; use batch normalisation, or larger images: --data.size 32"
        )
    layer: nn.Module = choose(NORMS, norm, "normalisation")(maps)
    return layer


def first_padding(image: Shape, usual: int) -> int:
    """Padding of the first convolution: the published networks make gray 28x28 images 32x32 there."""
    return usual + 2 if image == (1, 28, 28) else usual


def _uniform_(parameter: Tensor, bound: float, generator: torch.Generator) -> None:
    if parameter.is_contiguous() and parameter.dtype == torch.float32:
        parameter.uniform_(-bound, bound, generator=generator)
        return
    # Drawn alike, so that the numbers depend neither on the parameter's memory format nor on its type.
    parameter.copy_(torch.empty(parameter.shape, device=generator.device).uniform_(-bound, bound, generator=generator))


@torch.no_grad()
def forward_operations(network: Network, shape: Shape) -> float:
    """Floating-point operations of one image's way through the convolutions and linear layers of a network.

    PyTorch's own counter agrees, but takes a second to be imported.
    """
    counted: list[float] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        counted.append(2.0 * output[0].numel() * layer.weight[0].numel())

    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    mode, dtype = network.training, next(network.parameters()).dtype
    network.eval()(torch.zeros(1, *shape, device=next(network.parameters()).device, dtype=dtype))
    network.train(mode)
    for hook in hooks:
        hook.remove()
    return sum(counted)
