"""Continual learning: a recipe's memory and the rows it is compared with, along several class orders."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from shutil import rmtree
from statistics import mean, pstdev, stdev

import torch

from condensate import assemble
from condensate.atomic import alone_in
from condensate.console import Display
from condensate.continual import ContinualOptions, Stream, average_incremental_accuracy, forgetting, split_stream
from condensate.data import ImageData, load
from condensate.errors import UserError, unknown
from condensate.figures import save_curves
from condensate.recipe import Recipe, Values
from condensate.records import SCHEMA, environment, fraction, read_json, write, write_json
from condensate.runs import as_chosen, keep_chosen, placed, reread, row_recipe, settled, smoked, smoked_shape
from condensate.sessions import Session
from condensate.sheets import shipped
from condensate.studies.memories import FINETUNE, FULL, RESERVOIRS, Allowance, Memory
from condensate.studies.workers import each

SMOKED_CLASSES = 4


@dataclass(frozen=True)
class Study:
    """A recipe checked and ready to be carried out along all its class orders.

    Args:
        recipe: Of the main row.
        rows: Recipes by name, the main one first.
        datasets: Of the stream, in their order.
        session: Device and display.
        folder: Where; row R along order s lies in ``order<s>/R``.
    """

    recipe: Recipe
    rows: dict[str, Recipe]
    datasets: tuple[ImageData, ...]
    session: Session
    folder: Path = Path()

    def at(self, folder: Path) -> "Study":
        """The same study in a folder, which is written as far as it needs to be resumed."""
        self.session.claim(folder, self.recipe, self.datasets[0])
        keep_chosen(folder, self.rows, self.session)
        return replace(self, folder=folder)

    @property
    def seeds(self) -> range:
        """Of the class orders."""
        first: int = self.recipe["seed"]
        return range(first, first + self.recipe.continual.orders)

    def stream(self, seed: int) -> Stream:
        """The stream of one class order, which holds a copy of the data."""
        return stream(self.recipe, self.datasets, seed)

    @cached_property
    def steps(self) -> int:
        """Experiences of every class order."""
        return len(self.stream(self.seeds[0]).experiences)

    def run(self, jobs: int = 1) -> Values:
        """Carry it out; what is done already is kept. The result, as in ``result.json``."""
        file = self.folder / "result.json"
        with alone_in(self.folder):
            if not file.is_file():
                left = [seed for seed in self.seeds if not self.finished(seed)]
                if jobs > 1 and len(left) > 1:
                    each(partial(_run_order, self.folder, str(self.session.device)), left, jobs)
                else:
                    for seed in left:
                        self.run_order(seed)
                result = self.result()
                save_curves({row: found["curve"] for row, found in result["rows"].items()}, self.folder / "curves.png")
                write(self.folder / "curves.csv", _table(result))
                for left_behind in ("experts", "checkpoints"):  # by a session that was stopped just then
                    for folder in self.folder.rglob(left_behind):
                        rmtree(folder, ignore_errors=True)
                write_json(file, result)
        return dict(read_json(file))

    def finished(self, seed: int) -> bool:
        """Whether all rows of a class order are done."""
        folder = self.folder / f"order{seed}"
        return all((folder / row / f"step{self.steps}" / "result.json").is_file() for row in self.rows)

    def run_order(self, seed: int) -> None:
        """All rows of one class order; the experts of its experiences are kept as long."""
        folder, found = self.folder / f"order{seed}", self.stream(seed)
        for name in self.rows:
            self.memory(name, seed, found).run()
        rmtree(folder / "experts", ignore_errors=True)

    def memory(self, name: str, seed: int, found: Stream) -> Memory:
        """A row along the stream of one class order."""
        folder, recipe = self.folder / f"order{seed}", self.rows[name].with_values(seed=seed)
        if recipe.experts is not None and recipe.experts.store is None:
            own = {"store": str((folder / "experts").resolve()), "seed": recipe.experts.seed + seed}
            recipe = recipe.with_values(experts=own)
        recipe = assemble.normalised(recipe, found.experiences[0].data)
        return Memory(name, recipe, folder / name, found, self.session)

    def result(self) -> Values:
        """What goes to ``result.json``: all accuracies, and what is told of them."""
        steps: dict[str, dict[int, Sequence[Values]]] = {row: {} for row in self.rows}
        orders: dict[str, list[list[str]]] = {}
        for seed in self.seeds:
            found = self.stream(seed)
            orders[str(seed)] = [list(experience.data.classes) for experience in found.experiences]
            for row in self.rows:
                steps[row][seed] = self.memory(row, seed, found).run()
        rows = {row: summary(of_orders) for row, of_orders in steps.items()}
        options, own = self.recipe.continual, rows[self.recipe.name]["final"]["values"]
        others = {row: found["final"]["values"] for row, found in rows.items() if row != self.recipe.name}
        return {
            "schema": SCHEMA,
            "recipe": self.recipe.name,
            "overrides": self.session.changes,
            "smoke": self.session.smoke,
            "fraction": fraction(self.recipe),
            "values": self.recipe.anywhere().values,
            "protocol": options.protocol,
            "budget": options.budget,
            "orders": orders,
            **environment(self.session.device),
            "rows": rows,
            "differences": {row: difference(own, values) for row, values in others.items()},
        }


def prepare(recipe: Recipe, session: Session, begun: Path | None = None) -> Study:
    """Load the data and check all that can be checked before anything is written; see ``runs.prepare``."""
    recipe = replace(recipe, values={key: value for key, value in recipe.values.items() if key != "privacy"})
    if session.smoke:
        name = recipe["data"]["name"]
        shape = smoked_shape(name)
        data = assemble.random_data(shape, session.device, SMOKED_CLASSES)
        toy: Values = {"steps": 2, "groups": None, "orders": 1, "then": [], "labels": "disjoint"}
        compare = recipe["compare"]
        recipe = smoked(recipe).with_values(continual=toy, compare=[row for row in compare if row not in shipped()])
        datasets = [data]
    else:
        recipe = placed(recipe).with_values(continual=_placed(recipe.continual))
        datasets = [assemble.image_data(recipe, session.device)]
        datasets += [_then(recipe, entry).to(session.device) for entry in recipe.continual.then]
    for data in datasets:
        _check_scored(recipe, data)
    first = stream(recipe, datasets, recipe["seed"])
    stream(recipe, datasets, recipe["seed"] + recipe.continual.orders - 1)
    rows = {recipe.name: recipe}
    for row in recipe["compare"]:
        rows[row] = _row(recipe, row, first.experiences[0].data, session)
    for row, found in rows.items():
        try:
            rows[row] = _settled(as_chosen(found, row, begun, session.device), row, first, session)
        except UserError as error:
            raise error if row == recipe.name else UserError(f"row {row}: {error}") from error
    return Study(rows[recipe.name], rows, tuple(datasets), session)


def _check_scored(recipe: Recipe, data: ImageData) -> None:
    """Refuse data with classes that nothing is scored on: an experience of such alone has no accuracy."""
    split = assemble.scoring_split(recipe, data)
    missing = [name for name, count in zip(data.classes, split.counts().tolist(), strict=True) if not count]
    if missing:
        raise UserError(
            f"a stream is scored on every class, but {data.name} has no {recipe.evaluate.split} images of "
            f"{', '.join(missing[:5])}{' and others' if missing[5:] else ''}; add some, or leave the class out"
        )


def reopen(folder: Path, device: torch.device, display: Display, threads: int | None = None) -> Study:
    """The study in a folder, to go on with it; see ``runs.reread``."""
    recipe, session = reread(folder, device, display, threads, "continual")
    study = replace(prepare(recipe, session, folder), folder=folder)
    session.same_beginning(folder, study.recipe, study.datasets[0])
    return study


def stream(recipe: Recipe, datasets: Sequence[ImageData], seed: int) -> Stream:
    """The stream of a recipe along one class order."""
    return split_stream(datasets, recipe.continual, seed, mean=recipe["data"]["mean"], std=recipe["data"]["std"])


def summary(of_orders: Mapping[int, Sequence[Values]]) -> Values:
    """What a row's steps say, by the seed of their class order."""
    orders = list(of_orders.values())
    means = [[mean(step["seen"]) for step in steps] for steps in orders]
    curve = []
    for number, steps in enumerate(zip(*orders, strict=True)):
        networks = [accuracy for step in steps for accuracy in step["seen"]]
        curve.append(
            {
                **{key: steps[0][key] for key in ("classes_seen", "images", "bytes", "allowed_bytes")},
                **spread([of_order[number] for of_order in means]),
                "networks": len(networks),
                "pooled_std": pstdev(networks),
            }
        )
    matrices = [[[mean(column) for column in zip(*step["networks"])] for step in steps] for steps in orders]
    forgotten = [forgetting(matrix) for matrix in matrices]
    shrinking = [
        {
            "step": number + 1,
            "rule": steps[0]["shrinking"]["rule"],
            "images": steps[0]["shrinking"]["images"],
            **spread([mean(s["shrinking"]["before"]) - mean(s["shrinking"]["after"]) for s in steps]),
        }
        for number, steps in enumerate(zip(*orders))
        if steps[0]["shrinking"]
    ]
    return {
        "curve": curve,
        "final": spread([of_order[-1] for of_order in means]),
        "average_incremental": spread([average_incremental_accuracy(of_order) for of_order in means]),
        "forgetting": None if forgotten[0] is None else spread([value for value in forgotten if value is not None]),
        "cost_of_shrinking": shrinking,
        "seconds": sum(step["seconds"] + step["experts_seconds"] for steps in orders for step in steps),
        "accuracies": {str(seed): [step["networks"] for step in steps] for seed, steps in of_orders.items()},
    }


def spread(values: Sequence[float]) -> Values:
    """Mean and sample standard deviation (n - 1) over class orders."""
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None, "values": list(values)}


def difference(ours: Sequence[float], others: Sequence[float]) -> Values:
    """Mean difference of two rows over the same class orders, with its 95 % interval (Student's t, paired)."""
    from scipy.stats import t as student

    found = spread([a - b for a, b in zip(ours, others, strict=True)])
    count = len(ours)
    if found["std"] is None:
        return found | {"low": None, "high": None}
    half = float(student.ppf(0.975, count - 1)) * found["std"] / count**0.5
    return found | {"low": found["mean"] - half, "high": found["mean"] + half}


def _check(recipe: Recipe, first: Stream) -> None:
    """Refuse what has no meaning along a stream."""
    if recipe["data"]["zca"]:
        raise UserError(
            "data.zca is fitted to all training images, and a stream shows them part by part: set --data.zca false"
        )
    if len(assemble.networks_of(recipe, first.experiences[0].data.shape, len(first.classes))) != 1:
        raise UserError(
            f"continual scores on one network, got evaluate.networks {recipe.evaluate.networks}: "
            "--evaluate.networks same"
        )
    if recipe.condense.episodes and recipe.condense.lr_labels:
        raise UserError("a memory along a stream has hard labels, so that it can be shrunk: set --condense.lr_labels 0")
    if recipe.experts is not None and not recipe.experts.make:
        raise UserError("every experience has experts of its own, which are made as it comes: set --experts.make true")


def _settled(recipe: Recipe, row: str, first: Stream, session: Session) -> Recipe:
    """The recipe of a row with nothing left to choose; raises if the budget does not hold an image of each class."""
    data, slots = first.experiences[0].data, sum(first.slots)
    _check(recipe, first)
    assemble.scoring_split(recipe, data)
    if row in (FULL, FINETUNE):
        return recipe
    assemble.images_per_class(recipe, slots, data.shape)
    allowance = Allowance(recipe.budget.bits(slots, data.shape), first.slots, recipe.continual.budget == "fixed")
    share = allowance.of_classes(recipe, 0, len(data.classes))
    return recipe.with_values(compute=settled(share, data, session, resumed=True)["compute"])


def _row(recipe: Recipe, row: str, data: ImageData, session: Session) -> Recipe:
    """The recipe of a row that a study is compared with."""
    if row == FINETUNE:
        return recipe.with_values(compare=[], condense={"episodes": 0})
    if row == recipe.name:
        raise UserError(f"{row} cannot be compared with itself; take it out of compare")
    if row not in (*RESERVOIRS, *assemble.BASELINES, FULL, *shipped()):
        known = [*assemble.BASELINES, *RESERVOIRS, FULL, FINETUNE, *shipped()]
        raise unknown("row to compare with", row, known, "(list of recipes: condensate recipes)")
    found = row_recipe(recipe, RESERVOIRS.get(row, row), data, session)
    return found.with_values(continual=recipe["continual"], budget=recipe["budget"])


def _placed(options: ContinualOptions) -> Values:
    """The keys of the section with whole paths, so that the study can be resumed from any folder."""
    whole = [
        entry | ({"path": str(Path(entry["path"]).expanduser().resolve())} if entry.get("path") else {})
        for entry in options.then
    ]
    return asdict(options) | {"then": whole}


def _then(recipe: Recipe, entry: Values) -> ImageData:
    """A further data set of the stream, decoded as the first."""
    own = {key: recipe["data"][key] for key in ("size", "channels", "validation")}
    return load(**(own | entry))


def _run_order(folder: Path, device: str, seed: int) -> None:
    """A class order in a process of its own."""
    reopen(folder, torch.device(device), Display()).run_order(seed)


def _table(result: Values) -> str:
    """The table behind the figure: a line for every row and step."""
    lines = ["row,step,classes seen,images,bytes,bytes allowed,mean,std over orders,orders,pooled std,networks"]
    for row, found in result["rows"].items():
        for number, point in enumerate(found["curve"]):
            std = "" if point["std"] is None else f"{point['std']:.6f}"
            lines.append(
                f"{row},{number + 1},{point['classes_seen']},{point['images']},{point['bytes']},"
                f"{point['allowed_bytes']},{point['mean']:.6f},{std},{len(point['values'])},{point['pooled_std']:.6f},{point['networks']}"
            )
    return "\n".join(lines) + "\n"
