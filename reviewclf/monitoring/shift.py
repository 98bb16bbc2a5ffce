"""Whether a figure of tonight differs from what it was on other nights by more than chance and nights themselves explain.

Nights differ from each other even when nothing is wrong: a sale, a holiday, a shop that opened. So tonight is a draw from a
random-effects model: a night's figure varies around the long-run one with the variance of its own reviews *and* a variance
between nights that the past nights show (DerSimonian and Laird, Meta-analysis in clinical trials, 1986), shrunk towards a
small prior where they are few. With big nights it is the second that counts, and no small difference becomes significant by
size alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reviewclf.training.rows import Floats

# Standard deviation between nights, in standard deviations of one review, that is taken for natural before any night was
# seen; it counts as much as this many nights.
PRIOR_BETWEEN = 0.05
PRIOR_NIGHTS = 4.0


@dataclass(frozen=True)
class Sample:
    """A mean over reviews.

    Attributes
    ----------
    mean : float
    error : float
        Variance of `mean` by the reviews alone.
    spread : float
        Standard deviation of one review.
    n : int
        Reviews.
    nights : int
        Nights they came in.
    """

    mean: float
    error: float
    spread: float
    n: int
    nights: int = 1


@dataclass(frozen=True)
class Shift:
    """How far tonight's mean lies from that of the reference; the p-value is two-sided and not corrected for anything."""

    mean: float
    reference: float
    p_value: float

    @property
    def difference(self) -> float:
        """Tonight's mean minus that of the reference."""
        return self.mean - self.reference

    @property
    def z(self) -> float:
        """The quantile of the standard normal distribution that the p-value stands for, with the sign of the difference."""
        from scipy.stats import norm

        return float(np.sign(self.difference) * norm.isf(max(self.p_value, 1e-300) / 2))


def sample(values: Floats, weights: Floats | None = None, *, nights: int = 1) -> Sample | None:
    """Mean of per-review `values`; with `weights` the ratio of their weighted sum to the weights. None without two reviews."""
    weights = np.ones(len(values)) if weights is None else weights
    n = int((weights > 0).sum())
    if n < 2:
        return None
    total = weights.sum()
    mean = float((weights * values).sum() / total)
    residual = weights * (values - mean)
    error = float((residual**2).sum() / total**2) * n / (n - 1)
    # A mean of weighted reviews varies like one of n reviews with this spread.
    return Sample(mean=mean, error=error, spread=float(np.sqrt(error * n)), n=n, nights=nights)


def shift(tonight: Sample, others: Sequence[Sample], *, between: float | None = None, axes: int = 1) -> Shift:
    """Compare tonight with other nights, or with the training data as a single one.

    Parameters
    ----------
    tonight : Sample
    others : sequence of Sample
        At least one.
    between : float, optional
        Variance between nights; default: what `others` show.
    axes : int
        How many figures of each night `between` was estimated from.
    """
    from scipy.stats import t

    means, errors, spread = _columns(others, tonight.spread)
    sizes = np.array([other.n for other in others], dtype=np.float64)
    if between is None:
        between = variance_between([(means, errors)], prior=(PRIOR_BETWEEN * max(spread, 1e-9)) ** 2)
    weights = 1.0 / (errors + between)
    reference = float((weights * means).sum() / weights.sum())
    own = max(tonight.error, 0.25 * spread**2 / tonight.n, 1e-18)
    parts = np.array([own, between / tonight.nights, 1.0 / weights.sum()])
    freedom = np.array([tonight.n - 1, axes * (len(others) - 1) + PRIOR_NIGHTS, sizes.sum() - 1])
    variance = float(parts.sum())
    degrees = variance**2 / float((parts**2 / freedom).sum())  # Welch and Satterthwaite
    return Shift(tonight.mean, reference, float(2 * t.sf(abs(tonight.mean - reference) / np.sqrt(variance), degrees)))


def share_shift(count: int, n: int, others: Sequence[tuple[int, int]], *, nights: int = 1) -> Shift:
    """As :func:`shift` for a share, also a rare one: the larger of its p-value and Fisher's exact one.

    Parameters
    ----------
    count, n : int
        Reviews that have it, of how many, tonight.
    others : sequence of (count, n)
        The same of other nights.
    nights : int
        How many nights `n` reviews came in.
    """
    from scipy.stats import fisher_exact

    found = shift(_share(count, n, nights), [_share(*other) for other in others])
    other, size = (sum(values) for values in zip(*others, strict=True))
    exact = float(fisher_exact([[count, n - count], [other, size - other]]).pvalue)
    return Shift(count / n, other / size, max(found.p_value, exact))


def distance(tonight: Floats, others: Sequence[Floats], *, nights: int = 1) -> tuple[float, float, Floats]:
    """How far the mean of tonight's vectors lies from that of others, in directions of variance 1.

    Parameters
    ----------
    tonight : array, shape (n, d)
    others : sequence of arrays, shape (m, d)

    Returns
    -------
    distance : float
        Euclidean, less what chance alone would make of it; 0 or more.
    p_value : float
        Of the sum of the squared z of all directions.
    direction : array, shape (d,)
        From the reference to tonight.
    """
    from scipy.stats import chi2

    axes = tonight.shape[1]
    samples = [[there for part in others if (there := sample(part[:, axis])) is not None] for axis in range(axes)]
    if len(tonight) < 2 or not samples[0]:
        return 0.0, 1.0, np.zeros(axes)
    # A night that differs by nature does so in many directions: their common variance is known after a few nights.
    columns = [_columns(column, 1.0)[:2] for column in samples]
    between = variance_between(columns, prior=PRIOR_BETWEEN**2)
    here = [there for axis in range(axes) if (there := sample(tonight[:, axis], nights=nights)) is not None]
    shifts = [shift(mean, column, between=between, axes=axes) for mean, column in zip(here, samples, strict=True)]
    direction = np.array([moved.difference for moved in shifts])
    squared = np.array([moved.z**2 for moved in shifts])
    # E[z²] is 1 where nothing moved: the part of the squared distance that is not chance.
    signal = direction**2 * np.maximum(0.0, 1 - 1 / np.maximum(squared, 1e-12))
    return float(np.sqrt(signal.sum())), float(chi2.sf(squared.sum(), axes)), direction


def bursts(
    tonight: Counter[str], n: int, others: Mapping[str, int], size: int, *, min_share: float
) -> tuple[str | None, float, float]:
    """The phrase whose share of reviews rose most, its rise, and the p-value over all phrases of the night.

    Parameters
    ----------
    tonight : Counter
        In how many of tonight's `n` reviews each phrase occurs.
    others : mapping of str to int
        The same of `size` other reviews; phrases that are missing occur in none.
    min_share : float
        Phrases with a smaller share tonight are not looked at, but counted as looks.

    Returns
    -------
    (phrase, rise, p_value)
        (None, 0.0, 1.0) where no phrase rose.
    """
    from scipy.stats import hypergeom

    often = [phrase for phrase, count in tonight.items() if count >= max(3, min_share * n)]
    rises = {phrase: tonight[phrase] / n - others.get(phrase, 0) / size for phrase in often}
    # Of phrases that rose alike always the same one is named.
    phrase = min(rises, key=lambda phrase: (-rises[phrase], phrase), default=None)
    if phrase is None or rises[phrase] <= 0:
        return None, 0.0, 1.0
    count = tonight[phrase]
    p_value = float(hypergeom.sf(count - 1, n + size, count + others.get(phrase, 0), n)) * len(tonight)
    return phrase, rises[phrase], min(1.0, p_value)


def variance_between(columns: Sequence[tuple[Floats, Floats]], *, prior: float) -> float:
    """Variance between nights that one or several figures (means and their variances, a night each) show together.

    Parameters
    ----------
    columns : sequence of (means, errors), each of shape (nights,)
    prior : float
        Taken for natural before any night was seen; counts as much as `PRIOR_NIGHTS` nights of one figure.
    """
    nights = len(columns[0][0])
    if nights < 2:
        # One source is no night among others: how far nights lie from it is unknown, so the prior is taken wider.
        return 2 * prior
    seen = 0.0
    for means, errors in columns:
        weights = 1 / errors
        centre = (weights * means).sum() / weights.sum()
        excess = float((weights * (means - centre) ** 2).sum()) - (nights - 1)
        seen += excess / float(weights.sum() - (weights**2).sum() / weights.sum())
    known = len(columns) * (nights - 1)
    return (PRIOR_NIGHTS * prior + known * max(0.0, seen / len(columns))) / (PRIOR_NIGHTS + known)


def _columns(others: Sequence[Sample], spread_here: float) -> tuple[Floats, Floats, float]:
    """Means, their variances, and the spread of one review; a night on which all are alike is as uncertain as the others."""
    sizes = np.array([other.n for other in others], dtype=np.float64)
    spread = float(np.sqrt(np.average([other.spread**2 for other in others], weights=sizes)))
    floor = 0.25 * max(spread, spread_here, 1e-9) ** 2 / sizes
    errors = np.maximum(np.array([other.error for other in others]), floor)
    return np.array([other.mean for other in others]), errors, spread


def _share(count: int, n: int, nights: int = 1) -> Sample:
    # Agresti and Coull's two successes and failures keep the variance of a share of 0 or 1 from being 0.
    smoothed = (count + 2) / (n + 4)
    spread = float(np.sqrt(smoothed * (1 - smoothed)))
    return Sample(mean=count / n, error=spread**2 / n, spread=spread, n=n, nights=nights)
