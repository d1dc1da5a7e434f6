"""The synthetic set of a recipe, as it is before the first episode."""

import platform
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from condensate import __version__
from condensate.assemble.networks import network, training_augment, training_compute
from condensate.coresets import embed
from condensate.data import ImageData
from condensate.losses import MeanLoss
from condensate.networks import outline
from condensate.objectives import OBJECTIVES
from condensate.parameterizations import FLOAT_BITS, PARAMETERIZATIONS, Shape, capacity
from condensate.recipe import STUDIES, Recipe, Values
from condensate.starts import STARTS
from condensate.streams import Streams
from condensate.synthetic import SyntheticDataset, class_major
from condensate.training import fit

# What a comparison row changes of its recipe; with no episode, a start from real images is a baseline.
BASELINES: dict[str, dict[str, Any]] = {
    "random": {"parameterization": {"name": "pixels"}, "start": {"name": "real"}},
    "random-uint8": {"parameterization": {"name": "uint8"}, "start": {"name": "real"}},
    "herding": {"parameterization": {"name": "pixels"}, "start": {"name": "herding"}},
    "k-centre": {"parameterization": {"name": "pixels"}, "start": {"name": "k-centre"}},
}


def baseline(recipe: Recipe, row: str) -> Recipe:
    """The recipe of a comparison row: real images chosen as the row says, at the same budget, and no episode."""
    return recipe.with_values(**deepcopy(BASELINES[row]), condense={"episodes": 0}, compare=[])


def normalised(recipe: Recipe, data: ImageData) -> Recipe:
    """The recipe, a storage of bytes told the normalisation of the data that it is to hold."""
    if recipe["parameterization"]["name"] != "uint8":
        return recipe
    return recipe.with_values(parameterization={"mean": list(data.mean), "std": list(data.std)})


def images_per_class(recipe: Recipe, classes: int, shape: Shape) -> int:
    """What the budget holds; soft labels count, the one number of a learned step size does not."""
    storage, options = PARAMETERIZATIONS[recipe["parameterization"]["name"]], recipe.options("parameterization")
    label_bits = FLOAT_BITS * classes if _soft(recipe) else 0
    return capacity(storage, recipe.budget.bits(classes, shape), classes, shape, label_bits=label_bits, **options)


def _soft(recipe: Recipe) -> bool:
    """Whether labels are learned."""
    return bool(recipe.condense.episodes and recipe.condense.lr_labels)


def start(recipe: Recipe, data: ImageData, streams: Streams, outputs: int | None = None) -> SyntheticDataset:
    """The synthetic set as it is before the first episode, on the data's device.

    Networks have ``outputs``, as many as classes if None; a part of a stream has fewer classes than its networks tell
    apart.
    """
    classes, device = len(data.classes), data.train.device
    each = images_per_class(recipe, classes, data.shape)
    storage = PARAMETERIZATIONS[recipe["parameterization"]["name"]]
    stored = storage(classes * each, data.shape, **recipe.options("parameterization")).to(device)

    def trained_features() -> Callable[[Tensor], Tensor]:
        trained = network(recipe, data.shape, outputs or classes, streams("embed"))
        epochs = recipe.evaluate.epochs_full
        kind = outline(recipe["network"]["name"], data.shape, outputs or classes, **recipe.options("network"))
        compute = training_compute(recipe["evaluate"], kind, data.shape, epochs * len(data.train), device)
        fit(
            trained,
            data.train,
            epochs=epochs,
            generator=streams("embed", "order"),
            join_last=True,
            augment=training_augment(recipe),
            loss=MeanLoss.laid_out(trained, compute, data.shape, device),
        )
        return embed(trained.to(memory_format=torch.contiguous_format), data.train)  # type: ignore[call-overload]

    real = data.train.seen_through(None) if data.whitening is not None and stored.holds_pixels else data.train
    STARTS[recipe["start"]["name"]](stored, real, trained_features, streams, **recipe.options("start"))
    privacy = guarantee(recipe, data)
    described = {k: v for k, v in recipe.anywhere().values.items() if k not in STUDIES}
    labels = class_major(classes, each).to(device)
    return SyntheticDataset(
        stored,
        one_hot(labels, classes).float() if _soft(recipe) else labels,
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        step_size=recipe["objective"].get("step_size") if recipe.condense.episodes else None,
        whitening=data.whitening,
        about={
            "recipe": recipe.name,
            "values": described,
            "versions": {
                "condensate": __version__,
                "torch": str(torch.__version__),
                "python": platform.python_version(),
            },
            **({} if privacy is None else {"privacy": privacy}),
        },
    )


def guarantee(recipe: Recipe, data: ImageData) -> Values | None:
    """What a condensed set gives away of one training image at most; None where nothing is promised."""
    options, episodes = recipe.options("objective"), recipe.condense.episodes
    matching = OBJECTIVES[recipe["objective"]["name"]]
    return matching.guarantee(len(data.classes), len(data.train), episodes, **options) if episodes else None
