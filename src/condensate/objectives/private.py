"""Distribution matching under differential privacy: DM, the real means behind noise."""

import math
import warnings
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from condensate.augment import Augment, Transform
from condensate.compute import Compute
from condensate.data import Split
from condensate.errors import UserError
from condensate.networks import Network
from condensate.objectives.base import Layers, Objective, Room, Work
from condensate.objectives.distribution import DistributionMatching
from condensate.ranks import ALONE, Ranks
from condensate.streams import Secret, Streams
from condensate.synthetic import SyntheticDataset

# Orders at which Renyi divergence is bounded; low ones decide where epsilon is large, high ones where it is small.
ORDERS = [1 + k / 100 for k in range(2, 10)] + [1 + k / 10 for k in range(1, 100)] + [*range(11, 64), 128, 256, 512]


class PrivateDistributionMatching(Objective):
    """Match noised class means of embeddings, so that the result tells provably little of any one image.

    As ``DistributionMatching``, but for the real side. In each episode every training image joins by itself with
    probability q = batch_real * K / N. What it adds is how far its features lie from the synthetic mean m_c of its
    class, clipped to the L2 norm C, and in place of the real mean of class c stands

        m_c + (sum over images x of c that joined of clip(f(T_c(x)) - m_c) + noise) / (q * N_c)

    with normal noise of standard deviation noise_multiplier * C. Features have a large part in common, and distances
    from a mean are several times shorter than features: so much less noise is needed for the same guarantee.

    Nothing else is read off the images, and an image adds at most C to the sums of all classes together: each episode
    is a Poisson-subsampled Gaussian mechanism, and all else, the networks, m_c of a set that knows past noised sums
    alone, momentum and any number of steps, is post-processing. Abadi et al., "Deep Learning with Differential
    Privacy", CCS 2016; Mironov, Talwar & Zhang, "Renyi Differential Privacy of the Sampled Gaussian Mechanism", 2019,
    https://arxiv.org/abs/1908.10530.

    Guaranteed: the set condensed from the training images and the one condensed with any one of them left out of all
    sums are (epsilon, delta)-indistinguishable (``guarantee``). Class names, the number of images of each class and
    all settings count as public. The caller must see to it that the set starts from noise and that the normalisation
    of the images was not measured on them; recipes that do otherwise are refused.

    Not guaranteed: sets condensed from the same images and published together each spend their epsilon, and settings
    chosen by results on private images spend more that is not counted. Arithmetic is that of floating point, not of
    real numbers (Mironov, "On Significance of the Least Significant Bits for Differential Privacy", CCS 2012), and
    the time an episode takes tells how many images joined.

    Who joins and the noise come from the operating system, not from ``streams``: could they be drawn again, the noise
    could be taken off. So no two runs give the same set, whatever the seed. A run that goes on from a checkpoint does
    its last episodes over with noise drawn anew; what those were before the stop is in no result, so that the set
    holds as many noised sums as it has episodes, and the guarantee stands.

    Args:
        real: Training images. Clipping bounds the influence of each; their number is public.
        network: As for ``DistributionMatching``, without batch statistics.
        augment: Likewise.
        streams: Source of the networks and augmentations.
        compute: As for ``DistributionMatching``.
        ranks: One process only: noise drawn by several would not be that of the guarantee.
        batch_real: Real images expected a class and episode. All join where it exceeds the images there are.
        clip: Longest distance from the synthetic mean that counts, C; longer ones are shortened to it.
        noise_multiplier: Standard deviation of the noise in units of ``clip``.
        delta: Probability with which epsilon may be exceeded; choose it below one over the number of images.
    """

    private: ClassVar[bool] = True

    def __init__(
        self,
        real: Split,
        network: Network,
        augment: Augment,
        streams: Streams,
        compute: Compute | None = None,
        ranks: Ranks = ALONE,
        *,
        batch_real: int = 256,
        clip: float = 1.0,
        noise_multiplier: float = 1.0,
        delta: float = 1e-5,
    ) -> None:
        for key, value in (("clip", clip), ("noise_multiplier", noise_multiplier)):
            if not 0 < value < math.inf:
                raise UserError(f"objective.{key} must be above 0 and finite, got {value}")
        if not 0 < delta < 1:
            raise UserError(f"objective.delta must be above 0 and below 1, got {delta}")
        if delta >= 1 / len(real):
            warnings.warn(
                f"objective.delta {delta:g} is too large to promise much: choose it below 1 / {len(real)}, one over "
                "the number of training images",
                stacklevel=2,
            )
        if ranks.world > 1:
            raise UserError(
                "private matching draws its noise once, in one process: run it without torchrun; condensate evaluate "
                "scores the set in several processes"
            )
        if network.batch_statistics:
            raise UserError(
                "batch normalisation mixes the features of images, so that clipping bounds none: for private matching "
                "take another normalisation, as in --network.norm instance"
            )
        if real.whitening is not None:
            raise UserError("private matching takes no whitening, for it is fitted to the images without noise")
        counts = real.counts()
        if not int(counts.min()):
            raise UserError(f"class {real.classes[int(counts.argmin())]} has no images to match")
        self.matching = DistributionMatching(real, network, augment, streams, compute, batch_real=batch_real)
        self.real, self.network, self.clip, self.noise_multiplier = real, network, clip, noise_multiplier
        self.rate = sample_rate(batch_real, len(counts), len(real))
        self.expected = (self.rate * counts.double()).to(real.labels.device)
        self.secret, self.streams = Secret(), streams

    @classmethod
    def planned(cls, classes: int, images: int, **options: Any) -> Work:
        """The real images expected, and the synthetic ones for their means, without gradient; then those with."""
        return Work(features=classes * int(options["batch_real"]) + images, gradients=images)

    @classmethod
    def room(cls, layers: Layers, compute: Compute, classes: int, images: int, **options: Any) -> Room:
        """As DM: one real image's features are nothing beside its layers."""
        return DistributionMatching.room(layers, compute, classes, images, **options)

    @classmethod
    def guarantee(cls, classes: int, real: int, episodes: int, **options: Any) -> dict[str, Any]:
        """Epsilon and all that it follows from.

        Raises:
            UserError: The accountant is not installed.
        """
        rate = sample_rate(options["batch_real"], classes, real)
        noise, delta = options["noise_multiplier"], options["delta"]
        return {
            "epsilon": epsilon(noise, rate, episodes, delta),
            "delta": delta,
            "noise_multiplier": noise,
            "sample_rate": rate,
            "clip": options["clip"],
            "episodes": episodes,
            "adjacency": "one training image left out of all sums; class counts public",
            "accountant": f"RDP, opacus {version('opacus')}",
        }

    def gradients(self, synthetic: SyntheticDataset, number: int) -> Iterator[Tensor]:
        """One network, one augmentation a class, one noised sum a class, one update."""
        drawn = self.matching.begin(synthetic, number)
        yield self.matching.match(synthetic, drawn, self._noised_means(synthetic, drawn))

    @torch.no_grad()
    def _noised_means(self, synthetic: SyntheticDataset, drawn: Transform) -> Tensor:
        """What stands for the mean features of every class of real images: (K, D)."""
        centre = self.matching.synthetic_means(synthetic, drawn)
        joined = (self.secret.uniform(len(self.real)) < self.rate).nonzero().flatten()
        sums = self._clipped_sums(joined.to(self.real.labels.device), centre, drawn)
        noise = self.secret.normal(sums.numel()).view(sums.shape).to(sums.device)
        return centre + ((sums + self.noise_multiplier * self.clip * noise) / self.expected[:, None]).float()

    def _clipped_sums(self, index: Tensor, centre: Tensor, drawn: Transform) -> Tensor:
        """Sums by class of the clipped features, from ``centre`` (K, D), of the images at ``index``: (k,) -> (K, D).

        Float64. All chunks are of one size, the last one filled up with an image that does not count: so the programs
        are the same however many joined, and round the features of an image alike whoever else is there.
        """
        assert self.matching.chunk is not None
        size = self.matching.chunk
        filled = pad(index, (0, -len(index) % size if len(index) else size))
        joined = torch.arange(len(filled), device=index.device) < len(index)
        self.real.expect(filled.split(size))
        total: Tensor | float = 0.0
        for part, joins in zip(filled.split(size), joined.split(size), strict=True):
            labels = self.real.labels[part]
            features = clipped(self.matching.real_features(part, labels, drawn) - centre[labels], self.clip)
            total = total + (one_hot(labels, self.matching.classes) * joins[:, None]).double().T @ features
        assert isinstance(total, Tensor)
        return total


def clipped(features: Tensor, norm: float) -> Tensor:
    """Features (n, D) of at most this L2 norm each, float64; those that are not finite are zero."""
    features = features.double()
    length = features.norm(dim=1, keepdim=True)
    return torch.where(length.isfinite(), features * (norm / length).clamp(max=1), 0.0)


def sample_rate(batch_real: int, classes: int, real: int) -> float:
    """Probability q with which an image joins an episode, of so many classes and images in all."""
    return min(1.0, batch_real * classes / real)


@cache  # seconds each, and asked for by plan, row and artefact of a run alike
def epsilon(noise_multiplier: float, rate: float, episodes: int, delta: float) -> float:
    """Upper bound of epsilon after so many episodes, by Renyi differential privacy.

    Args:
        noise_multiplier: Standard deviation of the noise over the most an image adds.
        rate: Probability with which an image joins an episode.
        episodes: Noised sums that were published.
        delta: Probability with which epsilon may be exceeded.

    Raises:
        UserError: The accountant is not installed.
    """
    try:
        from opacus.accountants import RDPAccountant
    except ImportError as error:
        raise UserError("to account for privacy, install opacus: pip install 'opacus>=1.5'") from error
    accountant = RDPAccountant()
    accountant.history = [(noise_multiplier, rate, episodes)]
    with warnings.catch_warnings():  # the bound holds at any order; beyond these it is only a little loose
        warnings.filterwarnings("ignore", "Optimal order")
        return float(accountant.get_epsilon(delta, alphas=ORDERS))
