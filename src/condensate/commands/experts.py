"""The command experts: the trajectories that MTT matches."""

import argparse

from condensate import assemble
from condensate.commands.base import Command, machine_options, place, ranks_options, read_recipe, recipe_option
from condensate.compute import ON_TILES
from condensate.console import size
from condensate.errors import UserError
from condensate.objectives import OBJECTIVES
from condensate.recipe import Values, merge
from condensate.schema import check_sections
from condensate.settling import settle_experts
from condensate.sheets import find, shipped

EXAMPLE = "digits-lomtt"


def _experts_options(parser: argparse.ArgumentParser) -> None:
    recipe_option(parser)
    parser.add_argument("--store", metavar="DIR", help="folder of all expert stores; absent: in condensate's cache")
    machine_options(parser)
    ranks_options(parser)


def _experts(options: argparse.Namespace, keys: Values) -> None:
    if options.store is not None:
        keys = merge(keys, {"experts": {"store": options.store}})
    device, display, ranks = place(options)
    _, values, _ = find(options.recipe)
    if not _matches_experts(merge(values, keys)):
        some = ", ".join(_with_experts()[:6])
        raise UserError(f"{options.recipe} matches no expert trajectories; those that do: {some} ...")
    recipe, _ = read_recipe(options.recipe, keys)
    data = assemble.image_data(recipe, device, ranks)
    shape, classes, real = data.shape, len(data.classes), len(data.train)
    recipe = ranks.once(lambda: settle_experts(recipe, shape, classes, device, real))
    store = assemble.experts(recipe, data)
    store.check_kind()
    missing = ranks.once(store.missing)
    if missing and recipe["compute"]["experts"] != "never":
        display.say(f"experts are compiled{ON_TILES * (recipe['compute']['experts'] == 'tiles')}")
    with display.work("experts", len(store), len(store) - len(missing)) as step:
        assemble.make_experts(recipe, data, step, first=ranks.share(missing))
    if not ranks.first:
        return
    kept = sum(file.stat().st_size for file in store.folder.glob("expert-*.safetensors"))
    made = f"{len(missing)} made, " if missing else "all there before, "
    print(f"{len(store)} experts ({made}epochs 0 to {store.epochs}, {size(kept)}) in {store.folder}")


def _with_experts() -> list[str]:
    return [name for name in shipped() if _matches_experts(find(name)[1])]


def _matches_experts(values: Values) -> bool:
    check_sections(values)
    matching = OBJECTIVES.get(values.get("objective", {}).get("name"))
    return matching is not None and matching.matches_experts


EXPERTS = Command(
    "Train the expert trajectories that a recipe matches, or finish a store.",
    _experts_options,
    _experts,
    recipe=lambda name, keys: read_recipe(name or EXAMPLE, keys)[0],
    alone=None,
)
