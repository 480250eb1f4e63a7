"""One shared ReLU filter over patches that overlap, Gaussian inputs: the expected loss in closed form, descent on it, its bad minima."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradoscope.errors import Usage
from gradoscope.theory.arc_cosine import kernel_hessian, kernel_mixed

__all__ = ["Ends", "SharedFilter", "descend", "on_sphere"]


def on_sphere(n: int, m: int, random: torch.Generator) -> Tensor:
    """n points uniform on the unit sphere in R^m, float64, shape (n, m)."""
    return torch.nn.functional.normalize(torch.randn(n, m, generator=random, dtype=torch.float64), dim=1)


class SharedFilter:
    r"""$f_w(x)=\frac1k\sum_{i<k}\sigma(w\cdot x[i\,\mathrm{stride}:i\,\mathrm{stride}+m])$ with x ~ N(0, I) of m + (k - 1) stride numbers.

    The expected squared distance of two such networks is a sum of `arc_cosine.kernel` over pairs of patches, of which only the
    distance (lag) counts. With $S_i$ the copy of the filter at patch i,
    $\ell(w)=\frac1{k^2}\sum_{ij}\left[g(S_iw,S_jw)-2g(S_iw,S_jw^*)+g(S_iw^*,S_jw^*)\right]$, where lags that share no coordinate give
    $|u||v|/(2\pi)$. At stride >= m it is `convnet.loss`.

    Args:
        m: size of the filter.
        stride: from one patch to the next, at least 1.
        k: patches.

    Raises:
        Usage: where one of them is below 1.

    Example:
        >>> net = SharedFilter(2, 1, 2)
        >>> w = torch.tensor([0.3883, -0.3883], dtype=torch.float64)
        >>> target = torch.tensor([-1.0, 1.0], dtype=torch.float64) / math.sqrt(2)
        >>> round(float(net.loss(w, target)), 5), float(net.gradient(w, target).norm()) < 1e-4
        (0.19364, True)
    """

    def __init__(self, m: int, stride: int, k: int) -> None:
        if min(m, stride, k) < 1:
            raise Usage(f"a shared filter needs m, stride and k of at least 1, got m={m}, stride={stride}, k={k}.")
        self.m, self.stride, self.k = m, stride, k
        lags = [d for d in range(-(k - 1), k) if abs(d) * stride < m]
        self.counts = torch.tensor([k - abs(d) for d in lags], dtype=torch.float64)
        self.apart = float(k * k - self.counts.sum())  # pairs of patches that share nothing
        rows = torch.arange(m)
        shifts = torch.stack([(rows[:, None] + d * stride == rows[None, :]).double() for d in lags])  # (S_d v)[a] = v[a + d stride]
        self._lags = [d * stride for d in lags]
        self._shift_all, self._outside = shifts.reshape(-1, m).T, (1 - shifts.sum(1)).T

    def __repr__(self) -> str:
        return f"SharedFilter(m={self.m}, stride={self.stride}, k={self.k})"

    @property
    def step_limit(self) -> float:
        r"""$k^2/(2\gamma)$ with $\gamma=\frac{k^2-k}{2\pi}+\frac k2$: the scale of a step, as curvature depends on k."""
        return float(self.k**2 / (2 * ((self.k**2 - self.k) / (2 * math.pi) + self.k / 2)))

    def _angles(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Angles between u and v's copy at every lag, (..., L), and the part of the copies where u stands, (..., L, m).

        As `arc_cosine.angle`, from sums and differences; what of a copy sticks out counts in both.
        """
        a, b = u / u.norm(dim=-1, keepdim=True), v / v.norm(dim=-1, keepdim=True)
        copies = (b @ self._shift_all).unflatten(-1, (len(self.counts), self.m))
        out = b.square() @ self._outside
        minus = ((a[..., None, :] - copies).square().sum(-1) + out).sqrt()
        plus = ((a[..., None, :] + copies).square().sum(-1) + out).sqrt()
        return 2 * torch.atan2(minus, plus), copies * v.norm(dim=-1)[..., None, None]

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        r"""$E\,f_u(x)f_v(x)$ for x ~ N(0, I), shape (...).

        Args:
            u: float64, shape (..., m), not zero.
            v: of a shape that fits.
        """
        theta, _ = self._angles(u, v)
        shape = ((torch.sin(theta) + (math.pi - theta) * torch.cos(theta)) * self.counts).sum(-1) + self.apart
        value: Tensor = u.norm(dim=-1) * v.norm(dim=-1) * shape / (2 * math.pi * self.k**2)
        return value

    def loss(self, w: Tensor, target: Tensor) -> Tensor:
        r"""$\ell(w)=E(f_w-f_{w^*})^2$, shape (...).

        Args:
            w: float64, shape (..., m), not zero.
            target: w*, of a shape that fits.

        Cost: none.
        """
        return self.inner(w, w) - 2 * self.inner(w, target) + self.inner(target, target)

    def gradient(self, w: Tensor, target: Tensor) -> Tensor:
        r"""$\nabla\ell(w)=2\nabla_u\langle f_u,f_w\rangle|_{u=w}-2\nabla_u\langle f_u,f_{w^*}\rangle|_{u=w}$, shape (..., m)."""
        return 2 * (self._slope(w, w) - self._slope(w, target))

    def _slope(self, u: Tensor, v: Tensor) -> Tensor:
        """The derivative of `inner` by u."""
        theta, copies = self._angles(u, v)
        along = ((torch.sin(theta) * self.counts).sum(-1) + self.apart) * v.norm(dim=-1) / u.norm(dim=-1)
        across = (((math.pi - theta) * self.counts)[..., None] * copies).sum(-2)
        value: Tensor = (along[..., None] * u + across) / (2 * math.pi * self.k**2)
        return value

    def hessian(self, w: Tensor, target: Tensor) -> Tensor:
        r"""$\nabla^2\ell(w)$ in closed form, shape (..., m, m); exact also where w and w* are parallel."""
        return 2 * (self._second(w, w) + self._mixed(w) - self._second(w, target))

    def _embedded(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """u, and v's copies at every lag, in a space in which nothing of them is cut off; (..., 1, 3m) and (..., L, 3m)."""
        m = self.m
        copies = v.new_zeros(*v.shape[:-1], len(self._lags), 3 * m)
        for at, lag in enumerate(self._lags):
            copies[..., at, m - lag : 2 * m - lag] = v
        return torch.nn.functional.pad(u, (m, m))[..., None, :], copies

    def _second(self, u: Tensor, v: Tensor) -> Tensor:
        """The second derivative of `inner` by u."""
        full = kernel_hessian(*self._embedded(u, v))[..., self.m : 2 * self.m, self.m : 2 * self.m]
        near = (full * self.counts[:, None, None]).sum(-3)
        r = u.norm(dim=-1)
        unit = u / r[..., None]
        flat = torch.eye(self.m, dtype=u.dtype) - unit[..., :, None] * unit[..., None, :]
        far = (self.apart * v.norm(dim=-1) / (2 * math.pi * r))[..., None, None] * flat
        value: Tensor = (near + far) / self.k**2
        return value

    def _mixed(self, w: Tensor) -> Tensor:
        """The derivative of `inner` by u and by v at u = v = w."""
        total = w.new_zeros(*w.shape[:-1], self.m, self.m)
        mixed = kernel_mixed(*self._embedded(w, w))
        for at, lag in enumerate(self._lags):  # the copy's coordinates stand where its filter was put
            total = total + self.counts[at] * mixed[..., at, self.m : 2 * self.m, self.m - lag : 2 * self.m - lag]
        unit = w / w.norm(dim=-1, keepdim=True)
        value: Tensor = (total + self.apart / (2 * math.pi) * unit[..., :, None] * unit[..., None, :]) / self.k**2
        return value

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """The network itself on inputs of shape (N, m + (k - 1) stride), shape (N,): for Monte Carlo and for samples."""
        return torch.relu(x.unfold(-1, self.m, self.stride)[..., : self.k, :] @ w).mean(-1)

    @property
    def inputs(self) -> int:
        """How many numbers one input has."""
        return self.m + (self.k - 1) * self.stride

    def best_length(self, direction: Tensor, target: Tensor) -> Tensor:
        r"""The r >= 0 with the least loss along $w=ru$: $\langle f_u,f_{w^*}\rangle/\langle f_u,f_u\rangle$, shape (...).

        Args:
            direction: u, shape (..., m), of any length but 0.
            target: w*.

        Example:
            >>> target = torch.tensor([-1.0, 1.0], dtype=torch.float64) / math.sqrt(2)
            >>> net = SharedFilter(2, 1, 2)
            >>> [round(v, 4) for v in (net.best_length(-target, target) * -target).tolist()]  # a bad minimum
            [0.3883, -0.3883]
        """
        return self.inner(direction, target) / self.inner(direction, direction)


@dataclass(frozen=True)
class Ends:
    """Where descents end: points (S, m), losses (S,), gradient norms (S,), and after how many steps each was at rest (S,), -1 for never."""

    w: Tensor
    losses: Tensor
    gradients: Tensor
    steps: Tensor


def descend(net: SharedFilter, starts: Tensor, targets: Tensor, *, step: float, steps: int, at_rest: float = 1e-12, look: int = 50) -> Ends:
    r"""Gradient descent on the expected loss from S starts at once; those that are at rest are left alone.

    Args:
        net: what is trained.
        starts: float64, shape (S, m), not zero.
        targets: w*, shape (S, m) or (m,).
        step: in units of `net.step_limit`.
        steps: at most so many.
        at_rest: the gradient norm, relative to |w*|, below which nothing moves any more.
        look: how often that is asked.

    Cost: one gradient per step and start that moves.

    Example:
        >>> net, target = SharedFilter(2, 1, 2), torch.tensor([-1.0, 1.0], dtype=torch.float64) / math.sqrt(2)
        >>> ends = descend(net, torch.tensor([[1.0, 0.1], [-1.0, 0.1]], dtype=torch.float64), target, step=0.8, steps=1000)
        >>> [round(v, 5) + 0.0 for v in ends.losses.tolist()]
        [0.19364, 0.0]
    """
    w, targets = starts.clone(), targets.expand_as(starts)
    moving, rest = torch.arange(len(w)), torch.full((len(w),), -1, dtype=torch.long)
    limit = at_rest * targets.norm(dim=-1)
    here, there = w.clone(), targets
    for t in range(steps):
        g = net.gradient(here, there)
        if t % look == 0:
            still = g.norm(dim=-1) < limit[moving]
            w[moving], rest[moving[still]] = here, t
            moving, here, there, g = moving[~still], here[~still], there[~still], g[~still]
            if not len(moving):
                break
        here = here - step * net.step_limit * g
    w[moving] = here
    return Ends(w, net.loss(w, targets), net.gradient(w, targets).norm(dim=-1), rest)
