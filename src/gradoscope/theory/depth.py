"""Signals through many layers of rectified units: a random walk whose drift and spread are known exactly."""

import math

import numpy as np
from scipy import special, stats

from gradoscope.errors import Usage

__all__ = ["HE", "balanced_gain", "log_growth", "random_walk_gain"]

HE = math.sqrt(2)
"""The gain that keeps the mean square of a signal, not its logarithm. He et al. 2015."""


def log_growth(width: int, gain: float) -> tuple[float, float]:
    r"""Mean and standard deviation of $\ln|h_{l+1}|-\ln|h_l|$ for $h_{l+1}=\mathrm{relu}(Wh_l)$ with $W_{ij}\sim N(0,g^2/n)$.

    Given $h_l$, the entries of $Wh_l$ are independent normal numbers, so that the step has the same law whatever $h_l$ is, and steps
    are independent: after L layers the logarithm has walked L such steps. With K active units, $K\sim\mathrm{Bin}(n,\frac12)$,
    $|h_{l+1}|^2/|h_l|^2=\frac{g^2}{n}\chi^2_K$, thus

    $$2\mu=\ln\frac{2g^2}{n}+E\,\psi(K/2),\qquad4\sigma^2=\mathrm{Var}\,\psi(K/2)+E\,\psi'(K/2).$$

    For $g=\sqrt2$ that is $\mu\approx-5/4n$ and $\sigma^2\approx5/4n$: the mean square stays, and yet nearly every network's signal
    vanishes, since a few explode.

    Args:
        width: n, units of each layer.
        gain: g.

    Returns:
        (mu, sigma) in nats per layer; the probability $2^{-n}$ that no unit is active is left out (K >= 1).

    Raises:
        Usage: for a width below 2 or a gain that is not positive.

    Cost: none.

    Example:
        >>> [round(1000 * v, 2) for v in log_growth(64, HE)]  # of a thousand layers
        [-20.05, 144.05]

    Source: Sussillo and Abbott 2014, Random walk initialization for training very deep feedforward networks; the exact law is ours.
    """
    if width < 2 or not gain > 0:
        raise Usage(f"a signal needs a width of at least 2 and a positive gain, got {width} and {gain}.")
    k = np.arange(1, width + 1)
    weight = stats.binom.pmf(k, width, 0.5)
    weight = weight / weight.sum()
    digamma = special.digamma(k / 2)
    mean = float(weight @ digamma)
    variance = float(weight @ (digamma - mean) ** 2 + weight @ special.polygamma(1, k / 2))
    return (math.log(2 * gain**2 / width) + mean) / 2, math.sqrt(variance) / 2


def balanced_gain(width: int) -> float:
    r"""The gain at which the logarithm of the signal has no drift: $\mu(g)=0$ in `log_growth`.

    Example:
        >>> round(balanced_gain(64), 4), abs(log_growth(64, balanced_gain(64))[0]) < 1e-12
        (1.4429, True)
    """
    return HE * math.exp(-log_growth(width, HE)[0])


def random_walk_gain(width: int) -> float:
    r"""The formula of Sussillo and Abbott for it: $g=\sqrt2\,e^{1.2/(\max(n,6)-2.4)}$, n the width of the layers.

    Example:
        >>> round(random_walk_gain(64), 4)
        1.442
    """
    return HE * math.exp(1.2 / (max(width, 6) - 2.4))
