"""What a recipe says of a stream of experiences."""

from dataclasses import dataclass, field
from typing import Any, Literal

from condensate.errors import UserError, unknown

DATA_KEYS = ("name", "path", "size", "channels")


@dataclass(frozen=True)
class ContinualOptions:
    """How a data set becomes a stream, and how its memory is kept and used.

    Args:
        steps: Experiences each data set is divided into, as evenly as can be, larger ones first.
        groups: Classes of every experience, by name or number, in place of steps and class orders.
        orders: How many class orders: number s is that of the seed ``seed + s``, which draws all else of it, too.
        protocol: gdumb trains fresh networks on the memory alone after every experience; replay trains one network
            on, on the new images and the memory of earlier experiences.
        budget: growing gives every class its share of the budget once; fixed divides the whole budget among the
            classes seen so far, and shrinks the older ones as others come.
        shrink: How, if fixed: drop keeps the first images of every class; recondense condenses the older ones'
            synthetic images again.
        then: Data sets after the first, as in ``[{name: fashion-mnist, path: DIR}]``; size and channels are those of
            section data unless given.
        labels: disjoint adds the classes of further data sets; shared gives class k of every data set one label.
    """

    steps: int = 5
    groups: list[list[int | str]] | None = None
    orders: int = 5
    protocol: Literal["gdumb", "replay"] = "gdumb"
    budget: Literal["growing", "fixed"] = "growing"
    shrink: Literal["drop", "recondense"] = "drop"
    then: list[dict[str, Any]] = field(default_factory=list)
    labels: Literal["disjoint", "shared"] = "disjoint"

    def __post_init__(self) -> None:
        """Refuse what cannot run, whatever the data."""
        known = {
            "protocol": ("gdumb", "replay"),
            "budget": ("growing", "fixed"),
            "shrink": ("drop", "recondense"),
            "labels": ("disjoint", "shared"),
        }
        for key, values in known.items():
            if getattr(self, key) not in values:
                raise unknown(f"continual.{key}", str(getattr(self, key)), values)
        if self.steps < 1 or self.orders < 1:
            raise UserError(
                f"continual.steps and continual.orders must be at least 1, got {self.steps} and {self.orders}"
            )
        for entry in self.then:
            for key in entry:
                if key not in DATA_KEYS:
                    raise unknown("key of continual.then", str(key), DATA_KEYS)
            for key, value in entry.items():
                if key != "name" and value is not None and not isinstance(value, str if key == "path" else int):
                    wanted = "a folder" if key == "path" else "a whole number"
                    raise UserError(f"continual.then: {key} must be {wanted}, got {value!r}")
            if not isinstance(entry.get("name"), str):
                raise UserError(f"continual.then needs the name of every data set, as in [{{name: svhn}}], got {entry}")
        if self.then and self.groups is not None:
            raise UserError("continual.groups divides one data set; drop it or continual.then")
        if self.labels == "shared" and (not self.then or self.steps != 1):
            raise UserError(
                "continual.labels shared makes one experience of each of several data sets: name more with "
                "continual.then and set continual.steps 1"
            )
