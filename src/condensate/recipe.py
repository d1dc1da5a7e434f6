"""Recipes: complete descriptions of a run, section by section."""

import json
import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Literal

import yaml

from condensate import data
from condensate.augment import Augment
from condensate.classic import ClassicAugment
from condensate.compute import ComputeOptions
from condensate.continual import ContinualOptions
from condensate.errors import UserError
from condensate.experts import ExpertOptions
from condensate.networks import NETWORKS
from condensate.objectives import OBJECTIVES
from condensate.parameterizations import PARAMETERIZATIONS, Shape, pixel_bits
from condensate.privacy import PrivacyOptions
from condensate.starts import STARTS

Values = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """How much may be stored; one of the two.

    Args:
        ipc: Images per class: the bits of that many float32 images of every class.
        bytes: Of the whole set.
    """

    ipc: int | None = None
    bytes: int | None = None

    def bits(self, classes: int, shape: Shape) -> int:
        """Bits of the whole set."""
        if (self.ipc is None) == (self.bytes is None):
            raise UserError(
                f"a budget is either ipc or bytes, got {self.ipc} and {self.bytes}: give one of --budget.ipc and "
                "--budget.bytes"
            )
        amount = self.ipc if self.bytes is None else self.bytes
        if amount is None or amount < 1:
            key = "ipc" if self.bytes is None else "bytes"
            raise UserError(f"--budget.{key} must be at least 1, got {amount}")
        return amount * 8 if self.bytes is not None else classes * pixel_bits(amount, shape)


@dataclass(frozen=True)
class Condense:
    """How the stored numbers are optimised.

    Args:
        episodes: Freshly drawn networks.
        lr: Learning rate of the stored numbers.
        momentum: Of SGD.
        schedule: Of all learning rates: constant, as published, or cosine, which falls to 0 over the episodes.
        lr_labels: Learning rate of soft labels, which start as the classes; 0 keeps hard labels. Only with experts.
        lr_step: Learning rate of the step size; 0 keeps it. Only with experts.
        checkpoint: Episodes between checkpoints; there is one a minute, too.
    """

    episodes: int = 20000
    lr: float = 1.0
    momentum: float = 0.5
    schedule: Literal["constant", "cosine"] = "constant"
    lr_labels: float = 0.0
    lr_step: float = 0.0
    checkpoint: int = 500

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        for key, allowed, wanted in (
            ("episodes", self.episodes >= 0, "at least 0"),
            ("checkpoint", self.checkpoint >= 1, "at least 1"),
            ("lr", 0 < self.lr < math.inf, "above 0 and finite"),
            ("momentum", 0 <= self.momentum < 1, "at least 0 and below 1"),
        ):
            if not allowed:
                raise UserError(f"condense.{key} must be {wanted}, got {getattr(self, key)}")
        if not (0 <= self.lr_labels < math.inf and 0 <= self.lr_step < math.inf):
            raise UserError(
                f"condense.lr_labels and lr_step must be finite and at least 0, got {self.lr_labels}, {self.lr_step}"
            )


@dataclass(frozen=True)
class Evaluate:
    """How networks are trained on the result and scored.

    Args:
        networks: Names of networks, variants and lists of them (see the guide); "same" is the recipe's own.
        repeats: Networks of each kind.
        epochs: Passes over the synthetic set.
        epochs_full: Passes over the full training set, for the row "full".
        lr: Learning rate; null is the learned step size if there is one, else 0.01.
        augmentation: While training: dsa, one operator a batch as in section augment, or dc, one an image.
        ops: Its operators; null is the recipe's own of dsa, and crop, scale and rotate of dc.
        split: Which real images score: test, or validation, on which choices are made.
        compile: Whether the training step is compiled; auto where that is won back.
        precision: Of what layers multiply in training; parameters and loss are float32 always. auto is bfloat16 where
            the machine has instructions for it, else float32.
        tiles: Likewise of networks trained one by one; see compute.tiles.
        together: Networks trained at a time; null is one on the CPU, as many as fill it on a GPU.
    """

    networks: list[str] = field(default_factory=lambda: ["same"])
    repeats: int = 20
    epochs: int = 1000
    epochs_full: int = 100
    lr: float | None = None
    augmentation: Literal["dsa", "dc"] = "dsa"
    ops: list[str] | None = None
    split: Literal["test", "validation"] = "test"
    compile: Literal["auto", "always", "never"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    tiles: Literal["auto", "always", "never"] = "auto"
    together: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        for key in ("repeats", "epochs", "epochs_full"):
            if getattr(self, key) < 1:
                raise UserError(f"evaluate.{key} must be at least 1, got {getattr(self, key)}")
        if not self.networks:
            raise UserError("evaluate.networks names none; name one at least, as in --evaluate.networks same")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise UserError(f"evaluate.lr must be above 0 and finite, got {self.lr}")
        if self.together is not None and self.together < 1:
            raise UserError(f"evaluate.together must be at least 1, or null, got {self.together}")
        if self.ops is not None:
            {"dsa": Augment, "dc": ClassicAugment}[self.augmentation](self.ops)


# A section of a recipe is the keywords of one of these...
SECTIONS: dict[str, Callable[..., Any]] = {
    "data": data.load,
    "budget": Budget,
    "augment": Augment,
    "compute": ComputeOptions,
    "condense": Condense,
    "evaluate": Evaluate,
}
# ...or a name and the keyword-only arguments of what it names.
NAMED: dict[str, tuple[Mapping[str, Callable[..., Any]], str]] = {
    "parameterization": (PARAMETERIZATIONS, "lowrank"),
    "start": (STARTS, "noise"),
    "network": (NETWORKS, "convnet"),
    "objective": (OBJECTIVES, "dm"),
}
# A recipe whose objective matches expert trajectories has this section, too.
EXPERTS = "experts"

# What is studied with many condensations has a section of its own, where it is asked for.
STUDIES: dict[str, Callable[..., Any]] = {"continual": ContinualOptions, "privacy": PrivacyOptions}


@dataclass(frozen=True)
class Recipe:
    """A complete description of a run.

    Args:
        name: Of the recipe; runs are filed under it.
        values: All sections with all their keys, plain YAML.
        about: Source, published and own numbers and cost, in words.
    """

    name: str
    values: Values
    about: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, section: str) -> Any:
        """One section's keys (a copy)."""
        return deepcopy(self.values[section])

    def options(self, section: str) -> Values:
        """The keys of a named section without the name."""
        return {key: value for key, value in self[section].items() if key != "name"}

    @property
    def budget(self) -> Budget:
        """The budget."""
        return Budget(**self["budget"])

    @property
    def experts(self) -> ExpertOptions | None:
        """How experts are trained, where the objective matches any."""
        return ExpertOptions(**self[EXPERTS]) if EXPERTS in self.values else None

    @property
    def continual(self) -> ContinualOptions:
        """How data become a stream of experiences; the usual where the recipe does not say."""
        return ContinualOptions(**self.values.get("continual", {}))

    @property
    def privacy(self) -> PrivacyOptions:
        """What membership inference is given; the usual where the recipe does not say."""
        return PrivacyOptions(**self.values.get("privacy", {}))

    @property
    def condense(self) -> Condense:
        """How the stored numbers are optimised."""
        return Condense(**self["condense"])

    @property
    def evaluate(self) -> Evaluate:
        """How the result is scored."""
        return Evaluate(**self["evaluate"])

    def with_values(self, **sections: Any) -> "Recipe":
        """A copy with some keys changed; a dict is merged into its section, and a changed name drops the old keys."""
        return replace(self, values=merge(self.values, sections))

    def anywhere(self) -> "Recipe":
        """A copy that does not tell where data and experts lie, how they are held or what of other runs is taken.

        None of that changes a result.
        """
        recipe = self.with_values(data={"path": None, "hold": "memory", "workers": None}, compute={"reuse": False})
        return recipe if recipe.experts is None else recipe.with_values(experts={"store": None, "make": True})

    @property
    def digest(self) -> str:
        """SHA-256 of all that a result hangs on: of ``anywhere`` without the rows it is compared with.

        How experts are computed is not in it: a run takes those that are there, whoever made them.
        """
        values = {section: content for section, content in self.anywhere().values.items() if section != "compare"}
        values["compute"] = {key: value for key, value in values["compute"].items() if key != "experts"}
        return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def dump(self) -> str:
        """The recipe as YAML, what it is in a comment at the top."""
        comment = "".join(f"# {key.capitalize()}: {value}\n" for key, value in self.about.items())
        return comment + yaml.safe_dump(self.values, sort_keys=False, default_flow_style=None, width=120)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Values:
    """``base`` with ``changes`` over it, section by section.

    Where a section's name changes, its old keys go; where data.zca is switched on, so do mean and std, whose place it
    takes, and where one budget is given, the other.
    """
    merged: Values = _copied(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            renamed = key in NAMED and "name" in old and value.get("name", old["name"]) != old["name"]
            if key == "data" and value.get("zca") is True:
                old = {**old, "mean": None, "std": None}
            if key == "budget" and len(given := {name for name, amount in value.items() if amount is not None}) == 1:
                old = {**old, **dict.fromkeys(old.keys() - given)}
            merged[key] = _copied(value) if renamed else merge(old, value)
            if renamed and key == "objective" and EXPERTS not in changes:
                merged.pop(EXPERTS, None)
                for learned in {"lr_labels", "lr_step"} - set(changes.get("condense", ())):
                    merged.get("condense", {}).pop(learned, None)
        else:
            merged[key] = _copied(value)
    return merged


def _copied(value: Any) -> Any:
    """A copy of what YAML holds; ``deepcopy`` took a tenth of a run's start for all shipped recipes."""
    if isinstance(value, Mapping):
        return {key: _copied(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_copied, value))
    return value
