r"""Stochastic gradient descent where it can be computed: least squares with Gaussian inputs, step by step; rates, balls and bounds.

The model throughout: $x\sim N(0,\Lambda)$ with $\Lambda=\operatorname{diag}(\lambda_i)$, $y=\theta^{*\top}x+\epsilon$, loss
$\frac12(\theta^\top x-y)^2$, thus excess loss $\frac12\sum_i\lambda_i\delta_i^2$ with $\delta=\theta-\theta^*$. Covariances of inputs
other than diagonal are this one in their own eigenbasis.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np

__all__ = [
    "adagrad_bound",
    "averaged_optimum",
    "critical_batch",
    "decay_exponent",
    "excess_path",
    "next_moments",
    "noise_scale",
    "rate_sums",
    "slope",
    "stationary_excess",
    "stationary_excess_additive",
    "steps_to_target",
    "subgradient_bound",
    "travel",
]

Array = np.ndarray


def next_moments(moments: Array, rate: Array | float, eigenvalues: Array, noise: float = 1.0, batch: Array | float = 1) -> Array:
    r"""The second moments $a_i=E\delta_i^2$ after one step of SGD, exactly.

    $$a_i'=\big(1-2\eta\lambda_i+\eta^2\lambda_i^2(1+\tfrac1B)\big)a_i+\frac{\eta^2\lambda_i}{B}\Big(\sum_j\lambda_ja_j+\sigma^2\Big)$$
    for Gaussian inputs, fresh in each batch; the products $E\delta_i\delta_j$ with $i\ne j$ never enter the $a_i$.

    Args:
        moments: a, shape (..., d).
        rate: the step size, a number or shape (...).
        eigenvalues: of the inputs' covariance, shape (d,).
        noise: $\sigma^2$, the variance of the targets' noise.
        batch: B, a number or shape (...); infinity is the full gradient.

    Example:
        >>> next_moments(np.array([1.0]), 0.1, np.array([1.0]), noise=0.0, batch=math.inf).round(4).tolist()  # 0.9^2
        [0.81]
    """
    eta, share = np.asarray(rate, dtype=float)[..., None], 1 / np.asarray(batch, dtype=float)[..., None]
    spread = (moments * eigenvalues).sum(-1, keepdims=True) + noise
    step = eta * eigenvalues
    result: Array = (1 - 2 * step + step**2 * (1 + share)) * moments + eta * step * share * spread
    return result


def excess_path(start: Array, rates: Iterable[Array | float], eigenvalues: Array, noise: float = 1.0, batch: Array | float = 1) -> Array:
    r"""The expected excess loss $\frac12\sum_i\lambda_ia_i(t)$ before each step and after the last one, exactly.

    Args:
        start: $\delta_i^2$ at the start, shape (..., d).
        rates: T step sizes.
        eigenvalues: shape (d,).
        noise: $\sigma^2$.
        batch: B.

    Returns:
        Shape (T + 1, ...).

    Cost: T steps of a few multiplications per number.

    Example:
        >>> excess_path(np.ones(1), [0.5, 0.5], np.ones(1), noise=0.0, batch=math.inf).tolist()
        [0.5, 0.125, 0.03125]
    """
    moments = np.asarray(start, dtype=float)
    found = [0.5 * (moments * eigenvalues).sum(-1)]
    for rate in rates:
        moments = next_moments(moments, rate, eigenvalues, noise, batch)
        found.append(0.5 * (moments * eigenvalues).sum(-1))
    return np.array(found)


def stationary_excess(eigenvalues: Array, rate: float, noise: float = 1.0, batch: float = 1) -> float:
    r"""The radius of the ball in which SGD with a constant step ends, as expected excess loss, exactly.

    $$\frac{\frac12 a\sigma^2}{1-a},\qquad a=\frac1B\sum_i\frac{\eta\lambda_i}{2-\eta\lambda_i(1+\frac1B)}$$
    for one example at a time: $a=\sum_i\eta\lambda_i/(2(1-\eta\lambda_i))$. It is infinite where $a\ge1$: the second moment diverges.

    Example:
        >>> round(stationary_excess(np.linspace(0.2, 1, 5), 0.05), 4)
        0.0422
    """
    step = rate * np.asarray(eigenvalues, dtype=float)
    below = 2 - step * (1 + 1 / batch)
    if (below <= 0).any():
        return math.inf
    a = float((step / batch / below).sum())
    return 0.5 * a * noise / (1 - a) if a < 1 else math.inf


def stationary_excess_additive(eigenvalues: Array, rate: float, noise: float = 1.0, batch: float = 1) -> float:
    r"""The same with the gradient's noise as it is at the optimum: $\frac{\sigma^2}{2B}\sum_i\frac{\eta\lambda_i}{2-\eta\lambda_i}$.

    Example:
        >>> round(stationary_excess_additive(np.linspace(0.2, 1, 5), 0.05), 4)  # 9% too small
        0.0382
    """
    step = rate * np.asarray(eigenvalues, dtype=float)
    return float(0.5 * noise / batch * (step / (2 - step)).sum())


def averaged_optimum(d: int, t: int, noise: float = 1.0) -> float:
    r"""The least expected excess loss that t examples allow, $\sigma^2d/(2t)$ (Cramer and Rao), which Polyak averaging reaches.

    Example:
        >>> averaged_optimum(5, 100)
        0.025
    """
    return noise * d / (2 * t)


def decay_exponent(alpha: float, c: float, mu: float) -> float:
    r"""The exponent of t in the excess of SGD's last iterate with $\eta=C\,t^{-\alpha}$ on a $\mu$-strongly convex quadratic.

    $-\alpha$ for $0\le\alpha<1$; $-\min(1,2\mu C)$ for $\alpha=1$, so that too small a C makes 1/t slower than any power in between; 0 for
    $\alpha>1$, where the rates have a finite sum. It holds once $\eta_t\mu t$ is well above one (for $\alpha<1$).

    Example:
        >>> [decay_exponent(a, c, 1.0) for a, c in ((0.5, 1.0), (1.0, 2.0), (1.0, 0.3), (1.5, 1.0))]
        [-0.5, -1.0, -0.6, 0.0]
    """
    if alpha > 1:
        return 0.0
    return -alpha if alpha < 1 else -min(1.0, 2 * mu * c)


def rate_sums(alpha: float) -> tuple[bool, bool]:
    r"""Whether $\sum t^{-\alpha}=\infty$ and whether $\sum t^{-2\alpha}<\infty$: both hold for $\frac12<\alpha\le1$.

    Example:
        >>> [rate_sums(a) for a in (0.5, 0.75, 1.0, 1.5)]
        [(True, False), (True, True), (True, True), (False, True)]
    """
    return alpha <= 1, alpha > 0.5


def travel(rates: Array, curvature: float) -> float:
    r"""What is left of the distance to the minimum of a quadratic, without noise: $\prod_t(1-\eta_t\lambda)$.

    Example:
        >>> travel(np.array([0.5, 0.5]), 1.0)
        0.25
    """
    return float(np.prod(1 - np.asarray(rates) * curvature))


def noise_scale(displacement: Array, eigenvalues: Array, noise: float = 1.0) -> float:
    r"""The simple noise scale $\operatorname{tr}\Sigma/|G|^2$: the batch at which signal and noise of its gradient are equal.

    $G=\Lambda\delta$ and $\operatorname{tr}\Sigma=|G|^2+(\delta^\top\Lambda\delta+\sigma^2)\operatorname{tr}\Lambda$ for Gaussian inputs.

    Args:
        displacement: $\delta$, shape (d,).
        eigenvalues: shape (d,).
        noise: $\sigma^2$.

    Example:
        >>> noise_scale(np.array([2.0]), np.array([1.0]), noise=4.0)
        3.0

    Source: McCandlish, Kaplan, Amodei et al. 2018, An empirical model of large-batch training (the definition).
    """
    gradient = eigenvalues * displacement
    signal = float((gradient**2).sum())
    return (signal + (float((eigenvalues * displacement**2).sum()) + noise) * float(eigenvalues.sum())) / signal


def steps_to_target(
    start: Array, rates: Array, batches: Array, eigenvalues: Array, target: float, *, noise: float = 1.0, most: int = 100_000
) -> tuple[Array, Array]:
    r"""The fewest steps at any constant rate until the expected excess is at most `target`, for each batch.

    Args:
        start: $\delta_i^2$, shape (d,).
        rates: to choose among, shape (R,).
        batches: shape (K,).
        eigenvalues: shape (d,).
        target: of the excess loss.
        noise: $\sigma^2$.
        most: steps after which to stop.

    Returns:
        The steps, infinite where no rate gets there, and the rate that takes them, each of shape (K,).

    Cost: at most K R d numbers per step.

    Example:
        >>> steps, rates = steps_to_target(np.ones(1), np.array([0.1, 0.5]), np.array([math.inf]), np.ones(1), 0.05, noise=0.0)
        >>> steps.tolist(), rates.tolist()
        ([2.0], [0.5])
    """
    which, rate = (v.ravel() for v in np.meshgrid(np.arange(len(batches)), rates, indexing="ij"))
    steps, best = np.full(len(batches), math.inf), np.full(len(batches), math.nan)
    moments = np.broadcast_to(np.asarray(start, dtype=float), (len(which), len(start)))
    first = 0.5 * float((moments[0] * eigenvalues).sum())
    for t in range(most + 1):
        excess = 0.5 * (moments * eigenvalues).sum(-1)
        for i in np.flatnonzero(excess <= target):
            if not steps[which[i]] <= t:
                steps[which[i]], best[which[i]] = t, rate[i]
        stay = np.isinf(steps[which]) & (excess < 1e3 * first)  # what has grown a thousandfold diverges
        if not stay.all():
            moments, which, rate = moments[stay], which[stay], rate[stay]
        if len(which) == 0:
            break
        moments = next_moments(moments, rate, eigenvalues, noise, batches[which])
    return steps, best


def critical_batch(batches: Array, steps: Array) -> tuple[float, float, float]:
    r"""Fit $S=S_{\min}(1+B_c/B)$ by least squares on relative errors: ($S_{\min}$, $B_c$, the worst relative error).

    Example:
        >>> b = np.array([1.0, 10.0, 100.0])
        >>> [round(v, 6) for v in critical_batch(b, 50 * (1 + 20 / b))]
        [50.0, 20.0, 0.0]
    """
    b, s = np.asarray(batches, dtype=float), np.asarray(steps, dtype=float)
    design = np.stack([1 / s, 1 / (b * s)], 1)
    (low, slope), *_ = np.linalg.lstsq(design, np.ones(len(b)), rcond=None)
    return float(low), float(slope / low), float(np.abs(design @ np.array([low, slope]) - 1).max())


def adagrad_bound(distance: float, squares: Array) -> Array:
    r"""AdaGrad's regret is at most $\sqrt2\,D_\infty\sum_i|g_{1:T,i}|_2$, with step $\eta=D_\infty/\sqrt2$ and $\delta=0$.

    Args:
        distance: $D_\infty$, at least $|x_t-x^*|_\infty$ for every t.
        squares: $\sum_tg_{t,i}^2$, shape (..., d).

    Returns:
        Shape (...).

    Example:
        >>> float(adagrad_bound(1.0, np.array([4.0, 4.0])).round(4))
        5.6569

    Source: Duchi, Hazan and Singer 2011, theorem 5 and corollary 6.
    """
    bound: Array = math.sqrt(2) * distance * np.sqrt(squares).sum(-1)
    return bound


def subgradient_bound(distance: float, rates: Array, second_moment: float) -> Array:
    r"""The average of the iterates, weighted by their rates, has expected excess at most $\frac{D^2+G^2\sum\eta_t^2}{2\sum\eta_t}$.

    For any convex objective, smooth or not, with $E|g_t|^2\le G^2$; the proof is that of the subgradient method.

    Args:
        distance: $D=|\theta_0-\theta^*|$.
        rates: shape (T,).
        second_moment: $G^2$.

    Returns:
        The bound after each step, shape (T,).

    Example:
        >>> subgradient_bound(1.0, np.array([1.0, 1.0]), 1.0).tolist()
        [1.0, 0.75]
    """
    eta = np.asarray(rates, dtype=float)
    bound: Array = (distance**2 + second_moment * (eta**2).cumsum()) / (2 * eta.cumsum())
    return bound


def slope(t: Array, y: Array, keep: Callable[[Array], Array] | None = None) -> Array:
    """The exponent of t in y: the slope of log y against log t by least squares.

    Args:
        t: shape (T,).
        y: shape (..., T).
        keep: which t to use.

    Returns:
        Shape (...).

    Example:
        >>> round(float(slope(np.array([1.0, 10.0, 100.0]), np.array([1.0, 0.1, 0.01]))), 6)
        -1.0
    """
    chosen = np.ones(len(t), dtype=bool) if keep is None else keep(t)
    x = np.log(t[chosen])
    x = x - x.mean()
    found: Array = (np.log(y[..., chosen]) * x).sum(-1) / (x**2).sum()
    return found
