"""Runs: a recipe and the rows it is compared with, in a folder."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from condensate import assemble, settling
from condensate.atomic import alone_in
from condensate.console import Display
from condensate.data import KNOWN, ImageData
from condensate.errors import UserError, unknown
from condensate.parameterizations import PARAMETERIZATIONS, Shape
from condensate.ranks import ALONE, Ranks
from condensate.recipe import Evaluate, Recipe, Values, merge
from condensate.records import read_json, write_json
from condensate.rows import FULL, Row
from condensate.schema import complete
from condensate.sessions import Session, check_compiler, check_recipe
from condensate.sheets import find, resolve, shipped
from condensate.streams import Streams

CHOSEN = "chosen.json"  # in the folder of a run or a study: what was left to the machine that began it, by row
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


def seed_folders(folder: Path) -> list[Path]:
    """The folders ``seed<k>`` of a run of several seeds, by seed; of a run of one there is none."""
    found = {int(path.name[4:]): path for path in folder.glob("seed*") if path.name[4:].lstrip("-").isdigit()}
    return [found[seed] for seed in sorted(found)]


def check_free(folder: Path) -> None:
    """Refuse an explicit output folder that has anything in it."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is in use: it is a file; name a folder with --out")
    if (folder / "environment.json").is_file():
        raise UserError(f"{folder} is in use; name another, or go on with the run in it: --resume {folder}")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"{folder} is in use: it holds other files, and no run; name a new or an empty folder with --out"
        )


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
        compute={"compile": "never", "precision": "float32", "tiles": "never", "reuse": False},
        condense={"episodes": min(1, recipe.condense.episodes)},
        evaluate={"networks": ["same"], "repeats": 1, "epochs": 1, "epochs_full": 1, "split": "test"},
        compare=[],
        data={"zca": False, "hold": "memory", "workers": None},
    )


def smoked_shape(name: str) -> Shape:
    """Of the random images that stand in for a data set's in a smoke run."""
    channels, *sides = KNOWN[name].shape if name in KNOWN else (3, 32, 32)
    height, width = (min(side, SMOKED_SIDE) for side in sides)
    return channels, height, width


@dataclass(frozen=True)
class Run:
    """A recipe checked and ready to be carried out, with the rows it is compared with.

    Args:
        recipe: Of the main row.
        rows: Recipes by name, the main one first.
        data: Loaded, by row: those of most rows are one.
        session: Device and display.
        folder: Where; the main row lies in it, the others under ``compare/<row>``.
    """

    recipe: Recipe
    rows: dict[str, Recipe]
    data: dict[str, ImageData]
    session: Session
    folder: Path = Path()

    def at(self, folder: Path, seed: int) -> "Run":
        """The same run under a seed in a folder, which is written as far as it needs to be resumed."""
        rows = {name: recipe.with_values(seed=seed) for name, recipe in self.rows.items()}
        run = replace(self, recipe=self.recipe.with_values(seed=seed), rows=rows, folder=folder)
        self.session.claim(folder, run.recipe, self.data[self.recipe.name])
        keep_chosen(folder, run.rows, self.session)
        return run

    def run(self) -> dict[str, Values]:
        """Carry it out; what is done already is kept. Results by row, as in ``result.json``."""
        results = {}
        with ExitStack() as held:
            self.session.ranks.once(lambda: held.enter_context(alone_in(self.folder)))
            for name, recipe in self.rows.items():
                folder = row_folder(self.folder, name, self.recipe.name)
                results[name] = Row(name, recipe, folder, self.data[name], self.session).run()
        return results


def prepare(recipe: Recipe, session: Session, begun: Path | None = None) -> Run:
    """Load the data and check all that can be checked before anything is written.

    Args:
        recipe: Of the main row.
        session: Device and display.
        begun: Where a part of it may be done already; what was chosen then stays, and less may be needed now.
    """
    if session.smoke:
        recipe = smoked(recipe)
        data = assemble.random_data(smoked_shape(recipe["data"]["name"]), session.device)
    else:
        recipe = placed(recipe)
        data = assemble.image_data(recipe, session.device, session.ranks)
    if recipe.name in recipe["compare"]:
        raise UserError(f"{recipe.name} cannot be compared with itself; take it out of compare")
    rows: dict[str, Recipe] = {recipe.name: recipe}
    datasets: dict[str, ImageData] = {}
    for row in recipe["compare"]:
        rows[row] = row_recipe(recipe, row, data, session)
    for row, found in rows.items():
        try:
            if not session.smoke and found["data"] != recipe["data"]:
                datasets[row] = assemble.image_data(found, session.device, session.ranks)
            else:
                datasets[row] = data
            assemble.scoring_split(found, datasets[row])
            if row != FULL and not (begun and (row_folder(begun, row, recipe.name) / "result.json").is_file()):
                chosen = as_chosen(found, row, begun, session.device)
                rows[row] = settled(chosen, datasets[row], session, resumed=begun is not None)
        except UserError as error:
            raise error if row == recipe.name else UserError(f"row {row}: {error}") from error
    return Run(rows[recipe.name], rows, datasets, session)


def reopen(
    folder: Path, device: torch.device, display: Display, threads: int | None = None, ranks: Ranks = ALONE
) -> Run:
    """The run in a folder, to go on with it, whatever the number of processes; see ``reread``."""
    recipe, session = reread(folder, device, display, threads, "run")
    session = replace(session, ranks=ranks)
    run = replace(prepare(recipe, session, folder), folder=folder)
    session.same_beginning(folder, run.recipe, run.data[run.recipe.name])
    keep_chosen(folder, run.rows, session)
    return run


def reread(
    folder: Path, device: torch.device, display: Display, threads: int | None, command: str
) -> tuple[Recipe, Session]:
    """The recipe in a folder and its session, under the number of threads it was started with.

    Raises:
        UserError: There is no run, or another command's, or its recipe was changed, or it was started on another kind
            of device or with other threads than asked for.
    """
    if not (folder / "environment.json").is_file():
        raise UserError(f"{folder} holds no run to go on with; name the folder that the run gave as its run folder")
    try:
        before = json.loads((folder / "environment.json").read_text())
        _, values, _ = find(str(folder / "recipe.yaml"))
        session = Session(device, display, before["overrides"], before["smoke"], before.get("command", "run"))
        recipe = complete(before["recipe"], values)
        used, place = int(before["machine"]["threads"]), before["device"]
        if "seed" not in values or not (folder / "recipe.yaml").read_text(encoding="utf-8").endswith("\n"):
            raise ValueError("its recipe.yaml is cut off")  # the seed is the last it says
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} holds no run to go on with: {' '.join(str(error).split())}") from error
    check_recipe(folder, before, recipe)
    if session.command != command:
        raise UserError(
            f"{folder} is a study of condensate {session.command}, not of {command}; go on with it by: "
            f"condensate {session.command} --resume {folder}"
        )
    if (place == "cpu") != (device.type == "cpu"):
        raise UserError(f"the run in {folder} was started on {place} and goes on there; {device} draws other numbers")
    if threads not in (None, used):
        raise UserError(f"the run in {folder} was started with {used} threads and goes on with them: drop --threads")
    torch.set_num_threads(used)
    return recipe, session


def row_folder(folder: Path, row: str, main: str) -> Path:
    """Where a row of the run in a folder lies."""
    return folder if row == main else folder / "compare" / row


def keep_chosen(folder: Path, rows: Mapping[str, Recipe], session: Session) -> None:
    """Write down how every row is condensed, so that no later session chooses anew, on whatever machine.

    Of the main row alone its recipe says it.
    """

    def chosen(recipe: Recipe) -> Values:
        return {key: value for key, value in recipe["compute"].items() if key != "reuse"}

    def keep() -> None:
        file = folder / CHOSEN
        before = read_json(file) if file.is_file() else {}
        write_json(file, {row: before.get(row) or chosen(recipe) for row, recipe in rows.items()})

    if len(rows) > 1:
        session.ranks.once(keep)


def as_chosen(recipe: Recipe, row: str, begun: Path | None, device: torch.device) -> Recipe:
    """The recipe of a row, condensed as it was to be when the work in a folder, if any, was begun."""
    if begun is None:
        return recipe
    chosen = read_json(begun / CHOSEN) if (begun / CHOSEN).is_file() else {}
    recipe = recipe.with_values(compute=chosen.get(row, {}))
    check_compiler(begun, recipe["compute"]["compile"], device)
    return recipe


def placed(recipe: Recipe) -> Recipe:
    """The recipe with whole paths, so that the run can be resumed from any folder."""
    if recipe["data"]["path"] is not None:
        recipe = recipe.with_values(data={"path": str(Path(recipe["data"]["path"]).expanduser().resolve())})
    if recipe.experts is not None and recipe.experts.store is not None:
        recipe = recipe.with_values(experts={"store": str(Path(recipe.experts.store).expanduser().resolve())})
    return recipe


def settled(recipe: Recipe, data: ImageData, session: Session, resumed: bool) -> Recipe:
    """The recipe of a row with nothing left to choose; raises if a network, the budget or the machine does not suit."""
    classes, shape = len(data.classes), data.shape
    assemble.networks_of(recipe, shape, classes)
    images = classes * assemble.images_per_class(recipe, classes, shape)
    recipe = assemble.normalised(recipe, data)
    settling.check_training(recipe, session.device)
    settling.check_memory(recipe, shape, classes, session.device)
    if not recipe.condense.episodes:
        return recipe.with_values(compute={"compile": "never", "precision": "float32", "tiles": "never"})
    if not session.smoke:
        settling.check_images(recipe, images, len(data.train))
    chosen = session.ranks.once(
        lambda: settling.settle_compute(recipe, shape, classes, images, session.device, len(data.train))
    )
    why = settling.why_compiled(recipe, shape, classes, images, session.device)
    if why:
        session.display.say(f"{recipe.name}: condensing is {why}")
    storage = PARAMETERIZATIONS[recipe["parameterization"]["name"]]
    if not list(storage(1, shape, **recipe.options("parameterization")).parameters()):
        raise UserError(f"{storage.__name__} holds real images and has nothing to condense; set condense.episodes 0")
    compute = settling.compute(chosen, shape, session.device)
    assemble.objective(chosen, data, compute, Streams(0, session.device), ranks=session.ranks)
    assemble.guarantee(chosen, data)
    if chosen.experts is not None and not session.smoke and not resumed:
        store = assemble.experts(chosen, data)
        store.check_kind() if chosen.experts.make else store.check_complete()
    return chosen


# Which images a comparison row has, and where, is the run's; how they are seen is its own.
WHICH_IMAGES = ("name", "path", "size", "channels", "validation", "hold", "workers")


def row_recipe(recipe: Recipe, row: str, data: ImageData, session: Session) -> Recipe:
    """The recipe of a row that a run is compared with: a baseline, the full data, or another shipped recipe."""
    if row in assemble.BASELINES:
        return assemble.baseline(recipe, row)
    if row == FULL:
        return recipe.with_values(compare=[], condense={"episodes": 0})
    if row not in shipped():
        known, do = [*assemble.BASELINES, FULL, *shipped()], "(list of recipes: condensate recipes)"
        raise unknown("row to compare with", row, known, do)
    other = resolve(row)
    own = {"parameterization": None, "compare": None, "condense": {"lr"}}
    if _method(other) != _method(recipe):  # what one method takes the other may not know, or not mean
        own |= {"objective": None, "experts": None, "condense": {"lr", "lr_labels", "lr_step"}}
    kept: Values = {}
    for section, content in session.changes.items():
        left_out = own.get(section, set())
        if left_out is not None:
            kept[section] = (
                {key: value for key, value in content.items() if key not in left_out} if left_out else content
            )
    if recipe.name not in shipped():  # what a file says of budget and scoring holds for all rows of its table
        usual = Evaluate()
        said = {key: value for key, value in recipe["evaluate"].items() if value != getattr(usual, key)}
        kept = merge({"budget": recipe["budget"], "evaluate": said}, kept)
    kept = merge(kept, {"evaluate": {"split": recipe.evaluate.split}})
    which = {key: recipe["data"][key] for key in WHICH_IMAGES}
    other = resolve(row, merge(kept, {"seed": recipe["seed"], "compare": [], "data": which}))
    return smoked(other) if session.smoke else placed(other)


def _method(recipe: Recipe) -> tuple[object, ...]:
    """What makes a method: its objective, and whether that is matched under augmentation."""
    objective = recipe["objective"]
    return objective["name"], objective.get("siamese")
