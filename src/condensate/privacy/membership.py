"""Which images of the pool each shadow condenses."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condensate.errors import UserError
from condensate.streams import Streams

FEWEST_SHADOWS = 4


def draw_members(labels: Tensor, shadows: int, streams: Streams) -> Tensor:
    """Halves of a pool of images, in complementary pairs.

    Shadow 2i takes a random half of every class, shadow 2i + 1 the rest; the spare image of a class of odd size goes
    to one of the two by a draw. So every image is a member of exactly half of the shadows.

    Args:
        labels: Classes of the pool (n,).
        shadows: How many halves, T: even, at least 4.
        streams: Pair i draws for a class from the stream ("members", i, class).

    Returns:
        Whether shadow t condenses image i, (T, n), bool, on the CPU.

    Raises:
        UserError: If ``shadows`` is odd or below 4, or a class has a single image.
    """
    if shadows < FEWEST_SHADOWS or shadows % 2:
        raise UserError(f"shadows come in pairs that halve the pool: expected an even number from 4 on, got {shadows}")
    labels = labels.cpu()
    members = torch.zeros(shadows, len(labels), dtype=torch.bool)
    for label, count in zip(*(values.tolist() for values in labels.unique(return_counts=True))):
        if count < 2:
            raise UserError(
                f"class {label} has one image in the pool and cannot be halved; it needs 2, or leave it out"
            )
        index = (labels == label).nonzero().flatten()
        for pair in range(shadows // 2):
            generator = streams("members", pair, label)
            order = torch.randperm(count, generator=generator, device=generator.device).cpu()
            spare = int(torch.randint(2, (), generator=generator, device=generator.device)) if count % 2 else 0
            half = count // 2 + spare
            members[2 * pair, index[order[:half]]] = True
            members[2 * pair + 1, index[order[half:]]] = True
    return members


def check_members(values: NDArray[np.float64], members: NDArray[np.bool_]) -> None:
    """Refuse what is not a table of shadows by images with membership in complementary pairs.

    Args:
        values: One a shadow and image, (T, n).
        members: As ``draw_members`` makes them, (T, n).

    Raises:
        UserError: If the shapes differ, there are fewer than 4 shadows, shadows 2i and 2i + 1 do not share out the
            pool between them, or a value is not finite.
    """
    if values.shape != members.shape or values.ndim != 2:
        raise UserError(f"expected values and members of one shape (T, n), got {values.shape} and {members.shape}")
    if len(members) < FEWEST_SHADOWS or len(members) % 2 or not (members[0::2] ^ members[1::2]).all():
        raise UserError(
            f"shadows 2i and 2i + 1 must share out the pool between them, in at least 2 pairs; these {len(members)} "
            "do not: draw them with draw_members"
        )
    if not np.isfinite(values).all():
        raise UserError("what was recorded of the shadows must be finite: did the training of a network diverge?")
