"""From a recipe to the objects it describes."""

import json
import platform
import shlex
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from condensate import __version__
from condensate.atomic import in_turn
from condensate.augment import Augment
from condensate.classic import ClassicAugment
from condensate.compute import Compute, ComputeOptions
from condensate.coresets import embed
from condensate.data import ImageData, Split, from_arrays, load
from condensate.data.cache import folder as cache_folder
from condensate.errors import UserError, unknown
from condensate.experts import Parameters, Store, trajectory
from condensate.networks import LISTS, NETWORKS, VARIANTS, Network, build, forward_operations
from condensate.objectives import OBJECTIVES, Objective
from condensate.objectives.trajectory import check_window, last_epoch
from condensate.parameterizations import FLOAT_BITS, PARAMETERIZATIONS, Shape, capacity
from condensate.ranks import ALONE, Ranks
from condensate.recipe import STUDIES, Recipe, Values
from condensate.records import environment
from condensate.sheets import resolve, shipped
from condensate.starts import STARTS
from condensate.streams import Streams
from condensate.synthetic import SyntheticDataset, class_major
from condensate.training import Augmentation, fit, mean_loss

# What a comparison row changes of its recipe; with no episode, a start from real images is a baseline.
BASELINES: dict[str, dict[str, Any]] = {
    "random": {"parameterization": {"name": "pixels"}, "start": {"name": "real"}},
    "random-uint8": {"parameterization": {"name": "uint8"}, "start": {"name": "real"}},
    "herding": {"parameterization": {"name": "pixels"}, "start": {"name": "herding"}},
    "k-centre": {"parameterization": {"name": "pixels"}, "start": {"name": "k-centre"}},
}


def image_data(recipe: Recipe, device: torch.device, ranks: Ranks = ALONE) -> ImageData:
    """The data, on the device; of several processes one decodes them and the others read what it kept."""
    with in_turn(cache_folder() / ".loading") if ranks.world > 1 else nullcontext():
        return load(**recipe["data"]).to(device)


def random_data(shape: Shape, device: torch.device, classes: int = 2, each: int = 16) -> ImageData:
    """Random images in place of data, for smoke runs and estimates."""
    generator = Streams(0)("random data")
    images = torch.randint(0, 256, (classes * each, *shape), dtype=torch.uint8, generator=generator)
    labels = class_major(classes, each)
    return from_arrays(images, labels, images, labels, name="random").to(device)


def baseline(recipe: Recipe, row: str) -> Recipe:
    """The recipe of a comparison row: real images chosen as the row says, at the same budget, and no episode."""
    return recipe.with_values(**deepcopy(BASELINES[row]), condense={"episodes": 0}, compare=[])


def normalised(recipe: Recipe, data: ImageData) -> Recipe:
    """The recipe, a storage of bytes told the normalisation of the data that it is to hold."""
    if recipe["parameterization"]["name"] != "uint8":
        return recipe
    return recipe.with_values(parameterization={"mean": list(data.mean), "std": list(data.std)})


def network(recipe: Recipe, shape: Shape, classes: int, generator: torch.Generator) -> Network:
    """The recipe's network, initialised."""
    return build(recipe["network"]["name"], shape, classes, generator, **recipe.options("network"))


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
                NETWORKS[registered](shape, classes, **options)
            except UserError as error:
                raise error if name == "same" else UserError(f"evaluate.networks: {name}: {error}") from error
            entry = (registered if name == "same" else name, registered, dict(options))
            if entry not in listed:
                listed.append(entry)
    own = (recipe["network"]["name"], recipe["network"]["name"], recipe.options("network"))
    twice = [name for name, *_ in listed].count(own[0]) > 1  # the recipe's own and the usual one of its kind
    return [("same", *own[1:]) if twice and entry == own else entry for entry in listed]


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
        augment = training_augment(recipe)
        fit(trained, data.train, epochs=epochs, generator=streams("embed", "order"), join_last=True, augment=augment)
        return embed(trained, data.train)

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


def objective(
    recipe: Recipe,
    data: ImageData,
    compute: Compute,
    streams: Streams,
    outputs: int | None = None,
    ranks: Ranks = ALONE,
) -> Objective:
    """The recipe's objective on the training images, or on its experts, which must be there when an episode begins."""
    matched = network(recipe, data.shape, outputs or len(data.classes), streams("network"))
    matching = OBJECTIVES[recipe["objective"]["name"]]
    source = experts(recipe, data, outputs) if matching.matches_experts else data.train
    options = recipe.options("objective")
    return matching(source, matched, Augment(**recipe["augment"]), streams, compute, ranks, **options)  # type: ignore[call-arg]


def reuse(
    matching: Objective, recipe: Recipe, data: ImageData, compute: Compute, streams: Streams, outputs: int | None = None
) -> None:
    """Let an objective share what depends on the real images alone with other runs, through the cache."""
    about = environment(data.train.device)
    kind = _seen(recipe, data, outputs) | {
        "streams": [streams.seed, *streams.prefix],
        "compute": [compute.compiled, str(compute.precision), compute.at_once],
        "made": [about["device"], about["machine"], about["versions"]],  # which decide the last bits
    }
    matching.reuse(cache_folder() / "features", kind)


def _seen(recipe: Recipe, data: ImageData, outputs: int | None) -> Values:
    """What real images a network sees, and which network, plain JSON."""
    return {
        "data": data.fingerprint,
        "preprocessing": data.preprocessing,
        "shape": data.shape,
        "classes": outputs or len(data.classes),
        "network": recipe["network"],
        "augment": recipe["augment"],
    }


def experts(recipe: Recipe, data: ImageData, outputs: int | None = None) -> Store:
    """The store of the recipe's experts; they may not be there yet.

    Raises:
        UserError: The recipe's objective matches none, or more epochs than are kept.
    """
    options, window = recipe.experts, recipe["objective"]
    if options is None:
        raise UserError(f"{recipe.name} matches no expert trajectories; its objective is {window['name']}, not mtt")
    epochs = options.epochs or last_epoch(window["max_start_epoch"], window["expert_epochs"])
    check_window(window["max_start_epoch"], window["expert_epochs"], epochs)
    kind = _seen(recipe, data, outputs) | {"training": options.training()}
    root = cache_folder() / "experts" if options.store is None else Path(options.store).expanduser()
    return Store(root, kind, options.count, epochs, _experts_command(recipe))


@cache
def _as_shipped(name: str) -> Values:
    """The values of a shipped recipe to which nothing was said; not to be changed."""
    return resolve(name).values


def _experts_command(recipe: Recipe) -> str:
    """The command line that makes a recipe's experts."""
    if recipe.name not in shipped():
        return "condensate experts FILE.yaml, with the recipe's file and the same --section.key values as here"
    words, usual = [f"condensate experts {recipe.name}"], _as_shipped(recipe.name)
    for section in ("data", "network", "augment", "objective", "experts"):
        for key, value in recipe[section].items():
            if section == "experts" and key == "store" and value and (Path(value) / "manifest.json").is_file():
                value = str(Path(value).parent)  # the folder of one kind was named; another kind lies beside it
            if value != usual.get(section, {}).get(key) and key != "make":
                text = "null" if value is None else json.dumps(value) if isinstance(value, list) else value
                words.append(f"--{section}.{key} {shlex.quote(str(text))}")
    return " ".join(words)


def make_experts(
    recipe: Recipe,
    data: ImageData,
    after: Callable[[int], None] | None = None,
    outputs: int | None = None,
    first: Sequence[int] = (),
) -> Store:
    """The store of the recipe's experts, those missing made on the device of the data, ``first`` before others."""
    store, options = experts(recipe, data, outputs), recipe.experts
    assert options is not None
    device = data.train.device
    streams, augment = Streams(options.seed, device), Augment(**recipe["augment"])
    trained = network(recipe, data.shape, outputs or len(data.classes), streams("network"))
    passes = len(store.missing()) * store.epochs * len(data.train)
    asked = ComputeOptions(recipe["compute"]["compile"], "float32")
    operations = 3 * passes * forward_operations(trained, data.shape)
    compute = asked.resolve(device, operations, data.shape[1] * data.shape[2])
    chunk = None if trained.batch_statistics else compute.piece
    trained.to(memory_format=compute.memory_format)  # type: ignore[call-overload]
    loss = mean_loss(trained, compute)

    def train(number: int) -> list[Parameters]:
        try:
            return trajectory(trained, data.train, streams, number, store.epochs, augment, options, loss, chunk)
        except UserError as error:
            smaller = f"as in --experts.lr {options.lr / 10:g}"
            raise UserError(f"an expert diverged at experts.lr {options.lr:g}; try a smaller one, {smaller}") from error

    store.make(train, after, first)
    return store


def training_augment(recipe: Recipe) -> Augmentation:
    """The augmentation networks are trained with: on a synthetic set, on all data, and for a coreset's features."""
    ops = recipe.evaluate.ops
    if recipe.evaluate.augmentation == "dc":
        return ClassicAugment() if ops is None else ClassicAugment(ops)
    return Augment(**(recipe["augment"] | ({} if ops is None else {"ops": ops})))


def scoring_split(recipe: Recipe, data: ImageData) -> Split:
    """The real images that score."""
    if recipe.evaluate.split == "test":
        return data.test
    if data.validation is None:
        raise UserError("there is no validation split to score on; hold one out with --data.validation 0.2")
    return data.validation
