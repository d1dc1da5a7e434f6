"""A data set as a stream of experiences, each with images of some classes alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from condensate.continual.options import ContinualOptions
from condensate.data import ImageData, measure
from condensate.errors import UserError, unknown


@dataclass(frozen=True)
class Experience:
    """What is seen at one step.

    Args:
        number: Its place in the stream, from 0.
        data: Images of its classes alone, numbered from 0 within it; the names are those of the stream's classes.
    """

    number: int
    data: ImageData


@dataclass(frozen=True)
class Stream:
    """A sequence of experiences.

    Args:
        experiences: In the order they are seen.
        classes: Names of all classes. A network tells all of them apart from the first step on.
    """

    experiences: tuple[Experience, ...]
    classes: tuple[str, ...]

    @property
    def slots(self) -> tuple[int, ...]:
        """Classes of every experience, each of which has a share of the budget."""
        return tuple(len(experience.data.classes) for experience in self.experiences)

    def seen(self, number: int) -> int:
        """How many classes were seen up to an experience."""
        return len({name for experience in self.experiences[: number + 1] for name in experience.data.classes})


def class_order(classes: int, seed: int) -> list[int]:
    """The order in which the paper of DM takes the classes of a data set: NumPy's legacy generator, permuted.

    Zhao & Bilen, "Dataset Condensation with Distribution Matching", WACV 2023; their code uses seeds 0 to 4.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"a class order needs a seed from 0 to {2**32 - 1}, got {seed}")
    return [int(label) for label in np.random.RandomState(seed).permutation(classes)]


def split_stream(
    datasets: Sequence[ImageData],
    options: ContinualOptions,
    seed: int,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Stream:
    """The stream of one class order.

    Nothing of a later experience is used in an earlier one: where the normalisation is to be measured, it is that of
    the first experience's training images, and all later ones are seen through it.

    Args:
        datasets: Of equal image shape, in the order they are seen.
        options: How they are divided.
        seed: Of the class order.
        mean: Per channel, of the normalisation of all images, on the scale 0 to 1; measured when absent.
        std: Likewise.

    Raises:
        UserError: The groups are not a division of the classes, or the data sets do not go together.
    """
    first = datasets[0]
    for data in datasets[1:]:
        if data.shape != first.shape:
            raise UserError(
                f"the images of a stream must have one shape, got {first.shape} of {first.name} and {data.shape} of "
                f"{data.name}; convert them with --data.size and --data.channels"
            )
    parts: list[ImageData] = []
    names: list[str] = []
    for number, data in enumerate(datasets):
        data = replace(data, classes=_names(data, names, number, options))
        names += [name for name in data.classes if name not in names]
        parts += [data.only(group) for group in _groups(data, options, seed)]
    measured = measure(parts[0].train.pixels)
    mean = measured[0] if mean is None else mean
    std = [value or 1.0 for value in measured[1]] if std is None else std
    return Stream(
        tuple(Experience(number, part.normalised(mean, std)) for number, part in enumerate(parts)), tuple(names)
    )


def _names(data: ImageData, taken: Sequence[str], number: int, options: ContinualOptions) -> tuple[str, ...]:
    """What the classes of a data set are called in the stream."""
    if options.labels == "shared" and number:
        if len(data.classes) != len(taken):
            raise UserError(
                f"data sets that share labels need equally many classes, got {len(taken)} and {len(data.classes)} of "
                f"{data.name}"
            )
        return tuple(taken)
    if set(taken) & set(data.classes):
        return tuple(f"{data.name} {number + 1}: {name}" for name in data.classes)
    return data.classes


def _groups(data: ImageData, options: ContinualOptions, seed: int) -> list[list[int]]:
    """Classes of every experience of a data set."""
    count = len(data.classes)
    if options.groups is not None:
        return _checked(options.groups, data.classes)
    if options.steps > count:
        raise UserError(
            f"{count} classes of {data.name} make at most {count} experiences, not {options.steps}: "
            f"--continual.steps {count}"
        )
    if options.labels == "shared":
        return [list(range(count))]
    return [part.tolist() for part in np.array_split(class_order(count, seed), options.steps)]


def _checked(groups: Sequence[Sequence[int | str]], classes: Sequence[str]) -> list[list[int]]:
    """Groups of classes by number; refuses those that overlap or leave a class out."""
    found: dict[int, int] = {}
    numbered = []
    for number, group in enumerate(groups):
        if not group:
            raise UserError(f"experience {number + 1} of continual.groups has no class")
        numbers = [_number(label, classes) for label in group]
        for label in numbers:
            if label in found:
                raise UserError(
                    f"continual.groups overlap: class {classes[label]} is in experiences {found[label] + 1} and "
                    f"{number + 1}; every class belongs to one"
                )
            found[label] = number
        numbered.append(numbers)
    missing = [name for label, name in enumerate(classes) if label not in found]
    if missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise UserError(
            f"continual.groups miss {', '.join(missing[:10])}{more}; each of the {len(classes)} classes belongs to "
            "one experience"
        )
    return numbered


def _number(label: int | str, classes: Sequence[str]) -> int:
    """A class by its name, or by its number where no class is named so."""
    if str(label) in classes:
        return list(classes).index(str(label))
    if isinstance(label, int) and 0 <= label < len(classes):
        return label
    if isinstance(label, int):
        raise UserError(f"continual.groups names class {label}; there are classes 0 to {len(classes) - 1}")
    raise unknown("class in continual.groups", label, classes)
