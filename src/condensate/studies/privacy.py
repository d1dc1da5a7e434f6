"""Measured privacy: what sets condensed from random halves of the training images tell of them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from shutil import rmtree
from statistics import mean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condensate import assemble
from condensate.atomic import alone_in
from condensate.console import Display
from condensate.data import ImageData, Split
from condensate.errors import UserError
from condensate.figures import save_distances, save_roc
from condensate.privacy import ATTACKS, Nearness, Record, among_nearest, check_rates, draw_members, measure, roc, share
from condensate.recipe import Recipe, Values
from condensate.records import SCHEMA, environment, fraction, read_json, read_tensors, write_json
from condensate.rows import FULL
from condensate.runs import as_chosen, keep_chosen, placed, reread, row_recipe, settled, smoked, smoked_shape
from condensate.sessions import Session
from condensate.sheets import shipped
from condensate.streams import Streams
from condensate.studies.shadows import RECORDED, SPACES, Shadow, look_near, nearness_of, save_nearest
from condensate.studies.workers import each
from condensate.synthetic import load

UNITS = {"pixels": "normalised pixels", "features": "features of an untrained network"}


@dataclass(frozen=True)
class Study:
    """A recipe checked and ready to be attacked, with the rows it is compared with.

    Args:
        recipe: Of the main row.
        rows: Recipes by name, the main one first.
        data: The pool are its training images; networks are scored on its test images.
        session: Device and display.
        folder: Where; shadow t of row R lies in ``R/shadow<t>``.
    """

    recipe: Recipe
    rows: dict[str, Recipe]
    data: ImageData
    session: Session
    folder: Path = Path()

    def at(self, folder: Path) -> "Study":
        """The same study in a folder, which is written as far as it needs to be resumed."""
        self.session.claim(folder, self.recipe, self.data)
        keep_chosen(folder, self.rows, self.session)
        return replace(self, folder=folder)

    @property
    def streams(self) -> Streams:
        """Source of all draws."""
        return Streams(self.recipe["seed"], self.session.device)

    @cached_property
    def members(self) -> Tensor:
        """Whether a shadow condenses an image of the pool, (T, n)."""
        return draw_members(self.data.train.labels, self.recipe.privacy.shadows, Streams(self.recipe["seed"]))

    def run(self, jobs: int = 1) -> Values:
        """Carry it out; what is done already is kept. The result, as in ``result.json``."""
        file = self.folder / "result.json"
        with alone_in(self.folder):
            if not file.is_file():
                shadows = range(self.recipe.privacy.shadows)
                left = [(row, number) for number in shadows for row in self.rows if not self.done(row, number)]
                if jobs > 1 and len(left) > 1:
                    shares = [left[first::jobs] for first in range(min(jobs, len(left)))]
                    each(partial(_run_shadows, self.folder, str(self.session.device)), shares, jobs)
                else:
                    self.run_shadows(left)
                result = self.result()
                for left_behind in ("experts", "checkpoints"):  # by a session that was stopped just then
                    for folder in self.folder.rglob(left_behind):
                        rmtree(folder, ignore_errors=True)
                write_json(file, result)
        return dict(read_json(file))

    def done(self, row: str, number: int) -> bool:
        """Whether a shadow has said all it has to."""
        return (self.folder / row / f"shadow{number}" / "record.safetensors").is_file()

    def run_shadows(self, which: Sequence[tuple[str, int]]) -> None:
        """Some shadows of some rows, one after another."""
        members = self.members
        with self.session.display.work(f"{self.recipe.name}: shadows", len(which)) as step:
            for count, (row, number) in enumerate(which):
                self.shadow(row, number).run(members[number])
                step(count + 1)

    def shadow(self, row: str, number: int) -> Shadow:
        """A shadow of a row."""
        return Shadow(row, number, self.rows[row], self.folder / row / f"shadow{number}", self.data, self.session)

    def result(self) -> Values:
        """What goes to ``result.json``; writes the figures, too."""
        members = self.members.numpy()
        rows: Values = {}
        curves: dict[str, Values] = {attack: {} for attack in ATTACKS}
        distances: dict[str, Values] = {space: {} for space in SPACES}
        for row in self.rows:
            found = [read_tensors(self.shadow(row, t).folder / "record.safetensors")[0] for t in range(len(members))]
            record = Record.stack([Record(*(part[key].numpy() for key in RECORDED)) for part in found])
            scores = {attack: score(record, members) for attack, score in ATTACKS.items()}
            leaks = {attack: self.leakage(score, members) for attack, score in scores.items()}
            for attack, score in scores.items():
                curves[attack][f"{row}, AUC {leaks[attack]['auc']['value']:.3f}"] = roc(score, members)
            near = {}
            if row != FULL:
                inside, outside = ([part[f"pixels.{side}"].numpy() for part in found] for side in ("member", "other"))
                for attack, score in scores.items():
                    leaks[attack]["auc_of_the_nearest"] = asdict(among_nearest(score, inside, outside, self.streams))
                for space in SPACES:
                    parts = [nearness_of(part, space) for part in found]
                    to = [torch.cat([getattr(part, side) for part in parts]) for side in ("to_member", "to_other")]
                    distances[space][row] = (to[0].numpy(), to[1].numpy())
                    near[space] = {
                        "share_closer_to_a_member": asdict(share(parts, self.streams)),
                        "median_to_member": float(to[0].median()),
                        "median_to_other": float(to[1].median()),
                    }
            timed = [read_json(self.shadow(row, t).folder / "shadow.json") for t in range(len(members))]
            rows[row] = {
                "attacks": leaks,
                "nearest": near,
                "accuracy": mean(part["accuracy"] for part in timed),
                "images": timed[0]["images"],
                "bytes": timed[0]["bytes"],
                "seconds": round(sum(part["seconds"] + part["experts_seconds"] for part in timed), 3),
            }
        self.draw(curves, distances)
        return {
            "schema": SCHEMA,
            "recipe": self.recipe.name,
            "overrides": self.session.changes,
            "smoke": self.session.smoke,
            "fraction": fraction(self.recipe),
            "seed": self.recipe["seed"],
            **environment(self.session.device),
            "pool": members.shape[1],
            "shadows": len(members),
            "networks": self.recipe.privacy.networks,
            "rows": rows,
            "released": self.released(),
        }

    def leakage(self, scores: NDArray[np.float64], members: NDArray[np.bool_]) -> Values:
        """What an attack found out, as in ``result.json``."""
        found = asdict(measure(scores, members, streams=self.streams, fprs=self.recipe.privacy.fprs))
        return found | {"tpr": {f"{fpr:g}": estimate for fpr, estimate in found["tpr"].items()}}

    def draw(self, curves: dict[str, Values], distances: dict[str, Values]) -> None:
        """Write the figures."""
        for attack, of_rows in curves.items():
            save_roc(of_rows, self.folder / f"roc-{attack}.png", f"{attack}, {len(self.members)} targets")
        for space, of_rows in distances.items():
            if of_rows:
                unit = f"Euclidean distance to the nearest real image ({UNITS[space]})"
                save_distances(of_rows, self.folder / f"distances-{space}.png", unit)
        for row in self.rows:
            if row != FULL:
                shadow = self.shadow(row, 0)
                found = read_tensors(shadow.folder / "record.safetensors")[0]
                synthetic = load(shadow.folder / "synthetic.safetensors")
                near = {space: nearness_of(found, space) for space in SPACES}
                save_nearest(synthetic, self.data.train, near, self.folder / f"nearest-{row}.png")

    def released(self) -> Values | None:
        """Of the set that was named: how near its images are to training and to test images; None where none was."""
        if self.recipe.privacy.released is None:
            return None
        synthetic = load(self.recipe.privacy.released).to(self.session.device)
        train, test = (part.normalised(synthetic.mean, synthetic.std) for part in (self.data.train, self.data.test))
        near = look_near(self.recipe, synthetic, train, test, self.streams)
        both = {space: Nearness(n.to_member, n.to_other, n.member, n.other + len(train)) for space, n in near.items()}
        pool = Split(
            torch.cat([train.raw, test.raw]),
            torch.cat([train.labels, test.labels]),
            train.classes,
            train.mean,
            train.std,
        )
        save_nearest(synthetic, pool, both, self.folder / "nearest-released.png")
        return {
            space: {
                "share_closer_to_a_training_image": found.share,
                "median_to_training": float(found.to_member.median()),
                "median_to_test": float(found.to_other.median()),
                "compared": min(len(train), len(test)),
            }
            for space, found in near.items()
        }


def prepare(recipe: Recipe, session: Session, begun: Path | None = None) -> Study:
    """Load the data and check all that can be checked before anything is written; see ``runs.prepare``."""
    recipe = replace(recipe, values={key: value for key, value in recipe.values.items() if key != "continual"})
    if session.smoke:
        data = assemble.random_data(smoked_shape(recipe["data"]["name"]), session.device)
        compare = [row for row in recipe["compare"] if row not in shipped()]
        toy = {"shadows": 4, "networks": 1, "fprs": None, "released": None}
        recipe = smoked(recipe).with_values(privacy=toy, compare=compare)
    else:
        recipe = placed(recipe)
        data = assemble.image_data(recipe, session.device)
    if recipe["data"]["hold"] == "disk":
        raise UserError("a study of privacy compares all images with each other, in memory: --data.hold memory")
    options = recipe.privacy
    if recipe.name in recipe["compare"]:
        raise UserError(f"{recipe.name} cannot be compared with itself; take it out of compare")
    members = draw_members(data.train.labels, options.shadows, Streams(recipe["seed"]))
    check_rates(options.fprs, members.numpy())
    if options.released is not None:
        path = Path(options.released).expanduser().resolve()
        synthetic = load(path)
        if synthetic.parameterization.shape != data.shape or synthetic.whitening is not None:
            kind = "images" if synthetic.whitening is None else "whitened images"
            raise UserError(
                f"the set at {path} holds {kind} {synthetic.parameterization.shape}, the data are {data.shape}; only a "
                "set of such images that is not whitened can be compared"
            )
        recipe = recipe.with_values(privacy={"released": str(path)})
    rows = {recipe.name: recipe} | {row: row_recipe(recipe, row, data, session) for row in recipe["compare"]}
    half = replace(data, train=data.train.subset(members[0].nonzero().flatten()))
    for row, found in rows.items():
        found = as_chosen(found, row, begun, session.device).with_values(privacy=recipe["privacy"])
        try:
            _check(found, data)
            rows[row] = found if row == FULL else settled(found, half, session, resumed=True)
        except UserError as error:
            raise error if row == recipe.name else UserError(f"row {row}: {error}") from error
    return Study(rows[recipe.name], rows, data, session)


def _check(recipe: Recipe, data: ImageData) -> None:
    """Refuse what cannot be attacked here."""
    assemble.scoring_split(recipe, data)
    if recipe["data"]["zca"]:
        raise UserError("privacy is measured on sets that are not whitened: set --data.zca false")
    if recipe.experts is not None and not recipe.experts.make:
        raise UserError("every shadow has experts of its own half of the images: set --experts.make true")
    if len(assemble.networks_of(recipe, data.shape, len(data.classes))) != 1:
        raise UserError(
            f"the attack has one kind of network, got evaluate.networks {recipe.evaluate.networks}; name one"
        )


def reopen(folder: Path, device: torch.device, display: Display, threads: int | None = None) -> Study:
    """The study in a folder, to go on with it; see ``runs.reread``."""
    recipe, session = reread(folder, device, display, threads, "privacy")
    study = replace(prepare(recipe, session, folder), folder=folder)
    session.same_beginning(folder, study.recipe, study.data)
    return study


def _run_shadows(folder: Path, device: str, which: Sequence[tuple[str, int]]) -> None:
    """Some shadows in a process of their own."""
    reopen(folder, torch.device(device), Display()).run_shadows(which)
