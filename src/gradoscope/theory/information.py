"""Bounds on what a gradient tells of its target: theorems 1 and 2 of Shalev-Shwartz et al., and an oracle that hides the rest."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor

from gradoscope.errors import CannotRun

__all__ = [
    "chebyshev_tail",
    "fourier_tail",
    "gaussian_fourier_tail",
    "mixture_fourier_tail",
    "oracle_departures",
    "pair_distances",
    "parity_variance",
    "printed_target_part",
    "share_above",
    "target_part",
    "uniform_fourier_tail",
    "variance_bound",
]

Point = TypeVar("Point")
LONGEST = 1 << 14  # terms of the series of a tail


def variance_bound(size: float, targets: float) -> float:
    r"""Theorem 1: $\mathrm{Var}(H,F,w)\le G(w)^2/|H|$ for orthogonal targets of norm at most 1.

    Args:
        size: $G(w)^2\ge E_x|\partial_wp_w(x)|^2$.
        targets: |H|.

    Example:
        >>> variance_bound(8.0, 2**3)
        1.0
    """
    return size / targets


def parity_variance(weighted: float, at_start: float, d: int) -> float:
    r"""The variance over all parities: $\frac1{2^d}\big(E_x|g|^2-|g(x_0)|^2/2^d\big)$, $g=b\,\partial_wp$; theorem 1 is nearly an equality.

    By Parseval the mean of $|E_x[h_vg]|^2$ over v is $E|g|^2/2^d$; the mean of $E_x[h_vg]$ is $g(x_0)/2^d$, since the parities add
    up to zero everywhere but at the point $x_0$ where each of them is 1.

    Args:
        weighted: $E_x|g|^2$.
        at_start: $|g(x_0)|^2$.
        d: bits.

    Example:
        >>> parity_variance(4.0, 4.0, 2)  # a constant g: only the parity of no bits has a signal
        0.75
    """
    count = float(1 << d)
    return (weighted - at_start / count) / count


def target_part(slope: Callable[[Tensor], Tensor], output: Tensor) -> Tensor:
    r"""For the loss $r(\hat yy)$, the factor of the target in the gradient: $\frac12(r'(p)+r'(-p))$.

    With $h\in\{-1,1\}$, $\partial_w r(ph)=r'(ph)\,h\,\partial p=\frac12(r'(p)-r'(-p))\,\partial p+h\,\frac12(r'(p)+r'(-p))\,\partial p$.

    Args:
        slope: r'.
        output: p.

    Example:
        >>> hinge = lambda t: -(t < 1).double()
        >>> target_part(hinge, torch.tensor([0.0, 0.5, 2.0])).tolist()
        [-1.0, -1.0, -0.5]
    """
    return (slope(output) + slope(-output)) / 2


def printed_target_part(slope: Callable[[Tensor], Tensor], output: Tensor) -> Tensor:
    r"""The factor as the paper's proof has it, $\frac12(r'(p)-r'(-p))$, without the factor h of the chain rule: not the gradient.

    For the hinge loss it is 0 wherever $|p|<1$, where the gradient does depend on the target. The bound is the same for both.

    Example:
        >>> hinge = lambda t: -(t < 1).double()
        >>> printed_target_part(hinge, torch.tensor([0.0, 0.5, 2.0])).tolist()
        [0.0, 0.0, 0.5]
    """
    return (slope(output) - slope(-output)) / 2


def pair_distances(gradients: Tensor) -> Tensor:
    r"""$|\nabla F_h-\nabla F_{h'}|^2$ of every pair of targets.

    The mean over all pairs, equal ones among them, is twice the variance.

    Args:
        gradients: shape (M, P), one row per target.

    Returns:
        Shape (M, M), symmetric, with zeros on the diagonal.

    Example:
        >>> pair_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]])).tolist()
        [[0.0, 25.0], [25.0, 0.0]]
    """
    centred = gradients - gradients.mean(0)
    gram = centred @ centred.T
    squares = gram.diagonal()
    found = (squares[:, None] + squares - 2 * gram).clamp(min=0)
    return found.fill_diagonal_(0)


def share_above(values: Tensor, thresholds: Sequence[float]) -> Tensor:
    """The share of values that are at least each threshold, shape (len(thresholds),).

    Example:
        >>> share_above(torch.tensor([1.0, 2.0, 3.0, 4.0]), [2.0, 5.0]).tolist()
        [0.75, 0.0]
    """
    ordered = values.flatten().double().sort().values
    index = torch.searchsorted(ordered, torch.tensor(thresholds, dtype=torch.float64))
    return 1 - index.double() / len(ordered)


def chebyshev_tail(variance: float, distances: Sequence[float]) -> Tensor:
    r"""$P_h(|\nabla F_h-E\nabla F_{h'}|\ge t)\le\min(1,\mathrm{Var}/t^2)$ for each t.

    Example:
        >>> chebyshev_tail(1.0, [0.5, 2.0]).tolist()
        [1.0, 0.25]
    """
    t = torch.tensor(distances, dtype=torch.float64)
    return (variance / t.square()).clamp(max=1)


def gaussian_fourier_tail(r: float, variances: Sequence[float]) -> float:
    r"""Theorem 2's ratio $\int_{|\omega|>r}\hat\varphi^2/\int\hat\varphi^2$ for a Gaussian density with these variances along its axes.

    The square root of the density is proportional to $e^{-\sum x_i^2/4s_i}$, so $\hat\varphi^2$ is the density of independent Gaussians
    of variances $1/4s_i$, and the ratio is $P(\sum_iz_i^2/4s_i>r^2)$: the tail of a chi-square where all $s_i$ are equal, a mixture
    of such tails with positive weights (Ruben) where they are not. Frequencies are angular: $e^{i\omega x}$.

    Args:
        r: the radius, the norm of the targets' frequency.
        variances: shape (d,), positive.

    Raises:
        CannotRun: for a variance that is not positive, or ones that differ by more than about 10^3 (the series gets too long).

    Example:
        >>> gaussian_fourier_tail(1.0, [1.0, 1.0])  # exp(-2 r^2)
        0.1353352832366127

    Source: Shamir (2016), Distribution-specific hardness of learning neural networks; Ruben (1962).
    """
    s = np.asarray(variances, dtype=float)
    if s.size == 0 or not (s > 0).all():
        raise CannotRun(f"a Gaussian density needs positive variances, got {list(variances)}.")
    scales = 1 / (4 * s)
    base = float(scales.min())
    rests = 1 - base / scales
    weights, moments = np.zeros(LONGEST), np.zeros(LONGEST)
    weights[0] = np.sqrt(base / scales).prod()
    count, done = 1 if rests.max() <= 0 else 64, 1
    while True:
        for k in range(done, count):
            moments[k] = (rests**k).sum()
            weights[k] = moments[1 : k + 1] @ weights[k - 1 :: -1][:k] / (2 * k)
        done = count
        terms = weights[:count] * stats.chi2.sf(r * r / base, s.size + 2 * np.arange(count))
        # far out the late terms are the large ones: the series ends where the terms fall, and what is left is next to nothing
        fall = max(float(terms[-1] / terms[-2]) if count > 1 and terms[-2] > 0 else 0.0, float(rests.max()))
        if count == 1 or (
            fall < 1 and terms[-1] * fall / (1 - fall) <= 1e-12 * terms.sum() and (terms[-1] > 0 or weights[count - 1] < 1e-250)
        ):
            return float(terms.sum())
        if float(terms.sum()) == 0 and weights[:count].sum() > 1 - 1e-9:
            return 0.0  # smaller than any number
        if count >= LONGEST:
            raise CannotRun("the variances differ too much for the series to end.")
        count *= 2


def mixture_fourier_tail(r: float, components: Sequence[Sequence[float]]) -> float:
    """The largest ratio of a mixture's components, each a Gaussian with these variances: theorem 2 asks it of every component.

    Example:
        >>> mixture_fourier_tail(1.0, [[1.0], [4.0]]) == gaussian_fourier_tail(1.0, [1.0])
        True
    """
    return max(gaussian_fourier_tail(r, variances) for variances in components)


def uniform_fourier_tail(r: float, half_width: float = 1.0) -> float:
    r"""The same ratio for the uniform density on $[-c,c]$: $1-\frac2\pi\big(\mathrm{Si}(2cr)-\frac{\sin^2cr}{cr}\big)$.

    It is about $1/\pi cr$: it falls like 1/r and not like $e^{-r}$: a density with edges violates the condition of theorem 2.

    Args:
        r: the radius, positive.
        half_width: c.

    Example:
        >>> round(uniform_fourier_tail(100.0) * 100 * math.pi, 2)
        1.0
    """
    z = half_width * r
    return float(1 - 2 / math.pi * (special.sici(2 * z)[0] - math.sin(z) ** 2 / z))


def fourier_tail(density: Callable[[Tensor], Tensor], r: float, *, half_width: float, points: int = 1 << 16) -> float:
    r"""The same ratio for any density on the line, by a fast Fourier transform of its square root.

    Args:
        density: `density(x)`, float64, any positive multiple of it.
        r: the radius.
        half_width: the density is read on [-half_width, half_width]; it has to be next to nothing beyond.
        points: of the grid; frequencies up to pi * points / (2 * half_width) are seen.

    Raises:
        CannotRun: where r lies beyond those frequencies, or the density is zero everywhere on the grid.

    Cost: O(points log points).

    Example:
        >>> found = fourier_tail(lambda x: torch.exp(-x.square() / 2), 1.0, half_width=20.0)
        >>> abs(found / gaussian_fourier_tail(1.0, [1.0]) - 1) < 1e-2
        True
    """
    step = 2 * half_width / points
    if r >= math.pi / step:
        raise CannotRun(f"frequencies up to {math.pi / step:.4g} can be seen on this grid, asked for {r:.4g}; use more points.")
    x = (torch.arange(points, dtype=torch.float64) + 0.5) * step - half_width
    # padding makes the grid of frequencies eight times as fine
    power = torch.fft.rfft(density(x).sqrt(), n=8 * points).abs().square()
    if float(power.sum()) <= 0:
        raise CannotRun("the density is zero on the whole grid.")
    frequency = torch.arange(len(power), dtype=torch.float64) * 2 * math.pi / (8 * points * step)
    twice = torch.full_like(power, 2.0)  # both signs of every frequency but the first and the last
    twice[0] = twice[-1] = 1.0
    mass = power * twice
    spacing = float(frequency[1])
    beyond = ((frequency - r) / spacing + 0.5).clamp(0, 1)  # the share of each frequency's cell that lies beyond r
    return float((mass * beyond).sum() / mass.sum())


def oracle_departures(
    start: Point, advance: Callable[[Point], tuple[Point, Tensor]], tolerances: Sequence[float], steps: int
) -> tuple[Tensor, Tensor]:
    r"""Gradient descent on an oracle that answers with the mean gradient wherever the true one is within $\epsilon$ of it.

    As long as that is so, the path is the same for every target, so that one path serves them all: the target shows itself
    at the first step at which $|\nabla F_h(w_t)-E\nabla F_{h'}(w_t)|>\epsilon$, and until then nothing was learnt of it.

    Args:
        start: the first point.
        advance: `advance(point)`: the next point under the mean gradient, and the distances |grad F_h - mean| of K targets here.
        tolerances: E values of epsilon.
        steps: T.

    Returns:
        The first step of departure, int64 of shape (E, K), T where there was none; and, for each step and tolerance, the union
        bound on the share that has departed, $\min(1,\sum_{s\le t}\mathrm{Var}_s/\epsilon^2)$, shape (T, E).

    Cost: T calls of `advance`.

    Example:
        >>> path = lambda w: (w + 1, w * torch.tensor([1.0, 0.1]))
        >>> oracle_departures(0.0, path, [0.5], 4)[0].tolist()
        [[1, 4]]
    """
    limits = torch.tensor(tolerances, dtype=torch.float64)
    first, sums, bounds, point = torch.zeros(0), torch.zeros(len(limits), dtype=torch.float64), [], start
    for step in range(steps):
        point, distances = advance(point)
        if step == 0:
            first = torch.full((len(limits), len(distances)), steps, dtype=torch.int64)
        departed = (distances > limits[:, None]) & (first == steps)
        first[departed] = step
        sums = sums + distances.double().square().mean() / limits.square()
        bounds.append(sums.clamp(max=1))
    return first, torch.stack(bounds)
