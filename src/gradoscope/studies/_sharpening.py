"""What the study of sharpening computes: curvature along full-batch descent, and spectra with and without batch normalisation."""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradoscope.measure.curvature import density, extreme_eigenvalues
from gradoscope.objective import Objective
from gradoscope.problems._data import digits
from gradoscope.stacked import blank, bulk, fit, generator, stack, unstack
from gradoscope.study import Context, Result, Row

__all__ = ["PARTS", "STABLE"]

KEY = 617  # of this study's random streams: 1 starts of stacks, 2 of the networks with batches, 3 their batches
STABLE = 1.9  # eta lambda_max below which every step should go downhill
ROUNDING = 1e-6  # of the loss: a smaller rise is one of float32
TOP, FAR = 10, 30  # eigenvectors that count as the top, one for each class; and the eigenvalue that they are compared with


def _pixels(images: int) -> tuple[Tensor, Tensor]:
    """Digits with pixels from 0 to 1, and their classes."""
    (x, y), _ = digits(0, train=images)
    return (x - x.min()) / (x.max() - x.min()), y


def _network(seed: int, hidden: int) -> nn.Sequential:
    """64-hidden-10 with tanh, normal weights of variance 1 / fan in, zero biases."""
    model, random = nn.Sequential(blank(64, hidden), nn.Tanh(), blank(hidden, 10)), generator(seed, KEY, 1)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            assert isinstance(layer, nn.Linear)
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=random) * layer.in_features**-0.5)
            layer.bias.zero_()
    return model


def _half_square(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    out: Tensor = model(x)
    return 0.5 * (out - y).square().sum(-1).mean(-1)


def edge(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    r"""3.5: $\eta\lambda_{\max}$ and the loss along full-batch gradient descent, the seeds side by side."""
    x, classes = _pixels(values["images"])
    y = nn.functional.one_hot(classes, 10).to(x)
    eta, hidden = values["lr"], values["hidden"]
    steps, every = round(values["time"] / eta), max(1, round(values["look"] / eta))
    singles = [_network(seed, hidden) for seed in seeds]
    model = stack(singles)
    looks: list[tuple[int, list[float]]] = []
    losses: list[Tensor] = []

    def look(step: int, now: Tensor) -> None:
        losses.append(now)
        if step % every:
            return
        found = []
        for i, single in enumerate(singles):
            objective = Objective(unstack(model, i, single), lambda m, b: _half_square(m, *b), [(x, y)])
            found.append(eta * extreme_eigenvalues(objective, max_products=20).largest)
        looks.append((step, found))
        context.tick(step / steps)

    fit(model, torch.optim.SGD(model.parameters(), lr=eta), itertools.repeat((x, y)), _half_square, steps, look=look, every=1)
    every_loss = torch.stack(losses[:steps])  # (steps, S), before each step
    result = Result()
    for i, seed in enumerate(seeds):
        path, sharp = every_loss[:, i].numpy().astype(float), np.array([found[i] for _, found in looks])
        result.rows.append({"seed": seed, **_edge_row(path, sharp, every)})
        for (step, found), k in zip(looks, itertools.count()):
            piece = path[k * every : (k + 1) * every]
            if len(piece):
                result.curves.append({"seed": seed, "time": step * eta, "sharpness": found[i], "loss": float(piece.mean())})
    return result


def _edge_row(path: np.ndarray, sharp: np.ndarray, every: int) -> Row:
    """What is told of one run: losses of each step, sharpness each `every` steps."""
    rises = np.diff(path) > ROUNDING * path[:-1]
    third, last = len(sharp) * 2 // 3, len(rises) * 2 // 3
    calm = np.zeros(len(rises), dtype=bool)  # steps between two looks that both saw a stable step size
    for k in range(len(sharp) - 1):
        if max(sharp[k], sharp[k + 1]) < STABLE:
            calm[k * every : (k + 1) * every] = True
    return {
        "start": float(sharp[0]),
        "median": float(np.median(sharp[third:])),
        "reached": bool(np.median(sharp[third:]) >= STABLE),
        "rise": float(np.median(sharp[third:]) / sharp[: max(2, len(sharp) // 4)].min()),
        "uphill": float(rises[last:].mean()),
        "uphill_calm": float(rises[calm].mean()) if calm.any() else 0.0,
        "thirds": float(path[last:].mean() / path[: len(path) // 3].mean()),
        "loss": float(path[-1]),
    }


def _deep(seed: int, hidden: int, normalised: bool) -> nn.Sequential:
    """Four ReLU layers, with batch normalisation before each or without; He's start."""
    layers: list[nn.Module] = []
    for fan_in in (64, hidden, hidden, hidden):
        layers += [blank(fan_in, hidden, bias=not normalised), *([nn.BatchNorm1d(hidden)] if normalised else []), nn.ReLU()]
    model, random = nn.Sequential(*layers, blank(hidden, 10)), generator(seed, KEY, 2)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=random) * (2 / layer.in_features) ** 0.5)
                if layer.bias is not None:
                    layer.bias.zero_()
    return model


def _cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def spectra(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """3.4: the spectrum at three times of a training, and how much of the gradient lies in its top eigenvectors."""
    x, y = _pixels(values["images"])
    result = Result()
    for count, seed in enumerate(seeds):
        model = _deep(seed, values["hidden"], values["normalised"])
        optimizer = torch.optim.SGD(model.parameters(), lr=values["lr"])

        def draw(random: np.random.Generator, n: int) -> tuple[Tensor, ...]:
            return (torch.from_numpy(random.integers(0, len(y), (n, values["batch"]))),)

        batches = bulk([seed], draw, KEY, 3)
        for step in range(values["steps"] + 1):
            if step in values["looks"]:
                row = _spectrum(copy.deepcopy(model), x, y, values["products"], seed, result)
                result.rows.append({"seed": seed, "step": step, **row})
                context.tick((count + step / values["steps"]) / len(seeds))
            index = next(batches)[0][0]
            optimizer.zero_grad()
            _cross_entropy(model, (x[index], y[index])).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return result


def _spectrum(model: nn.Module, x: Tensor, y: Tensor, products: int, seed: int, result: Result) -> Row:
    objective = Objective(model, _cross_entropy, [(x, y)], mode="train", seed=seed)
    found = extreme_eigenvalues(objective, k=FAR, tolerance=1e-6, max_products=products, seed=seed)
    gradient = objective.gradient().double()
    inside = found.top_vectors[:TOP].double() @ gradient
    values, weights = density(found, width=0.01 * found.largest)
    step = len(result.rows)
    result.arrays[f"density_{step}"] = torch.from_numpy(np.stack([values / found.largest, weights * found.largest]))
    return {
        "largest": found.largest,
        "smallest": found.smallest,
        "outlier": found.largest / max(float(found.top[FAR - 1]), 1e-12),
        "share": float(inside.square().sum() / gradient.square().sum()),
        "residual": float(found.top_residuals[:TOP].max() / found.largest),
        "loss": objective.loss(),
        "array": step,
    }


PARTS: dict[str, Callable[[Mapping[str, Any], Sequence[int], Context], Result]] = {"edge": edge, "spectra": spectra}
