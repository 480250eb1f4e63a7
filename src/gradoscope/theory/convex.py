"""Convex functions: how fast gradient descent and its acceleration must, may and can at most be; gradient flow."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from gradoscope.errors import CannotRun, Usage
from gradoscope.objective import Objective

__all__ = [
    "WorstFunction",
    "accelerate",
    "accelerated_bound",
    "conjugate_gradients",
    "curvature_ratio",
    "descend",
    "flow",
    "flow_of",
    "gap_bound",
    "hardest_for_descent",
    "linear_bound",
    "lower_bound",
    "momentum_sequence",
    "quadratic_rate",
]

Slope = Callable[[Tensor], Tensor]
FACTORS = {"lecture": (2.0, 1.0, 1.0), "standard": (1.0, 2.0, 0.0), "tight": (1.0, 4.0, 2.0)}  # c, a, b of c L D^2 / (a t + b)


def gap_bound(steps: Tensor, smoothness: float, distance: float, kind: Literal["lecture", "standard", "tight"] = "tight") -> Tensor:
    r"""What is left of a convex loss after t steps of gradient descent: $J(\theta_t)-J^*\le B_t$ for L-Lipschitz gradients and $\eta=1/L$.

    $B_t=\frac{L D^2}{4t+2}$ ("tight": no smaller one holds for all functions, see `hardest_for_descent`), $\frac{L D^2}{2t}$ ("standard")
    and $\frac{2L D^2}{t+1}$ ("lecture": true at this step size, and at least 4 times too large).

    Args:
        steps: t, any shape; at 0 the standard bound is infinite.
        smoothness: L.
        distance: $D=|\theta_0-\theta^*|$.
        kind: which one.

    Example:
        >>> t = torch.tensor([0.0, 1.0, 10.0])
        >>> [round(float(gap_bound(t, 1.0, 1.0, kind)[2]), 4) for kind in ("lecture", "standard", "tight")]
        [0.1818, 0.05, 0.0238]

    Source: Nesterov 2004, Introductory Lectures on Convex Optimization; Drori and Teboulle 2014 for the tight one; Perraudin and Hofmann
        2018, Deep Learning lecture 6, "classic analysis".
    """
    c, a, b = FACTORS[kind]
    return c * smoothness * distance**2 / (a * steps.double() + b)


def linear_bound(steps: Tensor, smoothness: float, convexity: float, gap: float) -> Tensor:
    r"""The same for a $\mu$-strongly convex loss: $J(\theta_t)-J^*\le(1-\mu/L)^t(J(\theta_0)-J^*)$ at $\eta=1/L$.

    Args:
        steps: t, any shape.
        smoothness: L.
        convexity: $\mu\ge0$.
        gap: $J(\theta_0)-J^*$.

    Example:
        >>> linear_bound(torch.tensor([0, 1, 2]), 2.0, 1.0, 8.0).tolist()
        [8.0, 4.0, 2.0]

    Source: Nesterov 2004, section 2.1.5. On quadratics the truth is the square of the rate, see `quadratic_rate`.
    """
    return gap * (1 - convexity / smoothness) ** steps.double()


def accelerated_bound(steps: Tensor, smoothness: float, distance: float) -> Tensor:
    r"""For Nesterov's accelerated gradient (`accelerate`) on a convex loss: $J(\theta_t)-J^*\le2LD^2/(t+1)^2$.

    Args: as of `gap_bound`.

    Example:
        >>> accelerated_bound(torch.tensor([0, 1, 9]), 1.0, 1.0).tolist()
        [2.0, 0.5, 0.02]

    Source: Nesterov 1983; Beck and Teboulle 2009, theorem 4.4.
    """
    return 2 * smoothness * distance**2 / (steps.double() + 1) ** 2


def lower_bound(steps: Tensor, smoothness: float, distance: float) -> Tensor:
    r"""What no method of first order can beat on every convex loss: $J(\theta_t)-J^*\ge\frac{3LD^2}{32(t+1)^2}$.

    It holds for some function (`WorstFunction`), for methods that stay in the span of the gradients seen, and only for
    $t\le(d-1)/2$: in few dimensions conjugate gradients are exact after d steps.

    Args: as of `gap_bound`.

    Example:
        >>> lower_bound(torch.tensor([0, 3]), 32.0, 1.0).tolist()
        [3.0, 0.1875]

    Source: Nesterov 2004, theorem 2.1.7.
    """
    return 3 * smoothness * distance**2 / (32 * (steps.double() + 1) ** 2)


def momentum_sequence(count: int) -> Tensor:
    r"""Nesterov's sequence $t_0=1$, $t_{k+1}=\frac12(1+\sqrt{1+4t_k^2})$, of which $t_k\ge(k+2)/2$; shape (count,), float64.

    Example:
        >>> [round(v, 4) for v in momentum_sequence(3).tolist()]
        [1.0, 1.618, 2.1935]

    Source: Nesterov 1983.
    """
    found = [1.0]
    while len(found) < count:
        found.append((1 + math.sqrt(1 + 4 * found[-1] ** 2)) / 2)
    return torch.tensor(found[:count], dtype=torch.float64)


def quadratic_rate(smoothness: float, convexity: float, step: float) -> float:
    r"""The factor per step on the loss of a quadratic in the long run: $\max_{\lambda\in\{\mu,L\}}(1-\eta\lambda)^2$.

    At $\eta=1/L$ it is $(1-\mu/L)^2$, at the best step, $2/(L+\mu)$, $\big(\frac{\kappa-1}{\kappa+1}\big)^2$.

    Args:
        smoothness: L, the largest eigenvalue.
        convexity: $\mu$, the smallest one.
        step: $\eta$.

    Example:
        >>> round(quadratic_rate(10.0, 1.0, 1 / 10), 6), round(quadratic_rate(10.0, 1.0, 2 / 11), 6)
        (0.81, 0.669421)

    Source: Polyak 1963.
    """
    return max((1 - step * smoothness) ** 2, (1 - step * convexity) ** 2)


def descend(gradient: Slope, start: Tensor, step: float | Callable[[int], float], steps: int, *, clip: float | None = None) -> Tensor:
    r"""Gradient descent $\theta_{t+1}=\theta_t-\eta_t g(\theta_t)$, which is Euler's method for gradient flow.

    Args:
        gradient: $\theta\mapsto g$, of one point (d,) or of many at once (..., d).
        start: $\theta_0$.
        step: $\eta$, or a function of t = 0, 1, ...
        steps: how many.
        clip: the norm, over the last dimension, above which gradients are scaled down to it.

    Returns:
        The path, shape (steps + 1, ..., d).

    Cost: one gradient per step.

    Example:
        >>> descend(lambda x: x, torch.ones(1), 0.5, 3).flatten().tolist()
        [1.0, 0.5, 0.25, 0.125]
        >>> descend(lambda x: x, torch.full((1,), 9.0), 0.5, 2, clip=2.0).flatten().tolist()
        [9.0, 8.0, 7.0]
    """
    path = [start]
    for t in range(steps):
        g = gradient(path[-1])
        if clip is not None:
            g = g * (clip / g.norm(dim=-1, keepdim=True)).clamp(max=1.0)
        path.append(path[-1] - (step(t) if callable(step) else step) * g)
    return torch.stack(path)


def accelerate(gradient: Slope, start: Tensor, smoothness: float, steps: int) -> Tensor:
    r"""Nesterov's acceleration: $\theta_{k+1}=y_k-\frac1Lg(y_k)$, $y_{k+1}=\theta_{k+1}+\frac{t_k-1}{t_{k+1}}(\theta_{k+1}-\theta_k)$.

    Args:
        gradient: as for `descend`.
        start: $\theta_0=y_0$.
        smoothness: L.
        steps: how many.

    Returns:
        The points $\theta$, which the bound is about, shape (steps + 1, ..., d).

    Cost: one gradient per step.

    Example:
        >>> path = accelerate(lambda x: torch.tensor([1.0, 100.0]) * x, torch.ones(2), 100.0, 200)
        >>> bool(path[-1].abs().max() < 0.05)
        True

    Source: Nesterov 1983; with t_k of `momentum_sequence`.
    """
    t = momentum_sequence(steps + 1).tolist()
    path, ahead = [start], start
    for k in range(steps):
        path.append(ahead - gradient(ahead) / smoothness)
        ahead = path[-1] + (t[k] - 1) / t[k + 1] * (path[-1] - path[-2])
    return torch.stack(path)


def conjugate_gradients(gradient: Slope, product: Slope, start: Tensor, steps: int) -> Tensor:
    """Conjugate gradients on a quadratic: each point is the best one in the span of the gradients seen.

    Args:
        gradient: of the loss.
        product: v -> Hv.
        start: shape (d,).
        steps: how many; once the gradient is gone the point stays.

    Returns:
        Shape (steps + 1, d).

    Cost: one product and one gradient per step.

    Example:
        >>> h = torch.tensor([1.0, 4.0], dtype=torch.float64)
        >>> path = conjugate_gradients(lambda x: h * x, lambda v: h * v, torch.ones(2, dtype=torch.float64), 2)
        >>> bool(path[-1].abs().max() < 1e-12)
        True

    Source: Hestenes and Stiefel 1952.
    """
    path = [start]
    g = gradient(start)
    p = -g
    for _ in range(steps):
        gg = float(torch.dot(g, g))
        if gg > 0:
            hp = product(p)
            path.append(path[-1] + gg / float(torch.dot(p, hp)) * p)
            g = gradient(path[-1])
            p = -g + float(torch.dot(g, g)) / gg * p
        else:
            path.append(path[-1])
    return torch.stack(path)


@dataclass(frozen=True)
class WorstFunction:
    r"""Nesterov's worst function $f(x)=\frac L4\big(\frac12x^\top Ax-x_1\big)$ with A = tridiag(-1, 2, -1), started at 0.

    A gradient at a point whose last d - t entries are zero has one more entry that is not: after t steps no method in the span of the
    gradients knows more than t of the d coordinates. $x^*_i=1-\frac i{d+1}$ and $f^*=-\frac L8\frac d{d+1}$.

    Args:
        dim: d; for the bound at t take 2 t + 1.
        smoothness: L.

    Example:
        >>> f = WorstFunction(5, 4.0)
        >>> round(float(f.loss(f.minimizer) - f.minimum), 12), float(f.gradient(f.minimizer).abs().max()) < 1e-12
        (0.0, True)

    Source: Nesterov 2004, section 2.1.2.
    """

    dim: int
    smoothness: float = 1.0

    @property
    def minimizer(self) -> Tensor:
        """x*, shape (d,), float64."""
        return 1 - torch.arange(1, self.dim + 1, dtype=torch.float64) / (self.dim + 1)

    @property
    def minimum(self) -> float:
        """f*."""
        return -self.smoothness / 8 * self.dim / (self.dim + 1)

    def product(self, v: Tensor) -> Tensor:
        """Hv = L/4 A v; shape (..., d)."""
        padded = torch.nn.functional.pad(v, (1, 1))
        return self.smoothness / 4 * (2 * v - padded[..., :-2] - padded[..., 2:])

    def loss(self, x: Tensor) -> Tensor:
        """f(x); x of shape (..., d)."""
        return 0.5 * (x * self.product(x)).sum(-1) - self.smoothness / 4 * x[..., 0]

    def gradient(self, x: Tensor) -> Tensor:
        """Its gradient, shape (..., d)."""
        first = torch.zeros_like(x)
        first[..., 0] = self.smoothness / 4
        return self.product(x) - first


def hardest_for_descent(x: Tensor, steps: int, smoothness: float = 1.0, distance: float = 1.0) -> Tensor:
    r"""The function on which gradient descent at 1/L attains the tight bound after exactly `steps` steps, started at `distance`.

    Quadratic near 0 and straight beyond $\delta=D/(2t+1)$: each step moves by $\delta$ only, and after t steps $J=LD^2/(4t+2)$.

    Args:
        x: any shape.
        steps: t.
        smoothness: L.
        distance: D.

    Example:
        >>> x = torch.tensor(1.0, dtype=torch.float64)
        >>> for _ in range(3):
        ...     x = x - 1 / 7  # the gradient beyond delta, over L
        >>> round(float(hardest_for_descent(x, 3)), 9) == round(1 / 14, 9)
        True

    Source: Drori and Teboulle 2014, section 3.
    """
    delta = distance / (2 * steps + 1)
    return smoothness * torch.where(x.abs() >= delta, delta * x.abs() - delta**2 / 2, x.square() / 2)


def curvature_ratio(gradient: Tensor, product: Tensor, step: float) -> Tensor:
    r"""$r=\frac{\eta\,g^\top Hg}{2\,g^\top g}$: above 1 the quadratic model says that the step $-\eta g$ goes uphill.

    It is the lecture's curvature inequality $\frac\eta2\|g\|_H^2\gtrsim\|g\|^2$; on a quadratic the loss rises exactly where r > 1.

    Args:
        gradient: g, shape (..., d).
        product: Hg, the same shape.
        step: $\eta$.

    Example:
        >>> g = torch.tensor([1.0, 2.0])
        >>> float(curvature_ratio(g, 3 * g, 1.0))
        1.5

    Source: Perraudin and Hofmann 2018, "Challenges: curvature"; Goodfellow, Bengio and Courville 2016, section 8.2.1.
    """
    return step * (gradient * product).sum(-1) / (2 * gradient.square().sum(-1))


def flow(gradient: Slope, start: Tensor, times: Sequence[float], *, rtol: float = 1e-10, atol: float = 1e-12) -> Tensor:
    r"""Gradient flow $\dot\theta=-g(\theta)$, by scipy's Runge-Kutta method of order 8 with step control.

    Args:
        gradient: $\theta\mapsto g$, shapes (d,).
        start: $\theta(0)$, float64.
        times: increasing, from 0 on.
        rtol: relative tolerance of each step.
        atol: absolute tolerance.

    Returns:
        $\theta$ at these times, shape (len(times), d).

    Raises:
        CannotRun: where the method gives up, as it does where the flow leaves all bounds.

    Cost: 12 gradients per internal step, some tens of steps for smooth losses.

    Example:
        >>> path = flow(lambda x: x, torch.ones(1, dtype=torch.float64), [0.0, 1.0])
        >>> abs(float(path[-1]) - math.exp(-1)) < 1e-9
        True

    Source: Dormand and Prince 1980; Hairer, Norsett and Wanner 1993 for DOP853.
    """
    if len(times) < 1 or any(b <= a for a, b in pairwise(times)) or times[0] < 0:
        raise Usage(f"`times` must be increasing and not negative, got {list(times)[:5]}.")

    def right(_: float, theta: np.ndarray) -> np.ndarray:
        slope: np.ndarray = gradient(torch.from_numpy(theta.copy()).to(start)).detach().double().cpu().numpy()
        return -slope

    begin = start.detach().double().cpu().numpy()
    found = solve_ivp(right, (0.0, float(times[-1])), begin, method="DOP853", t_eval=list(times), rtol=rtol, atol=atol)
    if not found.success:
        raise CannotRun(f"gradient flow could not be followed to t = {times[-1]:g}: {found.message}")
    return torch.from_numpy(found.y.T.copy()).to(start)


def flow_of(objective: Objective, times: Sequence[float], *, rtol: float = 1e-10, atol: float = 1e-12) -> Tensor:
    """Gradient flow of any objective from where its parameters stand, which they do afterwards too.

    Args:
        objective: the loss; in float64, or set the tolerances to what its type can give.
        times: increasing, from 0 on.
        rtol: relative tolerance of each step.
        atol: absolute tolerance.

    Returns:
        The parameters at these times, shape (len(times), dim).

    Cost: 12 gradients per internal step.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> objective = Objective(model, lambda m, b: m(b).square().mean() / 2, [torch.ones(1, 1).double()])
        >>> path = flow_of(objective, [0.0, 2.0])
        >>> abs(float(path[1] / path[0]) - math.exp(-2)) < 1e-9
        True
    """

    def gradient(theta: Tensor) -> Tensor:
        with objective.moved(theta):
            return objective.gradient()

    return flow(gradient, objective.theta(), times, rtol=rtol, atol=atol)
