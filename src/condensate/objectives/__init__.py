"""What of real and synthetic images is matched: one method a file."""

from condensate.objectives.base import Layers, Objective, Room, Work
from condensate.objectives.distribution import DistributionMatching
from condensate.objectives.gradient import GradientMatching
from condensate.objectives.private import PrivateDistributionMatching
from condensate.objectives.replayed import Replayed
from condensate.objectives.trajectory import TrajectoryMatching

OBJECTIVES: dict[str, type[Objective]] = {
    "dm": DistributionMatching,
    "dm-private": PrivateDistributionMatching,
    "dc": GradientMatching,
    "mtt": TrajectoryMatching,
}

__all__ = [
    "OBJECTIVES",
    "DistributionMatching",
    "GradientMatching",
    "Layers",
    "Objective",
    "PrivateDistributionMatching",
    "Replayed",
    "Room",
    "TrajectoryMatching",
    "Work",
]
