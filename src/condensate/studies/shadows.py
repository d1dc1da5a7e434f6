"""One shadow of a study of privacy: a condensed half of the pool, and what is recorded of it."""

import math
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from statistics import mean

import torch
from safetensors.torch import save_file
from torch import Tensor

from condensate import assemble, settling
from condensate.atomic import replacing
from condensate.condensing import Condensation
from condensate.data import ImageData, Split
from condensate.evaluation import train_networks
from condensate.examples import Examples
from condensate.figures import save_neighbours
from condensate.networks import Network
from condensate.privacy import Nearness, Record, nearness
from condensate.recipe import Recipe, Values
from condensate.records import write_json
from condensate.rows import FULL
from condensate.scoring import learning_rate
from condensate.sessions import Clock, Session
from condensate.streams import Streams
from condensate.synthetic import SyntheticDataset
from condensate.training import accuracy, scored_at_once

SPACES = ("pixels", "features")
RECORDED = ("loss", "confidence", "top", "entropy", "right")


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
        stored: Values = {"images": len(condensed), "bytes": len(condensed) * math.prod(condensed.shape)}
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
        told = {key: torch.from_numpy(getattr(record, key)) for key in RECORDED}
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
        shape, classes, file = self.data.shape, len(self.data.classes), self.folder.parent / "training.json"
        settled = self.session.training_chosen(
            self.recipe, shape, classes, len(examples), file, self.row, full=self.row == FULL
        )
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
            **settling.training_way(settled),
        )
        logits, right = [], []
        for network in trained:
            logits.append(_outputs(network, pool))
            right.append(accuracy(network, assemble.scoring_split(self.recipe, self.data)))
        return Record.of(torch.stack(logits), pool.labels), mean(right)


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


def nearness_of(found: dict[str, Tensor], space: str) -> Nearness:
    """What was recorded of a shadow's nearest images in one space."""
    return Nearness(*(found[f"{space}.{key}"] for key in ("to_member", "to_other", "member", "other")))


@torch.no_grad()
def _outputs(network: Network, split: Split) -> Tensor:
    """What a network says of all images of a split, in evaluation mode: (n, K)."""
    network.eval()
    index = torch.arange(len(split), device=split.labels.device)
    return torch.cat([network(split.images(part)) for part in index.split(scored_at_once(split.shape, index.device))])


@torch.no_grad()
def _features(network: Network, images: Tensor) -> Tensor:
    network.eval()
    return torch.cat([network.features(part) for part in images.split(scored_at_once(images.shape[1:], images.device))])
