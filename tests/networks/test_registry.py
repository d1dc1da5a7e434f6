"""Every network by name: published sizes, any image, initialisation; the larger ones also written out step by step."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from condensate import UserError
from condensate.networks import LISTS, NETWORKS, VARIANTS, Network, build, forward_operations, outline, tileable
from condensate.networks.resnet import ResidualBlock
from condensate.networks.vit import TransformerBlock

GRAY, COLOUR = (1, 28, 28), (3, 32, 32)
NAMES = {name: (name, {}) for name in NETWORKS} | VARIANTS
FAMILIES = [*NETWORKS, "convnet-bn", "alexnet-bn", "vgg11-bn", "resnet18-bn", "resnet18-bn-ap"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def named(name: str, shape: tuple[int, int, int], classes: int = 10, seed: int = 0) -> Network:
    registered, options = NAMES[name]
    return build(registered, shape, classes, seeded(seed), **options)


@cache
def built(name: str) -> Network:
    """For colour images, made once for the tests that leave it as it is."""
    return named(name, COLOUR)


def randomised(module: nn.Module) -> nn.Module:
    """In float64, all parameters drawn anew: of the normalisation layers, too, whose start is the identity."""
    module.to_empty(device="cpu").double()
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64, generator=seeded(seed)))
    return module


# Sizes.


@pytest.mark.parametrize(
    ("name", "gray", "colour", "features"),
    [
        ("mlp", 118_282, 411_146, (128, 128)),
        ("convnet", 317_706, 320_010, (2048, 2048)),
        ("lenet", 61_706, 62_006, (84, 84)),
        ("alexnet", 1_865_802, 1_872_202, (3072, 3072)),
        ("alexnet-bn", 1_867_722, 1_874_122, (3072, 3072)),
        ("vgg11", 9_229_962, 9_231_114, (512, 512)),
        ("vgg11-bn", 9_229_962, 9_231_114, (512, 512)),
        ("resnet18", 11_172_810, 11_173_962, (512, 512)),
        ("resnet18-bn", 11_172_810, 11_173_962, (512, 512)),
        ("resnet18-bn-ap", 11_213_770, 11_250_762, (4608, 8192)),
    ],
)
def test_network__has_the_published_number_of_parameters_and_features(
    name: str, gray: int, colour: int, features: tuple[int, int]
):
    networks = (named(name, GRAY), built(name))
    for network, shape, parameters, width in zip(networks, (GRAY, COLOUR), (gray, colour), features, strict=True):
        assert sum(parameter.numel() for parameter in network.parameters()) == parameters
        with torch.no_grad():
            assert network.features(torch.zeros(2, *shape)).shape == (2, width)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shape", [(5, 8, 8), (1, 9, 13), (3, 28, 28), (1, 24, 40), (3, 40, 24), (3, 64, 64)], ids=str)
def test_network__takes_any_size_and_number_of_channels(name: str, shape: tuple[int, int, int]):
    if min(shape[1:]) < {"lenet": 13, "vgg11": 17, "resnet18": 9, "resnet18-bn-ap": 8}.get(name, 1):
        with pytest.raises(UserError, match=rf"a {shape[1]}x{shape[2]} image is too small .*--data.size 32"):
            named(name, shape)
        return
    registered, options = NAMES[name]
    with torch.device("meta"):
        network = NETWORKS[registered](shape, 4, **options).to("meta")
        scores = network(torch.zeros(2, *shape))
        scores.sum().backward()
    assert scores.shape == (2, 4)
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "side"), [("lenet", 13), ("alexnet-bn", 1), ("vgg11", 17), ("resnet18", 9), ("resnet18-bn-ap", 8)]
)
def test_network__smallest_image__has_features_that_tell_images_apart(name: str, side: int):
    network = named(name, (2, side, side))
    with torch.no_grad():
        features = network.features(torch.randn(3, 2, side, side, generator=seeded()))
    assert features.isfinite().all()
    assert not torch.allclose(features[0], features[1])
    if side > 1:
        with pytest.raises(UserError, match=f"a {side - 1}x{side - 1} image is too small"):
            named(name, (2, side - 1, side - 1))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("convent", {}, "unknown network 'convent'; did you mean 'convnet'?"),
        ("mlp", {"width": 0}, "width of at least 1, got 0"),
        ("vgg11", {"norm": "bach"}, "unknown normalisation 'bach'; did you mean 'batch'?"),
        ("resnet18", {"pooling": "avgg"}, "unknown pooling 'avgg'; did you mean 'avg'?"),
        ("vit", {"patch": 0}, "patch of at least 1, got 128, 6, 4 and 0"),
        ("vit", {"width": 30}, "must be a multiple of its heads, got 30 and 4"),
    ],
    ids=str,
)
def test_options__that_make_no_network_are_refused(name: str, options: dict[str, Any], message: str):
    with pytest.raises(UserError) as caught:
        build(name, COLOUR, 3, seeded(), **options)
    assert message in str(caught.value)


# Names.


@pytest.mark.parametrize("name", VARIANTS)
def test_variant__is_made_for_32_pixels(name: str):
    registered, options = VARIANTS[name]
    network = NETWORKS[registered](COLOUR, 10, **options)
    assert network.batch_statistics == (options.get("norm") == "batch")


def test_lists__hold_known_names():
    for members in LISTS.values():
        assert set(members) <= set(NAMES)
        assert len(set(members)) == len(members)


def test_names__mean_one_thing():
    names = [*NETWORKS, *VARIANTS, *LISTS, "same"]
    assert len(set(names)) == len(names)


# What is computed.


@pytest.mark.parametrize("name", FAMILIES)
def test_forward__is_the_classifier_on_the_features(name: str):
    network, images = built(name).eval(), torch.randn(2, *COLOUR, generator=seeded())
    with torch.no_grad():
        scores = network.features(images) @ network.classifier.weight.T + network.classifier.bias
        torch.testing.assert_close(network(images), scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_batch_statistics__tells_whether_images_of_a_batch_depend_on_each_other(name: str):
    network, images = built(name).train(), torch.randn(4, *COLOUR, generator=seeded())
    with torch.no_grad():
        alone, among = network.features(images[:2]), network.features(images)[:2]
    assert network.batch_statistics == (not torch.allclose(alone, among, rtol=1e-3, atol=1e-4))
    assert network.batch_statistics == ("bn" in name)


# Kernel size x padding of each convolution, N: normalised; ReLU after each. M: the greatest of every 2x2.
LAYOUTS = {
    "lenet": "5x0 M 5x0 M",
    "alexnet": "5x2 M 5x2 M 3x1 3x1 3x1 M",
    "vgg11": "3x1N M 3x1N M 3x1N 3x1N M 3x1N 3x1N M 3x1N 3x1N M",
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(("gray", "more"), [(False, 0), (True, 2)], ids=["colour", "gray"])
def test_plain_network__is_its_layout(name: str, gray: bool, more: int):
    shape = GRAY if gray else COLOUR
    network = built_double(name, shape)
    x = images = torch.randn(2, *shape, dtype=torch.float64, generator=seeded())
    parameters = iter(network.parameters())
    with torch.no_grad():
        for number, layer in enumerate(LAYOUTS[name].split()):
            if layer == "M":
                x = x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).amax((3, 5))
                continue
            weight, bias = next(parameters), next(parameters)
            assert weight.shape[2:] == (int(layer[0]), int(layer[0]))
            x = functional.conv2d(x, weight, bias, padding=int(layer[2]) + (0 if number else more))
            if layer.endswith("N"):
                mean, deviation = (
                    x.mean((2, 3), keepdim=True),
                    (x.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt(),
                )
                x = (x - mean) / deviation * next(parameters)[:, None, None] + next(parameters)[:, None, None]
            x = x.clamp(min=0)
        x, rest = x.flatten(1), list(parameters)
        for weight, bias in zip(rest[0:-2:2], rest[1:-2:2], strict=True):  # hidden layers of LeNet
            x = (x @ weight.T + bias).clamp(min=0)
        torch.testing.assert_close(network.features(images), x)
        torch.testing.assert_close(network(images), x @ rest[-2].T + rest[-1])


@cache
def built_double(name: str, shape: tuple[int, int, int]) -> Network:
    return named(name, shape, seed=1).double()


def test_mlp__is_two_hidden_layers():
    network = build("mlp", (2, 3, 4), 5, seeded(), width=6).double()
    first, b, second, c, last, d = network.parameters()
    images = torch.randn(7, 2, 3, 4, dtype=torch.float64, generator=seeded())
    hidden = torch.stack(
        [((image.flatten() @ first.T + b).clamp(min=0) @ second.T + c).clamp(min=0) for image in images]
    )
    torch.testing.assert_close(network.features(images), hidden)
    torch.testing.assert_close(network(images), hidden @ last.T + d)


@pytest.mark.parametrize("pooling", ["stride", "avg"])
@pytest.mark.parametrize("changes", [False, True], ids=["same", "halved"])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_residual_block__is_written_out(norm: str, changes: bool, pooling: str):
    before, after = (3, 6, 4), (5, 3, 2) if changes else (3, 6, 4)
    block = randomised(ResidualBlock(before, after, norm=norm, pooling=pooling, image=(3, 6, 4))).train()
    x = torch.randn(4, *before, dtype=torch.float64, generator=seeded())
    parameters = iter(block.parameters())

    def convolved(x: Tensor, halve: bool) -> Tensor:
        """Every output a sum of the window's products; halving by stride takes every second."""
        weight = next(parameters)
        size = weight.shape[2]
        windows = functional.pad(x, [size // 2] * 4).unfold(2, size, 1).unfold(3, size, 1)
        out = torch.einsum("nchwij,ocij->nohw", windows, weight)
        return out[:, :, ::2, ::2] if halve and pooling == "stride" else out

    def pooled(x: Tensor) -> Tensor:
        if not changes or pooling == "stride":
            return x
        return x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean((3, 5))

    def normed(x: Tensor) -> Tensor:
        of = (2, 3) if norm == "instance" else (0, 2, 3)
        x = (x - x.mean(of, keepdim=True)) / (x.var(of, correction=0, keepdim=True) + 1e-5).sqrt()
        return x * next(parameters)[:, None, None] + next(parameters)[:, None, None]

    with torch.no_grad():
        inner = pooled(normed(convolved(x, changes)).clamp(min=0))
        inner = normed(convolved(inner, False))
        shortcut = normed(pooled(convolved(x, changes))) if changes else x
        assert next(parameters, None) is None
        torch.testing.assert_close(block(x), (inner + shortcut).clamp(min=0))


def test_resnet18__has_two_blocks_a_stage_of_which_the_first_halves():
    for name, last in (("resnet18", 4), ("resnet18-bn-ap", 4)):
        network, x = built(name).eval(), torch.zeros(1, *COLOUR)
        with torch.no_grad():
            x = network.stem(x)
            sizes = [tuple(x.shape[1:])] + [tuple((x := block(x)).shape[1:]) for block in network.blocks]
        assert sizes == [(64, 32, 32)] * 3 + [(128, 16, 16)] * 2 + [(256, 8, 8)] * 2 + [(512, last, last)] * 2


def test_resnet18__averages_the_whole_last_map():
    network, images = built("resnet18"), torch.randn(1, *COLOUR, generator=seeded())
    with torch.no_grad():
        torch.testing.assert_close(network.features(images), network.blocks(network.stem(images)).mean((2, 3)))


def test_transformer_block__is_written_out():
    width, heads = 6, 2
    block = randomised(TransformerBlock(width, heads))
    tokens = torch.randn(2, 5, width, dtype=torch.float64, generator=seeded())
    a, b, project, c, join, d, e, f, wide, g, narrow, h = block.parameters()

    def normed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() * weight + bias

    def gelu(x: Tensor) -> Tensor:
        return x * (1 + torch.erf(x / 2**0.5)) / 2

    with torch.no_grad():
        for image, out in zip(tokens, block(tokens), strict=True):
            q, k, v = torch.stack([project @ normed(token, a, b) + c for token in image]).split(width, 1)
            for position, token in enumerate(image):
                seen = []
                for head in (slice(0, 3), slice(3, 6)):
                    likeness = torch.stack([(q[position, head] * other).sum() / 3**0.5 for other in k[:, head]]).exp()
                    seen.append(sum(w * other for w, other in zip(likeness / likeness.sum(), v[:, head], strict=True)))
                token = token + join @ torch.cat(seen) + d
                token = token + narrow @ gelu(wide @ normed(token, e, f) + g) + h
                torch.testing.assert_close(out[position], token)


def test_vit__tokens_are_patches_row_by_row_with_zeros_at_the_far_border():
    network = build("vit", (2, 5, 7), 3, seeded(), width=8, depth=1, heads=2, patch=4).double()
    image = torch.randn(2, 5, 7, dtype=torch.float64, generator=seeded())
    whole = torch.zeros(2, 8, 8, dtype=torch.float64)
    whole[:, :5, :7] = image
    corners = [(0, 0), (0, 4), (4, 0), (4, 4)]
    patches = torch.stack([whole[:, y : y + 4, x : x + 4].flatten() for y, x in corners])
    with torch.no_grad():
        tokens = patches @ network.embedding.weight.T + network.embedding.bias + network.positions
        tokens = functional.layer_norm(network.blocks(tokens[None])[0], (8,))
        torch.testing.assert_close(network.features(image[None]), tokens.mean(0)[None])


@pytest.mark.parametrize("name", ["mlp", "lenet", "vit"])
def test_network__gradients_can_be_differentiated_again(name: str):
    """As gradient matching does: the slope of |gradient|^2 along a direction is that of finite differences."""
    registered, options = NAMES[name]
    options = options | ({"width": 8, "depth": 1} if name == "vit" else {})
    network = build(registered, (1, 13, 13), 3, seeded(), **options).double()
    images = torch.randn(2, 1, 13, 13, dtype=torch.float64, generator=seeded(1)).requires_grad_()
    direction = torch.randn(2, 1, 13, 13, dtype=torch.float64, generator=seeded(2))

    def size(images: Tensor, graph: bool) -> Tensor:
        loss = functional.cross_entropy(network(images), torch.tensor([0, 2]))
        gradients = torch.autograd.grad(loss, list(network.parameters()), create_graph=graph)
        return sum((gradient.square().sum() for gradient in gradients), torch.zeros(()))

    (slope,) = torch.autograd.grad(size(images, True), images)
    step = 1e-6 * direction
    difference = (size(images + step, False) - size(images - step, False)) / 2e-6
    torch.testing.assert_close((slope * direction).sum(), difference.detach(), rtol=1e-4, atol=1e-9)


# Initialisation.


@pytest.mark.parametrize("name", NETWORKS)
def test_building__leaves_the_global_random_state_untouched(name: str, random_state: Callable[[], object]):
    before = random_state()
    named(name, (3, 24, 24)).reset_(seeded(1))
    assert random_state() == before


@pytest.mark.parametrize("name", FAMILIES)
def test_reset__covers_all_repeats_and_is_in_place(name: str):
    network = named(name, (2, 24, 24), seed=1)
    first = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    places = {key: tensor.data_ptr() for key, tensor in network.state_dict().items()}
    for tensor in network.state_dict().values():
        tensor.fill_(torch.nan if tensor.is_floating_point() else 7)
    network.reset_(seeded(1))
    for key, tensor in network.state_dict().items():
        assert tensor.data_ptr() == places[key]
        assert torch.equal(tensor, first[key]), key
    network.reset_(seeded(2))
    drawn = [key for key, tensor in network.state_dict().items() if not torch.equal(tensor, first[key])]
    identity = {
        f"{path}.{key}"
        for path, module in network.named_modules()
        if isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.BatchNorm2d)
        for key in module.state_dict()
    }
    assert set(drawn) == set(first) - identity


def test_reset__vit_positions_are_normal_of_deviation_0_02():
    positions = build("vit", (3, 64, 64), 3, seeded(), patch=2, depth=1).positions.detach()
    assert float(positions.std()) == pytest.approx(0.02, rel=0.01)
    assert float(positions.mean()) == pytest.approx(0, abs=4 * 0.02 / positions.numel() ** 0.5)
    inside = (positions.abs() < 0.02).float().mean()
    assert float(inside) == pytest.approx(0.6827, abs=0.005)


@pytest.mark.parametrize("name", ["mlp", "resnet18", "vit"])
def test_reset__layers_are_uniform_within_the_root_of_the_fan_in(name: str):
    for module in built(name).modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            weight = module.weight.detach()
            bound = weight[0].numel() ** -0.5
            assert 0.98 * bound < weight.abs().max() <= bound
            assert float(weight.var()) == pytest.approx(bound**2 / 3, rel=0.15)
            if module.bias is not None:
                assert module.bias.detach().abs().max() <= bound


@pytest.mark.parametrize("name", NAMES)
def test_outline__is_that_of_what_is_built(name: str):
    registered, options = NAMES[name]
    found = outline(registered, COLOUR, 10, **options)
    assert found == (forward_operations(built(name), COLOUR), tileable(built(name)))
    assert outline(registered, list(COLOUR), 10, **dict(reversed(options.items()))) is found  # no second network


def test_outline__what_cannot_be_built__is_refused():
    for _ in range(2):  # what failed is not kept
        with pytest.raises(UserError, match="unknown network"):
            outline("convnets", COLOUR, 10)
        with pytest.raises(UserError, match="too small"):
            outline("vgg11", (3, 4, 4), 10)
