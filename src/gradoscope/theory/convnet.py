"""One shared ReLU filter over separate patches, Gaussian inputs: the expected loss, its critical points, gradient descent on it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gradoscope.errors import Usage
from gradoscope.theory.arc_cosine import angle, kernel, kernel_gradient, kernel_hessian

__all__ = [
    "CriticalPoint",
    "Descent",
    "constants",
    "critical_points",
    "descend",
    "escape_steps",
    "gradient",
    "guarantees",
    "hessian",
    "loss",
    "one_sided_slope",
    "polar_loss",
    "saddle_loss",
    "sample",
    "step_limit",
]

Kind = Literal["maximum", "minimum", "degenerate saddle"]


def constants(k: int) -> tuple[float, float, float]:
    r"""$(\alpha,\beta,\gamma)$: $\beta=\frac{k^2-k}{2\pi}$, $\gamma=\beta+\frac k2$, $\alpha=\beta/\gamma=\frac{k-1}{k-1+\pi}$.

    Args:
        k: patches, at least 1.

    Raises:
        Usage: for k < 1.

    Example:
        >>> [round(constants(k)[0], 5) for k in (1, 2, 5, 30)]
        [0.0, 0.24145, 0.5601, 0.90226]

    Source: Brutzkus & Globerson 2017, Globally optimal gradient descent for a ConvNet with Gaussian inputs.
    """
    if k < 1:
        raise Usage(f"a network needs at least 1 patch, got k={k}.")
    beta = (k * k - k) / (2 * math.pi)
    return (k - 1) / (k - 1 + math.pi), beta, beta + k / 2


def loss(w: Tensor, target: Tensor, k: int) -> Tensor:
    r"""$\ell(w)=E(f_w(x)-f_{w^*}(x))^2=\frac1{k^2}\left[\gamma|w|^2-2kg(w,w^*)-2\beta|w||w^*|+\gamma|w^*|^2\right]$.

    Here $f_w(x)=\frac1k\sum_i\sigma(w\cdot x[i])$ with k patches of independent standard normal numbers, and g is
    `arc_cosine.kernel`. The last term, which the slides leave out, makes it 0 at w*.

    Args:
        w: float64, shape (..., m), not zero.
        target: w*, of a shape that fits.
        k: patches.

    Returns:
        Shape (...).

    Cost: none.

    Example:
        >>> w = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
        >>> [round(v, 6) + 0.0 for v in loss(w, w[0], 4).tolist()]
        [0.0, 1.25]

    Source: Brutzkus & Globerson 2017; slides, "Gaussian inputs" (without the constant).
    """
    _, beta, gamma = constants(k)
    r, s = w.norm(dim=-1), target.norm(dim=-1)
    value: Tensor = (gamma * (r * r + s * s) - 2 * k * kernel(w, target) - 2 * beta * r * s) / k**2
    return value


def polar_loss(r: Tensor, theta: Tensor, s: float, k: int) -> Tensor:
    r"""The same from $r=|w|$, the angle to w* and $s=|w^*|$.

    $k^2\ell=\gamma r^2-\frac{krs}\pi(\sin\theta+(\pi-\theta)\cos\theta)-2\beta rs+\gamma s^2$.

    Example:
        >>> float(polar_loss(torch.tensor(1.0), torch.tensor(0.0), 1.0, 5))
        0.0
    """
    _, beta, gamma = constants(k)
    shape = torch.sin(theta) + (math.pi - theta) * torch.cos(theta)
    return (gamma * (r * r + s * s) - k * r * s * shape / math.pi - 2 * beta * r * s) / k**2


def gradient(w: Tensor, target: Tensor, k: int) -> Tensor:
    r"""The derivative of `loss`, wherever w is not zero.

    $\nabla\ell=\frac1{k^2}\left[\left(2\gamma-\frac{ks\sin\theta}{\pi r}-\frac{2\beta s}r\right)w-\frac k\pi(\pi-\theta)w^*\right]$.

    Args:
        w: float64, shape (..., m), not zero.
        target: w*, of a shape that fits.
        k: patches.

    Returns:
        Shape (..., m).

    Cost: none.

    Example:
        >>> w = torch.tensor([1.0, 2.0], dtype=torch.float64)
        >>> alpha = constants(5)[0]
        >>> float(gradient(w, w, 5).norm()) < 1e-12, float(gradient(-alpha * w, w, 5).norm()) < 1e-12
        (True, True)
    """
    _, beta, gamma = constants(k)
    ratio = target.norm(dim=-1) / w.norm(dim=-1)
    along = 2 * gamma - 2 * beta * ratio
    value: Tensor = (along[..., None] * w - 2 * k * kernel_gradient(w, target)) / k**2
    return value


def hessian(w: Tensor, target: Tensor, k: int) -> Tensor:
    r"""The second derivative of `loss`, wherever w is not zero.

    $\nabla^2\ell=\frac1{k^2}\left[2\gamma I-\frac{2\beta s}rP-\frac{ks\sin\theta}{\pi r}(P+pp^\top)\right]$ with $P=I-\hat w\hat w^\top$
    and p the unit vector of the part of w* across w. No eigenvalue is above $2\gamma/k^2$, wherever w is.

    Args:
        w: float64, shape (..., m), not zero.
        target: w*, of a shape that fits.
        k: patches.

    Returns:
        Shape (..., m, m).

    Cost: none.

    Example:
        >>> w = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
        >>> [round(v, 6) + 0.0 for v in torch.linalg.eigvalsh(hessian(-constants(5)[0] * w, w, 5)).tolist()]
        [0.0, 0.0, 0.454648]
    """
    _, beta, gamma = constants(k)
    r = w.norm(dim=-1)
    unit = w / r[..., None]
    eye = torch.eye(w.shape[-1], dtype=w.dtype, device=w.device)
    across = eye - unit[..., :, None] * unit[..., None, :]
    ratio = (target.norm(dim=-1) / r)[..., None, None]
    value: Tensor = (2 * gamma * eye - 2 * beta * ratio * across - 2 * k * kernel_hessian(w, target)) / k**2
    return value


def one_sided_slope(direction: Tensor, target: Tensor, k: int) -> Tensor:
    r"""How fast the loss rises from w = 0 along unit vectors u: $-\frac2{k^2}\left(kg(u,w^*)+\beta|w^*|\right)$, negative for k >= 2.

    It depends on u, so the loss has no derivative there. For k = 1 it is 0 along -w*.

    Args:
        direction: u, shape (..., m), of length 1.
        target: w*, of a shape that fits.
        k: patches.

    Returns:
        Shape (...).

    Example:
        >>> u = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
        >>> [round(v, 4) + 0.0 for k in (1, 2) for v in one_sided_slope(u, u[0], k).tolist()]
        [-1.0, 0.0, -0.6592, -0.1592]
    """
    beta = constants(k)[1]
    value: Tensor = -2 * (k * kernel(direction, target) + beta * target.norm(dim=-1)) / k**2
    return value


def saddle_loss(k: int, s: float = 1.0) -> float:
    r"""The loss at $-\alpha w^*$: $s^2(\gamma^2-\beta^2)/(\gamma k^2)$.

    Example:
        >>> round(saddle_loss(5), 6)
        0.15601
    """
    _, beta, gamma = constants(k)
    return s * s * (gamma**2 - beta**2) / (gamma * k**2)


@dataclass(frozen=True)
class CriticalPoint:
    """A point that gradient descent could rest at: where, of what kind, its loss, the Hessian's eigenvalues ascending (None at 0)."""

    name: str
    kind: Kind
    w: Tensor
    loss: float
    eigenvalues: Tensor | None


def critical_points(target: Tensor, k: int) -> list[CriticalPoint]:
    r"""All of them: the minimum w*, the degenerate saddle $-\alpha w^*$ (k >= 2), and 0, where the loss has no derivative.

    There are no others: the part of the gradient across w is $-\frac{\pi-\theta}{\pi k}w^*_\perp$, which vanishes for
    $\theta\in\{0,\pi\}$ alone. At w* the eigenvalues are $2\gamma/k^2$ once and $1/k$ m - 1 times; at $-\alpha w^*$ they are
    $2\gamma/k^2$ once and 0 m - 1 times: along the sphere the loss there falls as $-\frac{\alpha s^2}{3\pi k}\varphi^3$.

    Args:
        target: w*, float64, shape (m,), not zero.
        k: patches.

    Example:
        >>> for point in critical_points(torch.tensor([0.6, 0.8], dtype=torch.float64), 5):
        ...     print(point.name, point.kind, round(point.loss, 4))
        w* minimum 0.0
        -alpha w* degenerate saddle 0.156
        0 maximum 0.2273

    Source: Brutzkus & Globerson 2017; slides, "Convergence of GD".
    """
    alpha, _, gamma = constants(k)
    s = float(target.norm())
    found = [_point("w*", "minimum", target, target, k)]
    if k > 1:
        found.append(_point("-alpha w*", "degenerate saddle", -alpha * target, target, k))
        found.append(CriticalPoint("0", "maximum", torch.zeros_like(target), gamma * s * s / k**2, None))
    return found


def _point(name: str, kind: Kind, w: Tensor, target: Tensor, k: int) -> CriticalPoint:
    return CriticalPoint(name, kind, w, float(loss(w, target, k)), torch.linalg.eigvalsh(hessian(w, target, k)))


def step_limit(k: int) -> float:
    r"""$k^2/(2\gamma)$: one over the largest curvature. Below it the guarantees hold.

    Example:
        >>> round(step_limit(5), 4)
        2.1995
    """
    return float(k * k / (2 * constants(k)[2]))


def escape_steps(k: int, step: float, phi: float) -> float:
    r"""Steps from $|w|=\alpha s$ at the angle $\pi-\varphi$ until w is nearer to w* than to -w*: $\pi k\alpha/(\lambda\varphi)$.

    A power and not a logarithm: the saddle has no negative curvature. The relative error vanishes with $\varphi$.

    Args:
        k: patches, at least 2.
        step: $\lambda$.
        phi: the angle to -w*, small.

    Example:
        >>> round(escape_steps(5, step_limit(5) / 2, 0.01))
        800

    Source: $\dot\varphi=\varphi^2/(\pi k\alpha)$ near the saddle, from the gradient's part across w.
    """
    return math.pi * k * constants(k)[0] / (step * phi)


def sample(n: int, k: int, m: int, random: torch.Generator) -> Tensor:
    """n inputs of k patches, all numbers standard normal, float64, shape (n, k, m)."""
    return torch.randn(n, k, m, generator=random, dtype=torch.float64)


@dataclass(frozen=True)
class Descent:
    """Gradient descent from S starts at once: where it ends, and what was seen before each step and at the end.

    Attributes:
        w: shape (S, m).
        reached: the first step at which w was as near to w* as the tolerance, -1 for never; shape (S,).
        losses: shape (steps + 1, S).
        gradients: norms, shape (steps + 1, S).
        angles: to the target, shape (steps + 1, S).
        norms: of w, shape (steps + 1, S).
        path: the points, shape (steps + 1, S, m), or None.
    """

    w: Tensor
    reached: Tensor
    losses: Tensor
    gradients: Tensor
    angles: Tensor
    norms: Tensor
    path: Tensor | None = None


def descend(
    starts: Tensor,
    target: Tensor,
    k: int,
    *,
    step: float,
    steps: int,
    tolerance: float = 1e-6,
    keep_path: bool = False,
    until: Callable[[Tensor], bool] | None = None,
) -> Descent:
    r"""Gradient descent $w\leftarrow w-\lambda\nabla\ell(w)$ on the expected loss, from all starts at once.

    Args:
        starts: float64, shape (S, m), none of them zero.
        target: w*, shape (m,) or (S, m).
        k: patches.
        step: $\lambda$.
        steps: at most so many.
        tolerance: the distance |w - w*| / |w*| that counts as reached.
        keep_path: whether to keep every point.
        until: stop early when it says so of the angles, shape (S,).

    Cost: one gradient per step and start.

    Example:
        >>> target = torch.tensor([1.0, 0.0], dtype=torch.float64)
        >>> run = descend(torch.tensor([[-1.0, 0.2]], dtype=torch.float64), target, 5, step=step_limit(5) / 2, steps=200)
        >>> int(run.reached), bool(run.w.allclose(target))
        (102, True)
    """
    w, seen, path = starts.clone(), [], []
    reached = torch.full((len(starts),), -1, dtype=torch.long)
    for t in range(steps + 1):
        g, theta = gradient(w, target, k), angle(w, target)
        value = loss(w, target, k)
        seen.append(torch.stack([value, g.norm(dim=-1), theta, w.norm(dim=-1)]))
        if keep_path:
            path.append(w)
        near = (w - target).norm(dim=-1) <= tolerance * target.norm(dim=-1)
        reached = torch.where((reached < 0) & near, t, reached)
        if t == steps or (until is not None and until(theta)):
            break
        w = w - step * g
    losses, gradients, angles, norms = torch.stack(seen).unbind(1)
    return Descent(w, reached, losses, gradients, angles, norms, torch.stack(path) if keep_path else None)


def guarantees(run: Descent, s: float, k: int, step: float) -> dict[str, Tensor]:
    r"""By how much a descent breaks each of its guarantees, at its worst step; at most rounding where $0<\lambda<k^2/(2\gamma)$.

    - "angle": the angle to w* never grows.
    - "norm": $|w_t|\ge\min(|w_0|,\alpha s)$, so the singular point 0 stays away.
    - "descent": $\min_{t<T}|\nabla\ell|^2\le2\ell(w_0)/(\lambda T)$ for every T, as a quotient minus 1: the $\epsilon^{-2}$ law.
    - "loss": each step removes at least $\frac\lambda2|\nabla\ell|^2$.

    Args:
        run: what `descend` gave.
        s: |w*|.
        k: patches.
        step: $\lambda$.

    Returns:
        Each of shape (S,): positive where it is broken.

    Example:
        >>> target = torch.tensor([1.0, 0.0], dtype=torch.float64)
        >>> run = descend(torch.tensor([[-1.0, 0.2]], dtype=torch.float64), target, 5, step=0.5, steps=200)
        >>> max(float(v) for v in guarantees(run, 1.0, 5, 0.5).values()) < 1e-9
        True
    """
    count = torch.arange(1, len(run.losses) + 1, dtype=torch.float64)[:, None]
    least = run.gradients.square().cummin(0).values
    bound = 2 * run.losses[0] / (step * count)
    floor = torch.minimum(run.norms[0], torch.full_like(run.norms[0], constants(k)[0] * s))
    drop = run.losses[:-1] - run.losses[1:] - step / 2 * run.gradients[:-1].square()
    return {
        "angle": run.angles.diff(dim=0).max(0).values,
        "norm": (floor - run.norms).max(0).values,
        "descent": (least / bound - 1).max(0).values,
        "loss": (-drop).max(0).values,
    }
