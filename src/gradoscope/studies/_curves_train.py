"""The trainings of the study of curves: one linear map, one filter, an autoencoder; many seeds side by side."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradoscope.guard import private_random
from gradoscope.problems._curves import autoencoder_network, draw_anywhere, draw_slopes, integrator, windows
from gradoscope.stacked import bulk, fit, generator, numpy_generator, stack, start_like_source
from gradoscope.theory.breakpoints import score
from gradoscope.theory.whitening import whitening

KEY = 613  # of every random stream of this study
OPTIMUM = np.array([1.0, -2.0, 1.0])
DRAWN = 500  # steps whose batches are drawn at once

Row = dict[str, Any]
Tick = Callable[[float], None]


@dataclass(frozen=True)
class Curves:
    """The data of one seed, float64: changes of slope and curves, to train on and to validate on, shape (N, n) each."""

    p: Tensor
    f: Tensor
    p_validation: Tensor
    f_validation: Tensor


def curves(law: str, seed: int, n: int, k: int, count: int, validation: int = 1000) -> Curves:
    """The curves of a seed; "anywhere" has real breakpoints, and p are the second differences of the curves."""
    random, w = generator(seed, KEY, 1), integrator(n)
    if law == "anywhere":
        f, f_validation = draw_anywhere(count, n, k, random), draw_anywhere(validation, n, k, random)
        return Curves(slopes_of(f), f, slopes_of(f_validation), f_validation)
    p, p_validation = draw_slopes(law, count, n, k, random), draw_slopes(law, validation, n, k, random)
    return Curves(p, p @ w.T, p_validation, p_validation @ w.T)


def slopes_of(f: Tensor) -> Tensor:
    """The inverse of the integrator: second differences, with zeros before the start; (N, n) -> (N, n)."""
    return windows(f) @ torch.tensor([1.0, -2.0, 1.0], dtype=f.dtype)


def judged(p_hat: Tensor, data: Curves, k: int) -> Row:
    """How good predicted changes of slope are on the validation curves: losses, relative losses, breakpoints.

    `loss` sums over the points, as the source does for the linear map. Relative losses are in units of what predicting 0 gives:
    `relative` of p, `curve_relative` of the curves W p.
    """
    p, w = data.p_validation, integrator(data.p.shape[1])
    loss = float((p_hat - p).square().sum(1).mean())
    row: Row = {"loss": loss, "relative": loss / float(p.square().sum(1).mean())}
    row["curve_relative"] = float((p_hat @ w.T - data.f_validation).square().sum() / data.f_validation.square().sum())
    found = score(p_hat, p, k)
    row |= {"recall": found.recall, "recall_near": found.recall_near, "precision": found.precision}
    row["slope_error"] = found.slope_error / found.slope_size
    return row


def marks(steps: int) -> list[int]:
    """Steps at which a run is looked at: all up to ten, then about twelve per factor of ten, and the sources' 500, 10,000 and 50,000."""
    spread = {*range(10), *(round(10 ** (i / 12)) for i in range(12, 12 * 6))}
    return sorted({m for m in spread | {500, 10_000, 50_000} if m < steps} | {0, steps})


def picked(seeds: Sequence[int], count: int, batch: int) -> Iterator[tuple[Tensor, ...]]:
    """Rows of the training curves for each step, with replacement as in the source, shape (S, batch)."""

    def draw(random: np.random.Generator, n: int) -> tuple[Tensor, ...]:
        return (torch.from_numpy(random.integers(0, count, (n, batch))),)

    return bulk(seeds, draw, KEY, 2, chunk=DRAWN)


def train_linear(
    data: Sequence[Curves], seeds: Sequence[int], *, lr: float, steps: int, batch: int, look: Callable[[int, Tensor], None], tick: Tick
) -> None:
    r"""Adam on $\lVert fV-p\rVert^2$ summed over the points and averaged over the batch, from V = U' = 0, in float32 as in the source.

    `look(step, V)` is called at each of `marks(steps)` with V of shape (S, n, n).
    """
    f, p = (torch.stack([getattr(d, name) for d in data]).float() for name in ("f", "p"))
    v = torch.zeros(len(data), f.shape[2], f.shape[2], requires_grad=True)
    optimizer = torch.optim.Adam([v], lr=lr)
    here, rows = set(marks(steps)), torch.arange(len(data))[:, None]
    batches = picked(seeds, f.shape[1], batch)
    for step in range(steps):
        if step in here:
            look(step, v.detach())
            tick(step / steps)
        (index,) = next(batches)
        x, y = f[rows, index], p[rows, index]
        v.grad = torch.bmm(x.transpose(1, 2), torch.baddbmm(y, x, v.detach(), beta=-1)) * (2 / batch)
        optimizer.step()
    look(steps, v.detach())


def statistics(data: Curves) -> np.ndarray:
    r"""What a filter's gradient needs of each curve: the means over t of $F_tF_t^\top$ and of $F_tp_t$, shape (N, 12)."""
    x = windows(data.f)
    products = torch.einsum("nta,ntb->nab", x, x) / x.shape[1]
    cross = torch.einsum("nta,nt->na", x, data.p) / x.shape[1]
    return np.asarray(torch.cat([products.flatten(1), cross], dim=1).numpy())


class Rule:
    """Adam, AdaGrad and plain SGD on a few numbers, as PyTorch has them; rates of shape (S, 1)."""

    def __init__(self, name: str, rates: np.ndarray) -> None:
        self.name, self.rates = name, rates
        self.first, self.second, self.t = np.zeros((len(rates), 3)), np.zeros((len(rates), 3)), 0

    def step(self, gradient: np.ndarray) -> np.ndarray:
        """What is taken off the parameters."""
        self.t += 1
        if self.name == "sgd":
            return np.asarray(self.rates * gradient)
        if self.name == "adagrad":
            self.second += gradient * gradient
            return np.asarray(self.rates * gradient / (np.sqrt(self.second) + 1e-10))
        self.first += 0.1 * (gradient - self.first)
        self.second += 0.001 * (gradient * gradient - self.second)
        size = np.sqrt(self.second) / math.sqrt(1 - 0.999**self.t) + 1e-8
        return np.asarray(self.rates / (1 - 0.9**self.t) * self.first / size)


def train_filter(
    stats: np.ndarray, seeds: Sequence[int], rule: Rule, *, steps: int, batch: int, maps: np.ndarray, tick: Tick = lambda share: None
) -> np.ndarray:
    r"""Train filters w of three taps on $\operatorname{mean}_t(w\cdot TF_t-p_t)^2$ from 0, float64, by their sufficient statistics.

    The gradient of a mini-batch is $2T(\bar C\,Tw-\bar m)$ with the batch's means of C and m: nine numbers a curve stand for its n
    windows, and the steps are those of the plain loop up to rounding.

    Args:
        stats: of each seed, shape (S, N, 12).
        seeds: whose batches to draw.
        rule: the optimizer.
        steps: how many.
        batch: curves per step.
        maps: T per seed, shape (S, 3, 3): the identity, or the whitening.
        tick: called with the share that is done.

    Returns:
        The plain filters T w before each step and at the end, shape (steps + 1, S, 3).
    """
    randoms = [numpy_generator(seed, KEY, 3) for seed in seeds]
    path = np.empty((steps + 1, len(seeds), 3))
    w = np.zeros((len(seeds), 3))
    for start in range(0, steps, DRAWN):
        many = min(DRAWN, steps - start)
        means = np.empty((DRAWN, len(seeds), 12))
        for s, random in enumerate(randoms):
            means[:, s] = stats[s][random.integers(0, stats.shape[1], (DRAWN, batch))].mean(axis=1)
        products = maps @ means[:, :, :9].reshape(DRAWN, len(seeds), 3, 3) @ maps
        cross = (maps @ means[:, :, 9:, None])[..., 0]
        for i in range(many):
            path[start + i] = w
            w = w - rule.step(2 * ((products[i] @ w[:, :, None])[:, :, 0] - cross[i]))
        tick((start + many) / steps)
    path[steps] = w
    return np.asarray((maps @ path[..., None])[..., 0])


def filter_maps(stats: np.ndarray, whitened: bool) -> np.ndarray:
    """The identity, or the inverse root of each seed's second moment of windows on its training curves; shape (S, 3, 3)."""
    if not whitened:
        return np.broadcast_to(np.eye(3), (len(stats), 3, 3))
    return np.stack([whitening(torch.from_numpy(c), scale="unit").matrix.numpy() for c in moments(stats)])


def moments(stats: np.ndarray) -> np.ndarray:
    """The second moment of windows over each seed's training curves, shape (S, 3, 3)."""
    return np.asarray(stats[:, :, :9].mean(axis=1).reshape(-1, 3, 3))


def reached(errors: np.ndarray, tolerance: float = 0.01) -> list[float]:
    """The first step at which an error is below the tolerance, inf if never; errors of shape (steps + 1, S), one number per seed."""
    below = errors < tolerance
    return [float(np.argmax(column)) if column.any() else math.inf for column in below.T]


def settled(errors: np.ndarray, tolerance: float = 0.01) -> list[float]:
    """The first step from which on an error stays below the tolerance, inf where it is not below it at the end."""
    above = errors >= tolerance
    found = [float(len(column) - np.argmax(column[::-1])) if column.any() else 0.0 for column in above.T]
    return [math.inf if end else step for end, step in zip(above[-1], found, strict=True)]


def train_autoencoder(
    data: Sequence[Curves],
    seeds: Sequence[int],
    *,
    lr: float,
    steps: int,
    batch: int,
    width: float,
    depth: int,
    k: int,
    look: Callable[[int, Any], None],
    tick: Tick,
) -> Any:
    """Adam on the mean squared error of decoded curves, float32; returns the stack. `look(step, stack)` at each of `marks(steps)`."""
    f = torch.stack([d.f for d in data]).float()
    singles: list[nn.Module] = []
    for seed in seeds:
        with private_random():  # PyTorch's own start, which is overwritten, draws from the global stream
            singles.append(start_like_source(autoencoder_network(f.shape[2], k, width, depth), generator(seed, KEY, 4)))
    model = stack(singles)
    rows, here = torch.arange(len(data))[:, None], set(marks(steps))

    def batches() -> Iterator[tuple[Tensor]]:
        for (index,) in picked(seeds, f.shape[1], batch):
            yield (f[rows, index],)

    def losses(net: Any, x: Tensor) -> Tensor:
        return F.mse_loss(net(x), x, reduction="none").mean((1, 2))

    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    source = batches()
    step = 0
    for until in sorted(here):
        if until > step:
            fit(model, optimizer, source, losses, until - step, start=step)
        step = until
        look(step, model)
        tick(step / max(steps, 1))
    return model
