"""Distributions of inputs by their characteristic functions, for expectations of cosines in closed form."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["GaussianMixture", "Law", "UniformCube", "standard"]


class Law(Protocol):
    r"""A distribution of x by its characteristic function $\chi(u)=E\cos(u\cdot x)$."""

    def cosine(self, u: Tensor) -> Tensor:
        """chi at every row: (..., d) -> (...)."""

    def slope(self, u: Tensor) -> Tensor:
        """Its gradient: (..., d) -> (..., d)."""

    def sample(self, n: int, random: torch.Generator) -> Tensor:
        """n draws of x, float64, shape (n, d)."""


@dataclass(frozen=True)
class GaussianMixture:
    r"""A mixture of Gaussians with axes along the coordinates: $\chi(u)=\sum_k\pi_k\cos(m_k\cdot u)\,e^{-\frac12\sum_is_{ki}u_i^2}$.

    Args:
        weights: shape (K,), positive, with sum 1.
        means: shape (K, d).
        variances: shape (K, d), positive.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor

    def _parts(self, u: Tensor) -> tuple[Tensor, Tensor]:
        phase = u @ self.means.T
        return phase, self.weights * torch.exp(-(u.square() @ self.variances.T) / 2)

    def cosine(self, u: Tensor) -> Tensor:
        """chi at every row."""
        phase, size = self._parts(u)
        return (size * phase.cos()).sum(-1)

    def slope(self, u: Tensor) -> Tensor:
        """Its gradient."""
        phase, size = self._parts(u)
        return -(size * phase.sin()) @ self.means - ((size * phase.cos()) @ self.variances) * u

    def sample(self, n: int, random: torch.Generator) -> Tensor:
        """Draws of x."""
        shape = (n, self.means.shape[1])
        noise = torch.randn(shape, generator=random, dtype=torch.float64)
        if len(self.weights) == 1:
            return self.means[0] + self.variances[0].sqrt() * noise
        part = torch.multinomial(self.weights, n, replacement=True, generator=random)
        return self.means[part] + self.variances[part].sqrt() * noise


@dataclass(frozen=True)
class UniformCube:
    r"""Uniform on $[-c,c]^d$: $\chi(u)=\prod_i\sin(cu_i)/(cu_i)$, which falls too slowly for theorem 2.

    Args:
        d: dimension.
        half_width: c.
    """

    d: int
    half_width: float = 1.0

    def cosine(self, u: Tensor) -> Tensor:
        """chi at every row."""
        return torch.sinc(u * (self.half_width / math.pi)).prod(-1)

    def slope(self, u: Tensor) -> Tensor:
        """Its gradient."""
        z = u * self.half_width
        each = torch.sinc(z / math.pi)
        small = z.abs() < 1e-4
        safe = torch.where(small, torch.ones_like(z), z)
        derivative = torch.where(small, -z / 3, (safe.cos() - torch.sinc(safe / math.pi)) / safe) * self.half_width
        ones = torch.ones_like(each[..., :1])
        before = torch.cat([ones, each[..., :-1]], -1).cumprod(-1)
        after = torch.cat([ones, each.flip(-1)[..., :-1]], -1).cumprod(-1).flip(-1)
        return derivative * before * after

    def sample(self, n: int, random: torch.Generator) -> Tensor:
        """Draws of x."""
        return (2 * torch.rand((n, self.d), generator=random, dtype=torch.float64) - 1) * self.half_width


def standard(d: int, variances: Sequence[float] | None = None) -> GaussianMixture:
    """The standard normal law in d dimensions, or a centred one with these variances along its axes.

    Example:
        >>> float(standard(2).cosine(torch.tensor([1.0, 0.0], dtype=torch.float64)))  # exp(-1/2)
        0.6065306597126334
    """
    s = torch.ones(d, dtype=torch.float64) if variances is None else torch.tensor(variances, dtype=torch.float64)
    return GaussianMixture(torch.ones(1, dtype=torch.float64), torch.zeros(1, d, dtype=torch.float64), s[None])
