"""Means with bootstrap confidence intervals."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["BOOTSTRAP_SAMPLES", "BOOTSTRAP_SEED", "CONFIDENCE", "Estimate", "bootstrap_mean"]

BOOTSTRAP_SAMPLES = 2000
BOOTSTRAP_SEED = 0
CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A mean and its percentile bootstrap interval.

    Attributes:
        mean: Mean over the images.
        low: Lower end of the 95 % interval; equal to the mean for a single photo.
        high: Upper end.
        images: Number of images.
    """

    mean: float
    low: float
    high: float
    images: int


def bootstrap_mean(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Estimate:
    """The mean of values and how far another draw of photos would move it.

    Whole clusters are drawn: several degradations of one photo are not independent samples. The draw has a fixed seed,
    so equal scores give equal intervals.

    Args:
        values: One number an image; not empty, finite.
        clusters: For each value what it belongs to (the photo); None: each is its own.

    Returns:
        Mean, interval and count.

    Raises:
        ValueError: No values, or not as many clusters as values.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.size == 0:
        raise ValueError("no values to average")
    keys = list(range(numbers.size)) if clusters is None else list(clusters)
    if len(keys) != numbers.size:
        raise ValueError(f"{len(keys)} clusters for {numbers.size} values")
    index = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    places = np.array([index[key] for key in keys])
    sums = np.bincount(places, weights=numbers, minlength=len(index))
    counts = np.bincount(places, minlength=len(index))
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    means = np.empty(BOOTSTRAP_SAMPLES)
    chunk = max(1, 2_000_000 // len(index))  # bounds the memory for large sets
    for start in range(0, BOOTSTRAP_SAMPLES, chunk):
        drawn = generator.integers(0, len(index), size=(min(chunk, BOOTSTRAP_SAMPLES - start), len(index)))
        means[start : start + chunk] = sums[drawn].sum(1) / counts[drawn].sum(1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(numbers.mean()), float(low), float(high), int(numbers.size))
