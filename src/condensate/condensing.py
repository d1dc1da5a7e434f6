"""One condensation in its folder: started, optimised, saved; stopped and gone on with at any time."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree
from typing import TextIO

import torch
from safetensors.torch import save_file

from condensate import assemble, settling
from condensate.atomic import replacing
from condensate.compute import ON_TILES, compiling_takes
from condensate.data import ImageData
from condensate.errors import UserError
from condensate.loop import Progress, condense
from condensate.objectives import OBJECTIVES
from condensate.pictures import save_grid
from condensate.recipe import Recipe
from condensate.records import read_tensors, write
from condensate.sessions import KEPT_EVERY, Clock, OutOfTime, Session
from condensate.streams import Streams
from condensate.synthetic import LARGEST_STEP_SIZE, SMALLEST_STEP_SIZE, SyntheticDataset, load

WIDE = 1000.0  # standard deviation of normalised pixels
BOUNDS = f"{SMALLEST_STEP_SIZE:g} to {LARGEST_STEP_SIZE:g}"


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
        self.session.open(self.folder, self.recipe, self.data)

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
        synthetic = assemble.start(recipe, self.data, self.streams, self.outputs)
        if not options.episodes:
            return synthetic
        compute = settling.compute(recipe, self.data.shape, device)
        if recipe.experts is not None:
            recipe = self.make_experts(recipe)
        objective = assemble.objective(recipe, self.data, compute, self.streams, self.outputs, self.session.ranks)
        if recipe["compute"]["reuse"]:
            assemble.reuse(objective, recipe, self.data, compute, self.streams, self.outputs)
        start, velocity = self.restore(synthetic)
        self.say_who_waits(len(synthetic))
        if compute.compiled and start < options.episodes:
            torch._dynamo.reset()  # a study condenses many times, and a process may compile a program a few times only
            longer = compiling_takes(compute.tiled)
            display.say(f"compiling: the first episode takes {longer} longer, the others less than without")
        logged = self.folder / "log.jsonl" if self.session.ranks.first else Path(os.devnull)
        with logged.open("a") as log, display.work(f"{self.title}: condense", options.episodes, start) as step:
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
                after=Watch(self, synthetic, start, log, step),
                ranks=self.session.ranks,
            )
        self.say_how_wide(synthetic)
        return synthetic

    def say_how_wide(self, synthetic: SyntheticDataset) -> None:
        """Tell of images that a learning rate blew up: under normalisation layers no loss shows it."""
        some = synthetic.images(torch.arange(min(len(synthetic), 100), device=synthetic.labels.device)).detach()
        width = float(some.std(correction=0))
        if not width < WIDE and not self.session.smoke:
            self.session.display.say(
                f"{self.title}: pixels of the condensed images deviate by {width:.2g} from their mean, where those of "
                f"real images deviate by 1; try a smaller learning rate than --condense.lr {self.recipe.condense.lr:g}"
            )

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
            trained = recipe["compute"]["experts"]
            how = ", compiled" * (trained != "never") + ON_TILES * (trained == "tiles")
            self.session.display.say(f"{len(missing)} of {len(store)} experts to be made first{how}, in {store.folder}")
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
            save_file(held, part, {"next": str(progress.episode + 1), "data": self.data.fingerprint})
        self.clock.keep()

    def restore(self, synthetic: SyntheticDataset) -> tuple[int, dict[str, torch.Tensor]]:
        """Put the last checkpoint into ``synthetic``; the next episode and the momentum. Cuts the log to match."""
        log = self.folder / "log.jsonl"
        start, parts = 0, {"stored": dict[str, torch.Tensor](), "velocity": dict[str, torch.Tensor]()}
        if self.checkpoint.is_file():
            tensors, about = read_tensors(self.checkpoint, self.session.device)
            if about.get("data", self.data.fingerprint) != self.data.fingerprint:
                raise UserError(
                    f"the run in {self.folder} was begun on other images than {self.data.name} has now; put those "
                    "back, or begin anew in another folder"
                )
            start = int(about["next"])
            for key, tensor in tensors.items():
                part, name = key.split(".", 1)
                parts[part][name] = tensor
            synthetic.restore_(parts["stored"])
            self.session.display.say(f"{self.title}: goes on after {start} of {self.recipe.condense.episodes} episodes")
        elif log.is_file() and log.stat().st_size:
            self.session.display.say(f"{self.title}: begins anew, for it was stopped before its first checkpoint")
        ranks = self.session.ranks
        if len(set(ranks.gather(start))) > 1:
            raise UserError(f"not all processes see the same {self.checkpoint}; all hosts must share its folder")
        ranks.same_([*synthetic.stored().values(), *parts["velocity"].values()])
        if ranks.first:
            lines = log.read_text().splitlines(keepends=True)[:start] if log.is_file() else []
            if len(lines) < start:
                missing = f"{start - len(lines)} of the {start} episodes before are not in {log.name}"
                self.session.display.say(f"{self.title}: {missing}; the run goes on all the same")
            if log.is_file():
                write(log, "".join(lines))
        return start, parts["velocity"]


class Watch:
    """What is done between two episodes: they are logged and shown, kept where that is due, and ended in time.

    Args:
        of: What is condensed.
        synthetic: The set under way.
        start: First episode of the session.
        log: Gets a line an episode.
        step: Shows the progress: episodes done, and a note.
    """

    def __init__(
        self,
        of: Condensation,
        synthetic: SyntheticDataset,
        start: int,
        log: TextIO,
        step: Callable[[int, str], None],
    ) -> None:
        self.of, self.synthetic, self.start, self.log, self.step = of, synthetic, start, log, step
        self.last = self.saved = time.monotonic()
        self.waited = of.data.train.waited
        self.told = False  # that the step size left its bounds

    def __call__(self, progress: Progress) -> None:
        """Note the episodes that ended; raises ``OutOfTime``, a checkpoint written, where there is none for more."""
        now, options, session = time.monotonic(), self.of.recipe.condense, self.of.session
        taken, self.last = now - self.last, now
        self.write(progress, taken)
        done, count = progress.episode + 1, len(progress.losses)
        self.step(done, f"loss {progress.losses[-1]:.4g}")
        if done == options.episodes:
            return
        late, first = session.late(taken), done - count == self.start  # the first may have compiled: no measure of more
        due = done // options.checkpoint > (done - count) // options.checkpoint
        if (due or late or now - self.saved >= KEPT_EVERY) and session.ranks.first:
            self.log.flush()
            self.of.save(self.synthetic, progress)
            self.saved = now
        if late and (not first or session.late(0)):
            raise OutOfTime(f"{self.of.title}: stopped after episode {progress.episode}")

    def write(self, progress: Progress, taken: float) -> None:
        """A line an episode: loss, seconds, and what a method has beyond these."""
        count, waited = len(progress.losses), self.of.data.train.waited
        for past, loss in enumerate(progress.losses):
            number = progress.episode - count + 1 + past
            line = {"episode": number, "loss": loss, "seconds": round(taken / count, 6)}
            if self.of.recipe["data"]["hold"] == "disk":
                line["waited"] = round((waited - self.waited) / count, 6)
            if progress.step_sizes:
                line["step_size"] = progress.step_sizes[past]
            if progress.projected and past + 1 == count:
                line["projected"] = progress.projected
            self.log.write(json.dumps(line) + "\n")
        self.waited = waited
        if progress.projected and not self.told:
            self.told = True
            self.of.session.display.say(
                f"{self.of.title}: in episode {progress.episode} the step size left its bounds, {BOUNDS}, and was put "
                f"back; if it stays there, lower --condense.lr_step, which is {self.of.recipe.condense.lr_step:g}"
            )
