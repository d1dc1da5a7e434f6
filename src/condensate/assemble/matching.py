"""What a recipe matches: its objective, and the experts of one that matches their trajectories."""

import json
import shlex
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from condensate.assemble.networks import expert_compute, expert_epochs, network
from condensate.augment import Augment
from condensate.compute import Compute
from condensate.data import ImageData
from condensate.data.cache import folder as cache_folder
from condensate.errors import UserError
from condensate.experts import Parameters, Store, trajectory
from condensate.losses import MeanLoss
from condensate.objectives import OBJECTIVES, Objective
from condensate.objectives.trajectory import check_window
from condensate.ranks import ALONE, Ranks
from condensate.recipe import Recipe, Values
from condensate.records import environment
from condensate.sheets import resolve, shipped
from condensate.streams import Streams


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
        "compute": [compute.compiled, str(compute.precision), compute.at_once, *["tiled"] * compute.tiled],
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
    epochs = expert_epochs(recipe)
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
    """The store of the recipe's experts, those missing made on the device of the data, ``first`` before others.

    They are trained as ``expert_compute`` says.
    """
    store, options = experts(recipe, data, outputs), recipe.experts
    assert options is not None
    device = data.train.device
    streams, augment = Streams(options.seed, device), Augment(**recipe["augment"])
    classes = outputs or len(data.classes)
    trained = network(recipe, data.shape, classes, streams("network"))
    compute = expert_compute(recipe, data.shape, classes, len(data.train), device)
    loss = MeanLoss.laid_out(trained, compute, data.shape, device)

    def train(number: int) -> list[Parameters]:
        try:
            return trajectory(trained, data.train, streams, number, store.epochs, augment, options, loss)
        except UserError as error:
            smaller = f"as in --experts.lr {options.lr / 10:g}"
            raise UserError(f"an expert diverged at experts.lr {options.lr:g}; try a smaller one, {smaller}") from error

    store.make(train, after, first)
    return store
