"""What two rectified projections of Gaussian inputs have in common: the arc-cosine kernel of degree 1, with its derivatives."""

import math

import torch
from torch import Tensor

__all__ = ["angle", "kernel", "kernel_gradient", "kernel_hessian", "kernel_mixed"]


def angle(u: Tensor, v: Tensor) -> Tensor:
    r"""The angle between vectors, in [0, pi]: $2\,\mathrm{atan2}(|a-b|,|a+b|)$ with unit a and b.

    It keeps all its digits near 0 and pi, where the arc cosine loses half of them: there lie the critical points of what is
    built on it.

    Args:
        u: shape (..., m), not zero.
        v: of a shape that fits.

    Returns:
        Shape (...).

    Example:
        >>> e = torch.tensor([1.0, 0.0], dtype=torch.float64)
        >>> [float(angle(e, torch.tensor([x, y], dtype=torch.float64))) for x, y in ((1, 1e-12), (-1, 0))]
        [1e-12, 3.141592653589793]

    Source: Kahan 2006, How futile are mindless assessments of roundoff, section 12.
    """
    a, b = u / u.norm(dim=-1, keepdim=True), v / v.norm(dim=-1, keepdim=True)
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))


def kernel(u: Tensor, v: Tensor) -> Tensor:
    r"""$g(u,v)=E\,\sigma(u\cdot x)\,\sigma(v\cdot x)=\frac{|u||v|}{2\pi}(\sin\theta+(\pi-\theta)\cos\theta)$ for x ~ N(0, I).

    Here $\sigma(z)=\max(z,0)$.

    Args:
        u: shape (..., m), not zero.
        v: of a shape that fits.

    Returns:
        Shape (...).

    Example:
        >>> u = torch.tensor([3.0, 4.0], dtype=torch.float64)
        >>> round(float(kernel(u, u)), 12), round(float(kernel(u, -u)), 12)  # |u|^2/2, and 0
        (12.5, 0.0)

    Source: Cho & Saul 2009, Kernel methods for deep learning.
    """
    theta = angle(u, v)
    shape = torch.sin(theta) + (math.pi - theta) * torch.cos(theta)
    value: Tensor = u.norm(dim=-1) * v.norm(dim=-1) * shape / (2 * math.pi)
    return value


def kernel_gradient(u: Tensor, v: Tensor) -> Tensor:
    r"""$\nabla_ug(u,v)=\frac1{2\pi}\left(|v|\sin\theta\,\frac u{|u|}+(\pi-\theta)\,v\right)$, continuous wherever u is not zero.

    Args:
        u: shape (..., m), not zero.
        v: of a shape that fits.

    Returns:
        Shape (..., m).

    Example:
        >>> u = torch.tensor([3.0, 4.0], dtype=torch.float64)
        >>> kernel_gradient(u, u).tolist()  # of |u|^2/2 in one of its two places
        [1.5, 2.0]
    """
    theta = angle(u, v)
    along = v.norm(dim=-1) * torch.sin(theta) / u.norm(dim=-1)
    value: Tensor = (along[..., None] * u + (math.pi - theta)[..., None] * v) / (2 * math.pi)
    return value


def kernel_hessian(u: Tensor, v: Tensor) -> Tensor:
    r"""$\nabla^2_ug=\frac{|v|\sin\theta}{2\pi|u|}(I-\hat u\hat u^\top+pp^\top)$, p the unit vector of v's part across u.

    It is 0 where they are parallel.

    Args:
        u: shape (..., m), not zero.
        v: of a shape that fits.

    Returns:
        Shape (..., m, m).

    Example:
        >>> u, v = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
        >>> (kernel_hessian(u, v) * math.pi).tolist()
        [[0.0, 0.0], [0.0, 1.0]]
    """
    a, p, theta = _frame(u, v)
    scale = v.norm(dim=-1) * torch.sin(theta) / (2 * math.pi * u.norm(dim=-1))
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    value: Tensor = scale[..., None, None] * (eye - _outer(a, a) + _outer(p, p))
    return value


def kernel_mixed(u: Tensor, v: Tensor) -> Tensor:
    r"""$\nabla_u\nabla_v^\top g=\frac1{2\pi}\left((\pi-\theta)I+\sin\theta(\hat u\hat v^\top+pq^\top)\right)$; q is of u's part across v.

    Args:
        u: shape (..., m), not zero.
        v: of a shape that fits.

    Returns:
        Shape (..., m, m): the derivative by u in the rows.

    Example:
        >>> u = torch.tensor([1.0, 0.0], dtype=torch.float64)
        >>> kernel_mixed(u, u).tolist()  # P(u.x > 0) I
        [[0.5, 0.0], [0.0, 0.5]]
    """
    a, p, theta = _frame(u, v)
    b, q, _ = _frame(v, u)
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    bent = torch.sin(theta)[..., None, None] * (_outer(a, b) + _outer(p, q))
    return ((math.pi - theta)[..., None, None] * eye + bent) / (2 * math.pi)


def _frame(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The unit vector of u, the unit vector of v's part across u (0 where there is none), and the angle; shapes as of both together."""
    u, v = u + torch.zeros_like(v), v + torch.zeros_like(u)  # to one shape
    a, b = u / u.norm(dim=-1, keepdim=True), v / v.norm(dim=-1, keepdim=True)
    across = b - (a * b).sum(-1, keepdim=True) * a
    length = across.norm(dim=-1, keepdim=True)
    return a, torch.where(length > 0, across / length.clamp_min(1e-300), torch.zeros_like(across)), angle(u, v)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a[..., :, None] * b[..., None, :]
