"""Runs: a recipe carried out in a folder, row by row, stopped and gone on with at any time."""

import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from condensate import __version__, assemble
from condensate.atomic import replacing
from condensate.console import Display, Step
from condensate.data import KNOWN, ImageData
from condensate.errors import UserError, unknown
from condensate.evaluation import Score, evaluate
from condensate.loop import Progress, condense
from condensate.parameterizations import PARAMETERIZATIONS
from condensate.pictures import save_grid
from condensate.recipe import Recipe, Values, complete, find, merge, resolve, shipped
from condensate.streams import Streams
from condensate.synthetic import SyntheticDataset, load
from condensate.training import Examples
from condensate.whitening import file_name

SCHEMA = 1
FULL = "full"
SMOKED_SIDE = 64  # pixels; larger images are cut to this in a smoke run


@dataclass(frozen=True)
class Session:
    """What is common to the rows of a run.

    Args:
        device: Where everything is computed.
        display: Where progress is shown.
        changes: What the user changed of the recipe, for the record and for the rows it is compared with.
        smoke: Random images, two classes, tiny networks: does it run at all?
    """

    device: torch.device
    display: Display
    changes: Values
    smoke: bool = False

    def described(self, recipe: str) -> Values:
        """What goes to ``environment.json``."""
        return {"recipe": recipe, "overrides": self.changes, "smoke": self.smoke} | environment(self.device)


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
        _write(folder / "recipe.yaml", run.recipe.dump())
        _write_json(folder / "environment.json", self.session.described(self.recipe.name))
        return run

    def run(self) -> dict[str, Values]:
        """Carry it out; what is done already is kept. Results by row, as in ``result.json``."""
        results = {}
        for name, recipe in self.rows.items():
            folder = self.folder if name == self.recipe.name else self.folder / "compare" / name
            results[name] = _Row(name, recipe, folder, self.data, self.session).run()
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


class _Row:
    """One row of a run in its folder: condense, save, load again, score."""

    def __init__(self, name: str, recipe: Recipe, folder: Path, data: ImageData, session: Session) -> None:
        self.name, self.recipe, self.folder, self.data, self.session = name, recipe, folder, data, session
        self.streams = Streams(recipe["seed"], session.device)
        self.checkpoint = folder / "checkpoints" / "condense.safetensors"
        self.scored = folder / "checkpoints" / "evaluate.json"

    def run(self) -> Values:
        """The row's result, from its file if it is there."""
        file = self.folder / "result.json"
        if file.is_file():
            return dict(_read_json(file))
        began = time.monotonic()
        (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        _write(self.folder / "recipe.yaml", self.recipe.dump())
        _write_json(self.folder / "environment.json", self.session.described(self.recipe.name))
        artefact = self.folder / "synthetic.safetensors"
        examples: Examples
        if self.name == FULL:
            examples, stored = self.data.train, _stored_full(self.data)
        else:
            if not artefact.is_file():
                synthetic = self.condense()
                synthetic.save(artefact)
            synthetic = load(artefact).to(self.session.device)
            save_grid(synthetic, self.folder / "images.png")
            examples, stored = synthetic, _stored(synthetic, artefact)
        scores = self.evaluate(examples)
        result = self.result(scores, stored, artefact, time.monotonic() - began)
        _write_json(file, result)
        for leftover in (self.folder / "checkpoints").iterdir():
            leftover.unlink()
        (self.folder / "checkpoints").rmdir()
        return result

    def condense(self) -> SyntheticDataset:
        """The condensed set, from the last checkpoint if there is one."""
        recipe, options, device, display = self.recipe, self.recipe.condense, self.session.device, self.session.display
        synthetic = assemble.start(recipe, self.data, self.streams)
        if not options.episodes:
            return synthetic
        compute = assemble.compute(recipe, device)
        if recipe.experts is not None:
            recipe = self.make_experts(recipe)
        objective = assemble.objective(recipe, self.data, compute, self.streams)
        start, velocity = self.restore(synthetic)
        if compute.compiled and start < options.episodes:
            display.say("compiling: the first episode takes up to a minute longer, the others half as long")
        log, last = (self.folder / "log.jsonl").open("a"), time.monotonic()
        with log, display.work(f"{self.name}: condense", options.episodes, start) as step:

            def after(progress: Progress) -> None:
                nonlocal last
                now, count = time.monotonic(), len(progress.losses)
                for past, loss in enumerate(progress.losses):
                    number = progress.episode - count + 1 + past
                    line = {"episode": number, "loss": loss, "seconds": round((now - last) / count, 6)}
                    if progress.step_sizes:
                        line["step_size"] = progress.step_sizes[past]
                    log.write(json.dumps(line) + "\n")
                last = now
                if progress.projected:
                    display.say(
                        f"{self.name}: the step size left its bounds, in episode {progress.episode}, and was put back"
                    )
                step(progress.episode + 1, f"loss {progress.losses[-1]:.4g}")
                due = (progress.episode + 1) // options.checkpoint > (
                    progress.episode + 1 - count
                ) // options.checkpoint
                if due and progress.episode + 1 < options.episodes:
                    log.flush()
                    self.save(synthetic, progress)

            condense(
                synthetic,
                objective,
                episodes=options.episodes,
                lr=options.lr,
                momentum=options.momentum,
                lr_labels=options.lr_labels,
                lr_step=options.lr_step,
                start=start,
                velocity=velocity,
                after=after,
            )
        return synthetic

    def make_experts(self, recipe: Recipe) -> Recipe:
        """The recipe with the place of its experts, which are there then."""
        if self.session.smoke:
            recipe = recipe.with_values(experts={"store": str(self.folder / "experts")})
        store = assemble.experts(recipe, self.data)
        missing = len(store.missing())
        if missing:
            self.session.display.say(f"{missing} of {len(store)} experts to be made first, in {store.folder}")
            with self.session.display.work(f"{self.name}: experts", len(store), len(store) - missing) as step:
                assemble.make_experts(recipe, self.data, step)
        return recipe

    def save(self, synthetic: SyntheticDataset, progress: Progress) -> None:
        """A checkpoint between two episodes."""
        tensors = {f"stored.{name}": tensor for name, tensor in synthetic.stored().items()}
        tensors |= {f"velocity.{name}": tensor for name, tensor in progress.velocity().items()}
        with replacing(self.checkpoint) as part:
            held = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            save_file(held, part, {"next": str(progress.episode + 1)})

    def restore(self, synthetic: SyntheticDataset) -> tuple[int, dict[str, torch.Tensor]]:
        """Put the last checkpoint into ``synthetic``; the next episode and the momentum. Cuts the log to match."""
        log = self.folder / "log.jsonl"
        start, parts = 0, {"stored": dict[str, torch.Tensor](), "velocity": dict[str, torch.Tensor]()}
        if self.checkpoint.is_file():
            with safe_open(self.checkpoint, framework="pt", device=str(self.session.device)) as file:
                start = int(file.metadata()["next"])
                for key in file.keys():  # noqa: SIM118
                    part, name = key.split(".", 1)
                    parts[part][name] = file.get_tensor(key)
            synthetic.restore_(parts["stored"])
        if log.is_file():
            lines = log.read_text().splitlines(keepends=True)[:start]
            _write(log, "".join(lines))
        return start, parts["velocity"]

    def evaluate(self, examples: Examples) -> list[Score]:
        """Scores of all the recipe's networks, those already scored from the file of the last session."""
        title, full = f"{self.name}: evaluate", self.name == FULL
        display, done = self.session.display, self.kept()
        return score(
            self.recipe, examples, self.data, self.streams, display, title=title, full=full, done=done, keep=self.keep
        )

    def kept(self) -> dict[str, list[float]]:
        """Accuracies of networks scored so far, by network."""
        return dict(_read_json(self.scored)) if self.scored.is_file() else {}

    def keep(self, network: str, accuracies: Sequence[float]) -> None:
        """Write down the accuracies of a network so far."""
        _write_json(self.scored, self.kept() | {network: list(accuracies)})

    def result(self, scores: Sequence[Score], stored: Values, artefact: Path, seconds: float) -> Values:
        """What goes to ``result.json``."""
        recipe = self.recipe
        return {
            "schema": SCHEMA,
            "row": self.name,
            "recipe": recipe.name,
            "overrides": self.session.changes,
            "seed": recipe["seed"],
            "fraction": _fraction(recipe),
            "smoke": self.session.smoke,
            **environment(self.session.device),
            "seconds": round(seconds, 3),
            "peak_bytes": _peak_bytes(self.session.device),
            "budget": recipe["budget"],
            "compute": recipe["compute"],
            "data": {
                "name": self.data.name,
                "fingerprint": self.data.fingerprint,
                "preprocessing": self.data.preprocessing,
                "split": recipe.evaluate.split,
            },
            "stored": stored,
            "evaluation": [as_json(score) for score in scores],
            "artefact_sha256": sha256(artefact.read_bytes()).hexdigest() if artefact.is_file() else None,
        }


def score(
    recipe: Recipe,
    examples: Examples,
    data: ImageData,
    streams: Streams,
    display: Display,
    *,
    title: str = "evaluate",
    full: bool = False,
    done: Mapping[str, Sequence[float]] | None = None,
    keep: Callable[[str, Sequence[float]], None] | None = None,
) -> list[Score]:
    """Train and score all networks that a recipe's evaluation names.

    Where ``examples`` are a whitened set, real images are seen through its whitening, whatever that of ``data`` is.

    Args:
        recipe: Its section ``evaluate`` and its network and augmentation.
        examples: What to train on.
        data: What to score on.
        streams: Source of all draws.
        display: Shows the progress.
        title: Of the progress.
        full: Whether ``examples`` are the full training set, which has its own number of epochs.
        done: Accuracies known from before, by network, as ``keep`` named it.
        keep: Called with a network's place and name in the evaluation, and accuracies, after each.
    """
    options, scores = recipe.evaluate, []
    if isinstance(examples, SyntheticDataset) and examples.whitening is not None:
        data = data.seen_through(examples.whitening)
    networks = assemble.networks_of(recipe, data.shape, len(data.classes))
    for number, (name, registered, keywords) in enumerate(networks):
        key = f"{number} {name}"  # "same" and a name may stand for one network under two sets of options
        before = (done or {}).get(key, [])
        with display.work(f"{title} {name}", options.repeats, len(before)) as step:

            def after(accuracies: Sequence[float], key: str = key, step: Step = step) -> None:
                if keep:
                    keep(key, accuracies)
                step(len(accuracies), f"last {100 * accuracies[-1]:.1f} %")

            measured = evaluate(
                examples,
                assemble.scoring_split(recipe, data),
                len(data.classes),
                streams,
                network=registered,
                network_options=keywords,
                repeats=options.repeats,
                epochs=options.epochs_full if full else options.epochs,
                lr=_learning_rate(options.lr, examples),
                augment=assemble.training_augment(recipe),
                done=before,
                after=after,
            )
        scores.append(replace(measured, network=name))
    return scores


def _learning_rate(given: float | None, examples: Examples) -> float:
    """The one given, else the one learned with the images, else 0.01."""
    learned = examples.step_size if isinstance(examples, SyntheticDataset) else None
    return given if given is not None else 0.01 if learned is None else float(learned.detach())


def as_json(score: Score) -> Values:
    """A score as in ``result.json``."""
    return {
        "network": score.network,
        "epochs": score.epochs,
        "augmentation": score.augmentation,
        "augment": list(score.augment),
        "accuracies": list(score.accuracies),
        "mean": score.mean,
        "std": score.std,
    }


def environment(device: torch.device) -> Values:
    """Commit, device, machine and versions; no host name and no path."""
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "commit": _commit(),
        "device": accelerator or "cpu",
        "machine": {
            "system": platform.system(),
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "bfloat16": torch.cpu.get_capabilities().get("avx512_bf16", False),
        },
        "versions": {
            "condensate": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
        },
    }


def _stored(synthetic: SyntheticDataset, artefact: Path) -> Values:
    cost, whitening = synthetic.cost(), synthetic.whitening
    side = None if whitening is None else artefact.with_name(file_name(whitening.digest))
    return {
        "numbers": cost.numbers,
        "tensor_bytes": cost.bits // 8,
        "file_bytes": artefact.stat().st_size,
        "side_bytes": 0 if side is None else side.stat().st_size,
        "images_per_class": synthetic.per_class,
    }


def _stored_full(data: ImageData) -> Values:
    numbers = data.train.raw.numel()
    per_class = round(len(data.train) / len(data.classes))
    bytes_ = {"tensor_bytes": numbers, "file_bytes": None, "side_bytes": 0}
    return {"numbers": numbers, **bytes_, "images_per_class": per_class}


def _fraction(recipe: Recipe) -> float | None:
    """Share of the shipped recipe's episodes; None for a recipe of the user's."""
    if recipe.name not in shipped() or not recipe.condense.episodes:
        return None
    return recipe.condense.episodes / int(find(recipe.name)[1]["condense"]["episodes"])


def _peak_bytes(device: torch.device) -> int:
    """The most memory held: on the GPU by tensors, else by this process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _commit() -> str | None:
    """Of the checkout this package lies in, if it lies in one; marked where files differ from it."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) / "src" / "condensate" != folder:
            return None
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged; delete it to have this part done again") from error


def _write(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def _write_json(path: Path, content: Any) -> None:
    _write(path, json.dumps(content, indent=1) + "\n")
