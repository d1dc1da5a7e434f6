"""One row of a run in its folder: condensed, saved, loaded again, scored; stopped and gone on with at any time."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from shutil import rmtree

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from condensate import assemble
from condensate.atomic import replacing
from condensate.console import Display
from condensate.data import ImageData
from condensate.evaluation import Score
from condensate.loop import Progress, condense
from condensate.pictures import save_grid
from condensate.recipe import Recipe, Values
from condensate.records import (
    SCHEMA,
    as_json,
    environment,
    fraction,
    peak_bytes,
    read_json,
    stored,
    stored_full,
    write,
    write_json,
)
from condensate.scoring import score
from condensate.streams import Streams
from condensate.synthetic import LARGEST_STEP_SIZE, SMALLEST_STEP_SIZE, SyntheticDataset, load
from condensate.training import Examples

FULL = "full"
BOUNDS = f"{SMALLEST_STEP_SIZE:g} to {LARGEST_STEP_SIZE:g}"


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


class Row:
    """One row of a run in its folder: condense, save, load again, score."""

    def __init__(self, name: str, recipe: Recipe, folder: Path, data: ImageData, session: Session) -> None:
        self.name, self.recipe, self.folder, self.data, self.session = name, recipe, folder, data, session
        self.streams = Streams(recipe["seed"], session.device)
        self.checkpoint = folder / "checkpoints" / "condense.safetensors"
        self.scored = folder / "checkpoints" / "evaluate.json"
        self.timed = folder / "checkpoints" / "seconds.json"
        self.began, self.on_experts = time.monotonic(), 0.0

    def run(self) -> Values:
        """The row's result, from its file if it is there."""
        file = self.folder / "result.json"
        if file.is_file():
            return dict(read_json(file))
        self.began = time.monotonic()
        (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        write(self.folder / "recipe.yaml", self.recipe.dump())
        write_json(self.folder / "environment.json", self.session.described(self.recipe.name))
        artefact = self.folder / "synthetic.safetensors"
        examples: Examples
        if self.name == FULL:
            examples, kept = self.data.train, stored_full(self.data)
        else:
            if not artefact.is_file():
                synthetic = self.condense()
                synthetic.save(artefact)
                self.keep_time()
            synthetic = load(artefact).to(self.session.device)
            save_grid(synthetic, self.folder / "images.png")
            examples, kept = synthetic, stored(synthetic, artefact)
        scores = self.evaluate(examples)
        result = self.result(scores, kept, artefact)
        write_json(file, result)
        rmtree(self.folder / "checkpoints")
        rmtree(self.folder / "experts", ignore_errors=True)  # of a smoke run
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
        told: list[int] = []
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
                    if progress.projected and past + 1 == count:
                        line["projected"] = progress.projected
                    log.write(json.dumps(line) + "\n")
                last = now
                if progress.projected and not told:
                    told.append(progress.episode)
                    display.say(
                        f"{self.name}: in episode {progress.episode} the step size left its bounds, {BOUNDS}, and was "
                        f"put back; if it stays there, lower --condense.lr_step, which is {options.lr_step:g}"
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
        if recipe.experts is not None and not recipe.experts.make:
            store.check_complete()
        missing, began = len(store.missing()), time.monotonic()
        if missing:
            self.session.display.say(f"{missing} of {len(store)} experts to be made first, in {store.folder}")
            with self.session.display.work(f"{self.name}: experts", len(store), len(store) - missing) as step:
                assemble.make_experts(recipe, self.data, step)
            self.on_experts = time.monotonic() - began
        return recipe

    def save(self, synthetic: SyntheticDataset, progress: Progress) -> None:
        """A checkpoint between two episodes."""
        tensors = {f"stored.{name}": tensor for name, tensor in synthetic.stored().items()}
        tensors |= {f"velocity.{name}": tensor for name, tensor in progress.velocity().items()}
        with replacing(self.checkpoint) as part:
            held = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            save_file(held, part, {"next": str(progress.episode + 1)})
        self.keep_time()

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
            write(log, "".join(lines))
        return start, parts["velocity"]

    def spent(self) -> dict[str, float]:
        """Seconds of this session and of those before it up to what they left to go on from; experts apart."""
        before = read_json(self.timed) if self.timed.is_file() else {"seconds": 0.0, "experts_seconds": 0.0}
        now = time.monotonic() - self.began - self.on_experts
        return {
            "seconds": round(before["seconds"] + now, 3),
            "experts_seconds": round(before["experts_seconds"] + self.on_experts, 3),
        }

    def keep_time(self) -> None:
        """Write down the seconds spent so far, as what goes with them is written."""
        write_json(self.timed, self.spent())
        self.began, self.on_experts = time.monotonic(), 0.0

    def evaluate(self, examples: Examples) -> list[Score]:
        """Scores of all the recipe's networks, those already scored from the file of the last session."""
        title, full = f"{self.name}: evaluate", self.name == FULL
        display, done = self.session.display, self.kept()
        return score(
            self.recipe, examples, self.data, self.streams, display, title=title, full=full, done=done, keep=self.keep
        )

    def kept(self) -> dict[str, list[float]]:
        """Accuracies of networks scored so far, by network."""
        return dict(read_json(self.scored)) if self.scored.is_file() else {}

    def keep(self, network: str, accuracies: Sequence[float]) -> None:
        """Write down the accuracies of a network so far."""
        write_json(self.scored, self.kept() | {network: list(accuracies)})
        self.keep_time()

    def result(self, scores: Sequence[Score], kept: Values, artefact: Path) -> Values:
        """What goes to ``result.json``."""
        recipe = self.recipe
        return {
            "schema": SCHEMA,
            "row": self.name,
            "recipe": recipe.name,
            "overrides": self.session.changes,
            "seed": recipe["seed"],
            "fraction": fraction(recipe),
            "smoke": self.session.smoke,
            **environment(self.session.device),
            **self.spent(),
            "peak_bytes": peak_bytes(self.session.device),
            "budget": recipe["budget"],
            "compute": recipe["compute"],
            "data": {
                "name": self.data.name,
                "fingerprint": self.data.fingerprint,
                "preprocessing": self.data.preprocessing,
                "split": recipe.evaluate.split,
            },
            "stored": kept,
            "evaluation": [as_json(score) for score in scores],
            "artefact_sha256": sha256(artefact.read_bytes()).hexdigest() if artefact.is_file() else None,
        }
