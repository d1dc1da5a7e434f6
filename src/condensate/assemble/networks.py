"""The networks of a recipe, and how they are augmented."""

import torch

from condensate.augment import Augment
from condensate.capabilities import lacking
from condensate.classic import ClassicAugment
from condensate.compute import Compute, ComputeOptions
from condensate.errors import UserError, unknown
from condensate.networks import LISTS, NETWORKS, VARIANTS, Network, Outline, build, outline
from condensate.objectives.trajectory import last_epoch
from condensate.parameterizations import Shape
from condensate.recipe import Recipe, Values
from condensate.training import Augmentation


def network(recipe: Recipe, shape: Shape, classes: int, generator: torch.Generator) -> Network:
    """The recipe's network, initialised."""
    return build(recipe["network"]["name"], shape, classes, generator, **recipe.options("network"))


def training_compute(said: Values, trained: Outline, shape: Shape, passes: int, device: torch.device) -> Compute:
    """How a network is trained on so many real images in all: in float32, else as a section of the recipe says."""
    asked = ComputeOptions(said["compile"], "float32", said["tiles"])
    return asked.resolve(device, 3 * passes * trained.operations, shape[1] * shape[2], tiles=trained.tileable)


# What ``compute.experts`` stands for.
COMPILED = {
    "never": {"compile": "never", "tiles": "never"},
    "always": {"compile": "always", "tiles": "never"},
    "tiles": {"compile": "always", "tiles": "always"},
}


def expert_compute(recipe: Recipe, shape: Shape, classes: int, real: int, device: torch.device) -> Compute:
    """How experts are trained, on so many real images: as ``compute.experts`` says, or by the work of all of them.

    Raises:
        UserError: It is to be compiled and cannot be.
    """
    options, said = recipe.experts, recipe["compute"]
    assert options is not None
    asked = said["experts"]
    if asked != "auto":
        if asked != "never" and (lacks := lacking(device)):
            raise UserError(
                f"compute.experts is {asked}, but torch.compile needs {lacks}; or do without: --compute.experts never"
            )
        if asked == "tiles" and device.type != "cpu":
            raise UserError(
                f"compute.experts is tiles, which are for a CPU, not {device.type}: --compute.experts always"
            )
        said = COMPILED[asked]
    passes = options.count * expert_epochs(recipe) * real
    trained = outline(recipe["network"]["name"], shape, classes, **recipe.options("network"))
    return training_compute(said, trained, shape, passes, device)


def expert_epochs(recipe: Recipe) -> int:
    """How long every expert is trained: as asked, or as long as the objective can use."""
    options, window = recipe.experts, recipe["objective"]
    assert options is not None
    return options.epochs or last_epoch(window["max_start_epoch"], window["expert_epochs"])


def networks_of(recipe: Recipe, shape: Shape, classes: int) -> list[tuple[str, str, Values]]:
    """The networks a recipe's evaluation names, lists in place of their names: (name, registry name, keywords).

    The recipe's own goes by its registry name, or by "same" beside the usual one of that name.

    Raises:
        UserError: A name is unknown, or the images are too small for a network.
    """
    listed: list[tuple[str, str, Values]] = []
    for given in recipe.evaluate.networks:
        for name in LISTS.get(given, (given,)):
            if name == "same":
                registered, options = recipe["network"]["name"], recipe.options("network")
            elif name in NETWORKS:
                registered, options = name, {}
            elif name in VARIANTS:
                registered, options = VARIANTS[name]
            else:
                raise unknown("network", name, ["same", *NETWORKS, *VARIANTS, *LISTS])
            try:
                outline(registered, shape, classes, **options)
            except UserError as error:
                raise error if name == "same" else UserError(f"evaluate.networks: {name}: {error}") from error
            entry = (registered if name == "same" else name, registered, dict(options))
            if entry not in listed:
                listed.append(entry)
    own = (recipe["network"]["name"], recipe["network"]["name"], recipe.options("network"))
    twice = [name for name, *_ in listed].count(own[0]) > 1  # the recipe's own and the usual one of its kind
    return [("same", *own[1:]) if twice and entry == own else entry for entry in listed]


def training_augment(recipe: Recipe) -> Augmentation:
    """The augmentation networks are trained with: on a synthetic set, on all data, and for a coreset's features."""
    ops = recipe.evaluate.ops
    if recipe.evaluate.augmentation == "dc":
        return ClassicAugment() if ops is None else ClassicAugment(ops)
    return Augment(**(recipe["augment"] | ({} if ops is None else {"ops": ops})))
