"""One condensation in its folder: started, optimised, saved; stopped and gone on with at any time."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from condensate import assemble
from condensate.atomic import replacing
from condensate.console import Display
from condensate.data import ImageData
from condensate.errors import UserError
from condensate.loop import Progress, condense
from condensate.objectives import OBJECTIVES
from condensate.pictures import save_grid
from condensate.ranks import ALONE, Ranks
from condensate.recipe import Recipe, Values
from condensate.records import environment, read_json, write, write_json
from condensate.streams import Streams
from condensate.synthetic import LARGEST_STEP_SIZE, SMALLEST_STEP_SIZE, SyntheticDataset, load

KEPT_EVERY = 60.0  # seconds between two checkpoints at most
BOUNDS = f"{SMALLEST_STEP_SIZE:g} to {LARGEST_STEP_SIZE:g}"


@dataclass(frozen=True)
class Session:
    """What is common to the rows of a run.

    Args:
        device: Where everything is computed.
        display: Where progress is shown.
        changes: What the user changed of the recipe, for the record and for the rows it is compared with.
        smoke: Random images, two classes, tiny networks: does it run at all?
        command: That does it, and alone can go on with it: run, continual or privacy.
        ranks: Processes that do it together.
        until: When to stop between two episodes, as ``time.monotonic`` counts; never if absent.
    """

    device: torch.device
    display: Display
    changes: Values
    smoke: bool = False
    command: str = "run"
    ranks: Ranks = ALONE
    until: float | None = None

    def late(self, step: float) -> bool:
        """Whether there is no time for another step of so many seconds."""
        return self.until is not None and time.monotonic() + 2 * step > self.until

    def open(self, folder: Path, recipe: Recipe) -> None:
        """Make a folder and write down what is about to be done in it, as far as it takes to go on with it.

        Raises:
            UserError: Another process of the run does not see the folder.
        """

        def write_down() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            write(folder / "recipe.yaml", recipe.dump())
            described = {"command": self.command, "recipe": recipe.name, "overrides": self.changes, "smoke": self.smoke}
            write_json(folder / "environment.json", described | environment(self.device, self.ranks.world))

        self.ranks.once(write_down)
        if not all(self.ranks.gather((folder / "recipe.yaml").is_file())):
            raise UserError(
                f"not all processes see {folder}; on several hosts a run needs a folder that they share: name one in "
                "--out, by its whole path"
            )


class OutOfTime(BaseException):
    """The time given to a piece of work is over, and a checkpoint of it written. No error, so not caught as one."""


class Clock:
    """Seconds a piece of work took, over all sessions up to what each of them left to go on from; experts apart.

    Args:
        file: Where they are kept.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.began, self.on_experts = file, time.monotonic(), 0.0

    def start(self) -> None:
        """Count from now on."""
        self.began, self.on_experts = time.monotonic(), 0.0

    def spent(self) -> dict[str, float]:
        """Seconds so far."""
        before = read_json(self.file) if self.file.is_file() else {"seconds": 0.0, "experts_seconds": 0.0}
        now = time.monotonic() - self.began - self.on_experts
        return {
            "seconds": round(before["seconds"] + now, 3),
            "experts_seconds": round(before["experts_seconds"] + self.on_experts, 3),
        }

    def keep(self) -> None:
        """Write the seconds down, as what they were spent on is written."""
        write_json(self.file, self.spent())
        self.start()


class Condensation:
    """One condensation in its folder, which holds what is needed to go on with it until ``tidy``.

    Args:
        title: Shown with the progress.
        recipe: Complete, nothing left to choose.
        folder: Where recipe, log, pictures and the set go.
        data: What is condensed.
        session: Device and display.
        streams: Source of all draws.
        outputs: Of the networks matched; the number of classes if absent.
        clock: Of the work this is part of; its own if absent.
    """

    def __init__(
        self,
        title: str,
        recipe: Recipe,
        folder: Path,
        data: ImageData,
        session: Session,
        streams: Streams,
        outputs: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.title, self.recipe, self.folder, self.data, self.session = title, recipe, folder, data, session
        self.streams, self.outputs = streams, outputs
        self.artefact = folder / "synthetic.safetensors"
        self.checkpoint = folder / "checkpoints" / "condense.safetensors"
        self.clock = clock or Clock(folder / "checkpoints" / "seconds.json")

    def begin(self) -> None:
        """Write down what is about to be done."""
        self.clock.start()
        self.session.open(self.folder, self.recipe)

    def run(self) -> SyntheticDataset:
        """The set as it was saved, condensed first if it is not there."""
        ranks = self.session.ranks
        if not ranks.once(self.artefact.is_file):
            condensed = self.condense()
            ranks.once(lambda: self.finish(condensed))
        synthetic = load(self.artefact).to(self.session.device)
        if ranks.first:
            save_grid(synthetic, self.folder / "images.png")
        return synthetic

    def finish(self, synthetic: SyntheticDataset) -> None:
        """Write the condensed set down."""
        synthetic.save(self.artefact)
        self.clock.keep()

    def tidy(self) -> None:
        """Take away what only served to go on."""
        rmtree(self.folder / "checkpoints", ignore_errors=True)
        rmtree(self.folder / "experts", ignore_errors=True)  # of a smoke run

    def condense(self) -> SyntheticDataset:
        """The condensed set, from the last checkpoint if there is one."""
        recipe, options, device, display = self.recipe, self.recipe.condense, self.session.device, self.session.display
        ranks = self.session.ranks
        synthetic = assemble.start(recipe, self.data, self.streams, self.outputs)
        if not options.episodes:
            return synthetic
        compute = assemble.compute(recipe, device)
        if recipe.experts is not None:
            recipe = self.make_experts(recipe)
        objective = assemble.objective(recipe, self.data, compute, self.streams, self.outputs, ranks)
        start, velocity = self.restore(synthetic)
        self.say_who_waits(len(synthetic))
        if compute.compiled and start < options.episodes:
            torch._dynamo.reset()  # a study condenses many times, and a process may compile a program a few times only
            display.say("compiling: the first episode takes up to a minute longer, the others half as long")
        told: list[int] = []
        logged, last = self.folder / "log.jsonl" if ranks.first else Path(os.devnull), time.monotonic()
        waited, saved = self.data.train.waited, last
        with logged.open("a") as log, display.work(f"{self.title}: condense", options.episodes, start) as step:

            def after(progress: Progress) -> None:
                nonlocal last, waited, saved
                now, count = time.monotonic(), len(progress.losses)
                for past, loss in enumerate(progress.losses):
                    number = progress.episode - count + 1 + past
                    line = {"episode": number, "loss": loss, "seconds": round((now - last) / count, 6)}
                    if recipe["data"]["hold"] == "disk":
                        line["waited"] = round((self.data.train.waited - waited) / count, 6)
                    if progress.step_sizes:
                        line["step_size"] = progress.step_sizes[past]
                    if progress.projected and past + 1 == count:
                        line["projected"] = progress.projected
                    log.write(json.dumps(line) + "\n")
                first = progress.episode + 1 - count == start  # which may have compiled, and says nothing of the others
                late = self.session.late(now - last)
                last, waited = now, self.data.train.waited
                if progress.projected and not told:
                    told.append(progress.episode)
                    display.say(
                        f"{self.title}: in episode {progress.episode} the step size left its bounds, {BOUNDS}, and was "
                        f"put back; if it stays there, lower --condense.lr_step, which is {options.lr_step:g}"
                    )
                step(progress.episode + 1, f"loss {progress.losses[-1]:.4g}")
                due = (progress.episode + 1) // options.checkpoint > (
                    progress.episode + 1 - count
                ) // options.checkpoint
                more = progress.episode + 1 < options.episodes
                if (due or late or now - saved >= KEPT_EVERY) and more and ranks.first:
                    log.flush()
                    self.save(synthetic, progress)
                    saved = now
                if late and more and (not first or self.session.late(0)):
                    raise OutOfTime(f"{self.title}: stopped after episode {progress.episode}")

            condense(
                synthetic,
                objective,
                episodes=options.episodes,
                lr=options.lr,
                momentum=options.momentum,
                schedule=options.schedule,
                lr_labels=options.lr_labels,
                lr_step=options.lr_step,
                start=start,
                velocity=velocity,
                after=after,
                ranks=ranks,
            )
        return synthetic

    def say_who_waits(self, images: int) -> None:
        """Tell of processes that have nothing to do while a set of so many images is condensed."""
        objective, world = self.recipe["objective"], self.session.ranks.world
        matching = OBJECTIVES[objective["name"]]
        parts = matching.planned(len(self.data.classes), images, **self.recipe.options("objective")).parts
        if world > parts:
            more = f"; --objective.experts_per_step {world} would use all" if matching.matches_experts else ""
            self.session.display.say(
                f"{self.title}: {parts} of {world} processes have a part in an episode, the others wait while the set "
                f"is condensed{more}"
            )

    def make_experts(self, recipe: Recipe) -> Recipe:
        """The recipe with the place of its experts, which are there then."""
        if self.session.smoke:
            recipe = recipe.with_values(experts={"store": str(self.folder / "experts")})
        store = assemble.experts(recipe, self.data, self.outputs)
        if recipe.experts is not None and not recipe.experts.make:
            store.check_complete()
        ranks, began = self.session.ranks, time.monotonic()
        missing = ranks.once(store.missing)
        if missing:
            self.session.display.say(f"{len(missing)} of {len(store)} experts to be made first, in {store.folder}")
            with self.session.display.work(f"{self.title}: experts", len(store), len(store) - len(missing)) as step:
                assemble.make_experts(recipe, self.data, step, self.outputs, ranks.share(missing))
            self.clock.on_experts = time.monotonic() - began
        return recipe

    def save(self, synthetic: SyntheticDataset, progress: Progress) -> None:
        """A checkpoint between two episodes."""
        tensors = {f"stored.{name}": tensor for name, tensor in synthetic.stored().items()}
        tensors |= {f"velocity.{name}": tensor for name, tensor in progress.velocity().items()}
        with replacing(self.checkpoint) as part:
            held = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            save_file(held, part, {"next": str(progress.episode + 1)})
        self.clock.keep()

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
        ranks = self.session.ranks
        if len(set(ranks.gather(start))) > 1:
            raise UserError(f"not all processes see the same {self.checkpoint}; all hosts must share its folder")
        ranks.same_([*synthetic.stored().values(), *parts["velocity"].values()])
        if log.is_file() and ranks.first:
            lines = log.read_text().splitlines(keepends=True)[:start]
            write(log, "".join(lines))
        return start, parts["velocity"]
