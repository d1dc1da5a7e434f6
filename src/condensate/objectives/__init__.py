"""What of real and synthetic images is matched: one method a file."""

from condensate.objectives.base import Objective, Work
from condensate.objectives.distribution import DistributionMatching

OBJECTIVES: dict[str, type[Objective]] = {"dm": DistributionMatching}

__all__ = ["OBJECTIVES", "DistributionMatching", "Objective", "Work"]
