"""What a recipe leaves to the machine, settled: compilation, precision, and how many networks train together."""

import os
import warnings

import torch

from condensate.assemble import expert_compute, networks_of
from condensate.compute import ON_TILES, PRECISIONS, WORTH_COMPILING, Compute, ComputeOptions
from condensate.errors import UserError
from condensate.networks import Outline, outline
from condensate.objectives import OBJECTIVES
from condensate.parameterizations import Shape
from condensate.recipe import Evaluate, Recipe, Values

TRAINED_BY = ("compile", "precision", "tiles", "together")  # what of ``evaluate`` is settled
TRAINING_BATCH = 256  # images a step of a network that scores, as published
FILLS_A_GPU = 4096  # images of 32x32, or as many pixels, a step of all networks that are trained together there


def settle_compute(recipe: Recipe, shape: Shape, classes: int, images: int, device: torch.device, real: int) -> Recipe:
    """The recipe with ``compute`` settled, so that a resumed run does not choose anew.

    Experts, where it matches any, are trained on ``real`` images.
    """
    work = condensing_operations(recipe, shape, classes, images)
    resolved = _resolved(recipe, shape, device, work)
    return settle_experts(recipe, shape, classes, device, real).with_values(
        compute={**_settled(resolved), "chunk": resolved.chunk}
    )


def settle_experts(recipe: Recipe, shape: Shape, classes: int, device: torch.device, real: int) -> Recipe:
    """The recipe with ``compute.experts`` settled, where it matches any, which are trained on ``real`` images."""
    if recipe.experts is None or recipe["compute"]["experts"] != "auto":
        return recipe
    trained = expert_compute(recipe, shape, classes, real, device)
    return recipe.with_values(compute={"experts": _said_of(trained)})


def _said_of(experts: Compute) -> str:
    """How experts are trained, as ``compute.experts`` says it."""
    return "tiles" if experts.tiled else "always" if experts.compiled else "never"


def why_compiled(recipe: Recipe, shape: Shape, classes: int, images: int, device: torch.device) -> str | None:
    """What ``settle_compute`` chooses and why, in words; None where the recipe says it."""
    work = condensing_operations(recipe, shape, classes, images)
    why = ComputeOptions(**recipe["compute"]).why(device, work)
    return why and why + ON_TILES * _resolved(recipe, shape, device, work).tiled


def _resolved(recipe: Recipe, shape: Shape, device: torch.device, work: float) -> Compute:
    matched = outline(recipe["network"]["name"], shape, 2, **recipe.options("network"))
    tiles = OBJECTIVES[recipe["objective"]["name"]].tiling * matched.tileable
    return ComputeOptions(**recipe["compute"]).resolve(device, work, shape[1] * shape[2], tiles=tiles)


def _settled(resolved: Compute) -> Values:
    precision = {value: name for name, value in PRECISIONS.items()}[resolved.precision]
    when = {True: "always", False: "never"}
    return {"compile": when[resolved.compiled], "precision": precision, "tiles": when[resolved.tiled]}


def condensing_operations(recipe: Recipe, shape: Shape, classes: int, images: int) -> float:
    """Floating-point operations of all episodes."""
    matching = OBJECTIVES[recipe["objective"]["name"]]
    work = matching.planned(classes, images, **recipe.options("objective"))
    own = outline(recipe["network"]["name"], shape, classes, **recipe.options("network"))
    return own.operations * work.forwards * recipe.condense.episodes


def settle_training(
    recipe: Recipe, shape: Shape, classes: int, images: int, device: torch.device, *, full: bool = False
) -> Recipe:
    """The recipe with what of ``evaluate`` says how networks are trained settled for so many images.

    Compilation is weighed by the work of the first kind of network that scores.
    """
    options = recipe.evaluate
    work = _training_operations(recipe, shape, classes, images, full)
    together = options.together
    if together is None:
        at_a_time = FILLS_A_GPU * 32 * 32 // (min(images, TRAINING_BATCH) * shape[1] * shape[2])
        together = 1 if device.type == "cpu" else min(options.repeats, max(1, at_a_time))
    tiles = _first_pupil(recipe, shape, classes).tileable if together == 1 else None
    resolved = _asked(options).resolve(device, work, tiles=tiles, section="evaluate")
    return recipe.with_values(evaluate={**_settled(resolved), "together": together})


def _asked(options: Evaluate) -> ComputeOptions:
    """How networks that score are to be trained."""
    return ComputeOptions(options.compile, options.precision, options.tiles)


def why_training_compiled(
    recipe: Recipe, shape: Shape, classes: int, images: int, device: torch.device, *, full: bool = False
) -> str | None:
    """What ``settle_training`` chooses and why; None where the recipe says it, or there is little to train."""
    work = _training_operations(recipe, shape, classes, images, full)
    if work < WORTH_COMPILING[device.type]:
        return None
    why = _asked(recipe.evaluate).why(device, work)
    tiled = settle_training(recipe, shape, classes, images, device, full=full).evaluate.tiles == "always"
    return why and why + ON_TILES * tiled


def _training_operations(recipe: Recipe, shape: Shape, classes: int, images: int, full: bool) -> float:
    """Floating-point operations of all networks of the first kind that scores."""
    options = recipe.evaluate
    passes = options.repeats * (options.epochs_full if full else options.epochs) * images
    return 3 * passes * _first_pupil(recipe, shape, classes).operations


def _first_pupil(recipe: Recipe, shape: Shape, classes: int) -> Outline:
    """Of the first kind of network that scores."""
    (_, registered, keywords), *_ = networks_of(recipe, shape, classes)
    return outline(registered, shape, classes, **keywords)


def check_training(recipe: Recipe, device: torch.device) -> None:
    """Raise before a run condenses, not after, if networks that score cannot be trained as asked."""
    options = recipe.evaluate
    _asked(options).resolve(device, 0.0, tiles=0 if options.together in (None, 1) else None, section="evaluate")


def check_images(recipe: Recipe, images: int, there: int) -> None:
    """Warn of a budget that holds more synthetic images than there are real ones."""
    if images > there:
        warnings.warn(
            f"{recipe.name}: the budget holds {images:,} images, and only {there:,} are there to condense; "
            "give a smaller --budget.ipc or --budget.bytes",
            stacklevel=3,
        )


def check_memory(recipe: Recipe, shape: Shape, classes: int, device: torch.device) -> None:
    """Raise before anything is written where a machine cannot hold the stored numbers, gradients and momentum."""
    needed = recipe.budget.bits(classes, shape) // 8 * (3 if recipe.condense.episodes else 1)
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise UserError(
            f"what the budget allows takes {needed / 2**30:,.1f} GiB while it is condensed, and {device} has "
            f"{there / 2**30:,.1f} GiB: set a smaller --budget.ipc or --budget.bytes"
        )


def training_way(recipe: Recipe) -> Values:
    """How networks are trained, as ``train_networks`` takes it, of a recipe in which that is settled."""
    options = recipe.evaluate
    compiled, tiled = (asked == "always" for asked in (options.compile, options.tiles))
    compute = Compute(compiled, PRECISIONS[options.precision], tiled=tiled)
    return {"together": options.together, "compute": compute}


def compute(recipe: Recipe, shape: Shape, device: torch.device) -> Compute:
    """How the objective computes on images of a shape, of a recipe in which that is settled."""
    return _resolved(recipe, shape, device, 0.0)
