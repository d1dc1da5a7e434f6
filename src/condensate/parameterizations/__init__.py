"""How synthetic images are stored: one idea a file."""

from condensate.parameterizations.base import FLOAT_BITS, Cost, Parameterization, Shape, capacity, pixel_bits
from condensate.parameterizations.lowrank import LowRank
from condensate.parameterizations.pixels import Pixels
from condensate.parameterizations.quantised import Uint8

PARAMETERIZATIONS: dict[str, type[Parameterization]] = {"pixels": Pixels, "lowrank": LowRank, "uint8": Uint8}

__all__ = [
    "FLOAT_BITS",
    "PARAMETERIZATIONS",
    "Cost",
    "LowRank",
    "Parameterization",
    "Pixels",
    "Shape",
    "Uint8",
    "capacity",
    "pixel_bits",
]
