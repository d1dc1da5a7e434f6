"""Convolutions of 3x3 on tiles of 4x4 pixels, with a quarter of the products.

Winograd's minimal filtering F(4x4, 3x3): Lavin & Gray, "Fast algorithms for convolutional neural networks", CVPR 2016,
https://arxiv.org/abs/1509.09308, equation 8 and section 4.3.
"""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from condensate.networks.base import Network

LEAST_CHANNELS = 64  # of both sides; with fewer the sums around the products take what these spare


def on_tiles(network: Network) -> Network:
    """The network with its wide 3x3 convolutions on tiles; parameters and buffers are those of ``network`` itself.

    Meant for compiled float32 programs on a CPU, where it makes a ConvNet of width 128 about 1.5 times faster; what is
    not compiled goes directly. What float32 rounds is some five times more: a few millionths of the largest output.
    """
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    made = deepcopy(network, shared)
    for parent in list(made.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.Conv2d) and _can_be_tiled(layer):
                setattr(parent, name, TiledConvolution.of(layer))
    return made


def tileable(network: Network) -> int:
    """Convolutions of a network that ``on_tiles`` puts on tiles."""
    return sum(isinstance(layer, nn.Conv2d) and _can_be_tiled(layer) for layer in network.modules())


def _can_be_tiled(layer: nn.Conv2d) -> bool:
    """Whether a convolution is one of 3x3 pixels that keeps the size, of many channels."""
    form = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode
    wide = min(layer.in_channels, layer.out_channels) >= LEAST_CHANNELS
    return wide and form == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")


class TiledConvolution(nn.Conv2d):
    """A 3x3 convolution, stride 1 and padding 1, in compiled programs on tiles of 4x4 outputs.

    Maps that tiles cover badly go directly, and so does all that is not compiled, for the sums are to be fused.

    Every tile is seen with its border as 6x6 pixels d. Under the transforms B, G and A a tile's outputs are
    A' [sum over channels of (G g G') * (B' d B)] A: 36 products for each pair of channels, where it takes 144 directly.
    """

    @classmethod
    def of(cls, layer: nn.Conv2d) -> "TiledConvolution":
        """The same convolution, with the parameters of ``layer`` themselves."""
        with torch.device("meta"):
            made = cls(layer.in_channels, layer.out_channels, 3, padding=1, bias=layer.bias is not None)
        made.weight, made.bias = layer.weight, layer.bias
        return made.train(layer.training)

    def forward(self, maps: Tensor) -> Tensor:
        """(n, C, H, W) -> (n, width, H, W)."""
        return self.tiled(maps) if torch.compiler.is_compiling() and covered(*maps.shape[2:]) else self.direct(maps)

    def direct(self, maps: Tensor) -> Tensor:
        """Likewise, as the library has it."""
        return super().forward(maps)

    def tiled(self, maps: Tensor) -> Tensor:
        """Likewise on tiles; the result lies channels last."""
        count, channels, height, width = maps.shape
        rows, columns = -(-height // 4), -(-width // 4)
        seen = pad(maps.permute(0, 2, 3, 1), (0, 0, 1, 4 * columns + 1 - width, 1, 4 * rows + 1 - height))
        down = torch.stack(_of_pixels([seen[:, first : first + 4 * rows - 3 : 4] for first in range(6)]))
        tiles = torch.stack(_of_pixels([down[:, :, :, first : first + 4 * columns - 3 : 4] for first in range(6)]), 1)
        down = torch.stack(_of_weights(self.weight.permute(2, 3, 1, 0).unbind(0)))
        weights = torch.stack(_of_weights(down.unbind(1)), 1)
        products = torch.bmm(tiles.reshape(36, -1, channels), weights.reshape(36, channels, -1))
        down = torch.stack(_to_outputs(products.view(6, 6, count, rows, columns, -1).unbind(0)), 3)
        found = torch.stack(_to_outputs(down.unbind(0)), 4).reshape(count, 4 * rows, 4 * columns, -1)
        found = found[:, :height, :width]
        return (found if self.bias is None else found + self.bias).permute(0, 3, 1, 2)


def covered(height: int, width: int) -> bool:
    """Whether tiles spare half of the products of maps of so many pixels, or more."""
    return 2 * 36 * -(-height // 4) * -(-width // 4) <= 9 * height * width


def _of_pixels(d: Sequence[Tensor]) -> list[Tensor]:
    """B' d along one side: six to six."""
    a, b, c, e = d[4] - 4 * d[2], d[3] - 4 * d[1], d[4] - d[2], 2 * (d[3] - d[1])
    return [4 * d[0] - 5 * d[2] + d[4], a + b, a - b, c + e, c - e, 4 * d[1] - 5 * d[3] + d[5]]


def _of_weights(g: Sequence[Tensor]) -> list[Tensor]:
    """G g along one side: three to six."""
    a, b, c, e = (g[0] + g[2]) / -6, g[1] / 6, g[0] / 24 + g[2] / 6, g[1] / 12
    return [g[0] / 4, a - b, a + b, c + e, c - e, g[2]]


def _to_outputs(m: Sequence[Tensor]) -> list[Tensor]:
    """A' m along one side: six to four."""
    a, b, c, e = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    return [m[0] + a + c, b + 2 * e, a + 4 * c, b + 8 * e + m[5]]
