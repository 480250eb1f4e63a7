"""Baum's algorithm: an intersection of two halfspaces through the origin, learnt with two linear programs under a symmetric law."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from gradoscope.errors import CannotRun

__all__ = ["Intersection", "learn", "quadratic"]


@dataclass(frozen=True)
class Intersection:
    r"""$h(x)=[w\cdot x>0]\wedge[x^\top Qx>0]$.

    Attributes:
        w: shape (d,).
        q: symmetric, shape (d, d).
        consistent: whether the second program separated all examples in the halfspace.
    """

    w: Tensor
    q: Tensor
    consistent: bool

    def __call__(self, x: Tensor) -> Tensor:
        """Whether examples (n, d) are positive, shape (n,)."""
        return (x @ self.w > 0) & (((x @ self.q) * x).sum(1) > 0)


def quadratic(x: Tensor) -> Tensor:
    """All products x_i x_j with i <= j, shape (n, d (d + 1) / 2)."""
    i, j = torch.triu_indices(x.shape[1], x.shape[1])
    return x[:, i] * x[:, j]


def learn(x: Tensor, positive: Tensor) -> Intersection:
    r"""Learn $c(x)=[w_1\cdot x>0]\wedge[w_2\cdot x>0]$ from examples of a law with D(x) = D(-x).

    A linear program finds w with $w\cdot x\ge1$ on all positive examples ($w_1+w_2$, scaled, is one). What lies outside that
    halfspace is negative. Inside, c agrees with the sign of the quadratic form $(w_1\cdot x)(w_2\cdot x)$ but for x on which both
    factors are negative; their mirror images are positive and lie outside, which w allows for few only. So a second
    program separates by products of coordinates, and makes as small as it can what few of them it cannot. The error falls as 1/n.

    Args:
        x: examples, shape (n, d).
        positive: booleans, shape (n,).

    Raises:
        CannotRun: where there is no positive example, or no halfspace through the origin holds all of them.

    Cost: two linear programs, with d and with d (d + 1) / 2 unknowns.

    Example:
        >>> x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> rule = learn(x, (x[:, 0] > 0) & (x[:, 1] > 0))
        >>> float((rule(x) != ((x[:, 0] > 0) & (x[:, 1] > 0))).double().mean()), rule.consistent
        (0.0, True)

    Source: Baum 1990, A polynomial time algorithm that learns two hidden unit nets.
    """
    a = x.double().numpy()
    good = positive.numpy()
    if not good.any():
        raise CannotRun("there is no positive example to learn from.")
    first = optimize.linprog(np.zeros(a.shape[1]), A_ub=-a[good], b_ub=-np.ones(int(good.sum())), bounds=(None, None), method="highs")
    if first.status != 0:
        raise CannotRun("no halfspace through the origin holds all positive examples: no intersection of two of them fits.")
    w = torch.from_numpy(first.x)
    inside = x.double() @ w > 0
    features = quadratic(x.double()[inside]).numpy()
    labels = np.where(good[inside.numpy()], 1.0, -1.0)
    n, p = features.shape
    # hinge losses are least: zero where a quadratic form separates
    cost = np.concatenate([np.zeros(p), np.ones(n)])
    rows = np.hstack([-labels[:, None] * features, -np.eye(n)])
    bounds = [(None, None)] * p + [(0, None)] * n
    second = optimize.linprog(np.zeros(p), A_ub=rows[:, :p], b_ub=-np.ones(n), bounds=(None, None), method="highs")
    consistent = second.status == 0
    if not consistent:
        second = optimize.linprog(cost, A_ub=rows, b_ub=-np.ones(n), bounds=bounds, method="highs")
    q = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    i, j = torch.triu_indices(x.shape[1], x.shape[1])
    q[i, j] = torch.from_numpy(second.x[:p])
    return Intersection(w, (q + q.T) / 2, consistent)
