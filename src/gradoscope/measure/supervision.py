"""What two losses say about the same parameters: signal, noise, and whether their mean gradients are the same."""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gradoscope.measure.noise import ONE_SIDED, NoiseStatistics, gram, noise_statistics

__all__ = ["PairedSignals", "paired_signals"]


@dataclass(frozen=True)
class PairedSignals:
    """Signal and noise of two losses' gradients by the same parameters, on the same batches.

    Args:
        first: of the first loss, e.g. the primary one.
        second: of the second loss, e.g. that of the parts on targets of their own.
        projection: the mean gradient of the first loss along that of the second, in units of the latter:
            <G1, G2> / |G2|^2, which is 1 where the two are equal.
        projection_se: its jackknife standard error; infinite where |G2| was not resolved.
        difference_p: p-value of "the two mean gradients are the same".
    """

    first: NoiseStatistics
    second: NoiseStatistics
    projection: float
    projection_se: float
    difference_p: float

    @property
    def ratio(self) -> float:
        """The signal-to-noise ratio of the first over that of the second; NaN where the second shows none."""
        return max(_snr(self.first), 0.0) / self.second.snr if self.second.snr > 0 else math.nan

    @property
    def ratio_upper(self) -> float:
        """An upper bound of `ratio`: the one-sided 95% bound of the first over that below of the second (normal approximation)."""
        low = self.second.signal - ONE_SIDED * self.second.signal_se
        if not low > 0:
            return math.inf
        high = max(self.first.signal, 0.0) + ONE_SIDED * self.first.signal_se
        if self.first.trace <= 0:
            return 0.0 if high <= 0 else math.inf
        return (high / self.first.trace) / (low / self.second.trace) if self.second.trace > 0 else 0.0


def _snr(statistics: NoiseStatistics) -> float:
    """The signal-to-noise ratio, zero for gradients that are all zero."""
    return 0.0 if statistics.trace <= 0 and statistics.signal <= 0 else statistics.snr


def paired_signals(first: Tensor, second: Tensor, batch: int, *, seed: int = 0) -> PairedSignals:
    r"""Compare the gradients $g_k$ and $h_k$ of two losses on the same K independent batches, with means $G_1$ and $G_2$.

    $$\mathrm{SNR}_i=\frac{|G_i|^2}{\mathrm{tr}\,\Sigma_i},\quad
    \beta=\frac{\sum_{j\ne k}\langle g_j,h_k\rangle}{\sum_{j\ne k}\langle h_j,h_k\rangle}\to\frac{\langle G_1,G_2\rangle}{|G_2|^2}$$
    Products of different batches have no noise floor. Whether $G_1=G_2$ is the sign-flip test on the differences $g_k-h_k$.

    Args:
        first: shape (K, dim), K >= 3, one gradient per batch.
        second: shape (K, dim), on the same batches.
        batch: rows per batch.
        seed: of the sign flips.

    Returns:
        The statistics of both (see `noise_statistics`), the projection and the test.

    Raises:
        ValueError: where shapes differ, or there are fewer than three batches.

    Cost: no passes; O(K^2 dim) arithmetic.

    Example:
        >>> import torch
        >>> clean = torch.tensor([[1.0, 0.1], [1.0, -0.1], [1.0, 0.1], [1.0, -0.1]])
        >>> noisy = clean + torch.tensor([[0.0, 2.0], [0.0, -2.0], [0.0, -2.0], [0.0, 2.0]])
        >>> pair = paired_signals(noisy, clean, batch=8)
        >>> round(pair.projection, 2), pair.ratio < 0.01, pair.difference_p > 0.1
        (1.0, True, True)
    """
    if first.shape != second.shape or len(first) < 3:
        raise ValueError(
            f"two gradients of each of 3 or more batches are needed, got shapes {tuple(first.shape)} and {tuple(second.shape)}."
        )
    ours, theirs = noise_statistics(first, batch, seed=seed), noise_statistics(second, batch, seed=seed)
    projection, se = _projection(gram(first, second), gram(second))
    difference = noise_statistics(first - second, batch, seed=seed)
    return PairedSignals(ours, theirs, projection, se, difference.p_value)


def _projection(cross: np.ndarray, own: np.ndarray) -> tuple[float, float]:
    """Beta and its jackknife standard error from the inner products (K, K) of the batches."""
    k = len(own)
    cross = (cross + cross.T) / 2

    def off(m: np.ndarray) -> np.ndarray:
        rows = m.sum(axis=1) - np.diag(m)
        return np.concatenate([[rows.sum()], rows.sum() - 2 * rows])  # of all, then without each batch

    above, below = off(cross), off(own)
    if not (np.isfinite(above).all() and np.isfinite(below).all()) or not (below > 0).all():
        return math.nan, math.inf
    values = above / below
    without = values[1:]
    return float(values[0]), math.sqrt((k - 1) / k * float(((without - without.mean()) ** 2).sum()))
