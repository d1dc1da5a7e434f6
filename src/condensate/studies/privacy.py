"""Measured privacy: what sets condensed from random halves of the training images tell of them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from statistics import mean

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from condensate import assemble
from condensate.atomic import alone_in, replacing
from condensate.condensing import Clock, Condensation, Session
from condensate.console import Display
from condensate.data import ImageData, Split
from condensate.errors import UserError
from condensate.evaluation import train_networks
from condensate.figures import save_distances, save_neighbours, save_roc
from condensate.networks import Network
from condensate.privacy import (
    ATTACKS,
    Estimate,
    Nearness,
    Record,
    check_rates,
    draw_members,
    measure,
    nearness,
    roc,
    share,
)
from condensate.recipe import Recipe, Values
from condensate.records import SCHEMA, environment, fraction, read_json, write_json
from condensate.rows import FULL
from condensate.runs import placed, reread, row_recipe, settled, smoked, smoked_shape
from condensate.scoring import learning_rate
from condensate.sheets import shipped
from condensate.streams import Streams
from condensate.studies.workers import each
from condensate.synthetic import SyntheticDataset, load
from condensate.training import Examples, accuracy

Floats = NDArray[np.float64]
SPACES = ("pixels", "features")
BATCH = 512


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
        self.session.open(folder, self.recipe)
        return replace(self, folder=folder)

    @property
    def streams(self) -> Streams:
        """Source of all draws."""
        return Streams(self.recipe["seed"], self.session.device)

    @property
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

    def shadow(self, row: str, number: int) -> "Shadow":
        """A shadow of a row."""
        return Shadow(row, number, self.rows[row], self.folder / row / f"shadow{number}", self.data, self.session)

    def result(self) -> Values:
        """What goes to ``result.json``; writes the figures, too."""
        members = self.members.numpy()
        rows: Values = {}
        curves: dict[str, Values] = {attack: {} for attack in ATTACKS}
        distances: dict[str, Values] = {space: {} for space in SPACES}
        for row in self.rows:
            found = [load_file(self.shadow(row, t).folder / "record.safetensors") for t in range(len(members))]
            record = Record.stack([Record(*(part[key].numpy() for key in _RECORDED)) for part in found])
            scores = {attack: score(record, members) for attack, score in ATTACKS.items()}
            leaks = {attack: self.leakage(score, members) for attack, score in scores.items()}
            for attack, score in scores.items():
                curves[attack][f"{row}, AUC {leaks[attack]['auc']['value']:.3f}"] = roc(score, members)
            near = {}
            if row != FULL:
                for attack, score in scores.items():
                    leaks[attack]["auc_of_the_nearest"] = asdict(among_nearest(score, found, self.streams))
                for space in SPACES:
                    parts = [_nearness(part, space) for part in found]
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
                found = load_file(shadow.folder / "record.safetensors")
                synthetic = load(shadow.folder / "synthetic.safetensors")
                near = {space: _nearness(found, space) for space in SPACES}
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


UNITS = {"pixels": "normalised pixels", "features": "features of an untrained network"}
_RECORDED = ("loss", "confidence", "top", "entropy", "right")


class Shadow:
    """One condensation of a half of the pool and what networks trained on it say of all of it, in a folder.

    Args:
        row: Name of the row.
        number: Of the shadow, which draws from streams of its own.
        recipe: Of the row.
        folder: Where.
        data: Pool and test images.
        session: Device and display.
    """

    def __init__(self, row: str, number: int, recipe: Recipe, folder: Path, data: ImageData, session: Session) -> None:
        self.row, self.number, self.folder, self.data, self.session = row, number, folder, data, session
        if recipe.experts is not None and recipe.experts.store is None:
            own = {"store": str((folder / "experts").resolve()), "seed": recipe.experts.seed + number}
            recipe = recipe.with_values(experts=own)
        self.recipe, self.streams = recipe, Streams(recipe["seed"], session.device).under("shadow", number)

    def run(self, members: Tensor) -> None:
        """Condense the members (n,), train networks on the set, and write down what they say of every image."""
        clock = Clock(self.folder / "checkpoints" / "seconds.json")
        halves = [index.flatten() for index in (members.nonzero(), (~members).nonzero())]
        condensed, left_out = (self.data.train.subset(index) for index in halves)
        examples: Examples = condensed
        near: dict[str, Tensor] = {}
        stored: Values = {"images": len(condensed), "bytes": condensed.raw.numel()}
        if self.row != FULL:
            examples = synthetic = self.condense(condensed, clock)
            stored = {"images": len(synthetic), "bytes": synthetic.cost().bits // 8}
            found = look_near(self.recipe, synthetic, condensed, left_out, self.streams)
            for space, part in found.items():
                near |= {f"{space}.{key}": value.cpu() for key, value in vars(part).items()}
                for side, half in (("member", halves[0]), ("other", halves[1])):
                    near[f"{space}.{side}"] = half[near[f"{space}.{side}"]]
        record, right = self.record(examples)
        write_json(self.folder / "shadow.json", {**stored, "accuracy": right, **clock.spent()})
        told = {key: torch.from_numpy(getattr(record, key)) for key in _RECORDED}
        with replacing(self.folder / "record.safetensors") as file:
            save_file({key: value.contiguous() for key, value in (told | near).items()}, file)
        rmtree(self.folder / "checkpoints", ignore_errors=True)
        rmtree(self.folder / "experts", ignore_errors=True)

    def condense(self, members: Split, clock: Clock) -> SyntheticDataset:
        """The set of this half."""
        fingerprint = sha256(
            f"{self.data.fingerprint}/half {self.number} of {self.recipe['seed']}".encode()
        ).hexdigest()
        half = replace(self.data, train=members, fingerprint=fingerprint)
        title = f"{self.row} shadow {self.number}"
        condensation = Condensation(title, self.recipe, self.folder, half, self.session, self.streams, clock=clock)
        condensation.begin()
        return condensation.run()

    def record(self, examples: Examples) -> tuple[Record, float]:
        """What fresh networks say of the pool, and their mean accuracy on test images."""
        options, pool = self.recipe.evaluate, self.data.train
        _, registered, keywords = assemble.networks_of(self.recipe, self.data.shape, len(self.data.classes))[0]
        trained = train_networks(
            examples,
            len(self.data.classes),
            self.streams,
            network=registered,
            network_options=keywords,
            repeats=self.recipe.privacy.networks,
            epochs=options.epochs_full if self.row == FULL else options.epochs,
            lr=learning_rate(options.lr, examples),
            augment=assemble.training_augment(self.recipe),
        )
        logits, right = [], []
        for network in trained:
            logits.append(_outputs(network, pool))
            right.append(accuracy(network, assemble.scoring_split(self.recipe, self.data)))
        return Record.of(torch.stack(logits), pool.labels), mean(right)


def prepare(recipe: Recipe, session: Session) -> Study:
    """Load the data and check all that can be checked before anything is written."""
    recipe = replace(recipe, values={key: value for key, value in recipe.values.items() if key != "continual"})
    if session.smoke:
        data = assemble.random_data(smoked_shape(recipe["data"]["name"]), session.device)
        compare = [row for row in recipe["compare"] if row not in shipped()]
        toy = {"shadows": 4, "networks": 1, "fprs": None, "released": None}
        recipe = smoked(recipe).with_values(privacy=toy, compare=compare)
    else:
        recipe = placed(recipe)
        data = assemble.image_data(recipe, session.device)
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
        found = found.with_values(privacy=recipe["privacy"])
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
    return replace(prepare(recipe, session), folder=folder)


def look_near(
    recipe: Recipe, synthetic: SyntheticDataset, members: Split, others: Split, streams: Streams
) -> dict[str, Nearness]:
    """How near synthetic images are to two kinds of real ones, in normalised pixels and in features.

    The features are those of the recipe's network as it is initialised: one that was trained would know its own
    training images, whichever kind they are of.
    """
    shape = synthetic.parameterization.shape
    network = assemble.network(recipe, shape, len(synthetic.classes), streams("nearest"))
    images = synthetic.images().detach()
    seen: dict[str, list[Tensor]] = {space: [] for space in SPACES}
    for part in (images, members.images(), others.images()):
        seen["pixels"].append(part.flatten(1))
        seen["features"].append(_features(network, part))
    return {space: nearness(made, a, b, streams("thinned")) for space, (made, a, b) in seen.items()}


def save_nearest(synthetic: SyntheticDataset, real: Split, near: dict[str, Nearness], path: Path) -> None:
    """Pictures of the synthetic images closest to a real one that they may have been made from."""
    order = near["pixels"].to_member.argsort()[:10]
    rows = [("synthetic", synthetic.to("cpu").pictures(order.cpu()), ["" for _ in order])]
    scale = [torch.tensor(values).view(-1, 1, 1) for values in (real.mean, real.std)]
    for space, found in near.items():
        for side, index, distances in (
            ("nearest member", found.member, found.to_member),
            ("nearest other", found.other, found.to_other),
        ):
            pictures = real.images(index[order].to(real.labels.device)).cpu() * scale[1] + scale[0]
            rows.append((f"{side}, {space}", pictures.clamp(0, 1), [f"{d:.2f}" for d in distances[order].tolist()]))
    save_neighbours(rows, path)


def among_nearest(
    scores: Floats, found: Sequence[dict[str, Tensor]], streams: Streams, resamples: int = 1000
) -> Estimate:
    """Area under the ROC curve among the images that synthetic ones lie nearest to, where a leak would show first.

    Of every shadow, its members nearest to a synthetic image in pixels against the other images nearest to one: chosen
    alike, so that 0.5 is what guessing gives. Over the whole pool a set that holds ten images as they are looks
    harmless; here it does not. 95 % interval by bootstrap over pairs of shadows.

    Args:
        scores: Of an attack, (T, n).
        found: Recorded of every shadow.
        streams: Resampling draws from the stream ("bootstrap", "nearest").
        resamples: How many times pairs are drawn anew.
    """
    from sklearn.metrics import roc_auc_score

    told = []
    for own, part in zip(scores, found, strict=True):
        sides = [own[part[f"pixels.{side}"].unique().numpy()] for side in ("member", "other")]
        told.append((np.concatenate(sides), np.repeat([1, 0], [len(side) for side in sides])))
    pairs = [tuple(np.concatenate(two) for two in zip(*told[first : first + 2])) for first in range(0, len(told), 2)]

    def area(which: Sequence[int]) -> float:
        values, sides = (np.concatenate(parts) for parts in zip(*(pairs[one] for one in which)))
        return float(roc_auc_score(sides, values))

    generator = streams("bootstrap", "nearest")
    drawn = torch.randint(len(pairs), (resamples, len(pairs)), generator=generator, device=generator.device).tolist()
    low, high = np.quantile([area(which) for which in drawn], [0.025, 0.975]).tolist()
    return Estimate(area(range(len(pairs))), low, high)


def _nearness(found: dict[str, Tensor], space: str) -> Nearness:
    return Nearness(*(found[f"{space}.{key}"] for key in ("to_member", "to_other", "member", "other")))


@torch.no_grad()
def _outputs(network: Network, split: Split) -> Tensor:
    """What a network says of all images of a split, in evaluation mode: (n, K)."""
    network.eval()
    index = torch.arange(len(split), device=split.labels.device)
    return torch.cat([network(split.images(part)) for part in index.split(BATCH)])


@torch.no_grad()
def _features(network: Network, images: Tensor) -> Tensor:
    network.eval()
    return torch.cat([network.features(part) for part in images.split(BATCH)])


def _run_shadows(folder: Path, device: str, which: Sequence[tuple[str, int]]) -> None:
    """Some shadows in a process of their own."""
    reopen(folder, torch.device(device), Display()).run_shadows(which)
