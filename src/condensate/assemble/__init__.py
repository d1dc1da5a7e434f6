"""From a recipe to the objects it describes."""

from condensate.assemble.images import image_data, random_data, scoring_split
from condensate.assemble.matching import experts, make_experts, objective, reuse
from condensate.assemble.networks import (
    expert_compute,
    expert_epochs,
    network,
    networks_of,
    training_augment,
    training_compute,
)
from condensate.assemble.sets import BASELINES, baseline, guarantee, images_per_class, normalised, start

__all__ = [
    "BASELINES",
    "baseline",
    "expert_compute",
    "expert_epochs",
    "experts",
    "guarantee",
    "image_data",
    "images_per_class",
    "make_experts",
    "network",
    "networks_of",
    "normalised",
    "objective",
    "random_data",
    "reuse",
    "scoring_split",
    "start",
    "training_augment",
    "training_compute",
]
