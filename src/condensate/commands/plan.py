"""The command plan: what a recipe will take."""

import argparse

from condensate.commands.base import Command, chosen_device, machine_options, read_recipe, recipe_option
from condensate.compute import ON_TILES, compiling_takes
from condensate.console import duration, show_table, size
from condensate.planning import ExpertPlan, plan
from condensate.recipe import Values


def _plan_options(parser: argparse.ArgumentParser) -> None:
    recipe_option(parser)
    machine_options(parser)


def _plan(options: argparse.Namespace, keys: Values) -> None:
    recipe, _ = read_recipe(options.recipe, keys)
    expected = plan(recipe, chosen_device(options.device))
    how = "compiled" + ON_TILES * expected.tiled if expected.compiled else "eager"
    if expected.experts is None:
        how += f", what carries no gradient to the images in {expected.precision}"
    rows = [
        ["image", "x".join(map(str, expected.shape))],
        ["classes", str(expected.classes)],
        ["images per class", str(expected.images_per_class)],
        ["numbers stored", f"{expected.numbers:,}"],
        ["bytes stored", f"{expected.bytes:,} of {expected.budget_bytes:,}"],
        *([["side file of ZCA", f"{expected.side_bytes:,}"]] if expected.side_bytes else []),
        ["computed", how],
        *_expert_rows(expected.experts),
        *_privacy_rows(expected.privacy),
        *([["condensed", f"{expected.sets} times: class orders or shadows"]] if expected.sets > 1 else []),
        [f"{recipe.condense.episodes:,} episodes", duration(expected.condense_seconds)],
        ["evaluation", duration(expected.evaluate_seconds)],
        ["memory", f"{size(expected.memory_bytes)} and what PyTorch takes"],
    ]
    show_table(f"{recipe.name}, the main row", ["", "expected"], rows)
    if recipe["compare"]:
        print(
            f"Not counted: rows it is compared with ({', '.join(recipe['compare'])}; --compare null leaves them out)."
        )
    if expected.compiled:
        more = compiling_takes(expected.tiled)
        print(f"Times are within a factor of two, from eager rates of this machine; compiling takes {more} more.")


def _expert_rows(experts: ExpertPlan | None) -> list[list[str]]:
    if experts is None:
        return []
    taken = "time not known before" if experts.seconds is None else duration(experts.seconds)
    made = f"{experts.missing} to be made, {taken}" if experts.missing else "all there"
    return [[f"{experts.count} experts, epochs 0 to {experts.epochs}", f"{size(experts.bytes)} on disk; {made}"]]


def _privacy_rows(privacy: Values | None) -> list[list[str]]:
    """What is promised, where anything is."""
    if privacy is None:
        return []
    return [["privacy", f"(epsilon, delta) = ({privacy['epsilon']:.3g}, {privacy['delta']:g}) for one training image"]]


PLAN = Command("Say what a recipe will store and take, without an episode of it.", _plan_options, _plan)
