"""Stocks: many portfolios trained side by side, the exact expected loss, and the surface at the end."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradoscope.measure.curvature import extreme_eigenvalues
from gradoscope.objective import Objective
from gradoscope.problems.stocks import best_stock, start
from gradoscope.stacked import generator, numpy_generator

__all__ = ["BETAS", "Stocks", "days", "landscape", "watched"]

KEY = 541  # of this study's random streams: 1 the best stocks, 2 the start, 3 the states, 4 the returns, 5 antithetic returns
BETAS = (0.9, 0.99)
CHUNK = 50  # steps whose random numbers are drawn at once


def days(seeds: Sequence[int], d: int, k: int, batch: int, whole: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Fresh days for ever: states (S, batch), the same for both estimators, and which stocks rose, 0 or 1 (S, batch, k).

    The decomposed estimator looks at the best stocks alone and gets no others, shape (S, batch, 0). What a seed gets does not
    depend on the seeds beside it.
    """
    randoms = [(numpy_generator(seed, KEY, 3), numpy_generator(seed, KEY, 4)) for seed in seeds]
    size = (batch * k + 7) // 8 if whole else 0
    while True:
        states = torch.from_numpy(np.stack([first.integers(0, d, size=(CHUNK, batch)) for first, _ in randoms], axis=1))
        drawn = [np.frombuffer(second.bytes(CHUNK * size), dtype=np.uint8).reshape(CHUNK, size) for _, second in randoms]
        flips = np.stack(drawn, axis=1)
        for i in range(CHUNK):
            rose = np.unpackbits(flips[i], axis=1, count=batch * k) if whole else np.empty((len(seeds), 0), dtype=np.uint8)
            yield states[i], torch.from_numpy(rose).view(len(seeds), batch, -1) if whole else torch.empty(len(seeds), batch, 0)


class Stocks:
    r"""Portfolios of several seeds, trained side by side: their tables lie one below the other.

    Adam is the source's, TensorFlow's: $\hat\epsilon$ is added to the uncorrected root of the second moment. PyTorch adds its
    epsilon to the corrected one, so it gets $\epsilon_t=\hat\epsilon/\sqrt{1-\beta_2^t}$ at step t. Rows that the batch did not
    touch have zero gradient, and still move by their momentum. Gradients are written out: their rows go into a dense
    buffer, of which the fused optimizer makes one pass.

    Args:
        values: d, k, batch, lr, eps, bias (whether there is one) and estimator ("end-to-end" or "decomposed").
        seeds: S seeds.
        dtype: of all numbers.
    """

    def __init__(self, values: Mapping[str, Any], seeds: Sequence[int], dtype: torch.dtype = torch.float32) -> None:
        self.d, self.k, self.batch = values["d"], values["k"], values["batch"]
        self.whole = values["estimator"] == "end-to-end"
        self.best = torch.stack([best_stock(self.d, self.k, generator(seed, KEY, 1, self.k)) for seed in seeds])
        self.weights = torch.cat([start(self.d, self.k, generator(seed, KEY, 2, self.k)) for seed in seeds]).to(dtype).requires_grad_()
        self.bias = torch.zeros(len(seeds), self.k, dtype=dtype, requires_grad=True)
        self.weights.grad, self.bias.grad = torch.zeros_like(self.weights), torch.zeros_like(self.bias)
        trained = [self.weights, self.bias] if values["bias"] else [self.weights]
        self.adam = torch.optim.Adam(trained, lr=values["lr"], betas=BETAS, fused=True)
        self.eps = values["eps"]
        self.days = days(seeds, self.d, self.k, self.batch, self.whole)
        self.time = 0
        self._offsets = torch.arange(len(seeds))[:, None] * self.d
        self._buffers = [torch.empty(len(seeds), self.batch, self.k, dtype=dtype) for _ in range(3)]

    @torch.no_grad()
    def step(self) -> None:
        """One step of every seed."""
        states, rose = next(self.days)
        rows = (states + self._offsets).view(-1)
        gradient = self._gradient(rows, rose)
        assert self.weights.grad is not None
        assert self.bias.grad is not None
        self.weights.grad.index_add_(0, rows, gradient.view(-1, self.k))
        torch.sum(gradient, 1, out=self.bias.grad)
        self.time += 1
        for group in self.adam.param_groups:
            group["eps"] = self.eps / math.sqrt(1 - BETAS[1] ** self.time)
        self.adam.step()
        self.weights.grad.index_fill_(0, rows, 0)

    def _gradient(self, rows: Tensor, rose: Tensor) -> Tensor:
        r"""The gradients of the loss by each day's logits, $p(\langle z,p\rangle-z)/B$ or $p_y(p-e_y)/B$; shape (S, B, k)."""
        p, z, q = self._buffers  # fresh memory would cost more than the arithmetic
        best = self.best.view(-1)[rows].view(*q.shape[:2], 1)
        torch.index_select(self.weights, 0, rows, out=q.view(-1, self.k))
        torch.softmax(q.add_(self.bias[:, None]), 2, out=p)
        if not self.whole:
            own = p.gather(2, best).div_(self.batch)
            return p.mul_(own).scatter_add_(2, best, -own)
        z.copy_(rose).mul_(2).sub_(1).scatter_(2, best, 1.0)
        total = torch.mul(p, z, out=q).sum(2, keepdim=True)
        return p.mul_(total).sub_(q).div_(self.batch)

    def logits(self) -> Tensor:
        """All logits of all seeds, shape (S, d, k)."""
        return self.weights.detach().view(len(self.bias), self.d, self.k) + self.bias.detach()[:, None]

    @torch.no_grad()
    def look(self) -> list[dict[str, float]]:
        """The exact expected loss of each seed, over all states and returns, and where its rows stand.

        "right": the share of states whose largest holding is the best stock. "lost": the share that hold less than a tenth
        of what they held of it at the start, 1/k: the gradient is in proportion to that holding. "stocks": the median over the
        states that are not right of 1 / sum of squared holdings, the number of stocks that they hold.
        """
        p = torch.softmax(self.logits(), 2)
        own = p.gather(2, self.best[:, :, None])[:, :, 0]
        right = p.argmax(2) == self.best
        held = p.square().sum(2).reciprocal()
        return [
            {
                "loss": -float(own[s].double().mean()),
                "right": float(right[s].double().mean()),
                "lost": float((own[s] < 0.1 / self.k).double().mean()),
                "stocks": float(held[s][~right[s]].median()) if not right[s].all() else 1.0,
            }
            for s in range(len(p))
        ]


def watched(
    values: Mapping[str, Any], seeds: Sequence[int], tick: Callable[[float], None]
) -> tuple[Stocks, list[list[dict[str, float]]], list[int], float]:
    """A whole training with its looks: the portfolios, looks by step and seed, their steps, and CPU seconds of the steps alone."""
    stocks = Stocks(values, seeds)
    at, looks, spent = [0], [stocks.look()], 0.0
    every = values["every"]
    while stocks.time < values["steps"]:
        begin = time.process_time()
        for _ in range(min(every, values["steps"] - stocks.time)):
            stocks.step()
        spent += time.process_time() - begin
        at.append(stocks.time)
        looks.append(stocks.look())
        tick(stocks.time / values["steps"])
    return stocks, looks, at, spent


class _Table(torch.nn.Module):
    """The logits of all states as parameters, with the shared bias."""

    def __init__(self, weights: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weights, self.bias = torch.nn.Parameter(weights.clone()), torch.nn.Parameter(bias.clone())

    def forward(self) -> Tensor:
        """The portfolios, shape (d, k)."""
        return torch.softmax(self.weights + self.bias, 1)


def landscape(weights: Tensor, bias: Tensor, best: Tensor, *, products: int = 30) -> dict[str, float]:
    r"""The exact expected loss around a point: gradient, signed extremes of its Hessian, and the straight way down.

    The loss has the derivative $-p_y(1-p_y)/d$ by the own logit of a state, which
    is strictly negative at all finite weights: there is no critical point, hence no minimum and no saddle. The second derivative
    is $-p_y(1-p_y)(1-2p_y)/d$, a Rayleigh quotient of the Hessian: negative for a state that holds less than half.

    Args:
        weights: shape (d, k).
        bias: shape (k,).
        best: shape (d,).
        products: Hessian-vector products at most.

    Returns:
        "gradient" (norm), "largest" and "smallest" eigenvalue with the bound "residual", "own_slope" (the steepest derivative by
        an own logit among states that hold less than half), "own_curvature" (the most negative second derivative), "ray_rise"
        (the largest rise along the straight line that raises all own logits together by 0 .. 100) and "ray_end" (the loss at
        its end).

    Cost: at most `products` Hessian-vector products in float64.
    """
    rows = torch.arange(len(best))
    objective = Objective(_Table(weights.double(), bias.double()), lambda table, _: -table()[rows, best].mean(), [None])
    spectrum = extreme_eigenvalues(objective, max_products=products)
    logits = weights.double() + bias.double()
    others = logits.clone()
    others[rows, best] = -torch.inf
    odds = logits[rows, best] - torch.logsumexp(others, 1)  # log of own holding by the others'
    slope = torch.sigmoid(odds) * torch.sigmoid(-odds) / len(best)  # without cancellation: 1e-20 is not zero
    behind = odds < 0
    shift = torch.arange(101, dtype=torch.float64)
    ray = -torch.sigmoid(odds + shift[:, None]).mean(1)
    return {
        "gradient": float(objective.gradient().norm()),
        "largest": spectrum.largest,
        "smallest": spectrum.smallest,
        "residual": float(max(spectrum.top_residuals[0], spectrum.bottom_residuals[0])),
        "own_slope": -float(slope[behind].max()) if behind.any() else 0.0,
        "own_curvature": float((-slope * (1 - 2 * torch.sigmoid(odds))).min()),
        "ray_rise": float(ray.diff().max()),
        "ray_end": float(ray[-1]),
    }
