"""Bytes at the peak of a run: of condensing, and of the networks that score."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from condensate import settling
from condensate.assemble import networks_of
from condensate.evaluation import HELD_BYTES
from condensate.networks import build
from condensate.objectives import OBJECTIVES, Layers
from condensate.parameterizations import Shape
from condensate.recipe import Recipe, Values
from condensate.streams import Streams
from condensate.training import scored_at_once

SCRATCH_BYTES = 100 * 2**20  # what libraries take once they are used, whatever the work
COMPILER_BYTES = 64 * 2**20  # what torch.compile keeps of the programs it has made
TILES_BYTES = 64 * 2**20  # and of those on tiles, which are longer and hold their sums, so much more


def peaks(
    recipe: Recipe,
    shape: Shape,
    classes: int,
    images: int,
    trained: int,
    piece_trained: int | None,
    device: torch.device,
) -> tuple[int, int]:
    """Bytes at the peak of condensing, and at that of training and scoring, beside what lasts all along.

    Networks are trained on ``trained`` images at a time, of all that are trained together, in such pieces if any; the
    peak is that of the largest kind.
    """
    layers, whole = _layers(recipe["network"]["name"], recipe.options("network"), shape, classes)
    compute, objective = settling.compute(recipe, shape, device), recipe["objective"]
    if whole:  # batch statistics are of whole batches
        compute = replace(compute, chunk=max(images, classes * objective.get("batch_real", 0)), piece=None)
    room = OBJECTIVES[objective["name"]].room(layers, compute, classes, images, **recipe.options("objective"))
    matched = room.activations / 2 if compute.compiled and not compute.tiled else room.activations
    condensing = _used(compute.compiled, compute.tiled) + matched + room.lasting
    training = recipe.evaluate
    used = _used(compute.compiled or training.compile == "always", compute.tiled or training.tiles == "always")
    held = images * layers.image if images * layers.image <= HELD_BYTES else 0
    scored = (3 if device.type == "cpu" else 2) * scored_at_once(shape, device)  # a CPU's has gaps

    def peak(name: str, options: Values) -> int:
        """Of networks of one kind."""
        own, whole = _layers(name, options, shape, classes)
        at_once = trained if whole or not piece_trained else min(trained, piece_trained)
        return max(own.every * at_once, own.largest * scored)

    scoring = used + held + max(peak(name, options) for _, name, options in networks_of(recipe, shape, classes))
    return int(condensing), int(scoring)


def _used(compiled: bool, tiled: bool) -> int:
    """Bytes that libraries and programs take by then."""
    return SCRATCH_BYTES + COMPILER_BYTES * compiled + TILES_BYTES * tiled


@torch.no_grad()
def _layers(name: str, options: Values, shape: Shape, classes: int) -> tuple[Layers, bool]:
    """Bytes of a network, and whether it takes whole batches."""
    net = build(name, shape, classes, Streams(0)("count"), **options)
    outputs: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs.append(4 * output[0].numel())

    for module in net.modules():
        if not list(module.children()) and not isinstance(module, nn.Identity):
            module.register_forward_hook(count)
    net(torch.zeros(2, *shape))
    parameters = 4 * sum(parameter.numel() for parameter in net.parameters())
    return Layers(4 * torch.Size(shape).numel(), max(outputs), sum(outputs), parameters), net.batch_statistics
