"""Runs: a recipe and the rows it is compared with, in a folder."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from condensate import assemble
from condensate.console import Display
from condensate.data import KNOWN, ImageData
from condensate.errors import UserError, unknown
from condensate.parameterizations import PARAMETERIZATIONS
from condensate.recipe import Recipe, Values, merge
from condensate.records import write, write_json
from condensate.rows import FULL, Row, Session
from condensate.schema import complete
from condensate.sheets import find, resolve, shipped
from condensate.streams import Streams

SMOKED_SIDE = 64  # pixels; larger images are cut to this in a smoke run


def new_folder(name: str, root: Path = Path("runs")) -> Path:
    """The next free folder for a run, ``root/<name>/<NNN>``, made."""
    parent = root / name
    parent.mkdir(parents=True, exist_ok=True)
    number = max((int(p.name) for p in parent.iterdir() if p.name.isdigit()), default=0) + 1
    while True:
        try:
            (parent / f"{number:03d}").mkdir()
            return parent / f"{number:03d}"
        except FileExistsError:  # another process was faster
            number += 1


def check_free(folder: Path) -> None:
    """Refuse an explicit output folder that has anything in it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is in use; name another, or go on with the run in it: --resume {folder}")


def smoked(recipe: Recipe) -> Recipe:
    """The recipe at toy size: narrow, few images, scored on its own network alone."""
    network = {"width": 8} if "width" in recipe["network"] else {}
    toy: Values = {
        "batch_real": 4,
        "outer_loop": 2,
        "inner_loop": 1,
        "syn_steps": 2,
        "expert_epochs": 1,
        "max_start_epoch": 1,
    }
    toy |= {"batch_syn": None, "experts_per_step": 1}
    experts = {} if recipe.experts is None else {"experts": {"count": 1, "epochs": None}}
    return recipe.with_values(
        budget={} if recipe["budget"]["ipc"] is None else {"ipc": 1},
        network=network,
        objective={key: value for key, value in toy.items() if key in recipe["objective"]},
        **experts,
        compute={"compile": "never", "precision": "float32"},
        condense={"episodes": 1},
        evaluate={"networks": ["same"], "repeats": 1, "epochs": 1, "epochs_full": 1, "split": "test"},
        compare=[],
        data={"zca": False},
    )


@dataclass(frozen=True)
class Run:
    """A recipe checked and ready to be carried out, with the rows it is compared with.

    Args:
        recipe: Of the main row.
        rows: Recipes by name, the main one first.
        data: Loaded.
        session: Device and display.
        folder: Where; the main row lies in it, the others under ``compare/<row>``.
    """

    recipe: Recipe
    rows: dict[str, Recipe]
    data: ImageData
    session: Session
    folder: Path = Path()

    def at(self, folder: Path, seed: int) -> "Run":
        """The same run under a seed in a folder, which is written as far as it needs to be resumed."""
        rows = {name: recipe.with_values(seed=seed) for name, recipe in self.rows.items()}
        run = replace(self, recipe=self.recipe.with_values(seed=seed), rows=rows, folder=folder)
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "recipe.yaml", run.recipe.dump())
        write_json(folder / "environment.json", self.session.described(self.recipe.name))
        return run

    def run(self) -> dict[str, Values]:
        """Carry it out; what is done already is kept. Results by row, as in ``result.json``."""
        results = {}
        for name, recipe in self.rows.items():
            folder = self.folder if name == self.recipe.name else self.folder / "compare" / name
            results[name] = Row(name, recipe, folder, self.data, self.session).run()
        return results


def prepare(recipe: Recipe, session: Session) -> Run:
    """Load the data and check all that can be checked before anything is written."""
    if session.smoke:
        name = recipe["data"]["name"]
        recipe = smoked(recipe)
        channels, *sides = KNOWN[name].shape if name in KNOWN else (3, 32, 32)
        height, width = (min(side, SMOKED_SIDE) for side in sides)
        data = assemble.random_data((channels, height, width), session.device)
    else:
        if recipe["data"]["path"] is not None:  # so that the run can be resumed from any folder
            recipe = recipe.with_values(data={"path": str(Path(recipe["data"]["path"]).expanduser().resolve())})
        if recipe.experts is not None and recipe.experts.store is not None:
            recipe = recipe.with_values(experts={"store": str(Path(recipe.experts.store).expanduser().resolve())})
        data = assemble.image_data(recipe, session.device)
    assemble.scoring_split(recipe, data)
    if recipe.name in recipe["compare"]:
        raise UserError(f"{recipe.name} cannot be compared with itself; take it out of compare")
    rows = {recipe.name: recipe} | {row: _row_recipe(recipe, row, data, session) for row in recipe["compare"]}
    rows = {name: row if name == FULL else _settled(row, data, session) for name, row in rows.items()}
    return Run(rows[recipe.name], rows, data, session)


def reopen(folder: Path, device: torch.device, display: Display) -> Run:
    """The run in a folder, to go on with it."""
    try:
        before = json.loads((folder / "environment.json").read_text())
        _, values, _ = find(str(folder / "recipe.yaml"))
        session = Session(device, display, before["overrides"], before["smoke"])
        recipe = complete(before["recipe"], values)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} holds no run to go on with: {' '.join(str(error).split())}") from error
    return replace(prepare(recipe, session), folder=folder)


def _settled(recipe: Recipe, data: ImageData, session: Session) -> Recipe:
    """The recipe of a row with nothing left to choose; raises if a network or the budget does not suit the images."""
    classes, shape = len(data.classes), data.shape
    assemble.networks_of(recipe, shape, classes)
    images = classes * assemble.images_per_class(recipe, classes, shape)
    settled = assemble.settle_compute(recipe, shape, classes, images, session.device)
    if recipe.condense.episodes:
        storage = PARAMETERIZATIONS[recipe["parameterization"]["name"]]
        if not list(storage(1, shape, **recipe.options("parameterization")).parameters()):
            raise UserError(
                f"{storage.__name__} holds real images and has nothing to condense; set condense.episodes 0"
            )
        compute = assemble.compute(settled, session.device)
        assemble.objective(settled, data, compute, Streams(0, session.device))
        if settled.experts is not None and not session.smoke:
            store = assemble.experts(settled, data)
            store.check_kind() if settled.experts.make else store.check_complete()
    return settled


def _row_recipe(recipe: Recipe, row: str, data: ImageData, session: Session) -> Recipe:
    if row in assemble.BASELINES:
        return assemble.baseline(recipe, row, data)
    if row == FULL:
        return recipe.with_values(compare=[], condense={"episodes": 0})
    if row not in shipped():
        raise unknown("row to compare with", row, [*assemble.BASELINES, FULL, *shipped()])
    other = resolve(row)
    own = {"parameterization": None, "compare": None, "condense": {"lr"}}
    if other["objective"]["name"] != recipe["objective"]["name"]:  # what one objective takes the other may not know
        own |= {"objective": None, "experts": None, "condense": {"lr", "lr_labels", "lr_step"}}
    kept: Values = {}
    for section, content in session.changes.items():
        left_out = own.get(section, set())
        if left_out is not None:
            kept[section] = (
                {key: value for key, value in content.items() if key not in left_out} if left_out else content
            )
    other = resolve(row, merge(kept, {"seed": recipe["seed"], "compare": [], "data": recipe["data"]}))
    return smoked(other) if session.smoke else other
