"""Is the mean gradient there, or drowned in the noise of its estimate? Unbiased estimators from K batch gradients."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradoscope.measurement import Measurement

__all__ = ["NoiseStatistics", "NormStatistics", "expected_step", "gram", "noise_statistics", "norm_statistics", "statistics_of_products"]

CHUNK = 1 << 20  # columns that are turned into float64 at a time
ONE_SIDED = 1.645  # normal quantile of a one-sided 95% bound


@dataclass(frozen=True)
class NoiseStatistics:
    """What K independent batch gradients say about their mean and their spread.

    Args:
        signal: unbiased estimate U of the squared norm of the expected gradient; may be negative.
        signal_se: its standard error; without any signal it errs on the wide side, by a factor of 1.4 in trials (1.8 for K = 3).
        trace: unbiased estimate of the trace of the covariance of one batch gradient.
        snr: signal / trace, the signal-to-noise ratio of one batch's gradient.
        p_value: of the sign-flip test of "the expected gradient is zero".
        batch_noise_scale: the batch size at which signal and noise are equal; infinite (not bounded above by these
            data) where the lower 95% bound of the signal is not positive.
        batch: rows per batch.
        k: number of batch gradients.
    """

    signal: float
    signal_se: float
    trace: float
    snr: float
    p_value: float
    batch_noise_scale: float
    batch: int
    k: int

    def to_measurement(self, step: int | None = None) -> Measurement:
        """The signal-to-noise ratio as a measurement; all the rest is in `details`."""
        se = self.signal_se / self.trace if self.trace > 0 else math.nan
        method = "U-statistic, sign-flip test"
        return Measurement("gradient_snr", self.snr, se=se, n=self.k, step=step, p=self.p_value, method=method, details=dict(vars(self)))


def gram(a: Tensor, b: Tensor | None = None) -> np.ndarray:
    """The inner products of the rows of `a` with those of `b` (default `a`), shape (K, K), summed in float64."""
    other = a if b is None else b
    total = np.zeros((len(a), len(other)))
    for left, right in zip(torch.split(a.detach(), CHUNK, dim=1), torch.split(other.detach(), CHUNK, dim=1), strict=True):
        if left.device.type == "mps":  # has no float64
            left, right = left.cpu(), right.cpu()
        total += (left.double() @ right.double().T).cpu().numpy()
    return total


def noise_statistics(gradients: Tensor, batch: int, *, flips: int = 999, seed: int = 0) -> NoiseStatistics:
    r"""Signal, noise and their ratio from K independent batch gradients $g_k$ with mean G and covariance $\Sigma_B$.

    $$U=\frac{|\sum_k g_k|^2-\sum_k|g_k|^2}{K(K-1)},\quad \widehat{\mathrm{tr}\Sigma_B}=\frac{\sum_k|g_k-\bar g|^2}{K-1},
    \quad \mathrm{SNR}=U/\widehat{\mathrm{tr}\Sigma_B},\quad B_\mathrm{noise}=B\,\widehat{\mathrm{tr}\Sigma_B}/U$$
    The variance of U is $\frac4K G'\Sigma_B G+\frac{2}{K(K-1)}\mathrm{tr}\Sigma_B^2$, estimated without bias from distinct
    pairs, triples and quadruples of gradients. The test of G = 0 flips the signs of the $g_k$ at random: exact where
    $g_k$ is symmetric around its mean. Everything needs the K x K matrix of inner products only.

    Args:
        gradients: one gradient per batch, shape (K, dim), K >= 2, of disjoint or independently drawn batches.
        batch: rows per batch.
        flips: random sign vectors of the test.
        seed: what they are drawn from, with a generator of their own.

    Returns:
        The statistics; NaN throughout where a gradient is not finite. Parts of one finite data set that are drawn
        without replacement sum to zero at a minimum, so U may come out slightly negative there.

    Raises:
        ValueError: where there are fewer than two gradients.

    Cost: no passes; O(K^2 dim) arithmetic.

    Example:
        >>> s = noise_statistics(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), batch=8)
        >>> s.signal, s.trace, s.snr
        (3.0, 2.0, 1.5)

    Source: McCandlish et al. (2018), An Empirical Model of Large-Batch Training, arXiv:1812.06162, appendix A.
    """
    k = len(gradients)
    if k < 2:
        raise ValueError(f"noise can be told from signal with at least 2 batch gradients, got {k}.")
    return statistics_of_products(gram(gradients), batch, flips=flips, seed=seed)


def statistics_of_products(products: np.ndarray, batch: int, *, flips: int = 999, seed: int = 0) -> NoiseStatistics:
    """The statistics of `noise_statistics` from the gradients' inner products alone.

    Args:
        products: inner products of K gradients, shape (K, K), K >= 2.
        batch: rows per gradient.
        flips: random sign vectors of the test.
        seed: what they are drawn from.

    Returns:
        The statistics; NaN throughout where a product is not finite.

    Cost: none.

    Example:
        >>> statistics_of_products(np.array([[1.0, 3.0], [3.0, 9.0]]), batch=8).snr
        1.5
    """
    k = len(products)
    if k < 2:
        raise ValueError(f"noise can be told from signal with at least 2 gradients, got {k}.")
    if not np.isfinite(products).all():
        nan = math.nan
        return NoiseStatistics(nan, nan, nan, nan, nan, nan, batch, k)
    diagonal, total = float(np.trace(products)), float(products.sum())
    signal = (total - diagonal) / (k * (k - 1))
    trace = max(0.0, (diagonal - total / k) / (k - 1))
    se = math.sqrt(_signal_variance(products))
    rounding = 1e-14 * diagonal / k  # what is left of equal gradients after subtraction
    noiseless = trace <= rounding
    snr = signal / trace if not noiseless else (math.inf if signal > rounding else math.nan)
    bounded = signal > rounding and signal - ONE_SIDED * se > 0
    scale = (0.0 if noiseless else batch * trace / signal) if bounded else math.inf
    return NoiseStatistics(signal, se, trace, snr, _sign_flip(products, flips, seed), scale, batch, k)


@dataclass(frozen=True)
class NormStatistics:
    r"""What the norms of the gradients of B rows, and that of their mean, say about signal and noise.

    Args:
        signal: $|\bar g|^2-\mathrm{tr}\Sigma/B$, an unbiased estimate of the squared norm of the expected gradient; may be negative.
        trace: $\mathrm{tr}\Sigma$, an unbiased estimate of the trace of the covariance of one row's gradient.
        trace_se: its standard error, the mean being taken as given.
        snr: signal / trace, the signal-to-noise ratio of one row.
        norm_test: $\sqrt{\mathrm{tr}\Sigma/B}/|\bar g|$, the relative error of the batch's gradient; below 1 it points where the
            expected gradient does, more often than not.
        batch_noise_scale: trace / signal, the batch size at which signal and noise are equal; infinite where the signal is not positive.
        rows: B.
    """

    signal: float
    trace: float
    trace_se: float
    snr: float
    norm_test: float
    batch_noise_scale: float
    rows: int


def norm_statistics(squares: np.ndarray, gradient_square: float) -> NormStatistics:
    r"""Signal and noise of a batch's gradient from the squared norms of its rows' gradients and that of their mean.

    $$\widehat{\mathrm{tr}\Sigma}=\frac{B}{B-1}\Big(\frac1B\sum_n|g_n|^2-|\bar g|^2\Big)$$
    No inner products are needed, so it can be had at every step of a training. A single batch gives no p-value.

    Args:
        squares: $|g_n|^2$, shape (B,), B >= 2, scaled so that the mean of the $g_n$ is the batch's gradient.
        gradient_square: $|\bar g|^2$.

    Returns:
        The statistics; NaN where a norm is not finite.

    Raises:
        ValueError: where there are fewer than two rows.

    Cost: none.

    Example:
        >>> s = norm_statistics(np.array([1.0, 9.0]), 4.0)
        >>> s.signal, s.trace, s.snr
        (3.0, 2.0, 1.5)

    Source: Byrd et al. 2012, Sample size selection in optimization methods (the norm test); McCandlish et al. 2018 (the scale).
    """
    rows = len(squares)
    if rows < 2:
        raise ValueError(f"noise can be told from signal with at least 2 rows, got {rows}.")
    if not np.isfinite(squares).all() or not math.isfinite(gradient_square):
        nan = math.nan
        return NormStatistics(nan, nan, nan, nan, nan, nan, rows)
    mean = float(squares.mean())
    trace = max(0.0, (mean - gradient_square) * rows / (rows - 1))
    signal = gradient_square - trace / rows
    noiseless = trace <= 1e-7 * mean  # what rounding leaves of equal gradients
    snr = signal / trace if not noiseless else (math.inf if signal > 0 else math.nan)
    test = math.sqrt(trace / rows / gradient_square) if gradient_square > 0 else (math.inf if trace > 0 else math.nan)
    scale = (0.0 if noiseless else trace / signal) if signal > 0 else math.inf
    return NormStatistics(signal, trace, float(squares.std(ddof=1)) / math.sqrt(rows), snr, test, scale, rows)


def _signal_variance(products: np.ndarray) -> float:
    """The unbiased estimate of the variance of U, but no less than what noise without any signal would give."""
    k = len(products)
    off = products - np.diag(np.diag(products))
    rows = off.sum(axis=1)
    pairs, squares, triples = float(rows.sum()), float((off**2).sum()), float((rows**2).sum() - (off**2).sum())
    centred = products - products.mean(axis=0) - products.mean(axis=1)[:, None] + products.mean()
    centred -= np.diag(np.diag(centred))
    floor = 2 * float((centred**2).sum()) / (k * (k - 1)) ** 2
    if k < 4:  # four distinct gradients are needed: the jackknife errs on the wide side instead
        if k == 2:
            return math.nan
        without = (pairs - 2 * rows) / ((k - 1) * (k - 2))
        return max(floor, float((k - 1) / k * ((without - without.mean()) ** 2).sum()))
    fourth = (pairs**2 - 4 * triples - 2 * squares) / (k * (k - 1) * (k - 2) * (k - 3))
    first = triples / (k * (k - 1) * (k - 2)) - fourth
    second = squares / (k * (k - 1)) - fourth
    return max(floor, 4 * (k - 2) / (k * (k - 1)) * first + 2 / (k * (k - 1)) * second)


def _sign_flip(products: np.ndarray, flips: int, seed: int) -> float:
    """The share of sign vectors s with |sum s_k g_k|^2 at least as large as with all signs equal."""
    signs = np.random.default_rng(seed).integers(0, 2, size=(flips, len(products))) * 2.0 - 1.0
    flipped = np.einsum("fi,ij,fj->f", signs, products, signs, optimize=True)
    observed = float(products.sum())
    tie = 1e-12 * float(np.trace(products))  # equal but for rounding counts as equal
    return (1 + int((flipped >= observed - tie).sum())) / (flips + 1)


def expected_step(objective_gradients: Tensor, hvp: Callable[[Tensor], Tensor], lr: float) -> dict[str, Measurement]:
    r"""The expected change of the loss in one SGD step, split into descent, curvature and noise.

    $$\mathbb E\,\Delta J=-D+C+M,\quad D=\eta|G|^2,\quad C=\tfrac12\eta^2G'HG,\quad M=\tfrac12\eta^2\mathrm{tr}(H\Sigma_B)$$
    in the quadratic model. D and C are U-statistics over pairs of different batches and $C+M$ is the mean of
    $\tfrac12\eta^2g_k'Hg_k$, so all three are unbiased. C > D: uphill because of curvature; C < D <= C + M: uphill because of noise.

    Args:
        objective_gradients: gradients of K independent batches, shape (K, dim), K >= 3.
        hvp: the product of the Hessian of the whole objective with a vector of shape (dim,).
        lr: the step size $\eta$.

    Returns:
        "D", "C", "M" and "change" (-D + C + M), in the loss's unit, each with its jackknife standard error. The values
        without each batch stand in `details["jackknife"]`, shape (K,): contrasts of the four are paired through them.

    Raises:
        ValueError: where there are fewer than three gradients.

    Cost: K Hessian-vector products.

    Example:
        >>> g = torch.tensor([[1.0], [1.0], [1.0]])
        >>> {name: m.value for name, m in expected_step(g, lambda v: 4 * v, lr=0.5).items()}
        {'D': 0.5, 'C': 0.5, 'M': 0.0, 'change': 0.0}
    """
    k = len(objective_gradients)
    if k < 3:
        raise ValueError(f"the split of a step with standard errors needs at least 3 batch gradients, got {k}.")
    products = gram(objective_gradients)
    curved = gram(objective_gradients, torch.stack([hvp(g) for g in objective_gradients]))
    curved = (curved + curved.T) / 2
    off_products, off_curved = (_off_diagonal_means(m) for m in (products, curved))
    diagonal = np.diag(curved)
    own = np.concatenate([[diagonal.mean()], (diagonal.sum() - diagonal) / (k - 1)])
    half = 0.5 * lr**2
    terms = {"D": lr * off_products, "C": half * off_curved, "M": half * (own - off_curved)}
    terms["change"] = half * own - terms["D"]
    result, method = {}, "U-statistic, jackknife"
    for name, values in terms.items():
        without = values[1:]
        se = math.sqrt((k - 1) / k * float(((without - without.mean()) ** 2).sum()))
        details = {"jackknife": without}
        result[name] = Measurement(f"expected_step_{name}", float(values[0]), se=se, n=k, unit="loss", method=method, details=details)
    return result


def _off_diagonal_means(matrix: np.ndarray) -> np.ndarray:
    """The mean over pairs i != j, first of all, then without each i in turn: shape (1 + K,)."""
    k = len(matrix)
    rows = matrix.sum(axis=1) - np.diag(matrix)
    total = rows.sum()
    return np.concatenate([[total / (k * (k - 1))], (total - 2 * rows) / ((k - 1) * (k - 2))])
