"""Images by class, from their labels."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from condensate.errors import UserError
from condensate.streams import Streams


def divide(labels: Tensor, part: float, stream: str, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Indices that divide images in two, class by class, both ascending: those kept and the ``part`` taken.

    The division depends on the labels and the name of the stream alone, not on the seed of a run. Of each class
    at least one image is taken and one kept.

    Raises:
        UserError: If a class has fewer than two images.
    """
    taken = []
    for label, (name, members) in enumerate(zip(classes, by_class(labels, len(classes)))):
        if len(members) < 2:
            raise UserError(
                f"class {name} has too few images ({len(members)}) to hold any out for {stream}; it needs 2"
            )
        count = min(max(round(part * len(members)), 1), len(members) - 1)
        taken.append(members[torch.randperm(len(members), generator=Streams(0)(stream, label))[:count]])
    away = torch.zeros(len(labels), dtype=torch.bool)
    away[torch.cat(taken)] = True
    return (~away).nonzero().flatten(), away.nonzero().flatten()


def by_class(labels: Tensor, classes: int) -> tuple[Tensor, ...]:
    """For each class the indices of its images, ascending."""
    numbers = labels.cpu().numpy()
    order = torch.from_numpy(np.argsort(numbers, kind="stable")).to(labels.device)
    return order.split(np.bincount(numbers, minlength=classes).tolist())
