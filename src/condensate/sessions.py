"""What a run knows of its surroundings: device, display, command, the time it is given and the time it took."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from condensate import __version__, settling
from condensate.atomic import alone_in
from condensate.capabilities import lacking
from condensate.console import Display
from condensate.data import ImageData
from condensate.errors import UserError
from condensate.parameterizations import Shape
from condensate.ranks import ALONE, Ranks
from condensate.recipe import Recipe, Values
from condensate.records import environment, read_json, write, write_json

KEPT_EVERY = 60.0  # seconds between two checkpoints at most


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

    def claim(self, folder: Path, recipe: Recipe, data: ImageData) -> None:
        """``open`` a folder for a new run; of one that another run has nothing is touched.

        Raises:
            UserError: Another process is at work in the folder, or another run lies in it; and see ``open``.
        """

        def take() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            there = folder / "recipe.yaml"
            with alone_in(folder):
                if not there.is_file():
                    write(there, recipe.dump())
                elif there.read_text(encoding="utf-8") != recipe.dump():
                    raise UserError(f"another run lies in {folder}; name another folder, or go on with it by --resume")

        self.ranks.once(take)
        self.open(folder, recipe, data)

    def same_beginning(self, folder: Path, recipe: Recipe, data: ImageData) -> None:
        """Refuse to go on in a folder under another recipe, or on other images, than what is there was begun with."""
        file = folder / "environment.json"
        begun = read_json(file) if file.is_file() else {}
        check_recipe(folder, begun, recipe)
        if begun.get("images", data.fingerprint) != data.fingerprint:
            raise UserError(
                f"the run in {folder} was begun on other images than {data.name} has now; put those back, or begin "
                "anew in another folder"
            )

    def open(self, folder: Path, recipe: Recipe, data: ImageData) -> None:
        """Make a folder and write down what is about to be done in it, as far as it takes to go on with it.

        Raises:
            UserError: Another process of the run does not see the folder, or what lies in it is of other images or of
                another recipe.
        """

        def write_down() -> None:
            self.same_beginning(folder, recipe, data)
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "recipe.yaml").is_file() or not (folder / "environment.json").is_file():
                write(folder / "recipe.yaml", recipe.dump())
            described = {"command": self.command, "recipe": recipe.name, "overrides": self.changes, "smoke": self.smoke}
            described |= {"images": data.fingerprint, "recipe_sha256": recipe.digest}
            write_json(folder / "environment.json", described | environment(self.device, self.ranks.world))

        self.ranks.once(write_down)
        if not all(self.ranks.gather((folder / "recipe.yaml").is_file())):
            raise UserError(
                f"not all processes see {folder}; on several hosts a run needs a folder that they share: name one in "
                "--out, by its whole path"
            )

    def training_chosen(
        self, recipe: Recipe, shape: Shape, classes: int, images: int, file: Path, title: str, *, full: bool = False
    ) -> Recipe:
        """The recipe with how networks that score are trained settled: chosen and said once, then as in ``file``.

        Args:
            recipe: Its section ``evaluate`` and its network.
            shape: Of an image.
            classes: That networks tell apart.
            images: They are trained on at the most.
            file: Of what was chosen, for all sessions.
            title: Of the work, for the display.
            full: Whether they are all training images, which have their own number of epochs.
        """
        if not file.is_file():
            chosen = settling.settle_training(recipe, shape, classes, images, self.device, full=full)
            write_json(file, {key: chosen["evaluate"][key] for key in settling.TRAINED_BY})
            why = settling.why_training_compiled(recipe, shape, classes, images, self.device, full=full)
            if why:
                self.display.say(f"{title}: training to score is {why}")
        recipe = recipe.with_values(evaluate=read_json(file))
        check_compiler(file.parent, recipe.evaluate.compile, self.device)
        return recipe


def check_compiler(folder: Path, compiled: str, device: torch.device) -> None:
    """Refuse to go on here with what was begun with compiled programs where there is no compiler."""
    if compiled == "always" and (lacks := lacking(device)):
        raise UserError(
            f"what is in {folder} was begun with compiled programs, which need {lacks}; go on where that is, or begin "
            "anew in another folder"
        )


def check_recipe(folder: Path, begun: Values, recipe: Recipe) -> None:
    """Refuse a recipe that is not the one that a run in a folder was begun with, by its environment.json."""
    if begun.get("recipe_sha256", recipe.digest) != recipe.digest:
        version = begun["versions"]["condensate"]
        other = f", or condensate is another than {version}" if version != __version__ else ""
        raise UserError(
            f"the run in {folder} was begun with another recipe: its recipe.yaml was changed{other}; put back what it "
            "was, or begin anew in another folder"
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
        before = read_json(self.file) if self.file.is_file() else {}
        now = time.monotonic() - self.began - self.on_experts
        return {
            "seconds": round(before.get("seconds", 0.0) + now, 3),
            "experts_seconds": round(before.get("experts_seconds", 0.0) + self.on_experts, 3),
        }

    def keep(self) -> None:
        """Write the seconds down, as what they were spent on is written."""
        write_json(self.file, self.spent())
        self.start()
