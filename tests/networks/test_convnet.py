"""The ConvNet against its published sizes, and against itself written out step by step."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from condensate import ConvNet, UserError
from condensate.networks import ACTIVATIONS, NORMS, POOLINGS, build
from condensate.networks.base import FirstConvolution

GRAY, COLOUR, TINY = (1, 28, 28), (3, 32, 32), (3, 64, 64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(shape: tuple[int, int, int] = (3, 8, 8), seed: int = 0, **options: Any) -> ConvNet:
    network = build("convnet", shape, 3, seeded(seed), **({"width": 8, "depth": 2} | options))
    assert isinstance(network, ConvNet)
    return network


# The first convolution.


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "kernel", "padding"), [(COLOUR, 3, 1), (GRAY, 3, 3), ((4, 9, 7), (5, 3), (2, 0))], ids=str
)
def test_first_convolution__as_a_matrix_product__is_the_librarys(shape: Any, kernel: Any, padding: Any, bias: bool):
    layer = FirstConvolution(shape[0], 6, kernel, padding=padding, bias=bias).double()
    images = torch.randn(3, *shape, dtype=torch.float64, generator=seeded(), requires_grad=True)
    theirs, ours = layer(images), layer.as_product(images)
    torch.testing.assert_close(ours, theirs)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    weights = torch.randn(theirs.shape, dtype=torch.float64, generator=seeded(1))
    wanted = [images, *layer.parameters()]
    first = [torch.autograd.grad(out, wanted, weights, create_graph=True) for out in (theirs, ours)]
    for one, other in zip(*first, strict=True):
        torch.testing.assert_close(other, one)
    squared = [sum(part.square().sum() for part in parts) for parts in first]  # a gradient through the gradients
    for one, other in zip(*(torch.autograd.grad(out, [images, layer.weight]) for out in squared), strict=True):
        torch.testing.assert_close(other, one)


def test_first_convolution__is_the_first_of_a_network_alone():
    layers = [module for module in small(depth=3).modules() if isinstance(module, nn.Conv2d)]
    assert [type(layer) for layer in layers] == [FirstConvolution, nn.Conv2d, nn.Conv2d]


# Pooling.


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (2, 3)], ids=str)
def test_average_pool__as_a_compiled_program_has_it__is_the_librarys(monkeypatch, size: tuple[int, int], count: int):
    images = torch.randn(count, 3, *size, dtype=torch.float64, generator=seeded(), requires_grad=True)
    weights = torch.randn(count, 3, size[0] // 2, size[1] // 2, dtype=torch.float64, generator=seeded(1))
    found = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        pooled = POOLINGS["avg"]()(images)
        found.append((pooled, *torch.autograd.grad((pooled * weights).sum(), images)))
    library = functional.avg_pool2d(images, 2)
    for pooled, gradient in found:
        torch.testing.assert_close(pooled, library)
        torch.testing.assert_close(gradient, *torch.autograd.grad((library * weights).sum(), images, retain_graph=True))


# Sizes.


@pytest.mark.parametrize(
    ("shape", "classes", "options", "parameters", "features"),
    [
        (GRAY, 10, {}, 317_706, 2048),
        (COLOUR, 10, {}, 320_010, 2048),
        (COLOUR, 100, {}, 504_420, 2048),
        (TINY, 200, {}, 1_938_120, 8192),
        (TINY, 200, {"depth": 4}, 857_160, 2048),
        (COLOUR, 10, {"depth": 1}, 331_530, 32_768),
        (COLOUR, 10, {"depth": 2}, 233_610, 8192),
        (COLOUR, 10, {"depth": 4}, 452_490, 512),
        (COLOUR, 10, {"depth": 5}, 596_490, 128),
        ((3, 256, 256), 10, {"depth": 8}, 1_040_010, 128),
        (COLOUR, 10, {"width": 32}, 24_714, 512),
        (COLOUR, 10, {"width": 64}, 86_282, 1024),
        (COLOUR, 10, {"width": 256}, 1_229_834, 4096),
        (COLOUR, 10, {"width": 1024}, 19_075_082, 16_384),
        (COLOUR, 10, {"norm": "layer"}, 663_306, 2048),
        (COLOUR, 10, {"norm": "none"}, 319_242, 2048),
        (COLOUR, 10, {"norm": "batch"}, 320_010, 2048),
        (COLOUR, 10, {"norm": "group"}, 320_010, 2048),
        (COLOUR, 10, {"pooling": "none"}, 1_610_250, 131_072),
        (COLOUR, 10, {"pooling": "max"}, 320_010, 2048),
    ],
    ids=str,
)
def test_convnet__has_the_published_number_of_parameters_and_features(
    shape: tuple[int, int, int], classes: int, options: dict[str, Any], parameters: int, features: int
):
    network = build("convnet", shape, classes, seeded(), **options)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    with torch.no_grad():
        assert network.features(torch.zeros(1, *shape)).shape == (1, features)
        assert network(torch.zeros(1, *shape)).shape == (1, classes)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (64, 64), (24, 40), (9, 13)], ids=str)
def test_convnet__takes_any_size(size: tuple[int, int], channels: int):
    network = build("convnet", (channels, *size), 4, seeded())
    images = torch.randn(2, channels, *size, generator=seeded())
    scores = network(images)
    assert scores.shape == (2, 4)
    assert network.features(images).ndim == 2
    assert scores.isfinite().all()
    scores.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


# What is computed.


def slow_norm(x: Tensor, norm: str, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Each group of values less their mean, over their standard deviation, times the weight, plus the bias."""
    if norm == "none":
        return x
    n, channels = x.shape[:2]
    out = torch.empty_like(x)
    groups = {
        "instance": [(i, c) for i in range(n) for c in range(channels)],
        "group": [(i, slice(c, c + channels // 4)) for i in range(n) for c in range(0, channels, channels // 4)],
        "layer": [(i, slice(None)) for i in range(n)],
        "batch": [(slice(None), c) for c in range(channels)],
    }[norm]
    for group in groups:
        values = x[group]
        out[group] = (values - values.mean()) / (values.var(correction=0) + 1e-5).sqrt()
    per_value = norm == "layer"
    return out * (weight if per_value else weight[:, None, None]) + (bias if per_value else bias[:, None, None])


def slow_activation(x: Tensor, activation: str) -> Tensor:
    sigmoid = 1 / (1 + (-x).exp())
    return {
        "relu": torch.where(x > 0, x, 0),
        "leaky-relu": torch.where(x > 0, x, 0.01 * x),
        "sigmoid": sigmoid,
        "swish": x * sigmoid,
    }[activation]


def slow_pooling(x: Tensor, pooling: str) -> Tensor:
    if pooling == "none":
        return x
    h, w = x.shape[2] // 2, x.shape[3] // 2
    squares = x[:, :, : 2 * h, : 2 * w].unflatten(2, (h, 2)).unflatten(4, (w, 2))
    return squares.mean((3, 5)) if pooling == "avg" else squares.amax((3, 5))


@pytest.mark.parametrize(
    ("norm", "activation", "pooling"), list(itertools.product(NORMS, ACTIVATIONS, POOLINGS)), ids=str
)
def test_convnet__is_convolution_norm_activation_pooling_and_a_classifier(norm: str, activation: str, pooling: str):
    network = small((2, 7, 6), norm=norm, activation=activation, pooling=pooling).double()
    with torch.no_grad():
        for parameter in network.parameters():  # of the norms, too: their start is the identity
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64, generator=seeded(parameter.numel())))
    images = torch.randn(3, 2, 7, 6, dtype=torch.float64, generator=seeded(1))
    parameters = iter(network.parameters())
    with torch.no_grad():
        x = images
        for _ in range(2):
            x = functional.conv2d(x, next(parameters), next(parameters), padding=1)
            x = slow_norm(x, norm, *((None, None) if norm == "none" else (next(parameters), next(parameters))))
            x = slow_pooling(slow_activation(x, activation), pooling)
        features = torch.stack([image.flatten() for image in x])
        scores = features @ next(parameters).T + next(parameters)
        torch.testing.assert_close(network.features(images), features)
        torch.testing.assert_close(network(images), scores)


def test_convnet__gray_28_is_padded_to_32_and_nothing_else_is():
    for shape, side in ((GRAY, 32), ((3, 28, 28), 28), ((1, 32, 32), 32), ((1, 28, 30), 28)):
        block = small(shape, pooling="none").blocks[0]
        assert block(torch.zeros(1, *shape)).shape[2] == side


@pytest.mark.parametrize("norm", NORMS)
def test_batch_statistics__tells_whether_images_of_a_batch_depend_on_each_other(norm: str):
    network = small(norm=norm).train()
    images = torch.randn(4, 3, 8, 8, generator=seeded())
    with torch.no_grad():
        alone, among = network.features(images[:2]), network.features(images)[:2]
    assert network.batch_statistics == (not torch.allclose(alone, among, rtol=1e-4, atol=1e-5))
    assert network.batch_statistics == (norm == "batch")


# Initialisation.


def test_reset__is_in_place():
    network = small(norm="batch")
    before = {name: (tensor, tensor.data_ptr(), tensor.clone()) for name, tensor in network.state_dict().items()}
    parameters = list(network.parameters())
    network.reset_(seeded(1))
    assert all(new is old for new, old in zip(network.parameters(), parameters, strict=True))
    for name, tensor in network.state_dict().items():
        old, pointer, value = before[name]
        assert tensor.data_ptr() == pointer == old.data_ptr()
        assert torch.equal(tensor, value) == (network.get_submodule(name.rpartition(".")[0]) in normalisers(network))


def normalisers(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, tuple(NORM_CLASSES))]


NORM_CLASSES = {nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d}


@pytest.mark.parametrize("norm", NORMS)
def test_reset__repeats_for_a_seed_only(norm: str):
    first, again, other = small(norm=norm, seed=1), small(norm=norm, seed=5), small(norm=norm, seed=2)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.fill_(7.0)
    again.reset_(seeded(1))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert not torch.equal(first.classifier.bias, other.classifier.bias)


def test_reset__does_not_depend_on_the_memory_format():
    plain, last = small(), small(seed=1).to(memory_format=torch.channels_last)
    last.reset_(seeded(0))
    assert not last.blocks[4].weight.is_contiguous()
    for one, other in zip(plain.parameters(), last.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("norm", NORMS)
def test_reset__makes_norms_the_identity_and_forgets_running_statistics(norm: str):
    network = small(norm=norm).train()
    network(5 + torch.randn(4, 3, 8, 8, generator=seeded()))
    with torch.no_grad():
        for module in normalisers(network):
            module.weight.fill_(7.0)
            module.bias.fill_(7.0)
    network.reset_(seeded(1))
    assert len(normalisers(network)) == (0 if norm == "none" else 2)
    for module in normalisers(network):
        assert module.weight.eq(1).all()
        assert module.bias.eq(0).all()
        if norm == "batch":
            assert module.running_mean.eq(0).all()
            assert module.running_var.eq(1).all()
            assert module.num_batches_tracked == 0


@pytest.mark.parametrize("kind", ["convolution", "linear"])
@pytest.mark.parametrize("which", ["weight", "bias"])
def test_reset__draws_what_pytorch_draws(kind: str, which: str):
    """The same distribution as a layer of the same size that PyTorch has made: Kolmogorov and Smirnov's test."""
    ours, theirs = [], []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for seed in range(20):
            network = small((5, 8, 8), seed=seed, width=64, depth=1)
            layer = network.blocks[0] if kind == "convolution" else network.classifier
            twin = nn.Conv2d(5, 64, 3) if kind == "convolution" else nn.Linear(64 * 4 * 4, 3)
            assert getattr(layer, which).shape == getattr(twin, which).shape
            ours.append(getattr(layer, which).detach().flatten())
            theirs.append(getattr(twin, which).detach().flatten())
    a, b = torch.cat(ours).sort().values, torch.cat(theirs).sort().values
    both = torch.cat([a, b])
    gap = (torch.searchsorted(a, both, right=True) - torch.searchsorted(b, both, right=True)).abs().max() / len(a)
    assert gap < 1.95 * (2 / len(a)) ** 0.5  # exceeded by one in a thousand pairs alike


def test_reset__is_uniform_within_the_root_of_the_fan_in():
    network = small((5, 16, 16), width=64, depth=2, pooling="none")
    for layer, fan_in in ((network.blocks[0], 5 * 9), (network.blocks[4], 64 * 9), (network.classifier, 64 * 16 * 16)):
        weight, bound = layer.weight.detach(), fan_in**-0.5
        assert 0.99 * bound < weight.abs().max() <= bound
        assert float(weight.var()) == pytest.approx(bound**2 / 3, rel=0.05)
        assert float(weight.mean()) == pytest.approx(0, abs=4 * (bound**2 / 3 / weight.numel()) ** 0.5)
        assert layer.bias.detach().abs().max() <= bound


# Mistakes.


@pytest.mark.parametrize(
    ("shape", "largest"),
    [((3, 8, 8), 3), (GRAY, 5), ((3, 28, 28), 4), (COLOUR, 5), (TINY, 6), ((1, 24, 40), 4), ((1, 40, 5), 2)],
    ids=str,
)
@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_too_deep__names_the_largest_depth(shape: tuple[int, int, int], largest: int, pooling: str):
    for depth in (largest + 1, largest + 3):
        with pytest.raises(
            UserError, match=rf"{shape[1]}x{shape[2]} image is too small for depth {depth}.*largest depth is {largest}$"
        ):
            small(shape, depth=depth, pooling=pooling)
    assert small(shape, depth=largest, pooling=pooling)(torch.zeros(1, *shape)).shape == (1, 3)
    assert small(shape, depth=largest + 1, pooling="none")(torch.zeros(1, *shape)).shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "bach"}, "unknown normalisation 'bach'; did you mean 'batch'?"),
        ({"activation": "rleu"}, "unknown activation 'rleu'; did you mean 'relu'?"),
        ({"pooling": "average"}, "unknown pooling 'average'; did you mean 'avg'?"),
        ({"pooling": "zzz"}, "unknown pooling 'zzz'; known: avg, max, none"),
        ({"width": 0}, "width and depth of at least 1, got 0 and 2"),
        ({"depth": 0}, "width and depth of at least 1, got 8 and 0"),
        ({"norm": "group", "width": 6}, "the width must be a multiple of 4, got 6"),
        ({"shape": (3, 1, 1), "pooling": "none"}, "a 1x1 image is too small for this network with instance norm"),
    ],
    ids=str,
)
def test_options__that_make_no_network_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(UserError) as caught:
        small(**options)
    assert message in str(caught.value)
