"""How many eigenvalues are negative: Gaussian matrices, the semicircle, and a random function on a sphere that has both."""

import math
from functools import lru_cache

import numpy as np
import torch
from scipy import integrate, special
from torch import Tensor

from gradoscope.errors import Usage

__all__ = ["SphericalSpin", "all_positive", "goe", "index_at_height", "semicircle_cdf", "threshold_height"]


@lru_cache(maxsize=32)
def all_positive(n: int) -> float:
    r"""The probability that all n eigenvalues of a matrix of the Gaussian orthogonal ensemble are positive, exactly.

    The eigenvalues have the density $\propto\prod_{i<j}|\lambda_i-\lambda_j|\prod_ie^{-\lambda_i^2/2}$: they repel each other, so
    that all of one sign are far less likely than n tosses of a coin say. By de Bruijn's theorem the integral over any interval to
    the n-th power is $n!$ times the Pfaffian of $a_{ij}=\iint_{x<y}(x^iy^j-x^jy^i)\,w(x)w(y)$, bordered by $\int x^iw$ where n is
    odd; the probability is the ratio for $(0,\infty)$ and for the line. It is 1/2, $(2-\sqrt2)/4$, $(\pi-2\sqrt2)/(4\pi)$ for n = 1, 2, 3.

    Args:
        n: from 1 to 8 (beyond that the moments lose their digits).

    Returns:
        The probability, to about nine digits.

    Raises:
        Usage: for other n.

    Cost: none.

    Example:
        >>> [round(all_positive(n), 6) for n in (1, 2, 3)]
        [0.5, 0.146447, 0.024921]

    Source: de Bruijn 1955, On some multiple integrals involving determinants; Dean and Majumdar 2006 for large n, where
    $\ln P\to-n^2\ln3/4$.
    """
    if not 1 <= n <= 8:
        raise Usage(f"the probability is computed for n from 1 to 8, got {n}.")
    return float(_pfaffian(_moments(n, half=True)) / _pfaffian(_moments(n, half=False)))


def _moments(n: int, *, half: bool) -> np.ndarray:
    """De Bruijn's skew matrix, in polar coordinates; with a border where n is odd."""
    size = n + n % 2
    a = np.zeros((size, size))
    end = math.pi / 2 if half else math.pi

    def angle(i: int, j: int) -> float:
        # sgn(y - x) is the sign of phi - pi/4 on the quarter, and changes at pi/4 and 5 pi/4 on the circle
        below, above = (
            ((0.0, math.pi / 4), (math.pi / 4, end)) if half else ((-3 * math.pi / 4, math.pi / 4), (math.pi / 4, 5 * math.pi / 4))
        )

        def part(low: float, high: float) -> float:
            return float(integrate.quad(lambda p: math.cos(p) ** i * math.sin(p) ** j, low, high, epsabs=1e-14, epsrel=1e-13)[0])

        return part(*above) - part(*below)

    for i in range(n):
        for j in range(i + 1, n):
            # integral of r^(i+j+1) exp(-r^2/2)
            radial = 2 ** ((i + j) / 2) * special.gamma((i + j) / 2 + 1)
            a[i, j] = radial * angle(i, j)
            a[j, i] = -a[i, j]
        if n % 2:
            moment = 2 ** ((i - 1) / 2) * special.gamma((i + 1) / 2)
            a[i, n] = moment if half else moment * (1 + (-1) ** i)
            a[n, i] = -a[i, n]
    return a


def _pfaffian(a: np.ndarray) -> float:
    """By expansion along the first row: sizes of 8 at most."""
    if len(a) == 0:
        return 1.0
    total = 0.0
    for j in range(1, len(a)):
        rest = [k for k in range(1, len(a)) if k != j]
        total += (-1) ** (j - 1) * a[0, j] * _pfaffian(a[np.ix_(rest, rest)])
    return total


def goe(n: int, draws: int, random: torch.Generator) -> Tensor:
    r"""Matrices of the Gaussian orthogonal ensemble: symmetric, variance 1 off the diagonal and 2 on it.

    Their spectrum fills a semicircle of radius $2\sqrt n$ for large n.

    Args:
        n: rows.
        draws: how many.
        random: where they are drawn from.

    Returns:
        Shape (draws, n, n), float64.

    Cost: none.

    Example:
        >>> goe(3, 2, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 3])
    """
    a = torch.randn((draws, n, n), generator=random, dtype=torch.float64)
    return (a + a.transpose(1, 2)) / math.sqrt(2)


def semicircle_cdf(x: Tensor, radius: float) -> Tensor:
    r"""The share of a semicircle's eigenvalues below x: $\frac12+\frac{x\sqrt{R^2-x^2}}{\pi R^2}+\frac1\pi\arcsin\frac xR$.

    Args:
        x: of any shape.
        radius: R > 0.

    Returns:
        The same shape, from 0 below -R to 1 above R.

    Cost: none.

    Example:
        >>> [round(v, 4) for v in semicircle_cdf(torch.tensor([-2.0, 0.0, 1.0, 5.0], dtype=torch.float64), 2.0).tolist()]
        [0.0, 0.5, 0.8045, 1.0]

    Source: Wigner 1955.
    """
    z = (x / radius).clamp(-1, 1)
    return 0.5 + z * torch.sqrt(1 - z * z) / math.pi + torch.asin(z) / math.pi


def _radius(n: int) -> float:
    return 2 * math.sqrt(6) * math.sqrt((n - 1) / n)


def index_at_height(u: Tensor, n: int) -> Tensor:
    r"""The share of negative eigenvalues that random matrix theory expects of a critical point of `SphericalSpin` at height u.

    The Hessian there is a matrix of the Gaussian ensemble with a semicircle of radius $R=2\sqrt6\sqrt{(n-1)/n}$, shifted by -3u: the
    share is the semicircle's below 3u. It is the weighted coin of the source: the lower u, the more heads.

    Args:
        u: H(x)/n, of any shape.
        n: dimension.

    Returns:
        The same shape.

    Cost: none.

    Example:
        >>> [round(v, 3) for v in index_at_height(torch.tensor([-1.7, -1.0, 0.0], dtype=torch.float64), 24).tolist()]
        [0.0, 0.13, 0.5]

    Source: Auffinger, Ben Arous and Cerny 2013; Choromanska et al. 2015.
    """
    return semicircle_cdf(3 * u, _radius(n))


def threshold_height(n: int) -> float:
    r"""The height $u_{th}=-R/3$ below which, as $n\to\infty$, all critical points are minima.

    Example:
        >>> round(threshold_height(24), 3)
        -1.599
    """
    return -_radius(n) / 3


class SphericalSpin:
    r"""The spherical 3-spin Hamiltonian $H(x)=\frac1n\sum_{ijk}J_{ijk}x_ix_jx_k$ on $|x|^2=n$, with standard normal couplings.

    It is what Choromanska et al. reduce the loss of a network to, under assumptions that no network meets. With the couplings made
    symmetric, $\nabla H=3S(x,x,\cdot)/n$ and $\nabla^2H=6S(x,\cdot,\cdot)/n$. On the sphere, with the projection
    $P=I-xx^\top/n$, the gradient is $P\nabla H$ and the Hessian $P\nabla^2HP-3uP$, $u=H/n$, as $x^\top\nabla H=3H$.

    Args:
        n: dimension.
        random: where the couplings are drawn from.

    Example:
        >>> spin = SphericalSpin(8, torch.Generator().manual_seed(0))
        >>> x = spin.points(5, torch.Generator().manual_seed(1))
        >>> bool(((spin.gradient(x) * x).sum(1).abs() < 1e-9).all())
        True
    """

    def __init__(self, n: int, random: torch.Generator) -> None:
        j = torch.randn((n, n, n), generator=random, dtype=torch.float64)
        orders = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
        self.n = n
        self.couplings = torch.stack([j.permute(*order) for order in orders]).mean(0)

    def points(self, count: int, random: torch.Generator) -> Tensor:
        """Points uniform on the sphere, shape (count, n)."""
        return self.onto(torch.randn((count, self.n), generator=random, dtype=torch.float64))

    def onto(self, x: Tensor) -> Tensor:
        """The points of the sphere in these directions, shape (..., n)."""
        return torch.nn.functional.normalize(x, dim=-1) * math.sqrt(self.n)

    def _plane(self, x: Tensor) -> Tensor:
        """S(x, ., .), shape (N, n, n)."""
        return (x @ self.couplings.reshape(self.n, -1)).reshape(-1, self.n, self.n)

    def height(self, x: Tensor) -> Tensor:
        """u = H/n at points of shape (N, n); shape (N,)."""
        return (x[:, None] @ self._plane(x) @ x[:, :, None]).reshape(-1) / self.n**2

    def gradient(self, x: Tensor) -> Tensor:
        """The Riemannian gradient at points of shape (N, n), tangent; the same shape."""
        full = 3 / self.n * (self._plane(x) @ x[:, :, None]).squeeze(2)
        return full - x * (full * x).sum(1, keepdim=True) / self.n

    def hessian(self, x: Tensor) -> Tensor:
        """The Riemannian Hessian at points of shape (N, n) as (N, n, n): symmetric, with x as a further eigenvector of 0."""
        plane = self._plane(x)
        project = torch.eye(self.n, dtype=x.dtype) - x[:, :, None] * x[:, None, :] / self.n
        height = (x[:, None] @ plane @ x[:, :, None]) / self.n**2
        found: Tensor = 6 / self.n * project @ plane @ project - 3 * height * project
        return found

    def tangent_eigenvalues(self, x: Tensor) -> Tensor:
        """The n - 1 eigenvalues on the tangent space, ascending, at points of shape (N, n); shape (N, n - 1)."""
        away = 1e3 * x[:, :, None] * x[:, None, :] / self.n  # moves the eigenvalue along x above all others
        found: Tensor = torch.linalg.eigvalsh(self.hessian(x) + away)[:, :-1]
        return found
