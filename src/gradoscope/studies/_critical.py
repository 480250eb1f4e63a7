"""Critical points in bulk: tanh networks with their Hessians in closed form, starts along trainings, what is distinct."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from gradoscope.measure.critical import Descended, levenberg_marquardt
from gradoscope.problems._data import digits
from gradoscope.stacked import generator

__all__ = ["KEY", "LIMIT", "Found", "TanhNetwork", "distinct", "network", "rank_correlation", "search", "starts_along"]

KEY = 463  # of this study's random streams
LIMIT = 1e-8  # |g| of a critical point, as in the spec
ROUNDING = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class TanhNetwork:
    r"""$f(x)=c^\top\tanh(W^\top x+b)+d$ with $J=\frac1{2n}\sum(f-y)^2+\frac r2|\theta|^2$, for many parameter vectors at once.

    Args:
        x: inputs with a column of ones at the end, shape (n, i + 1), float64.
        y: targets, shape (n,).
        hidden: h.
        ridge: r; without it the gradient also vanishes at infinity, where nothing is critical.
    """

    x: Tensor
    y: Tensor
    hidden: int
    ridge: float

    @property
    def dim(self) -> int:
        """(i + 2) h + 1: the weights and bias of each unit together, then c, then d."""
        return (self.x.shape[1] + 1) * self.hidden + 1

    def _parts(self, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Activations (N, h, n), output weights (N, h), and residuals (N, n)."""
        i, h = self.x.shape[1], self.hidden
        t = torch.tanh(p[:, : i * h].reshape(-1, h, i) @ self.x.T)
        c = p[:, i * h : i * h + h]
        return t, c, (c[:, None] @ t).squeeze(1) + p[:, -1:] - self.y

    def loss(self, p: Tensor) -> Tensor:
        """J at points of shape (N, dim); shape (N,)."""
        residual = self._parts(p)[2]
        return residual.square().mean(1) / 2 + self.ridge / 2 * p.square().sum(1)

    def gradient(self, p: Tensor) -> Tensor:
        """Shape (N, dim)."""
        t, c, residual = self._parts(p)
        weighted = residual / len(self.y)
        inner = ((1 - t * t) * (c[:, :, None] * weighted[:, None])) @ self.x
        outer = (t @ weighted[:, :, None]).squeeze(2)
        return torch.cat([inner.flatten(1), outer, weighted.sum(1, keepdim=True)], 1) + self.ridge * p

    def hessian(self, p: Tensor) -> Tensor:
        """Shape (N, dim, dim): the squared Jacobian, and the residuals times the second derivatives of f, unit by unit."""
        t, c, residual = self._parts(p)
        n, i, h = len(self.y), self.x.shape[1], self.hidden
        slope = 1 - t * t
        jacobian = torch.cat(
            [((c[:, :, None] * slope)[:, :, None] * self.x.T[None, None]).flatten(1, 2), t, torch.ones_like(residual)[:, None]], 1
        )
        found = jacobian @ jacobian.transpose(1, 2) / n
        weighted = residual[:, None] / n
        bend = -2 * c[:, :, None] * t * slope * weighted  # (N, h, n)
        own = (bend[:, :, None] * self.x.T[None, None]) @ self.x
        mixed = (slope * weighted) @ self.x
        for j in range(h):
            unit = slice(j * i, (j + 1) * i)
            found[:, unit, unit] += own[:, j]
            found[:, unit, i * h + j] += mixed[:, j]
            found[:, i * h + j, unit] += mixed[:, j]
        found.diagonal(dim1=1, dim2=2).add_(self.ridge)
        return found


def network(kind: str, seed: int, ridge: float, hidden: int, rows: int, inputs: int) -> TanhNetwork:
    """A seed's data: "random" inputs with the targets of a larger tanh network, or "digits" by their principal components.

    Targets have mean 0 and variance 1; of the digits they are +-1 for even and odd, before that.
    """
    random = generator(seed, KEY, 1, inputs, rows)
    if kind == "random":
        x = torch.randn(rows, inputs, generator=random, dtype=torch.float64)
        teacher = TanhNetwork(torch.cat([x, torch.ones(rows, 1, dtype=torch.float64)], 1), torch.zeros(rows).double(), 5, 0.0)
        weights = 1.5 * torch.randn(1, teacher.dim, generator=random, dtype=torch.float64)
        y = teacher._parts(weights)[2][0]
    else:
        images, labels = (t.double() for t in digits(seed, train=rows)[0])
        images = images - images.mean(0)
        x = images @ torch.linalg.svd(images, full_matrices=False).Vh[:inputs].T
        x, y = x / x.std(), 1 - 2 * (labels % 2)
    y = (y - y.mean()) / y.std()
    return TanhNetwork(torch.cat([x, torch.ones(rows, 1, dtype=torch.float64)], 1), y, hidden, ridge)


def starts_along(net: TanhNetwork, count: int, steps: int, seed: int, *, eta: float = 0.3, around: float = 0.5) -> Tensor:
    """Points on and around trainings: each start has its own, stopped at random (uniform in the logarithm of the step).

    From there it is moved in a random direction, per parameter by up to `around`, uniform in the logarithm over three decades.
    """
    random = generator(seed, KEY, 2, count)
    p = torch.randn(count, net.dim, generator=random, dtype=torch.float64)
    stop = (torch.rand(count, generator=random, dtype=torch.float64) * math.log(steps)).exp().long()
    found = p.clone()
    for k in range(int(stop.max()) + 1):
        found = torch.where((stop == k)[:, None], p, found)
        p = p - eta * net.gradient(p)
    away = around * torch.exp(-math.log(1e3) * torch.rand(count, 1, generator=random, dtype=torch.float64))
    return found + away * torch.randn(count, net.dim, generator=random, dtype=torch.float64)


@dataclass(frozen=True)
class Found:
    """What descents on the gradient's norm found.

    Attributes:
        passed: the share of starts that ended at a critical point.
        stuck: the share that ended where g lies in the null space of H, and is not zero.
        points: the distinct critical points, by rising loss, shape (n, dim).
        losses: theirs, shape (n,).
        eigenvalues: ascending, shape (n, dim).
        negative: n- of each.
        zero: n0 of each.
        copies: how many starts came to each.
    """

    passed: float
    stuck: float
    points: Tensor
    losses: Tensor
    eigenvalues: Tensor
    negative: Tensor
    zero: Tensor
    copies: Tensor

    @property
    def index(self) -> Tensor:
        """n-/d of each, shape (n,)."""
        return self.negative.double() / self.eigenvalues.shape[1]


def search(net: TanhNetwork, starts: Tensor, iterations: int) -> Found:
    """Descend from all starts at once, keep what passes the filter on |g|, and tell the distinct points."""
    ended: Descended = levenberg_marquardt(net.gradient, net.hessian, starts, limit=LIMIT, iterations=iterations)
    good = ended.gradient_norms < LIMIT
    stuck = ~good & (ended.stationarity < 1e-4)
    points = ended.points[good]
    eigenvalues = torch.linalg.eigvalsh(net.hessian(points))
    losses = net.loss(points)
    first, copies = distinct(losses, eigenvalues)
    eigenvalues = eigenvalues[first]
    tau = eigenvalues.shape[1] * ROUNDING * eigenvalues.abs().amax(1, keepdim=True) if len(first) else eigenvalues
    return Found(
        float(good.double().mean()),
        float(stuck.double().mean()),
        points[first],
        losses[first],
        eigenvalues,
        (eigenvalues < -tau).sum(1),
        (eigenvalues.abs() <= tau).sum(1),
        copies,
    )


def distinct(losses: Tensor, eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
    """One of each kind of point by rising loss, and how many there were: points that units' order and signs make alike are one.

    Such copies have the same loss and the same spectrum, to rounding.
    """
    kept: list[int] = []
    copies: list[int] = []
    for i in losses.argsort(stable=True).tolist():
        for place, j in enumerate(kept):
            near = abs(float(losses[i] - losses[j])) < 1e-8 * (1 + abs(float(losses[j])))
            if near and float((eigenvalues[i] - eigenvalues[j]).abs().max()) < 1e-5 * float(eigenvalues[j].abs().max()):
                copies[place] += 1
                break
        else:
            kept.append(i)
            copies.append(1)
    return torch.tensor(kept, dtype=torch.long), torch.tensor(copies, dtype=torch.long)


def rank_correlation(a: Tensor, b: Tensor, seed: int, draws: int = 2000) -> tuple[float, float, float]:
    """Spearman's rank correlation and its 95% bootstrap interval over the points; zero where one side does not vary.

    A draw in which one side does not vary has no correlation and counts as zero.
    """
    if len(a) < 3:
        return 0.0, -1.0, 1.0
    picks = torch.randint(len(a), (draws, len(a)), generator=generator(seed, KEY, 9)).numpy()
    x, y = (stats.rankdata(t.numpy()[picks], axis=1) for t in (a, b))
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    size = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    values = np.where(size > 0, (x * y).sum(1) / np.where(size > 0, size, 1), 0.0)
    whole = float(stats.spearmanr(a.numpy(), b.numpy()).statistic) if float(a.std()) > 0 and float(b.std()) > 0 else 0.0
    low, high = np.quantile(values, [0.025, 0.975])
    return whole, float(low), float(high)
