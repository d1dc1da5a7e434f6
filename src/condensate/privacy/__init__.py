"""Whether a synthetic set gives away the images it was condensed from, measured by attacks on shadow condensations.

Half of a pool of real images, its members, is condensed many times over, each time another half; networks trained on
each synthetic set say what they make of every image of the pool; an attack that tells members from the rest by that
has found a leak.
"""

from condensate.privacy.attacks import ATTACKS, Attack, Record, confidence, lira, loss, regression, threshold
from condensate.privacy.curves import Estimate, Leakage, among_nearest, check_rates, measure, roc
from condensate.privacy.membership import check_members, draw_members
from condensate.privacy.neighbours import Nearness, nearest, nearness, share
from condensate.privacy.options import PrivacyOptions

__all__ = [
    "ATTACKS",
    "Attack",
    "Estimate",
    "Leakage",
    "Nearness",
    "PrivacyOptions",
    "Record",
    "among_nearest",
    "check_members",
    "check_rates",
    "confidence",
    "draw_members",
    "lira",
    "loss",
    "measure",
    "nearest",
    "nearness",
    "regression",
    "roc",
    "share",
    "threshold",
]
