"""What a recipe says of measuring privacy."""

from dataclasses import dataclass

from condensate.errors import UserError
from condensate.privacy.membership import FEWEST_SHADOWS


@dataclass(frozen=True)
class PrivacyOptions:
    """How much membership inference is given to work with.

    Args:
        shadows: Condensations of random halves of the training images, in complementary pairs, each in turn the target.
            From 64 on LiRA has variances of each image's own, with fewer those of all images together.
        networks: That the attacker trains on each set, averaged over.
        fprs: False-positive rates at which true ones are reported; null is 1 % and 0.1 %, where there are ten
            non-members' scores or more beyond.
        released: A saved set, or the folder of its run, whose own images are compared with training and test images
            beside; null for none.
    """

    shadows: int = 64
    networks: int = 3
    fprs: list[float] | None = None
    released: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot run, whatever the data."""
        if self.shadows < FEWEST_SHADOWS or self.shadows % 2:
            raise UserError(
                f"privacy.shadows come in pairs that halve the images: it must be even and at least {FEWEST_SHADOWS}, "
                f"got {self.shadows}"
            )
        if self.networks < 1:
            raise UserError(f"privacy.networks must be at least 1, got {self.networks}")
        for fpr in self.fprs or ():
            if not 0 < fpr < 1:
                raise UserError(f"privacy.fprs must be above 0 and below 1, got {fpr:g}")
