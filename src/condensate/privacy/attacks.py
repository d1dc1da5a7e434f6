"""Attacks: from what the networks of each shadow say of the pool to scores of membership.

Every shadow is once the target and the others are what the attacker knows. Wherever an attack learns from the others,
it leaves the target's complement out too: that shadow's members are exactly the images that are not the target's, so
with it in, what is known of an image would be unequal for members and for others, and the attack would find
membership where there is none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condensate.privacy.membership import check_members

Floats = NDArray[np.float64]
Attack = Callable[["Record", NDArray[np.bool_]], Floats]

ENOUGH_SHADOWS = 64
LEAST_VARIANCE = 1e-6


@dataclass(frozen=True)
class Record:
    """What the networks trained on one set say of each image of the pool: arrays (n,), or (T, n) for T sets.

    An attacker who holds the set trains several networks and averages over them.

    Attributes:
        loss: Cross-entropy, mean over networks, in nats.
        confidence: As ``confidence`` gives it, in nats.
        top: Highest class probability, of the mean over networks of the probabilities.
        entropy: Of those mean probabilities, in nats.
        right: 1 where their highest is the label's, else 0.
    """

    loss: Floats
    confidence: Floats
    top: Floats
    entropy: Floats
    right: Floats

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> "Record":
        """Of one set: logits (k networks, n, K) and labels (n,) -> arrays (n,)."""
        mean = logits.detach().double().softmax(2).mean(0)
        top, guess = mean.max(1)
        entropy = torch.special.entr(mean).sum(1)
        rest = [part.cpu().numpy() for part in (top, entropy, (guess == labels).double())]
        return cls(loss(logits, labels), confidence(logits, labels), *rest)

    @classmethod
    def stack(cls, records: Sequence["Record"]) -> "Record":
        """Of T sets, from that of each: arrays (n,) -> (T, n)."""
        return cls(*(np.stack(parts) for parts in zip(*(record.features for record in records), strict=True)))

    @property
    def features(self) -> tuple[Floats, ...]:
        """All five, in the order above."""
        return self.loss, self.confidence, self.top, self.entropy, self.right


def confidence(logits: Tensor, labels: Tensor) -> Floats:
    """Logit-scaled confidence in the label: logits (k networks, n, K), labels (n,) -> (n,), float64, in nats.

    The mean over networks of log(p / (1 - p)) for the label's probability p, as z_y - logsumexp of the other logits,
    which is exact where p rounds to 0 or 1. Carlini et al., "Membership inference attacks from first principles",
    S&P 2022, section IV-C, https://arxiv.org/abs/2112.03570
    """
    values, own = _of_label(logits, labels)
    others = values.scatter(2, own, -torch.inf).logsumexp(2)
    return (values.gather(2, own).squeeze(2) - others).mean(0).cpu().numpy()


def loss(logits: Tensor, labels: Tensor) -> Floats:
    """Mean over networks of the cross-entropy: logits (k networks, n, K), labels (n,) -> (n,), float64, in nats."""
    values, own = _of_label(logits, labels)
    return (values.logsumexp(2) - values.gather(2, own).squeeze(2)).mean(0).cpu().numpy()


def threshold(record: Record, members: NDArray[np.bool_]) -> Floats:
    """Minus the loss: one threshold for all images, nothing learnt from the other shadows.

    Yeom et al., "Privacy risk in machine learning: analyzing the connection to overfitting", CSF 2018,
    https://arxiv.org/abs/1709.01604

    Args:
        record: Of T shadows, (T, n).
        members: (T, n), only checked.

    Returns:
        Scores (T, n), higher for what is rather a member.

    Raises:
        UserError: See ``check_members``.
    """
    check_members(record.loss, members)
    return -record.loss


def regression(record: Record, members: NDArray[np.bool_]) -> Floats:
    """Log-odds by a logistic regression on loss, confidence, top probability, entropy and whether right.

    The attack model of Shokri et al., "Membership inference attacks against machine learning models", S&P 2017,
    https://arxiv.org/abs/1610.05820: fitted on the other shadows, applied to the target. Unlike theirs it is one for
    all classes, and linear in standardised features.

    Args:
        record: Of T shadows, (T, n).
        members: In complementary pairs, (T, n). Target and complement are both left out of the fit.

    Returns:
        Scores (T, n), higher for what is rather a member.

    Raises:
        UserError: See ``check_members``.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = np.stack(record.features, axis=2)
    for feature in record.features:
        check_members(feature, members)
    scores = np.empty(members.shape)
    for first in range(0, len(members), 2):
        pair = [first, first + 1]
        known = np.delete(features, pair, axis=0).reshape(-1, features.shape[2])
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        model.fit(known, np.delete(members, pair, axis=0).ravel())
        scores[pair] = model.decision_function(features[pair].reshape(-1, features.shape[2])).reshape(2, -1)
    return scores


def lira(record: Record, members: NDArray[np.bool_]) -> Floats:
    """Log-likelihood ratio of the confidence in each image: where it is a member against where it is not.

    The online attack of Carlini et al., S&P 2022, algorithm 1, https://arxiv.org/abs/2112.03570: two normal
    distributions for every image. Their means are the image's own. With 64 shadows so are their variances; with fewer
    there is one variance for members and one for the rest, the mean over images of the unbiased variance within an
    image. (The released code takes medians for means, and with few shadows one variance over the values of all images
    for both, which holds what images differ in as well.)

    Target and complement are both left out, so each image has exactly T/2 - 1 values as a member and T/2 - 1 not.
    Left out the target alone, an image that is its member would have one value fewer as a member than not, and one
    that is not its member the other way round: scores would differ between the two on values that do not.

    Args:
        record: Of T shadows, (T, n).
        members: In complementary pairs, (T, n). With 4 shadows an image has one value of each kind and no spread:
            both variances are then that between the two, as if being a member changed nothing.

    Returns:
        Scores (T, n), higher for what is rather a member. Variances below 1e-6 count as 1e-6.

    Raises:
        UserError: See ``check_members``.
    """
    phi = record.confidence
    check_members(phi, members)
    inside = np.where(members[0::2], phi[0::2], phi[1::2])  # (T/2, n): in each pair an image is a member once
    outside = np.where(members[0::2], phi[1::2], phi[0::2])
    scores = np.empty(phi.shape)
    for pair in range(len(inside)):
        known = np.delete(inside, pair, axis=0), np.delete(outside, pair, axis=0)
        shared = ((known[0] - known[1]) ** 2 / 2).mean() if len(known[0]) == 1 else None
        of_member, of_other = (_normal(values, shared, len(phi) >= ENOUGH_SHADOWS) for values in known)
        target = phi[2 * pair : 2 * pair + 2]
        scores[2 * pair : 2 * pair + 2] = _log_density(target, *of_member) - _log_density(target, *of_other)
    return scores


ATTACKS: dict[str, Attack] = {"threshold": threshold, "regression": regression, "lira": lira}


def _of_label(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits in float64, and labels as an index into them, (k, n, 1)."""
    return logits.detach().double(), labels.to(logits.device)[None, :, None].expand(len(logits), -1, 1)


def _normal(values: Floats, variance: float | None, per_image: bool) -> tuple[Floats, Floats]:
    """Mean of each image and its variance, or that of all, from values (shadows, n)."""
    spread = values.var(axis=0, ddof=1) if variance is None else np.asarray(variance)
    return values.mean(axis=0), np.maximum(spread if per_image else spread.mean(), LEAST_VARIANCE)


def _log_density(values: Floats, mean: Floats, variance: Floats) -> Floats:
    """Of a normal distribution, but for the constant."""
    return -((values - mean) ** 2) / (2 * variance) - np.log(variance) / 2
