"""SGD on finite data: the order of examples, forgetting, what a budget of gradients buys, early stopping, AdaGrad's regret."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradoscope.problems._data import digits
from gradoscope.stacked import fit, generator, numpy_generator, stack, start_like_source
from gradoscope.studies._sgd import CHUNK, KEY, Stream
from gradoscope.study import Context, Result, Row
from gradoscope.theory import sgd
from gradoscope.updates import lecture

__all__ = ["BUDGETS", "ORDERS", "SIZES", "adagrad", "budget", "classes_in_turn", "cross_entropy", "early", "orders"]

ORDERS = ("shuffled each epoch", "one fixed order", "with replacement")
BUDGETS = (1_000, 10_000, 100_000)
SIZES = (50, 100, 200, 500, 1000, 2000, 5000, 20_000)


def orders(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Least squares on 256 examples, one at a time, rates 2/(t + 100), in three orders from the same start; gap to the minimum."""
    n, d, runs, epochs = values["n"], 10, values["runs"], values["epochs"]
    count = len(seeds) * runs
    randoms = [numpy_generator(seed, KEY, 11) for seed in seeds]
    x = np.concatenate([r.standard_normal((runs, n, d)) for r in randoms])
    y = x.sum(2) + np.concatenate([r.standard_normal((runs, n)) for r in randoms])
    moment = np.einsum("rni,rnj->rij", x, x) / n
    best = np.linalg.solve(moment, np.einsum("rni,rn->ri", x, y)[..., None] / n)[..., 0]
    theta, each = np.zeros((count, len(ORDERS), d)), np.arange(count)[:, None]
    gaps = []
    for epoch in range(epochs):
        shuffled = np.concatenate([r.permuted(np.tile(np.arange(n), (runs, 1)), axis=1) for r in randoms])
        drawn = np.concatenate([r.integers(0, n, (runs, n)) for r in randoms])
        index = np.stack([shuffled, np.broadcast_to(np.arange(n), (count, n)), drawn], 2)
        for t in range(n):
            rows = x[each, index[:, t]]
            residual = (rows * theta).sum(2) - y[each, index[:, t]]
            theta -= 2 / (epoch * n + t + 1 + 100) * residual[..., None] * rows
        away = theta - best[:, None]
        gap = 0.5 * (away * np.einsum("rij,rkj->rki", moment, away)).sum(2)
        gaps.append(gap.reshape(len(seeds), runs, len(ORDERS)).mean(1))
        context.tick(epoch / epochs)
    table = np.stack(gaps, -1)  # (seed, order, epoch)
    rows_: list[Row] = [
        {
            "seed": seed,
            **{f"gap_{k}": float(table[s, k, -1]) for k in range(len(ORDERS))},
            "ratio": float(table[s, 2, -1] / table[s, 0, -1]),
        }
        for s, seed in enumerate(seeds)
    ]
    curves: list[Row] = [
        {"seed": seed, "order": name, "epoch": e + 1, "gap": float(table[s, k, e])}
        for s, seed in enumerate(seeds)
        for k, name in enumerate(ORDERS)
        for e in range(epochs)
    ]
    return Result(rows_, curves)


def classes_in_turn(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Softmax regression on even and odd digits at a constant rate, one class after the other against shuffled; the last epoch."""
    rate, batch, epochs = values["rate"], values["batch"], values["epochs"]
    rows: list[Row] = []
    curves: list[Row] = []
    for seed in seeds:
        (pixels, labels), _ = digits(seed)
        x = np.concatenate([pixels.double().numpy(), np.ones((len(pixels), 1))], 1)
        y = labels.numpy() % 2
        sets = np.argsort(y, kind="stable")
        random = numpy_generator(seed, KEY, 12)
        zeros = y == 0
        # the last batch that holds an even digit, when they are sorted
        seen = math.ceil(int(zeros.sum()) / batch) - 1
        row: Row = {"seed": seed}
        for name in ("sorted", "shuffled"):
            weight = np.zeros((65, 2))
            path, zero_path = [], []
            for epoch in range(epochs):
                order = sets if name == "sorted" else random.permutation(len(x))
                for begin in range(0, len(x), batch):
                    chosen = order[begin : begin + batch]
                    slope = _softmax(x[chosen] @ weight)
                    slope[np.arange(len(chosen)), y[chosen]] -= 1
                    weight -= rate / len(chosen) * x[chosen].T @ slope
                    if epoch == epochs - 1:
                        losses = -np.log(_softmax(x @ weight)[np.arange(len(x)), y])
                        path.append(float(losses.mean()))
                        zero_path.append(float(losses[zeros].mean()))
            row |= {f"low_{name}": min(path), f"high_{name}": max(path), f"swing_{name}": max(path) - min(path)}
            row |= {f"zero_after_{name}": zero_path[seen], f"zero_end_{name}": zero_path[-1]}
            curves += [
                {"seed": seed, "order": name, "step": t, "loss": a, "zero": b} for t, (a, b) in enumerate(zip(path, zero_path, strict=True))
            ]
        rows.append(row)
        context.tick(len(rows) / len(seeds))
    return Result(rows, curves)


def _softmax(scores: np.ndarray) -> np.ndarray:
    raised = np.exp(scores - scores.max(1, keepdims=True))
    share: np.ndarray = raised / raised.sum(1, keepdims=True)
    return share


BEND = 0.3


def budget(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """What so many gradients of single examples buy: many steps of GD on few examples, few on many, or one pass of SGD.

    y is linear in x up to a square of one input (what no linear map can give: the approximation error) and noise.
    """
    d, runs = 20, values["runs"]
    eigenvalues = np.geomspace(1, 0.05, d)
    rows: list[Row] = []
    targets = []
    for seed in seeds:
        random = numpy_generator(seed, KEY, 13)
        target = 2 * random.standard_normal((runs, d))
        targets.append(target)
        for n in SIZES:
            x = random.standard_normal((runs, n, d))
            error = BEND * (x[..., 0] ** 2 - 1) / math.sqrt(2) + random.standard_normal((runs, n))
            x *= np.sqrt(eigenvalues)
            moment = np.einsum("rni,rnj->rij", x, x, optimize=True) / n
            # where the sample's own minimum lies, seen from the best linear map
            own = np.linalg.solve(moment, np.einsum("rni,rn->ri", x, error)[..., None] / n)
            estimation = 0.5 * (eigenvalues * own[..., 0] ** 2).sum(1)
            spectrum, vectors = np.linalg.eigh(moment)
            for total in (b for b in BUDGETS if b >= n):
                left = (1 - spectrum / spectrum[:, -1:]) ** (total // n)  # gradient descent at 1/L from zero, in closed form
                away = own + vectors @ (left[..., None] * (vectors.swapaxes(1, 2) @ (-target[..., None] - own)))
                excess = 0.5 * (eigenvalues * away[..., 0] ** 2).sum(1)
                row: Row = {"seed": seed, "method": "GD", "n": n, "budget": total, "excess": excess.mean()}
                rows.append(row | {"estimation": estimation.mean(), "optimisation": (excess - estimation).mean()})
        context.tick(len(targets) / (2 * len(seeds)))
    rows += _one_pass(seeds, runs, eigenvalues, np.concatenate(targets), context)
    return Result([row | {"approximation": BEND**2 / 2} for row in rows])


def _one_pass(seeds: Sequence[int], runs: int, eigenvalues: np.ndarray, target: np.ndarray, context: Context) -> list[Row]:
    """SGD at 1/(2 tr) on fresh examples, and the average of the second half of its iterates, for each budget."""
    stream = Stream(seeds, runs, eigenvalues, 14)
    away, total = -target.T.copy(), np.zeros((len(eigenvalues), len(target)))
    rows: list[Row] = []
    rate, halves = 1 / (2 * eigenvalues.sum()), {}
    for t in range(1, BUDGETS[-1] + 1):
        if (t - 1) % CHUNK == 0:
            draws = stream.chunk(CHUNK)
            context.tick(0.5 + 0.5 * t / BUDGETS[-1])
        draw = draws[(t - 1) % CHUNK]
        error = draw[-1] + BEND * (draw[0] ** 2 - 1) / math.sqrt(2)  # the first eigenvalue is one
        away -= rate * ((draw[:-1] * away).sum(0) - error) * draw[:-1]
        total += away
        if 2 * t in BUDGETS:
            halves[2 * t] = total.copy()
        if t in BUDGETS:
            for method, found in (("SGD, tail average", (total - halves[t]) / (t / 2)), ("SGD, last iterate", away)):
                excess = (0.5 * eigenvalues[:, None] * found**2).sum(0).reshape(len(seeds), runs).mean(1)
                rows += [{"seed": s, "method": method, "n": t, "budget": t, "excess": e} for s, e in zip(seeds, excess, strict=True)]
    return rows


class CrossEntropy:
    """The mean cross-entropy of each network of a stack, with its slope, so that `fit` differentiates by hand."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x of shape (S, B, in), y of shape (S, B), classes; returns (S,)."""
        return F.cross_entropy(model(x).transpose(1, 2), y, reduction="none").mean(1)

    def slope(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The losses, and softmax less one at the class, over B."""
        logs = F.log_softmax(output, -1)
        losses = -logs.gather(-1, y[..., None]).mean((1, 2))
        slope = logs.exp_()
        slope.scatter_add_(-1, y[..., None], slope.new_full((*y.shape, 1), -1.0))
        return losses, slope.div_(y.shape[1])


cross_entropy = CrossEntropy()


def _epochs(x: Tensor, y: Tensor, batch: int, seeds: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of shuffled epochs for a stack, every seed with data and orders of its own."""
    randoms = [generator(seed, KEY, 16) for seed in seeds]
    slot = torch.arange(len(seeds))[:, None]
    while True:
        order = torch.stack([torch.randperm(x.shape[1], generator=r) for r in randoms])
        for begin in range(0, x.shape[1] - batch + 1, batch):
            chosen = order[:, begin : begin + batch]
            yield x[slot, chosen], y[slot, chosen]


def early(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """A ReLU network on 200 digits with a fifth of the labels drawn at random: likelihood and error on clean images, epoch by epoch."""
    epochs, batch, count = values["epochs"], 20, 200
    parts = [digits(seed, train=count) for seed in seeds]
    x, y = (torch.stack([train[i] for train, _ in parts]) for i in (0, 1))
    held, truth = (torch.stack([valid[i] for _, valid in parts]) for i in (0, 1))
    for s, seed in enumerate(seeds):
        random = generator(seed, KEY, 15)
        wrong = torch.randperm(count, generator=random)[: count // 5]
        y[s, wrong] = torch.randint(0, 10, (len(wrong),), generator=random)
    singles = [nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)) for _ in seeds]
    model = stack([start_like_source(m, generator(seed, KEY, 17)) for m, seed in zip(singles, seeds, strict=True)])
    found = []

    def look(step: int, _: Tensor) -> None:
        with torch.no_grad():
            scores = model(held)
            miss = (scores.argmax(-1) != truth).double().mean(1)
            found.append(torch.stack([cross_entropy(model, x, y).double(), cross_entropy(model, held, truth).double(), miss]))
        context.tick(step / (epochs * count // batch))

    per_epoch = count // batch
    optimizer = torch.optim.SGD(model.parameters(), lr=values["rate"])
    fit(model, optimizer, _epochs(x, y, batch, seeds), cross_entropy, epochs * per_epoch, look=look, every=per_epoch)
    path = torch.stack(found, -1).numpy()  # (train NLL, valid NLL, valid error; seed; epoch)
    rows: list[Row] = []
    curves: list[Row] = []
    for s, seed in enumerate(seeds):
        train, loss, miss = path[:, s]
        row: Row = {"seed": seed, "train_end": train[-1], "loss_end": loss[-1], "error_end": miss[-1]}
        row |= {"loss_epoch": int(loss.argmin()), "error_epoch": int(miss.argmin()), "loss_best": loss.min(), "error_best": miss.min()}
        row |= {"loss_ratio": loss[-1] / loss.min(), "error_rise": miss[-1] - miss.min(), "error_at_loss": miss[loss.argmin()]}
        rows.append(row)
        columns = enumerate(zip(train.tolist(), loss.tolist(), miss.tolist(), strict=True))
        curves += [{"seed": seed, "epoch": e, "train": a, "loss": b, "error": c} for e, (a, b, c) in columns]
    return Result(rows, curves)


def adagrad(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    r"""AdaGrad on absolute losses of sparse inputs, in the box $|\theta|_\infty\le1$: its regret against the best point, at every step.

    The regret is that of the linearised losses, $\sum_sg_s^\top\theta_s+|\sum_sg_s|_1$, whose best point is known in closed form at
    every step, and which bounds that of the losses themselves.
    """
    d, runs, steps = values["d"], values["runs"], values["steps"]
    randoms = [numpy_generator(seed, KEY, 18) for seed in seeds]
    often = 1 / np.arange(1, d + 1.0)  # the i-th input is there in one of i examples
    target = np.concatenate([r.uniform(-1, 1, (runs, d)) for r in randoms])
    theta = torch.zeros(len(target), d, dtype=torch.float64, requires_grad=True)
    optimizer = lecture.AdaGrad([theta], lr=2 / math.sqrt(2), delta=1e-12)
    paid, total, squares = (np.zeros(s) for s in (len(target), (len(target), d), (len(target), d)))
    marks, ratios, curves = set(np.geomspace(1, steps, 40).round().astype(int).tolist()), np.zeros(len(target)), []
    for t in range(1, steps + 1):
        x = np.concatenate([(r.random((runs, d)) < often) * r.choice([-1.0, 1.0], (runs, d)) for r in randoms])
        y = (x * target).sum(1) + 0.1 * np.concatenate([r.standard_normal(runs) for r in randoms])
        now = theta.detach().numpy()
        g = np.sign((x * now).sum(1) - y)[:, None] * x
        paid += (g * now).sum(1)
        total += g
        squares += g**2
        theta.grad = torch.from_numpy(g)
        optimizer.step()
        with torch.no_grad():
            theta.clamp_(-1, 1)
        regret, bound = paid + np.abs(total).sum(1), sgd.adagrad_bound(2.0, squares)
        ratios = np.maximum(ratios, regret / bound)
        if t in marks:
            each = np.stack([regret, bound]).reshape(2, len(seeds), runs).mean(2)
            curves += [{"seed": seed, "step": t, "regret": a, "bound": b} for seed, a, b in zip(seeds, *each.tolist(), strict=True)]
            context.tick(t / steps)
    # the bound of one rate for all, with the Euclidean diameter of the same box
    common = math.sqrt(2) * 2 * math.sqrt(d) * np.sqrt(squares.sum(1))
    worst, gain = (v.reshape(len(seeds), runs) for v in (ratios, common / bound))
    rows: list[Row] = [{"seed": seed, "ratio": worst[s].max(), "gain": gain[s].mean()} for s, seed in enumerate(seeds)]
    return Result(rows, curves)
