"""Wide networks on linearly separable data: how many updates, what that says of new data, how ReLUs die, and linear baselines."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from gradoscope.errors import CannotRun, Usage

__all__ = [
    "Compression",
    "compression_bound",
    "dead_minimum",
    "hard_margin",
    "lone_coordinates",
    "orthonormal_updates",
    "perceptron",
    "relu_success",
    "separator",
    "step_bounds",
    "update_bound",
]


def update_bound(norm: float, radius: float, *, slope: float, eta: float, k: int, v: float, start: float = 0.0) -> float:
    r"""At most so many updates: $\frac{|w^*|^2}{a^2}\left(R^2+\frac1{k\eta v^2}\right)+\frac{2|w^*||W_0|_F}{\sqrt{2k}\,v\eta a}$.

    Each update brings the weights W at least $2k\eta va$ further along $W^*=(w^*,..,-w^*,..)$, and adds less than $2\eta+2k\eta^2v^2R^2$ to
    $|W|^2$; Cauchy-Schwarz does the rest. No term grows with k where $v=1/\sqrt{2k}$ and $|W_0|_F$ is fixed.

    Args:
        norm: $|w^*|$ of a separator with $y\,w^*\cdot x\ge1$ on all examples.
        radius: R, no |x| is larger.
        slope: a in (0, 1], of the leaky ReLU below 0.
        eta: step size.
        k: units of each sign.
        v: size of the output weights.
        start: $|W_0|_F$.

    Raises:
        Usage: for a slope of 0, with which there is no bound.

    Example:
        >>> v = 1 / math.sqrt(2 * 1000)
        >>> round(update_bound(5.5, 1.0, slope=0.5, eta=1.0, k=1000, v=v, start=1.0))
        385

    Source: Brutzkus, Globerson, Malach & Shalev-Shwartz 2018, theorem 2; the constants are derived here.
    """
    if not 0 < slope <= 1:
        raise Usage(f"the bound needs a slope in (0, 1], got {slope}: a ReLU (slope 0) can fail for ever.")
    main = (norm / slope) ** 2 * (radius**2 + 1 / (k * eta * v * v))
    return main + 2 * norm * start / (math.sqrt(2 * k) * v * eta * slope)


def step_bounds(radius: float, *, slope: float, eta: float, k: int, v: float) -> tuple[float, float]:
    r"""Of each update: the least progress along W*, $2k\eta va$, and the most that $|W|^2$ grows, $2\eta+2k\eta^2v^2R^2$.

    Example:
        >>> [round(b, 6) for b in step_bounds(1.0, slope=0.5, eta=0.1, k=50, v=0.1)]
        [0.5, 0.21]
    """
    return 2 * k * eta * v * slope, 2 * eta + 2 * k * (eta * v * radius) ** 2


def separator(w: Tensor, k: int) -> Tensor:
    """W* = (w, .., w, -w, .., -w), shape (2k, d)."""
    return torch.cat([w.expand(k, -1), -w.expand(k, -1)])


def orthonormal_updates(slope: float, eta: float) -> float:
    r"""Updates that each example of $\{(e_j,+1)\}$ needs from a zero start with $v=1/\sqrt{2k}$: about $2/(\eta(1+a^2))$.

    Each raises f(e_j) by $\eta(1+a^2)/2$. With $|w^*|^2=d$ there are $2|w^*|^2/(\eta(1+a^2))$ in all: one over the step size is real.

    Example:
        >>> round(5 * orthonormal_updates(0.3, 0.01))
        917
    """
    return 2 / (eta * (1 + slope**2))


@dataclass(frozen=True)
class Compression:
    """A bound on the error on new data, and whether it says anything."""

    bound: float
    vacuous: bool
    words: str


def compression_bound(updates: float, n: int, *, delta: float = 0.05, outside: float = 0.0) -> Compression:
    r"""$L_D\le L_V+\sqrt{L_V\frac{4T\ln(n/\delta)}n}+\frac{8T\ln(n/\delta)}n$ with probability $1-\delta$, for $n\ge2T$.

    The network is a function of its start and of the T examples that made updates, in their order.

    Args:
        updates: T, measured or bounded.
        n: examples.
        delta: how often the bound may fail.
        outside: L_V, the error on the examples that made no update.

    Example:
        >>> compression_bound(16, 6400).words
        'with probability 95% the error on new data is at most 0.2352'
        >>> compression_bound(105, 6400).words
        'vacuous: the bound is 1.543, and no error is above 1'
        >>> compression_bound(300, 500).words
        'no bound: it needs at least two examples per update, there are 500 for 300'

    Source: Littlestone & Warmuth 1986; constants of Shalev-Shwartz & Ben-David 2014, theorem 30.2.
    """
    if n < 2 * updates:
        words = f"no bound: it needs at least two examples per update, there are {n} for {updates:.6g}"
        return Compression(math.inf, True, words)
    unit = updates * math.log(n / delta) / n
    bound = outside + math.sqrt(4 * outside * unit) + 8 * unit
    if bound > 1:
        return Compression(bound, True, f"vacuous: the bound is {bound:.4g}, and no error is above 1")
    return Compression(bound, False, f"with probability {1 - delta:.0%} the error on new data is at most {bound:.4g}")


def relu_success(k: int, d: int) -> float:
    r"""The probability that ReLUs learn $\{(e_j,+1)\}_{j\le d}$: $(1-2^{-k})^d$, for a start with independent symmetric entries.

    Coordinate j is lost where all of $w_{1j},..,w_{kj}$ are negative: no unit with a positive output weight ever sees e_j.

    Example:
        >>> [round(relu_success(k, 64), 3) for k in (4, 6, 8, 10, 12)]
        [0.016, 0.365, 0.778, 0.939, 0.984]

    Source: derived here; Brutzkus et al. 2018, section on ReLU, has bounds of this kind.
    """
    return float((1 - 2.0**-k) ** d)


def lone_coordinates(weights: Tensor, *, slope: float, eta: float, v: float, most: int = 100_000) -> Tensor:
    r"""SGD on $\{(e_j,+1)\}$ for many networks at once: whether each coordinate is learnt.

    Every example moves one column of the weights only, so the order of the examples does not matter, and columns of any number
    of networks are trained side by side. A column is lost where nothing moves any more and its margin is below 1.

    Args:
        weights: columns, shape (..., 2k): k units of output weight v, then k of -v.
        slope: a in [0, 1].
        eta: step size.
        v: size of the output weights.
        most: updates of one column, at most.

    Returns:
        Booleans, shape (...).

    Cost: one pass over the weights per update of the slowest column.

    Example:
        >>> w = torch.tensor([[-0.3, 0.2], [0.1, 0.4]], dtype=torch.float64)
        >>> [lone_coordinates(w, slope=a, eta=0.1, v=1.0).tolist() for a in (0.0, 0.1)]
        [[False, True], [True, True]]
    """
    w = weights.reshape(-1, weights.shape[-1]).clone()
    k = w.shape[1] // 2
    signs = torch.cat([w.new_ones(k), -w.new_ones(k)])
    going, learnt = torch.arange(len(w)), torch.zeros(len(w), dtype=torch.bool)
    for _ in range(most):
        positive = w > 0
        margins = v * (torch.where(positive, w, slope * w) @ signs)
        done = margins >= 1
        learnt[going[done]] = True
        slopes = torch.where(positive, torch.ones_like(w), torch.full_like(w, slope))
        moving = ~done & (slopes.sum(1) > 0)
        if not bool(moving.any()):
            break
        going, w = going[moving], w[moving] + eta * v * signs * slopes[moving]
    return learnt.reshape(weights.shape[:-1])


def dead_minimum(w: Tensor, k: int, v: float) -> Tensor:
    r"""A flat bad minimum of the ReLU network (a = 0) on any data that w separates: $w_i=-w$, $u_i=-cw$, $c=1+\frac2{kv}$.

    On positive examples all units are off: f = 0, the loss is 1 and its gradient zero. Negative ones have a margin of $kv(c-1)=2$ at
    least. Changes of each row by less than $\min(1,\frac1{2kv})/R$ alter neither, so the loss is the share of positive examples all
    around, and SGD never moves.

    Args:
        w: a separator with $y\,w\cdot x\ge1$, shape (d,).
        k: units of each sign.
        v: size of the output weights.

    Returns:
        The weights, shape (2k, d).

    Example:
        >>> dead_minimum(torch.tensor([2.0, 0.0]), 1, 1.0).tolist()
        [[-2.0, -0.0], [-6.0, -0.0]]
    """
    c = 1 + 2 / (k * v)
    return torch.cat([-w.expand(k, -1), -c * w.expand(k, -1)])


def hard_margin(x: Tensor, y: Tensor) -> Tensor:
    r"""The shortest w with $y_iw\cdot x_i\ge1$ for all i: the hard-margin SVM without a bias.

    By Lawson and Hanson's least distance programming: $u=\arg\min_{u\ge0}\left|(A,1)^\top u-(0,1)\right|$ with the rows
    $y_ix_i$ in A; the residual r gives $w=-r_{1..d}/r_{d+1}$.

    Args:
        x: examples, shape (n, d).
        y: +1 or -1, shape (n,).

    Raises:
        CannotRun: where no w separates.

    Cost: an active-set method: least squares of d numbers for each support vector.

    Example:
        >>> x = torch.tensor([[2.0, 0.0], [3.0, 1.0], [-1.0, 5.0]])
        >>> [round(v, 6) + 0.0 for v in hard_margin(x, torch.tensor([1.0, 1.0, -1.0])).tolist()]
        [0.5, -0.1]

    Source: Lawson & Hanson 1974, Solving least squares problems, chapter 23.
    """
    rows = (x * y[:, None]).double().numpy()
    scale = float(np.abs(rows).max())
    system = np.vstack([rows.T / scale, np.ones(len(rows))])
    target = np.zeros(len(system))
    target[-1] = 1.0
    u, _ = optimize.nnls(system, target, maxiter=30 * len(rows))
    residual = system @ u - target
    w = -residual[:-1] / residual[-1] / scale
    if residual[-1] > -1e-12 or not np.isfinite(w).all() or float((rows @ w).min()) < 1 - 1e-4:
        raise CannotRun("no linear rule without a bias separates these examples.")
    return torch.from_numpy(w / min(1.0, float((rows @ w).min())))


def perceptron(x: Tensor, y: Tensor, *, epochs: int = 1000, order: Sequence[int] | None = None) -> tuple[Tensor, int, bool]:
    r"""Rosenblatt's perceptron without a bias, from zero: the weights, its updates, and whether a pass made none.

    It makes at most $R^2|w^*|^2$ updates.

    Args:
        x: examples, shape (n, d).
        y: +1 or -1, shape (n,).
        epochs: passes at most.
        order: of the examples in each pass; that of the rows by default.

    Cost: n products per pass.

    Example:
        >>> x = torch.tensor([[1.0, 0.2], [0.3, 1.0], [-1.0, 0.1]])
        >>> w, updates, done = perceptron(x, torch.tensor([1.0, 1.0, -1.0]))
        >>> updates, done
        (1, True)
    """
    rows = (x * y[:, None]).double().numpy()
    rows = rows if order is None else rows[np.asarray(order)]
    w, updates = np.zeros(rows.shape[1]), 0
    for _ in range(epochs):
        before, at = updates, 0
        while at < len(rows):
            wrong = np.flatnonzero(rows[at:] @ w <= 0)
            if not len(wrong):
                break
            w = w + rows[at + wrong[0]]
            updates, at = updates + 1, at + int(wrong[0]) + 1
        if updates == before:
            return torch.from_numpy(w), updates, True
    return torch.from_numpy(w), updates, False
