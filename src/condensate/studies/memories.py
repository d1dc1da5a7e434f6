"""One memory along one stream of experiences: filled, used and scored, step by step."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from shutil import rmtree

import torch
from safetensors.torch import save_file

from condensate import assemble, settling
from condensate.atomic import replacing
from condensate.condensing import Condensation
from condensate.continual import ContinualOptions, Reservoir, Stream, Union, keep_first, load_memory, save_memory
from condensate.data import ImageData, Split
from condensate.errors import UserError
from condensate.evaluation import train_networks
from condensate.examples import Examples
from condensate.losses import MeanLoss
from condensate.networks import Network, build
from condensate.parameterizations import PARAMETERIZATIONS
from condensate.recipe import Recipe, Values
from condensate.records import read_json, read_tensors, write_json
from condensate.scoring import learning_rate
from condensate.sessions import Clock, Session
from condensate.streams import Streams
from condensate.synthetic import SyntheticDataset
from condensate.training import accuracy, fit

FULL, FINETUNE = "full", "finetune"
# Rows whose memory sees its images one by one, as recipes of their storage.
RESERVOIRS = {"reservoir": "random", "reservoir-uint8": "random-uint8"}
Parts = list[SyntheticDataset]


@dataclass(frozen=True)
class Allowance:
    """What a memory may take, in bits.

    Args:
        total: Of the whole budget.
        slots: Classes of every experience, each of which has an equal share.
        fixed: Whether all of it is divided among the classes seen so far.
    """

    total: int
    slots: tuple[int, ...]
    fixed: bool

    def per_class(self, step: int) -> int:
        """Of one class, after experience ``step``."""
        return self.total // (sum(self.slots[: step + 1]) if self.fixed else sum(self.slots))

    def memory(self, step: int) -> int:
        """Of everything remembered after experience ``step``."""
        return self.total if self.fixed else self.per_class(step) * sum(self.slots[: step + 1])

    def of_classes(self, recipe: Recipe, step: int, classes: int) -> Recipe:
        """The recipe with the budget of so many classes after experience ``step``."""
        return recipe.with_values(budget={"ipc": None, "bytes": self.per_class(step) * classes // 8})


class Memory:
    """A row of a continual study along one class order, in its folder.

    Args:
        name: Of the row: a memory's, "full" for all images seen so far, or "finetune" for none.
        recipe: Complete; its budget is that of the whole stream.
        folder: Where every step has a folder of its own.
        stream: The experiences.
        session: Device and display.
    """

    def __init__(self, name: str, recipe: Recipe, folder: Path, stream: Stream, session: Session) -> None:
        self.name, self.recipe, self.folder, self.stream, self.session = name, recipe, folder, stream, session
        self.options: ContinualOptions = recipe.continual
        self.streams = Streams(recipe["seed"], session.device)
        total = recipe.budget.bits(sum(stream.slots), stream.experiences[0].data.shape)
        self.allowance = Allowance(total, stream.slots, self.options.budget == "fixed")
        self.goes_on = name == FINETUNE or (self.options.protocol == "replay" and name != FULL)

    def run(self) -> list[Values]:
        """What every step gave, those done before from their files."""
        results = []
        for step in range(len(self.stream.experiences)):
            file = self.step(step) / "result.json"
            if not file.is_file():
                write_json(file, self.take(step))
                rmtree(file.parent / "checkpoints", ignore_errors=True)
            if step:  # also where an earlier session was stopped before it came to this
                (self.step(step - 1) / "networks.safetensors").unlink(missing_ok=True)
            results.append(read_json(file))
        (self.step(step) / "networks.safetensors").unlink(missing_ok=True)
        return results

    def step(self, number: int) -> Path:
        """The folder of experience ``number``, from 0."""
        return self.folder / f"step{number + 1}"

    def take(self, step: int) -> Values:
        """Remember experience ``step`` and score what is remembered."""
        clock = Clock(self.step(step) / "checkpoints" / "seconds.json")
        before = self.remembered(step - 1) if step else []
        parts, shrinking = before, None
        if self.name not in (FULL, FINETUNE):
            parts, shrinking = self.remember(step, before, clock)
            self.check(parts, step)
            save_memory(parts, self.step(step) / "memory")
        if self.goes_on:
            scores = self.rehearse(step, before, clock)
        else:
            seen = [e.data.train for e in self.stream.experiences[: step + 1]]
            file = self.step(step) / "checkpoints" / "scores.json"
            scores = self.score(seen if self.name == FULL else parts, step, file, clock)
        return {
            "classes": list(self.stream.experiences[step].data.classes),
            "classes_seen": self.stream.seen(step),
            "images": sum(len(part) for part in parts),
            "bytes": sum(part.cost().bits for part in parts) // 8,
            "allowed_bytes": self.allowance.memory(step) // 8,
            "networks": scores,
            "seen": [self.on_all(accuracies, step) for accuracies in scores],
            "shrinking": shrinking,
            **clock.spent(),
        }

    def remembered(self, step: int) -> Parts:
        """The sets of the memory after experience ``step``, as they were saved."""
        if self.name in (FULL, FINETUNE):
            return []
        files = load_memory(self.step(step) / "memory").parts
        folder, found = self.step(step), sum(map(len, files))
        held = read_json(folder / "result.json")["images"]
        if found != held:
            raise UserError(
                f"the memory in {folder / 'memory'} holds {found} images and not the {held} it had: put back what is "
                f"gone, or delete {folder} and all later steps to have them done again"
            )
        return [part.to(self.session.device) for part in files if isinstance(part, SyntheticDataset)]

    def remember(self, step: int, before: Parts, clock: Clock) -> tuple[Parts, Values | None]:
        """The memory with experience ``step`` in it; what shrinking the older part cost, if it was shrunk."""
        if self.name in RESERVOIRS:
            clock.start()
            return self.reservoir(step), None
        old, shrinking = before, None
        if self.allowance.fixed and before:
            old = self.shrink(step, before, clock)
            if sum(map(len, old)) < sum(map(len, before)):
                after = self.score(old, step - 1, self.step(step) / "checkpoints" / "shrunk.json", clock)
                unshrunk = read_json(self.step(step - 1) / "result.json")["networks"]
                if self.goes_on:  # the networks of the step before knew more than their memory
                    file = self.step(step) / "checkpoints" / "unshrunk.json"
                    unshrunk = self.score(before, step - 1, file, clock)
                shrinking = {
                    "rule": "recondense" if self.recondenses else "drop",
                    "images": [sum(map(len, before)), sum(map(len, old))],
                    "before": [self.on_all(a, step - 1) for a in unshrunk],
                    "after": [self.on_all(a, step - 1) for a in after],
                }
        data = self.stream.experiences[step].data
        names = self.streams.under("experience", step)
        return [*old, self.condense(step, data, self.step(step), names, clock)], shrinking

    def condense(
        self, step: int, data: ImageData, folder: Path, streams: Streams, clock: Clock, slots: int | None = None
    ) -> SyntheticDataset:
        """Images of ``data`` within as many shares as it has classes, or ``slots``, after experience ``step``."""
        recipe = self.allowance.of_classes(self.recipe, step, slots or len(data.classes))
        title = f"{self.folder.parent.name} {self.name} step {step + 1} of {len(self.stream.experiences)}"
        outputs = len(self.stream.classes)
        condensation = Condensation(title, recipe, folder, data, self.session, streams, outputs, clock)
        condensation.begin()
        synthetic = condensation.run()
        rmtree(folder / "experts", ignore_errors=True)  # of a smoke run
        return synthetic

    @cached_property
    def recondenses(self) -> bool:
        """Whether older classes are condensed again when they are shrunk; real images are always dropped."""
        return self.options.shrink == "recondense" and bool(self.recipe.condense.episodes)

    def shrink(self, step: int, before: Parts, clock: Clock) -> Parts:
        """The sets of earlier experiences within what is left to them after experience ``step``."""

        def room(classes: int, slots: int) -> int:
            recipe = self.allowance.of_classes(self.recipe, step, slots)
            return assemble.images_per_class(recipe, classes, self.stream.experiences[0].data.shape)

        if not self.recondenses:
            return [keep_first(part, room(len(part.classes), len(part.classes))) for part in before]
        union = Union(before)
        slots = sum(self.stream.slots[:step])
        if room(len(union.classes), slots) * len(union.classes) >= len(union):
            return before
        folder, streams = self.step(step) / "older", self.streams.under("again", step)
        return [self.condense(step, as_data(union, self.stream.experiences[0].data), folder, streams, clock, slots)]

    def reservoir(self, step: int) -> Parts:
        """What a class-balanced reservoir holds after experience ``step``, a set for every class."""
        data = [experience.data for experience in self.stream.experiences[: step + 1]]
        shape, classes = data[0].shape, self.stream.classes
        storage = PARAMETERIZATIONS[self.recipe["parameterization"]["name"]]
        options = self.recipe.options("parameterization")
        one = storage.cost(1, shape, **options).bits
        draws = Streams(self.streams.seed)  # one number at a time, on the CPU wherever the images are
        kept, first = Reservoir(0, draws("reservoir")), 0
        for number, part in enumerate(data):
            kept.capacity = self.allowance.memory(number) // one
            arrival = torch.randperm(len(part.train), generator=draws("arrival", number))
            numbers = Union([part.train], classes).labels.tolist()
            for index in arrival.tolist():
                kept.observe(first + index, numbers[index])
            first += len(part.train)
        seen = Union([part.train for part in data], classes)
        parts = []
        for label, items in sorted(kept.kept.items()):
            stored = storage(len(items), shape, **options).to(self.session.device)
            stored.encode_(seen.images(seen.labels.new_tensor(items)))
            labels = seen.labels.new_zeros(len(items))
            parts.append(SyntheticDataset(stored, labels, classes=[classes[label]], mean=data[0].mean, std=data[0].std))
        return parts

    def check(self, parts: Parts, step: int) -> None:
        """Refuse a memory over its budget. The one number of a learned step size does not count, as published."""
        bits = sum(part.cost().bits - (32 if part.step_size is not None else 0) for part in parts)
        if bits > self.allowance.memory(step):
            raise RuntimeError(
                f"the memory of {self.name} takes {bits // 8} bytes after step {step + 1}, over its budget of "
                f"{self.allowance.memory(step) // 8}"
            )

    def score(
        self, parts: Sequence[SyntheticDataset | Split], step: int, kept: Path, clock: Clock
    ) -> list[list[float]]:
        """Accuracies of fresh networks trained on ``parts`` alone, on each experience so far; kept in a file."""
        examples, options = Union(parts, self.stream.classes), self.recipe.evaluate
        scores = read_json(kept) if kept.is_file() else []
        registered, keywords = self.network
        title = f"{self.folder.parent.name} {self.name} step {step + 1}"
        trained = train_networks(
            examples,
            len(self.stream.classes),
            self.streams.under("memory", step),
            network=registered,
            network_options=keywords,
            repeats=options.repeats,
            epochs=options.epochs_full if self.name == FULL else options.epochs,
            lr=self.rate(parts),
            augment=assemble.training_augment(self.recipe),
            start=len(scores),
            **settling.training_way(self.settled),
        )
        with self.session.display.work(f"{title}: evaluate", options.repeats, len(scores)) as progress:
            for network in trained:
                scores.append(self.accuracies(network, step))
                write_json(kept, scores)
                clock.keep()
                progress(len(scores))
        return list(scores)

    def rate(self, parts: Sequence[Examples]) -> float:
        """The learning rate given, else the mean of those learned with the sets, else 0.01."""
        rates = [learning_rate(self.recipe.evaluate.lr, part) for part in parts]
        return sum(rates) / len(rates)

    def rehearse(self, step: int, before: Parts, clock: Clock) -> list[list[float]]:
        """Accuracies of the networks of the step before, trained on by the new images beside those of ``before``."""
        experience = self.stream.experiences[step].data
        new = Union([experience.train], self.stream.classes)
        replay = Union(before, self.stream.classes) if before else None
        options, scores = self.recipe.evaluate, []
        states: dict[str, torch.Tensor] = {}
        earlier = read_tensors(self.step(step - 1) / "networks.safetensors")[0] if step else {}
        registered, keywords = self.network
        shape, classes, device = experience.shape, len(self.stream.classes), self.session.device
        network = build(registered, shape, classes, self.streams("program"), **keywords)
        loss = MeanLoss.laid_out(network, settling.training_way(self.settled)["compute"], shape, device)
        for repeat in range(options.repeats):
            generator = self.streams("rehearsal", repeat, step)
            network.reset_(generator)
            prefix = f"{repeat}."
            if step:
                network.load_state_dict({k[len(prefix) :]: v for k, v in earlier.items() if k.startswith(prefix)})
            fit(
                network,
                new,
                epochs=options.epochs_full,
                generator=generator,
                lr=0.01 if options.lr is None else options.lr,
                join_last=True,
                augment=assemble.training_augment(self.recipe),
                replay=replay,
                loss=loss,
            )
            plain = deepcopy(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            scores.append(self.accuracies(plain, step))
            states |= {prefix + name: value.cpu().contiguous() for name, value in plain.state_dict().items()}
        with replacing(self.step(step) / "networks.safetensors") as part:
            save_file(states, part)
        clock.keep()
        return scores

    @cached_property
    def settled(self) -> Recipe:
        """The recipe with how networks are trained settled, once for all steps, by the most they are trained on."""
        shape, classes, each = self.stream.experiences[0].data.shape, len(self.stream.classes), self.stream.experiences
        real = [len(experience.data.train) for experience in each]
        full = self.goes_on or self.name == FULL
        if full:
            images = 2 * max(real) if self.goes_on else sum(real)
        else:
            images = assemble.images_per_class(self.recipe, sum(self.stream.slots), shape) * classes
        title = f"{self.folder.parent.name} {self.name}"
        file = self.folder / "training.json"
        return self.session.training_chosen(self.recipe, shape, classes, images, file, title, full=full)

    def accuracies(self, network: Network, step: int) -> list[float]:
        """Accuracy on every experience up to ``step``, each among all classes."""
        return [accuracy(network, self.tests[number]) for number in range(step + 1)]

    def on_all(self, accuracies: Sequence[float], step: int) -> float:
        """The share of right answers among all test images up to ``step``."""
        counts = [len(test) for test in self.tests[: step + 1]]
        return sum(a * n for a, n in zip(accuracies, counts, strict=True)) / sum(counts)

    @cached_property
    def tests(self) -> list[Union]:
        """Real images of every experience that score, labelled as in the stream."""
        splits = [assemble.scoring_split(self.recipe, e.data) for e in self.stream.experiences]
        return [Union([split], self.stream.classes) for split in splits]

    @cached_property
    def network(self) -> tuple[str, Values]:
        """The one network that scores, by its registry name, and its keywords."""
        shape = self.stream.experiences[0].data.shape
        (_, registered, keywords), *_ = assemble.networks_of(self.recipe, shape, len(self.stream.classes))
        return registered, keywords


def as_data(union: Union, like: ImageData) -> ImageData:
    """Synthetic images in place of real ones, as they are: to be condensed again."""
    images = union.images().detach()
    split = Split(images, union.labels, union.classes, like.mean, like.std, like.whitening, seen=True)
    digest = sha256(images.cpu().numpy().tobytes()).hexdigest()
    return ImageData("memory", split, split, None, union.classes, like.mean, like.std, digest, like.whitening)
