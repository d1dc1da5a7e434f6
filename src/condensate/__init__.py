"""Dataset condensation: any matching objective over any storage of the synthetic images."""

from condensate import collecting

__version__ = "0.1.0"

with collecting.importing():
    from condensate.allocation import keep_freed_memory
    from condensate.augment import Augment
    from condensate.classic import ClassicAugment
    from condensate.compute import Compute
    from condensate.continual import Reservoir, Union, load_memory
    from condensate.data import ImageData, from_arrays
    from condensate.data import load as load_data
    from condensate.errors import UserError
    from condensate.evaluation import Score, evaluate
    from condensate.loop import condense
    from condensate.losses import MeanLoss
    from condensate.networks import ConvNet, Network
    from condensate.networks import build as build_network
    from condensate.objectives import (
        DistributionMatching,
        GradientMatching,
        Objective,
        PrivateDistributionMatching,
        Replayed,
        TrajectoryMatching,
    )
    from condensate.parameterizations import LowRank, Parameterization, Pixels, Uint8, capacity
    from condensate.ranks import Ranks
    from condensate.streams import Streams
    from condensate.synthetic import SyntheticDataset, class_major, load
    from condensate.training import fit
    from condensate.whitening import Whitening

__all__ = [
    "Augment",
    "ClassicAugment",
    "Compute",
    "ConvNet",
    "DistributionMatching",
    "GradientMatching",
    "ImageData",
    "LowRank",
    "MeanLoss",
    "Network",
    "Objective",
    "Parameterization",
    "Pixels",
    "PrivateDistributionMatching",
    "Ranks",
    "Replayed",
    "Reservoir",
    "Score",
    "Streams",
    "SyntheticDataset",
    "TrajectoryMatching",
    "Uint8",
    "Union",
    "UserError",
    "Whitening",
    "build_network",
    "capacity",
    "class_major",
    "condense",
    "evaluate",
    "fit",
    "from_arrays",
    "keep_freed_memory",
    "load",
    "load_data",
    "load_memory",
]
