"""Records of shadows whose leak is known."""

import numpy as np
import torch
from numpy.typing import NDArray

from condensate import Streams
from condensate.privacy import Record, draw_members

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def planted(shadows: int, images: int, shift: float, difficulty: float = 0.0, seed: int = 0) -> tuple[Record, Flags]:
    """Confidences of unit variance, higher by ``shift`` for members; images differ by ``difficulty``."""
    rng = np.random.default_rng(seed)
    members = draw_members(torch.arange(images) % 2, shadows, Streams(seed)).numpy()
    phi = rng.normal(size=members.shape) + shift * members + difficulty * rng.normal(size=images)
    p = 1 / (1 + np.exp(-phi))
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    return Record(-np.log(p), phi, np.maximum(p, 1 - p), entropy, (p > 0.5).astype(float)), members


def area(scores: Floats, members: Flags) -> float:
    """Share of pairs of a member and another in which the member scores higher, ties by half: all pairs."""
    inside, outside = scores[members][:, None], scores[~members][None]
    return float((inside > outside).mean() + (inside == outside).mean() / 2)
