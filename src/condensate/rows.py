"""One row of a run in its folder: condensed, saved, loaded again, scored; stopped and gone on with at any time."""

import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from condensate import assemble, settling
from condensate.atomic import replacing
from condensate.condensing import Condensation
from condensate.data import ImageData
from condensate.errors import UserError
from condensate.evaluation import Score
from condensate.examples import Examples
from condensate.recipe import Recipe, Values
from condensate.records import (
    SCHEMA,
    as_json,
    environment,
    fraction,
    peak_bytes,
    read_json,
    read_tensors,
    stored,
    stored_full,
    write_json,
)
from condensate.scoring import score
from condensate.sessions import KEPT_EVERY, Clock, OutOfTime, Session
from condensate.streams import Streams

FULL = "full"


class TrainingFile:
    """Where the training of a network that scores stands, in a file of the run; a bookmark for ``fit``.

    Args:
        file: Of the run; it holds one training.
        name: Of the training; what the file holds of another is not its own.
        session: Says when time is up.
        clock: Keeps the seconds that went into what is kept.
    """

    def __init__(self, file: Path, name: str, session: Session, clock: Clock) -> None:
        self.file, self.name, self.session, self.clock = file, name, session, clock
        self.epoch = self.kept = time.monotonic()
        self.first = True  # which may compile, and says nothing of the others

    def last(self) -> dict[str, Tensor] | None:
        """What was kept of this training."""
        if not self.file.is_file():
            return None
        state, about = read_tensors(self.file, self.session.device)
        return state if about == {"training": self.name} else None

    def put(self, state: Callable[[], dict[str, Tensor]]) -> None:
        """Keep the state every minute and, as the last thing, when time is up."""
        now = time.monotonic()
        late, first = self.session.late(now - self.epoch), self.first
        self.epoch, self.first = now, False
        if late or now - self.kept >= KEPT_EVERY:
            held = {key: value.cpu().contiguous() for key, value in state().items()}
            with replacing(self.file) as part:
                save_file(held, part, {"training": self.name})
            self.clock.keep()
            self.kept = now
        if late and (not first or self.session.late(0)):
            raise OutOfTime(f"{self.name}: stopped within its training")


class Row:
    """One row of a run in its folder: condense, save, load again, score."""

    def __init__(self, name: str, recipe: Recipe, folder: Path, data: ImageData, session: Session) -> None:
        self.name, self.recipe, self.folder, self.data, self.session = name, recipe, folder, data, session
        self.streams = Streams(recipe["seed"], session.device)
        self.condensation = Condensation(name, recipe, folder, data, session, self.streams)
        self.scored = folder / "checkpoints" / "evaluate.json"
        self.way = folder / "checkpoints" / "training.json"

    def run(self) -> Values:
        """The row's result, from its file if it is there."""
        file, artefact, ranks = self.folder / "result.json", self.condensation.artefact, self.session.ranks
        if ranks.once(file.is_file):
            return self.checked(dict(read_json(file)))
        self.condensation.begin()
        examples: Examples
        if self.name == FULL:
            examples, kept = self.data.train, stored_full(self.data)
        else:
            examples = self.condensation.run()
            kept = stored(examples, artefact)
        scores = self.evaluate(examples)

        def finish() -> Values:
            result = self.result(scores, kept, artefact)
            write_json(file, result)
            self.condensation.tidy()
            return result

        return ranks.once(finish)

    def checked(self, result: Values) -> Values:
        """A result that is there, if it is of these images and its set is there, too."""
        if result["data"]["fingerprint"] != self.data.fingerprint:
            raise UserError(
                f"the result in {self.folder} is of other images than {self.data.name} has now; put those back, or "
                "begin anew in another folder"
            )
        if self.name != FULL and not self.condensation.artefact.is_file():
            raise UserError(
                f"{self.folder} has a result.json, but the set it is of is gone: put {self.condensation.artefact.name} "
                "back, or delete result.json to have it condensed again"
            )
        return result

    def evaluate(self, examples: Examples) -> list[Score]:
        """Scores of all the recipe's networks, those already scored from the file of the last session."""
        ranks = self.session.ranks
        full, shape, classes = self.name == FULL, self.data.shape, len(self.data.classes)

        def choose() -> Recipe:
            return self.session.training_chosen(
                self.recipe, shape, classes, len(examples), self.way, self.name, full=full
            )

        self.recipe = ranks.once(choose)
        file = self.folder / "checkpoints" / "training.safetensors"
        return score(
            self.recipe,
            examples,
            self.data,
            self.streams,
            self.session.display,
            title=f"{self.name}: evaluate",
            full=full,
            done=ranks.once(self.kept),
            keep=self.keep if ranks.first else None,
            ranks=ranks,
            bookmark=lambda name: TrainingFile(file, name, self.session, self.condensation.clock),
        )

    def kept(self) -> dict[str, list[float]]:
        """Accuracies of networks scored so far, by network."""
        return dict(read_json(self.scored)) if self.scored.is_file() else {}

    def keep(self, network: str, accuracies: Sequence[float]) -> None:
        """Write down the accuracies of a network so far."""
        write_json(self.scored, self.kept() | {network: list(accuracies)})
        self.condensation.clock.keep()

    def result(self, scores: Sequence[Score], kept: Values, artefact: Path) -> Values:
        """What goes to ``result.json``."""
        recipe = self.recipe
        privacy = assemble.guarantee(recipe, self.data)
        return {
            "schema": SCHEMA,
            "row": self.name,
            "recipe": recipe.name,
            "overrides": self.session.changes,
            "seed": recipe["seed"],
            "fraction": fraction(recipe),
            "smoke": self.session.smoke,
            **environment(self.session.device, self.session.ranks.world),
            **self.condensation.clock.spent(),
            "peak_bytes": peak_bytes(self.session.device),
            "budget": recipe["budget"],
            "compute": recipe["compute"],
            "values": recipe.anywhere().values,
            "training": {key: recipe["evaluate"][key] for key in settling.TRAINED_BY},
            "data": {
                "name": self.data.name,
                "fingerprint": self.data.fingerprint,
                "preprocessing": self.data.preprocessing,
                "split": recipe.evaluate.split,
            },
            "stored": kept,
            **({} if privacy is None else {"privacy": privacy}),
            "evaluation": [as_json(score) for score in scores],
            "artefact_sha256": sha256(artefact.read_bytes()).hexdigest() if artefact.is_file() else None,
        }
