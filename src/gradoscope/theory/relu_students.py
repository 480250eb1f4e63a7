"""ReLU students of ReLU teachers on Gaussian inputs beyond one shared filter: fully connected layers, and two trained layers."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradoscope.theory.arc_cosine import kernel, kernel_gradient

__all__ = [
    "BadMinimum",
    "connected_gradient",
    "connected_loss",
    "descend_connected",
    "descend_two_layers",
    "two_layer_bad_minimum",
    "two_layer_gradient",
    "two_layer_loss",
]


def connected_loss(w: Tensor, teachers: Tensor) -> Tensor:
    r"""$\ell=\frac12E(\sum_i\sigma(w_i\cdot x)-\sum_j\sigma(v_j\cdot x))^2=\frac12\sum g(w_i,w_j)-\sum g(w_i,v_j)+\frac12\sum g(v_i,v_j)$.

    Args:
        w: the n neurons of a student, float64, shape (..., n, d), none of them zero.
        teachers: v, shape (k, d).

    Returns:
        Shape (...).

    Example:
        >>> v = torch.eye(3, dtype=torch.float64)
        >>> round(abs(float(connected_loss(v[[2, 0, 1]], v))), 12)
        0.0

    Source: Safran & Shamir 2018, Spurious local minima are common in two-layer ReLU neural networks, section 2.
    """
    return _pairs(w, w) / 2 - _pairs(w, teachers) + _pairs(teachers, teachers) / 2


def _pairs(a: Tensor, b: Tensor) -> Tensor:
    return kernel(a[..., :, None, :], b[..., None, :, :]).sum((-1, -2))


def connected_gradient(w: Tensor, teachers: Tensor) -> Tensor:
    r"""$\nabla_{w_i}\ell=\sum_j\nabla_ug(w_i,w_j)-\sum_j\nabla_ug(w_i,v_j)$, shape (..., n, d)."""
    return _slopes(w, w) - _slopes(w, teachers)


def _slopes(u: Tensor, v: Tensor) -> Tensor:
    """The sum over j of the kernel's derivative by each u_i, without a tensor of all pairs times d but for the angles."""
    a = u / u.norm(dim=-1, keepdim=True)
    size = v.norm(dim=-1)
    b = v / size[..., None]
    pairs = a[..., :, None, :], b[..., None, :, :]
    theta = 2 * torch.atan2((pairs[0] - pairs[1]).norm(dim=-1), (pairs[0] + pairs[1]).norm(dim=-1))
    along = (torch.sin(theta) * size[..., None, :]).sum(-1)
    value: Tensor = (along[..., None] * a + (math.pi - theta) @ v) / (2 * math.pi)
    return value


def descend_connected(
    starts: Tensor, teachers: Tensor, *, step: float, steps: int, momentum: float = 0.9, at_rest: float = 1e-14, look: int = 50
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Gradient descent with momentum, $b\leftarrow\mu b+\nabla\ell$, $w\leftarrow w-\lambda b$, from S students at once.

    Args:
        starts: float64, shape (S, n, d).
        teachers: shape (k, d).
        step: $\lambda$.
        steps: at most so many.
        momentum: $\mu$.
        at_rest: the gradient norm below which a student is left alone.
        look: how often that is asked.

    Returns:
        The ends (S, n, d), their losses (S,), and gradient norms (S,).

    Cost: one gradient per step and student that moves.

    Example:
        >>> v = torch.eye(2, dtype=torch.float64)
        >>> w = torch.tensor([[[1.0, 0.3], [0.2, 0.8]]], dtype=torch.float64)
        >>> float(descend_connected(w, v, step=0.2, steps=500)[1]) < 1e-12
        True
    """
    w, moving = starts.clone(), torch.arange(len(starts))
    here, velocity = w.clone(), torch.zeros_like(w)
    for t in range(steps):
        g = connected_gradient(here, teachers)
        if t % look == 0:
            still = g.flatten(1).norm(dim=1) < at_rest
            w[moving] = here
            moving, here, velocity, g = moving[~still], here[~still], velocity[~still], g[~still]
            if not len(moving):
                break
        velocity = momentum * velocity + g
        here = here - step * velocity
    w[moving] = here
    return w, connected_loss(w, teachers), connected_gradient(w, teachers).flatten(1).norm(dim=1)


def two_layer_loss(w: Tensor, a: Tensor, target: Tensor, target_a: Tensor) -> Tensor:
    r"""$\ell(w,a)=\frac12E\big(\sum_ja_j\sigma(w\cdot x[j])-\sum_ja_j^*\sigma(w^*\cdot x[j])\big)^2$ for patches that do not overlap.

    With $r=|w|$, $s=|w^*|$ and 1 the vector of ones, patches that differ contribute $rs/(2\pi)$ each, so that it is
    $\frac{r^2}{4\pi}\big((\pi-1)|a|^2+(1^\top a)^2\big)-\big(g(w,w^*)-\tfrac{rs}{2\pi}\big)a^\top a^*-\frac{rs}{2\pi}1^\top a\,1^\top a^*$
    and the first term of the target.

    Args:
        w: the filter, float64, shape (..., m), not zero.
        a: output weights, shape (..., k).
        target: w*, shape (m,).
        target_a: a*, shape (k,).

    Returns:
        Shape (...).

    Example:
        >>> w, a = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
        >>> round(abs(float(two_layer_loss(2 * w, a / 2, w, a))), 12)
        0.0

    Source: Du, Lee, Tian, Poczos & Singh 2018, Gradient descent learns one-hidden-layer CNN, section 3 (with |w| = 1 there).
    """
    r, s = w.norm(dim=-1), target.norm(dim=-1)
    own = r * r * ((math.pi - 1) * a.square().sum(-1) + a.sum(-1).square()) / (4 * math.pi)
    true = s * s * ((math.pi - 1) * target_a.square().sum() + target_a.sum().square()) / (4 * math.pi)
    apart = r * s / (2 * math.pi)
    value: Tensor = own + true - (kernel(w, target) - apart) * (a @ target_a) - apart * a.sum(-1) * target_a.sum()
    return value


def two_layer_gradient(w: Tensor, a: Tensor, target: Tensor, target_a: Tensor) -> tuple[Tensor, Tensor]:
    """The derivatives of `two_layer_loss` by w and by a, shapes (..., m) and (..., k)."""
    r, s = w.norm(dim=-1), target.norm(dim=-1)
    total, true, same = a.sum(-1), target_a.sum(), a @ target_a
    unit = w / r[..., None]
    own = ((math.pi - 1) * a.square().sum(-1) + total.square()) / (2 * math.pi)
    crossed = s * (total * true - same) / (2 * math.pi)
    by_w = own[..., None] * w - same[..., None] * kernel_gradient(w, target) - crossed[..., None] * unit
    bend = (r * r / (2 * math.pi))[..., None] * ((math.pi - 1) * a + total[..., None])
    apart = (r * s / (2 * math.pi))[..., None]
    by_a = bend - (kernel(w, target)[..., None] - apart) * target_a - apart * true
    return by_w, by_a


@dataclass(frozen=True)
class BadMinimum:
    r"""The critical point at $w\propto-w^*$: the output weights a there (for |w| = |w*|), the loss, and $a^\top a^*$.

    Attributes:
        a: shape (k,).
        loss: with the factor 1/2.
        correlation: $a^\top a^*$. Where it is negative the point is a local minimum, else a saddle.
    """

    a: Tensor
    loss: float
    correlation: float


def two_layer_bad_minimum(target: Tensor, target_a: Tensor) -> BadMinimum:
    r"""At the angle pi nothing of the kernel is left, and a is a least-squares fit: $((\pi-1)I+11^\top)\,a=(11^\top-I)\,a^*$.

    Near it the loss changes with the angle by $-a^\top a^*\,rs\,\varphi^3/(6\pi)$: upwards where $a^\top a^*<0$, so that
    it is a local minimum, a flat one to second order. That is so where $(1^\top a^*)^2$ is small beside $k|a^*|^2$:
    with $q=(1^\top a^*)^2/(k|a^*|^2)$, where $q\frac{k-1}{k-1+\pi}<\frac{1-q}{\pi-1}$.

    Args:
        target: w*, shape (m,).
        target_a: a*, shape (k,).

    Example:
        >>> w = torch.tensor([1.0, 0.0], dtype=torch.float64)
        >>> flat, mixed = torch.ones(4, dtype=torch.float64), torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
        >>> [round(two_layer_bad_minimum(w, a).correlation, 3) for a in (flat, mixed)]
        [1.954, -1.868]

    Source: Du et al. 2018, theorem on the spurious local minimum; derived here for a filter of any length.
    """
    k, s = len(target_a), float(target.norm())
    ones = torch.ones(k, k, dtype=target_a.dtype)
    eye = torch.eye(k, dtype=target_a.dtype)
    a = torch.linalg.solve((math.pi - 1) * eye + ones, (ones - eye) @ target_a)
    value = two_layer_loss(-target, a, target, target_a)
    return BadMinimum(a, float(value), float(a @ target_a) * s * s)


def descend_two_layers(
    w: Tensor, a: Tensor, target: Tensor, target_a: Tensor, *, step: float, steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradient descent on both layers from S starts at once.

    Args:
        w: float64, shape (S, m).
        a: shape (S, k).
        target: w*, shape (m,).
        target_a: a*, shape (k,).
        step: the same for both layers.
        steps: how many.

    Returns:
        Where w and a end, their losses (S,), and the gradient norms of both layers together (S,).

    Cost: one gradient per step and start.

    Example:
        >>> one = torch.ones(2, dtype=torch.float64)
        >>> float(descend_two_layers(one[None] / 2, one[None] / 2, one, one, step=0.2, steps=1000)[2]) < 1e-12
        True
    """
    for _ in range(steps):
        by_w, by_a = two_layer_gradient(w, a, target, target_a)
        w, a = w - step * by_w, a - step * by_a
    by_w, by_a = two_layer_gradient(w, a, target, target_a)
    norm = (by_w.square().sum(-1) + by_a.square().sum(-1)).sqrt()
    return w, a, two_layer_loss(w, a, target, target_a), norm
