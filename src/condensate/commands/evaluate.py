"""The command evaluate: a saved set alone."""

import argparse
import json
from pathlib import Path

from condensate import assemble
from condensate.atomic import replacing
from condensate.commands.base import Command, as_lists, machine_options, named_or_usual, note, place, ranks_options
from condensate.console import percent, show_table
from condensate.errors import UserError
from condensate.recipe import Recipe, Values, merge
from condensate.records import as_json, environment
from condensate.schema import complete
from condensate.scoring import score
from condensate.sheets import find
from condensate.streams import Streams
from condensate.synthetic import SyntheticDataset, load


def _evaluate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="PATH", type=Path, help="a synthetic.safetensors, or the run folder that holds it"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the scores to this JSON file, too")
    machine_options(parser)
    ranks_options(parser)


def _evaluate(options: argparse.Namespace, keys: Values) -> None:
    device, display, ranks = place(options)
    if options.out and ranks.once(options.out.exists):
        raise UserError(f"{options.out} exists; name another file with --out")
    synthetic = load(options.path).to(device)
    recipe = _recipe(options.path, synthetic, keys)
    data = assemble.image_data(recipe, device, ranks)
    if data.shape != synthetic.parameterization.shape or len(data.classes) != len(synthetic.classes):
        raise UserError(
            f"the set has images {synthetic.parameterization.shape} of {len(synthetic.classes)} classes, "
            f"the data {data.shape} of {len(data.classes)}; name the data it was made of with --data.path, as it was "
            "cut there: --data.size, --data.channels"
        )
    if set(data.classes) == set(synthetic.classes) and data.classes != synthetic.classes:
        number = next(k for k, (one, other) in enumerate(zip(data.classes, synthetic.classes)) if one != other)
        raise UserError(
            f"the data have the set's classes in another order, as {data.classes[number]} where the set has "
            f"{synthetic.classes[number]} for class {number}: give the data with the classes in the set's order"
        )
    if set(data.classes) != set(synthetic.classes) and ranks.first:
        note("the data's class names are not those of the set; labels are taken to mean the same")
    scores = score(recipe, synthetic, data, Streams(recipe["seed"], device), display, ranks=ranks)
    if not ranks.first:
        return
    rows = [[s.network, str(s.epochs), percent(s.mean, s.std), str(len(s.accuracies))] for s in scores]
    show_table(str(options.path), ["network", "epochs", "accuracy %", "n"], rows)
    if options.out:
        with replacing(options.out) as part:
            result = {"evaluation": [as_json(each) for each in scores], "seed": recipe["seed"]}
            part.write_text(json.dumps(result | environment(device, ranks.world), indent=1) + "\n")


def _recipe(path: Path, synthetic: SyntheticDataset, keys: Values) -> Recipe:
    """The recipe a set was made by, with the user's changes; test images are seen as the set's are."""
    about = synthetic.about
    normalisation = {"mean": list(synthetic.mean), "std": list(synthetic.std), "zca": False}
    name, values = about.get("recipe", "artefact"), merge(about.get("values", {}), {"data": normalisation})
    _check_preprocessing(synthetic, keys.get("data", {}))
    values = merge(values, {"data": {"path": _where(path)}})
    recipe = complete(name, merge(values, as_lists(keys, complete(name, values).values)))
    if synthetic.whitening is not None:  # its own is used: none is fitted to the data
        recipe = recipe.with_values(data=normalisation)
    return recipe


def _where(path: Path) -> str | None:
    """Where the run of a folder read its data, which the set itself does not tell."""
    file = path / "recipe.yaml"
    if not file.is_file():
        return None
    _, values, _ = find(str(file))
    return (values.get("data") or {}).get("path")


def _check_preprocessing(synthetic: SyntheticDataset, given: Values) -> None:
    """Refuse keys under which networks would see test images otherwise than the set's."""
    if synthetic.whitening is None and given.get("zca"):
        raise UserError("the set's images are not whitened, and test images must be seen as they are: drop --data.zca")
    other = [key for key in ("mean", "std") if given.get(key) is not None]
    if synthetic.whitening is None and other:
        raise UserError(
            f"the set's images are normalised by mean {list(synthetic.mean)} and std {list(synthetic.std)}, and test "
            f"images must be seen as they are: drop {' and '.join(f'--data.{key}' for key in other)}"
        )
    other += ["zca"] if given.get("zca") is False else []
    if synthetic.whitening is not None and other:
        raise UserError(
            "the set's images are whitened, and test images are whitened alike whatever the data: "
            f"drop {' and '.join(f'--data.{key}' for key in other)}"
        )


EVALUATE = Command(
    "Train networks on a saved synthetic set and score them.",
    _evaluate_options,
    _evaluate,
    recipe=lambda path, keys: _recipe(Path(path), load(path), keys) if path else named_or_usual(None, keys),
    alone=None,
)
