"""Learning a cosine of a linear map by one: the expected loss, its derivatives, its critical points, all in closed form."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from scipy import special
from torch import Tensor
from torch.func import jacfwd, vmap

from gradoscope.errors import CannotRun
from gradoscope.theory.laws import Law, standard

__all__ = [
    "CriticalPoint",
    "classify",
    "critical_points",
    "descend",
    "find_critical_points",
    "gradient",
    "hessian",
    "loss",
    "mean_gradient",
    "on_sphere",
    "sphere_variance",
    "target_distances",
    "variance_over_targets",
]


def loss(w: Tensor, target: Tensor, law: Law | None = None, *, half: bool = False) -> Tensor:
    r"""$F(w)=E_x(\cos w\cdot x-\cos w^*\cdot x)^2=1+\frac12\chi(2w)+\frac12\chi(2w^*)-\chi(w-w^*)-\chi(w+w^*)$.

    Far from $\pm w^*$ and from 0 it is 1, the plateau, and at $\pm w^*$ it is 0.

    Args:
        w: float64, shape (..., d).
        target: w*, of a shape that fits.
        law: of x; None for the standard normal.
        half: with a factor 1/2 in front, the convention of theorem 1.

    Example:
        >>> w = torch.tensor([[2.0, 2.0], [0.0, 0.0], [9.0, -3.0]], dtype=torch.float64)
        >>> [round(abs(v), 4) for v in loss(w, w[0]).tolist()]
        [0.0, 1.4634, 1.0]

    Source: Shalev-Shwartz, Shamir & Shammah (2017), slides, part 4 (without 1/2).
    """
    law = law or standard(w.shape[-1])
    value = 1 + law.cosine(2 * w) / 2 + law.cosine(2 * target) / 2 - law.cosine(w - target) - law.cosine(w + target)
    return value / 2 if half else value


def gradient(w: Tensor, target: Tensor, law: Law | None = None, *, half: bool = False) -> Tensor:
    r"""$\nabla F(w)=\chi'(2w)-\chi'(w-w^*)-\chi'(w+w^*)$, in the same conventions; for the standard normal $\chi'(u)=-ue^{-|u|^2/2}$.

    Example:
        >>> w = torch.tensor([2.0, 2.0], dtype=torch.float64)
        >>> float(gradient(w, w).norm()) < 1e-6, float(gradient(w + 4, w).norm()) < 1e-6
        (True, True)
    """
    law = law or standard(w.shape[-1])
    value = law.slope(2 * w) - law.slope(w - target) - law.slope(w + target)
    return value / 2 if half else value


def hessian(w: Tensor, target: Tensor, law: Law | None = None, *, half: bool = False) -> Tensor:
    r"""$\nabla^2F(w)=2\chi''(2w)-\chi''(w-w^*)-\chi''(w+w^*)$; for the standard normal $\chi''(u)=(uu^\top-I)e^{-|u|^2/2}$.

    Args:
        w: shape (..., d).
        target: shape (d,).
        law: None for the standard normal, else by automatic differentiation of the gradient.
        half: as in `loss`.

    Returns:
        Shape (..., d, d).

    Example:
        >>> w = torch.tensor([2.0, -2.0], dtype=torch.float64) / math.sqrt(3)  # orthogonal to (2, 2), |w| = |w*| / sqrt 3
        >>> [round(v, 4) for v in torch.linalg.eigvalsh(hessian(w, torch.tensor([2.0, 2.0], dtype=torch.float64))).tolist()]
        [-0.0772, 0.0772]
    """
    if law is None:
        value: Tensor = 2 * _bend(2 * w) - _bend(w - target) - _bend(w + target)
        return value / 2 if half else value
    flat = w.reshape(-1, w.shape[-1])
    found = vmap(jacfwd(lambda v: gradient(v, target, law, half=half)))(flat)
    return torch.as_tensor(found).reshape(*w.shape, w.shape[-1])


def _bend(u: Tensor) -> Tensor:
    eye = torch.eye(u.shape[-1], dtype=u.dtype)
    size = torch.exp(-u.square().sum(-1) / 2)
    return (u[..., :, None] * u[..., None, :] - eye) * size[..., None, None]


@dataclass(frozen=True)
class CriticalPoint:
    """A point with zero gradient: where, of what kind, its loss (without 1/2), the Hessian's eigenvalues in ascending order."""

    kind: Literal["minimum", "maximum", "saddle", "degenerate"]
    w: Tensor
    loss: float
    eigenvalues: Tensor


def critical_points(target: Tensor) -> list[CriticalPoint]:
    r"""What symmetry gives for x ~ N(0, I): minima at $\pm w^*$, a maximum at 0, saddles orthogonal to w* at $|w|=|w^*|/\sqrt3$.

    In the plane orthogonal to w*, $\nabla F=2w(e^{-(|w|^2+|w^*|^2)/2}-e^{-2|w|^2})$, which is zero at $3|w|^2=|w^*|^2$. In d
    dimensions the saddles form a sphere of dimension d - 2; one pair of them is given. The kinds are read from the Hessian, which
    at 0 is $-2(1-e^{-r^2/2})I-2e^{-r^2/2}w^*w^{*\top}$, negative for every $r=|w^*|>0$.

    Args:
        target: w*, float64, shape (d,), d >= 2.

    Example:
        >>> for point in critical_points(torch.tensor([2.0, 2.0], dtype=torch.float64)):
        ...     print(point.kind, round(abs(point.loss), 4))
        minimum 0.0
        minimum 0.0
        maximum 1.4634
        saddle 0.9928
        saddle 0.9928
    """
    axis = torch.zeros_like(target)
    axis[int(target.abs().argmin())] = 1
    across = axis - target * (axis @ target) / (target @ target)
    across = across / across.norm() * target.norm() / math.sqrt(3)
    return [classify(w, target) for w in (target, -target, torch.zeros_like(target), across, -across)]


def classify(w: Tensor, target: Tensor) -> CriticalPoint:
    """The kind of a critical point by the signs of the Hessian's eigenvalues, of which none may be below 1e-6 of the largest."""
    values = torch.linalg.eigvalsh(hessian(w, target))
    up, down = int((values > 1e-6 * values.abs().max()).sum()), int((values < -1e-6 * values.abs().max()).sum())
    kind: Literal["minimum", "maximum", "saddle", "degenerate"]
    kind = "saddle" if up and down else "minimum" if up == len(w) else "maximum" if down == len(w) else "degenerate"
    return CriticalPoint(kind, w, float(loss(w, target)), values)


def find_critical_points(target: Tensor, starts: Tensor, *, steps: int = 200, tolerance: float = 1e-9) -> tuple[list[CriticalPoint], float]:
    r"""Every zero of the gradient that descents from many starts reach, for x ~ N(0, I).

    The gradient underflows on the plateau without being zero, so its size alone finds nothing. It is divided by the sum of the
    sizes of its three terms: that changes no zero, and is 1 where one term outweighs the others. Levenberg-Marquardt descends
    on the square of the quotient from every start at once.

    Args:
        target: w*, float64, shape (d,).
        starts: shape (S, d).
        steps: of each descent.
        tolerance: the quotient at which a point counts as critical.

    Returns:
        The distinct points, and the share of the starts that reached one.

    Cost: `steps` * (2 d + 2) gradients per start.

    Example:
        >>> target = torch.tensor([1.0, 2.0], dtype=torch.float64)
        >>> starts = torch.randn(60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> sorted({point.kind for point in find_critical_points(target, starts)[0]})
        ['maximum', 'minimum', 'saddle']
    """
    w, damping = starts.clone(), torch.full((len(starts),), 1e-2, dtype=torch.float64)
    d, h = w.shape[1], 1e-6
    eye = torch.eye(d, dtype=torch.float64)
    value = _quotient(w, target)
    for _ in range(steps):
        jacobian = torch.stack([(_quotient(w + h * e, target) - _quotient(w - h * e, target)) / (2 * h) for e in eye], dim=2)
        normal = jacobian.transpose(1, 2) @ jacobian
        right = (jacobian.transpose(1, 2) @ value[:, :, None]).squeeze(2)
        move = torch.linalg.solve(normal + damping[:, None, None] * eye, right)
        new = w - move
        tried = _quotient(new, target)
        better = tried.square().sum(1) < value.square().sum(1)
        w, value = torch.where(better[:, None], new, w), torch.where(better[:, None], tried, value)
        damping = torch.where(better, damping / 3, damping * 2).clamp(1e-15, 1e6)
    reached = value.norm(dim=1) < tolerance
    found: list[Tensor] = []
    for point in w[reached]:
        if all(float((point - other).norm()) > 1e-4 for other in found):
            found.append(point)
    return [classify(point, target) for point in found], float(reached.double().mean())


def _quotient(w: Tensor, target: Tensor) -> Tensor:
    """The gradient over the sum of the sizes of its terms, with the largest exponent taken out of both; shape (S, d)."""
    ways = torch.stack([2 * w, w - target, w + target])
    exponents = -ways.square().sum(-1) / 2
    scale = torch.exp(exponents - exponents.max(0).values)[..., None]
    terms = ways * scale * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)[:, None, None]
    # at w = 0 and at +-w* terms vanish one by one: exp(...) keeps the quotient from jumping there
    sizes = terms.norm(dim=-1).sum(0) + scale[..., 0].sum(0)
    return torch.as_tensor(terms.sum(0) / sizes[:, None])


def on_sphere(n: int, d: int, r: float, random: torch.Generator) -> Tensor:
    """n points uniform on the sphere of radius r, float64, shape (n, d)."""
    x = torch.randn((n, d), generator=random, dtype=torch.float64)
    return torch.nn.functional.normalize(x, dim=1) * r


def variance_over_targets(w: Tensor, targets: Tensor, law: Law | None = None) -> tuple[float, float]:
    r"""$E|\nabla F_{w^*}(w)-E\nabla F(w)|^2$ over drawn targets (with the factor 1/2), unbiased, and its standard error.

    Args:
        w: float64, shape (d,).
        targets: shape (n, d), n >= 2.
        law: of x.

    Cost: n gradients.
    """
    law = law or standard(w.shape[-1])
    # without the part that all targets share: rounding of that would hide what is left at a large |w*|
    each = -(law.slope(w - targets) + law.slope(w + targets)) / 2
    squares = (each - each.mean(0)).square().sum(1) * len(each) / (len(each) - 1)
    return float(squares.mean()), float(squares.std()) / math.sqrt(len(each))


def sphere_variance(size: float, r: float, d: int, nodes: int = 512) -> float:
    r"""The same over all targets with $|w^*|=r$, at $|w|=$ size, for x ~ N(0, I), exactly: an integral over the angle.

    With $s=w\cdot w^*$ the part of the gradient that depends on the target is $e^{-(|w|^2+r^2)/2}(w\cosh s-w^*\sinh s)$, and the
    cosine t of the angle has the density $(1-t^2)^{(d-3)/2}$ (Gauss-Gegenbauer quadrature).

    Args:
        size: |w|.
        r: |w*|.
        d: dimension, at least 2.
        nodes: of the quadrature.

    Raises:
        CannotRun: for d < 2.

    Example:
        >>> [f"{sphere_variance(1.0, r, 10):.0e}" for r in (2, 4, 6)]
        ['1e-02', '3e-06', '2e-13']
    """
    weights, along, across = _angles(size, r, d, nodes)
    mean = float(weights @ along)
    return float(weights @ ((along - mean) ** 2 + across**2))


def mean_gradient(size: float, r: float, d: int, nodes: int = 512) -> float:
    r"""The component along w of the mean gradient over all targets with $|w^*|=r$ (with 1/2); the others are 0 by symmetry.

    Example:
        >>> mean_gradient(1.0, 4.0, 5) < 0  # away from the maximum at 0
        True
    """
    weights, along, _ = _angles(size, r, d, nodes)
    return float(weights @ along) - size * math.exp(-2 * size * size)


def target_distances(size: float, r: float, d: int, cosines: Tensor, nodes: int = 512) -> Tensor:
    r"""$|\nabla F_{w^*}-E\nabla F|$ (with 1/2) of targets at these cosines of the angle to w, for x ~ N(0, I); same shape.

    Example:
        >>> t = torch.tensor([0.0, 0.9], dtype=torch.float64)
        >>> [f"{v:.0e}" for v in target_distances(4.0, 4.0, 10, t).tolist()]
        ['4e-04', '2e-01']
    """
    weights, along, _ = _angles(size, r, d, nodes)
    radial, tangential = _varying(size, r, cosines.numpy())
    return torch.from_numpy(np.hypot(radial - float(weights @ along), tangential))


def _angles(size: float, r: float, d: int, nodes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights of the angles, and the varying part of the gradient along and across w."""
    if d < 2:
        raise CannotRun(f"a sphere of targets needs at least 2 dimensions, got {d}.")
    t, weights = _quadrature(d, nodes)
    return (weights, *_varying(size, r, t))


@lru_cache(maxsize=32)
def _quadrature(d: int, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    t, weights = special.roots_gegenbauer(nodes, (d - 2) / 2) if d > 2 else special.roots_chebyt(nodes)
    return t, weights / weights.sum()


def _varying(size: float, r: float, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part of the gradient that depends on the target, along w and across it, at these cosines."""
    level = -(size * size + r * r) / 2
    up, down = np.exp(level + size * r * t), np.exp(level - size * r * t)
    cosh, sinh = (up + down) / 2, (up - down) / 2
    return size * cosh - r * t * sinh, r * np.sqrt(np.clip(1 - t * t, 0, None)) * sinh


def descend(starts: Tensor, targets: Tensor, *, step: float = 0.5, steps: int = 3000, law: Law | None = None) -> Tensor:
    """Plain gradient descent on the expected loss (with 1/2), from all starts at once; returns where they end, (S, d).

    Args:
        starts: float64, shape (S, d).
        targets: shape (S, d) or (d,).
        step: step size.
        steps: how many.
        law: of x.

    Cost: `steps` gradients per start.

    Example:
        >>> w = torch.tensor([[0.9, 1.2]], dtype=torch.float64)
        >>> float(loss(descend(w, torch.ones(2, dtype=torch.float64), steps=200), torch.ones(2, dtype=torch.float64))) < 1e-9
        True
    """
    w = starts
    for _ in range(steps):
        w = w - step * gradient(w, targets, law, half=True)
    return w
