"""Near a critical point: the flow of the gradient in closed form, the time to escape, Newton's step and its relatives."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gradoscope.errors import Usage

__all__ = [
    "MONKEY",
    "PLATEAU",
    "SADDLE",
    "Rule",
    "Surface",
    "descend",
    "discrete_slide",
    "escape_steps",
    "escape_time",
    "flow",
    "second_order_step",
    "slide",
]

Rule = Literal["gradient", "newton", "damped", "saddle-free"]


def slide(eigenvalues: Tensor, t: float | Tensor) -> Tensor:
    r"""How far the flow has gone along each eigenvector, per unit of gradient: $\lambda'(t)=(1-e^{-\lambda t})/\lambda$, t at $\lambda=0$.

    As $t\to\infty$ it becomes $1/\lambda$, Newton's step, where $\lambda>0$, and grows as $e^{|\lambda|t}/|\lambda|$ where
    $\lambda<0$: the gradient is repelled by what attracts Newton's method.

    Args:
        eigenvalues: real, of any shape.
        t: time, >= 0, of a shape that fits.

    Returns:
        The shape of both together.

    Cost: none.

    Example:
        >>> [round(v, 4) for v in slide(torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64), 3.0).tolist()]
        [0.4988, 3.0, 19.0855]

    Source: Goodfellow 2015, Montreal slides, "Gradient descent flees saddle points".
    """
    t = torch.as_tensor(t, dtype=eigenvalues.dtype)
    safe = torch.where(eigenvalues == 0, torch.ones_like(eigenvalues), eigenvalues)
    return torch.where(eigenvalues == 0, t, -torch.expm1(-safe * t) / safe)


def discrete_slide(eigenvalues: Tensor, eta: float, steps: int | Tensor) -> Tensor:
    r"""The same for k steps of gradient descent: $(1-(1-\eta\lambda)^k)/\lambda$, and $\eta k$ at $\lambda=0$. Exact on a quadratic.

    Args:
        eigenvalues: real, of any shape.
        eta: step size.
        steps: k >= 0, of a shape that fits.

    Returns:
        The shape of both together.

    Cost: none.

    Example:
        >>> [round(v, 4) for v in discrete_slide(torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64), 0.1, 30).tolist()]
        [0.4994, 3.0, 16.4494]

    Source: $\theta_{k+1}=\theta_k-\eta(g+H(\theta_k-\theta_0))$ summed as a geometric series.
    """
    k = torch.as_tensor(steps, dtype=eigenvalues.dtype)
    safe = torch.where(eigenvalues == 0, torch.ones_like(eigenvalues), eigenvalues)
    factor = 1 - eta * safe
    # log1p keeps what 1 - eta lambda rounds away; it has no value where a step overshoots
    small = -torch.expm1(k * torch.log1p(-(eta * safe).clamp(max=0.5))) / safe
    value = torch.where(eta * safe <= 0.5, small, (1 - factor**k) / safe)
    return torch.where(eigenvalues == 0, eta * k, value)


def flow(hessian: Tensor, gradient: Tensor, t: float) -> Tensor:
    r"""Where the gradient flow of a quadratic is after time t, from its start: $-V\,\mathrm{diag}(\lambda'(t))\,V^\top g$.

    It solves $d\theta/dt=-g-H(\theta-\theta_0)$ exactly, for any signs of the eigenvalues.

    Args:
        hessian: symmetric, shape (d, d).
        gradient: g at the start, shape (d,).
        t: time, >= 0.

    Returns:
        $\theta(t)-\theta_0$, shape (d,).

    Cost: one eigendecomposition.

    Example:
        >>> H = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
        >>> [round(v, 3) for v in flow(H, torch.tensor([1.0, 0.01], dtype=torch.float64), 5.0).tolist()]
        [-0.993, -1.474]

    Source: Goodfellow 2015, Montreal slides, "Gradient descent flees saddle points".
    """
    values, vectors = torch.linalg.eigh(hessian)
    moved: Tensor = -vectors @ (slide(values, t) * (vectors.T @ gradient))
    return moved


def escape_time(curvature: float, slope: float, distance: float = 1.0) -> float:
    r"""How long the flow takes to go a distance R along a direction of negative curvature: $\ln(1+R|\lambda|/|g_v|)/|\lambda|$.

    Args:
        curvature: $\lambda<0$.
        slope: $g_v$, the gradient along it at the start, not zero.
        distance: R > 0.

    Returns:
        The time; in steps of gradient descent, divide by the step size (`escape_steps` is exact).

    Raises:
        Usage: where the curvature is not negative.

    Cost: none.

    Example:
        >>> round(escape_time(-0.5, 1e-6), 2)
        26.24

    Source: the solution $(e^{|\lambda|t}-1)|g_v|/|\lambda|=R$ of `slide`.
    """
    if not curvature < 0:
        raise Usage(f"an escape needs negative curvature, got {curvature}.")
    return math.log1p(distance * -curvature / abs(slope)) / -curvature


def escape_steps(curvature: float, slope: float, eta: float, distance: float = 1.0) -> float:
    r"""The same in steps of gradient descent: $\ln(1+R|\lambda|/|g_v|)/\ln(1+\eta|\lambda|)$, not rounded up.

    Args:
        curvature: $\lambda<0$.
        slope: $g_v$, not zero.
        eta: step size.
        distance: R > 0.

    Raises:
        Usage: where the curvature is not negative.

    Cost: none.

    Example:
        >>> round(escape_steps(-0.5, 1e-6, 0.01), 1)
        2631.0
    """
    return escape_time(curvature, slope, distance) * -curvature / math.log1p(-eta * curvature)


def second_order_step(
    gradient: Tensor,
    hessian: Tensor,
    rule: Rule,
    *,
    damping: float = 0.0,
    radius: float = math.inf,
    eta: float = 1.0,
) -> Tensor:
    r"""A step from the exact Hessian $H=V\Lambda V^\top$, cut to a trust radius.

    - "gradient": $-\eta g$, not cut.
    - "newton": $-H^{-1}g$, to the critical point of the quadratic model, of whatever kind. Every saddle attracts it.
    - "damped": $-(H+\mu I)^{-1}g$ with $\mu=\max(0,-\lambda_{min})+$ `damping`, so that all eigenvalues become positive.
    - "saddle-free": $-(|H|+\text{damping}\,I)^{-1}g$ with $|H|=V|\Lambda|V^\top$: Newton's length, always downhill.

    Args:
        gradient: shape (..., d).
        hessian: symmetric, shape (..., d, d).
        rule: which step.
        damping: >= 0; the damped step needs it to be positive where $\lambda_{min}\le0$.
        radius: longer steps are scaled down to this length.
        eta: step size of the gradient.

    Returns:
        The step, shape (..., d). Eigenvalues of zero are left alone where they would be divided by.

    Raises:
        Usage: for a rule that is not known.

    Cost: one eigendecomposition, except for the gradient.

    Example:
        >>> g, H = torch.tensor([4.0, -0.2]).double(), torch.diag(torch.tensor([10.0, -2.0])).double()
        >>> [[round(v, 6) for v in second_order_step(g, H, rule).tolist()] for rule in ("newton", "saddle-free")]
        [[-0.4, -0.1], [-0.4, 0.1]]

    Source: Dauphin et al. 2014, Identifying and attacking the saddle point problem in high-dimensional non-convex optimization.
    """
    if rule == "gradient":
        return -eta * gradient
    values, vectors = torch.linalg.eigh(hessian)
    if rule == "newton":
        scale = values
    elif rule == "damped":
        scale = values - values[..., :1].clamp(max=0) + damping
    elif rule == "saddle-free":
        scale = values.abs() + damping
    else:
        raise Usage(f"`rule` must be gradient, newton, damped or saddle-free, got {rule!r}.")
    along = (gradient[..., None, :] @ vectors).squeeze(-2)
    along = torch.where(scale == 0, torch.zeros_like(along), along / torch.where(scale == 0, torch.ones_like(scale), scale))
    step = -(vectors @ along[..., None]).squeeze(-1)
    length = step.norm(dim=-1, keepdim=True)
    cut: Tensor = step * (radius / length.clamp_min(1e-300)).clamp(max=1.0)
    return cut


@dataclass(frozen=True)
class Surface:
    """A function of two numbers with its derivatives in closed form.

    Attributes:
        name: what it is called.
        formula: for captions.
        value: points (..., 2) -> (...).
        gradient: points (..., 2) -> (..., 2).
        hessian: points (..., 2) -> (..., 2, 2).
    """

    name: str
    formula: str
    value: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor], Tensor]
    hessian: Callable[[Tensor], Tensor]


def _rows(*entries: Tensor) -> Tensor:
    return torch.stack(entries, dim=-1)


def _square(xx: Tensor, xy: Tensor, yy: Tensor) -> Tensor:
    return torch.stack([_rows(xx, xy), _rows(xy, yy)], dim=-2)


def _saddle() -> Surface:
    return Surface(
        "saddle",
        "5x² - y² + y⁴/4",
        lambda p: 5 * p[..., 0] ** 2 - p[..., 1] ** 2 + p[..., 1] ** 4 / 4,
        lambda p: _rows(10 * p[..., 0], -2 * p[..., 1] + p[..., 1] ** 3),
        lambda p: _square(torch.full_like(p[..., 0], 10.0), torch.zeros_like(p[..., 0]), -2 + 3 * p[..., 1] ** 2),
    )


def _monkey() -> Surface:
    def gradient(p: Tensor) -> Tensor:
        x, y = p[..., 0], p[..., 1]
        rr = x * x + y * y
        return _rows(3 * x * x - 3 * y * y + 0.4 * x * rr, -6 * x * y + 0.4 * y * rr)

    def hessian(p: Tensor) -> Tensor:
        x, y = p[..., 0], p[..., 1]
        rr = x * x + y * y
        return _square(6 * x + 0.4 * rr + 0.8 * x * x, -6 * y + 0.8 * x * y, -6 * x + 0.4 * rr + 0.8 * y * y)

    return Surface(
        "monkey",
        "x³ - 3xy² + r⁴/10",
        lambda p: p[..., 0] ** 3 - 3 * p[..., 0] * p[..., 1] ** 2 + (p.square().sum(-1)) ** 2 / 10,
        gradient,
        hessian,
    )


def _plateau() -> Surface:
    return Surface(
        "plateau",
        "5x² - 3y⁴/4 + y⁶/4",
        lambda p: 5 * p[..., 0] ** 2 - 0.75 * p[..., 1] ** 4 + 0.25 * p[..., 1] ** 6,
        lambda p: _rows(10 * p[..., 0], -3 * p[..., 1] ** 3 + 1.5 * p[..., 1] ** 5),
        lambda p: _square(torch.full_like(p[..., 0], 10.0), torch.zeros_like(p[..., 0]), -9 * p[..., 1] ** 2 + 7.5 * p[..., 1] ** 4),
    )


SADDLE = _saddle()
"""A saddle at 0 with eigenvalues 10 and -2, minima of -1 at y = +-sqrt 2. Dauphin et al. 2014, figure 2; y⁴/4 confines it."""

MONKEY = _monkey()
"""At 0 the Hessian is zero; three minima of -1687.5/16 at r = 7.5. Dauphin et al. 2014, figure 2; r⁴/10 confines it."""

PLATEAU = _plateau()
"""`SADDLE` flattened: the same minima and the same depth, but no curvature in y at 0."""


def descend(
    surface: Surface,
    start: Tensor,
    rule: Rule,
    *,
    steps: int = 60,
    radius: float = 0.5,
    eta: float = 0.05,
    damping: float = 0.0,
) -> Tensor:
    """The path of a rule on a surface, from one start or many.

    Args:
        surface: what is descended.
        start: shape (..., 2).
        rule: as in `second_order_step`.
        steps: how many.
        radius: the longest step of the rules with a Hessian.
        eta: step size of the gradient.
        damping: as in `second_order_step`.

    Returns:
        The points, the start first, shape (steps + 1, ..., 2).

    Cost: a gradient and a Hessian per step.

    Example:
        >>> start = torch.tensor([0.4, 1e-3], dtype=torch.float64)
        >>> [round(float(SADDLE.value(descend(SADDLE, start, rule)[-1])), 6) + 0.0 for rule in ("newton", "saddle-free")]
        [0.0, -1.0]
    """
    points = [start]
    for _ in range(steps):
        p = points[-1]
        points.append(p + second_order_step(surface.gradient(p), surface.hessian(p), rule, damping=damping, radius=radius, eta=eta))
    return torch.stack(points)
