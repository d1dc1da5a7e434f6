"""Convolutions on tiles."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from condensate import Network, Streams, build_network
from condensate.networks import NETWORKS, TiledConvolution, on_tiles


def convolution(before: int = 3, after: int = 5, bias: bool = True) -> TiledConvolution:
    layer = TiledConvolution(before, after, 3, padding=1, bias=bias).double()
    nn.init.uniform_(layer.weight, -1, 1, generator=Streams(0)("weights"))
    return layer


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=Streams(0)("maps"))


def tiles_of(network: Network) -> list[TiledConvolution]:
    return [layer for layer in network.modules() if isinstance(layer, TiledConvolution)]


@pytest.mark.parametrize("size", [(4, 4), (16, 8), (7, 9), (1, 2), (5, 31)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_tiled__is_the_convolution(size, bias):
    layer, seen = convolution(bias=bias), maps(2, 3, *size)
    expected = layer.direct(seen)
    assert layer.tiled(seen).shape == expected.shape
    torch.testing.assert_close(layer.tiled(seen), expected, rtol=0, atol=1e-12)


def test_tiled__gradients_too():
    layer, seen = convolution(), maps(2, 3, 6, 8).requires_grad_()
    outer = maps(2, 5, 6, 8)
    wanted = [seen, *layer.parameters()]
    for found, expected in zip(
        torch.autograd.grad(layer.tiled(seen), wanted, outer), torch.autograd.grad(layer.direct(seen), wanted, outer)
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def test_tiled__takes_a_quarter_of_the_products():
    layer, seen = convolution(64, 64), maps(2, 64, 16, 16)
    counts = []
    for way in (layer.direct, layer.tiled):
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            way(seen)
        counts.append(counted.get_total_flops())
    assert counts[0] == 4 * counts[1]


def test_forward__on_tiles_in_compiled_programs_where_they_cover_the_maps(monkeypatch):
    layer = convolution()
    monkeypatch.setattr(layer, "tiled", lambda seen: "tiled")
    for compiling, expected in ((False, []), (True, [4, 8])):
        monkeypatch.setattr("torch.compiler.is_compiling", lambda compiling=compiling: compiling)
        tiled = []
        for side in (1, 2, 4, 5, 8):  # 5 of 8 by 5 of 8: 144 products, 225 directly
            found = layer(maps(1, 3, side, side))
            if found == "tiled":
                tiled.append(side)
            else:
                torch.testing.assert_close(found, layer.direct(maps(1, 3, side, side)), rtol=0, atol=0)
        assert tiled == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_on_tiles__is_the_network(name, monkeypatch):
    monkeypatch.setattr(TiledConvolution, "forward", TiledConvolution.tiled)
    network = build_network(name, (3, 32, 32), 10, Streams(0)("net")).double().eval()
    tiled, seen = on_tiles(network), maps(3, 3, 32, 32)
    torch.testing.assert_close(tiled.features(seen), network.features(seen), rtol=0, atol=1e-10)
    # of stride 1 and 64 channels or more; AlexNet's third to fifth
    expected = {"convnet": 2, "alexnet": 3, "vgg11": 7, "resnet18": 13}
    assert len(tiles_of(tiled)) == expected.get(name, 0)
    assert not tiles_of(network)


def test_on_tiles__parameters_are_the_networks_own(monkeypatch):
    monkeypatch.setattr(TiledConvolution, "forward", TiledConvolution.tiled)
    network = build_network("convnet", (3, 16, 16), 10, Streams(0)("net"), width=64, norm="batch").train()
    tiled, seen = on_tiles(network), maps(4, 3, 16, 16).float()
    assert [(name, id(own)) for name, own in network.named_parameters()] == [
        (name, id(own)) for name, own in tiled.named_parameters()
    ]
    tiled.features(seen)
    running = [norm.running_mean for norm in network.modules() if isinstance(norm, nn.BatchNorm2d)]
    assert all(bool(mean.abs().sum() > 0) for mean in running)
    before = tiled.features(seen)
    network.reset_(Streams(1)("net"))
    assert not torch.allclose(tiled.features(seen), before)
    torch.testing.assert_close(tiled.features(seen), network.features(seen), rtol=1e-3, atol=1e-3)


def test_on_tiles__few_channels_stay_as_they_are():
    assert not tiles_of(on_tiles(build_network("convnet", (3, 32, 32), 10, Streams(0)("net"), width=63)))
    assert tiles_of(on_tiles(build_network("convnet", (3, 32, 32), 10, Streams(0)("net"), width=64)))


def test_tiled__float32__rounds_a_few_times_more():
    """Against float64, of the largest output, as in a ConvNet: below a hundred-thousandth."""
    layer = convolution(128, 128)
    nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=Streams(0)("weights"))
    seen = maps(8, 128, 16, 16)
    expected = layer.direct(seen).detach()
    worst = []
    for way in (layer.float().direct, layer.tiled):
        found = way(seen.float()).detach()
        worst.append(float((found - expected).abs().max() / expected.abs().max()))
    assert worst[0] < worst[1] < 1e-5
