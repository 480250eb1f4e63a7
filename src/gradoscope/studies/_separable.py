"""What the study of wide networks on separable data runs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradoscope.problems.separable import separated, two_digits
from gradoscope.stacked import generator
from gradoscope.study import Context, Result, Row
from gradoscope.theory import separable as theory
from gradoscope.theory.baum import learn
from gradoscope.updates.single_examples import Record, WideHinge, replay

__all__ = ["KEY", "baum", "compression", "dead", "images", "labels", "orthonormal", "relu", "steps", "width"]

KEY = 659  # of this study's random streams: 1 planes and data, 2 starts, 3 orders, 4 ReLU starts, 5 halfspaces, 6 labels, 7 images
Data = tuple[Tensor, Tensor]


def _plane(seed: int, d: int) -> tuple[Tensor, torch.Generator]:
    random = generator(seed, KEY, 1, d)
    return torch.nn.functional.normalize(torch.randn(d, generator=random, dtype=torch.float64), dim=0), random


def _start(seed: int, k: int, d: int) -> Tensor:
    """Normal numbers with a Frobenius norm of 1."""
    w = torch.randn(2 * k, d, generator=generator(seed, KEY, 2, k, d), dtype=torch.float64)
    start: Tensor = w / w.norm()
    return start


def _trained(
    seed: int, data: Data, k: int, slope: float, eta: float, *, epochs: int = 10_000, along: Tensor | None = None
) -> tuple[WideHinge, Record, Tensor]:
    """A network trained in a random order, with its record and its start."""
    x, y = data
    start = _start(seed, k, x.shape[1])
    net = WideHinge(start, slope=slope, v=1 / math.sqrt(2 * k))
    return net, net.train(x, y, eta=eta, epochs=epochs, random=generator(seed, KEY, 3), along=along), start


def _error(net: WideHinge, data: Data) -> float:
    return float((net(data[0]) * data[1] <= 0).double().mean())


def width(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Updates until a pass makes none, against the bound, the perceptron's, and a replay of the list."""
    result, k, slope, eta, d = Result(), values["k"], values["slope"], values["eta"], values["d"]
    for done, seed in enumerate(seeds):
        w, random = _plane(seed, d)
        x, y = separated(values["n"], d, values["margin"], w, random)
        svm = theory.hard_margin(x, y)
        norm, v = float(svm.norm()), 1 / math.sqrt(2 * k)
        net, record, start = _trained(seed, (x, y), k, slope, eta)
        again = replay(start, x, y, record.updates, eta=eta, slope=slope, v=v)
        count = theory.perceptron(x, y)[1]
        row: Row = {"seed": seed, "updates": len(record.updates), "epochs": record.epochs, "converged": record.converged, "norm": norm}
        row |= {"bound": theory.update_bound(norm, 1.0, slope=slope, eta=eta, k=k, v=v, start=1.0), "perceptron": count}
        row |= {"perceptron_bound": norm**2, "replayed": float(torch.equal(again.weights, net.weights)), "error": _error(net, (x, y))}
        result.rows.append(row | _bias(net, start, (x, y), separated(500, d, values["margin"], w, random), svm))
        context.tick((done + 1) / len(seeds))
    return result


def steps(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Progress along W* and growth of |W|^2 at every update, against what the proof says of each."""
    result, k, slope, eta, d = Result(), values["k"], values["slope"], values["eta"], values["d"]
    v = 1 / math.sqrt(2 * k)
    for seed in seeds:
        w, random = _plane(seed, d)
        x, y = separated(values["n"], d, values["margin"], w, random)
        along = theory.separator(theory.hard_margin(x, y), k)
        _, record, start = _trained(seed, (x, y), k, slope, eta, along=along)
        least, most = theory.step_bounds(1.0, slope=slope, eta=eta, k=k, v=v)
        first = float((start * along).sum())
        progress = torch.tensor([first, *record.progress], dtype=torch.float64)
        norms = torch.tensor([float(start.square().sum()), *record.norms], dtype=torch.float64)
        slow = (progress.diff() < least * (1 - 1e-9)).sum()
        large = (norms.diff() > most * (1 + 1e-9)).sum()
        result.rows.append({"seed": seed, "updates": len(record.updates), "violations": int(slow + large)})
        total, size = len(record.updates), float(along.norm())
        for t in range(0, total + 1, max(1, total // 60)):
            row: Row = {"seed": seed, "update": t, "progress": float(progress[t]) / size, "norm": float(norms[t].sqrt())}
            result.curves.append(row | {"least": (first + least * t) / size, "most": math.sqrt(float(norms[0]) + most * t)})
    return result


def orthonormal(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The instance that needs one over the step size: (e_j, +1) from a zero start."""
    d, k = values["d"], values["k"]
    x, y = torch.eye(d, dtype=torch.float64), torch.ones(d, dtype=torch.float64)
    rows: list[Row] = []
    for slope in values["slopes"]:
        for eta in values["etas"]:
            net = WideHinge(torch.zeros(2 * k, d, dtype=torch.float64), slope=slope, v=1 / math.sqrt(2 * k))
            record = net.train(x, y, eta=eta)
            rows.append({"slope": slope, "eta": eta, "each": len(record.updates) / d, "predicted": theory.orthonormal_updates(slope, eta)})
    return Result(rows)


def compression(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Error on new examples against the compression bound, from the updates that were made and from the most there could be."""
    result, n, k, d = Result(), values["n"], values["k"], values["d"]
    slope, eta = values["slope"], values["eta"]
    for seed in seeds:
        w, random = _plane(seed, d)
        data, new = (separated(size, d, values["margin"], w, random) for size in (n, 20_000))
        net, record, _ = _trained(seed, data, k, slope, eta)
        norm = float(theory.hard_margin(*data).norm())
        worst = theory.update_bound(norm, 1.0, slope=slope, eta=eta, k=k, v=1 / math.sqrt(2 * k), start=1.0)
        used = torch.zeros(n, dtype=torch.bool)
        used[torch.tensor(record.updates)] = True
        outside = float((net(data[0][~used]) * data[1][~used] <= 0).double().mean())
        told, before = theory.compression_bound(len(record.updates), n, outside=outside), theory.compression_bound(worst, n)
        row: Row = {"seed": seed, "updates": len(record.updates), "worst": worst, "test": _error(net, new)}
        row |= {"bound": told.bound, "vacuous": told.vacuous, "words": told.words, "worst_bound": before.bound}
        result.rows.append(row | {"worst_vacuous": before.vacuous, "broken": max(0.0, _error(net, new) - told.bound)})
    return result


def dead(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The flat bad minimum of ReLUs: its loss around, and what SGD does there."""
    result, k, d = Result(), values["k"], values["d"]
    v = 1 / math.sqrt(2 * k)
    for seed in seeds:
        w, random = _plane(seed, d)
        x, y = separated(values["n"], d, values["margin"], w, random)
        weights = theory.dead_minimum(w / values["margin"], k, v)
        size = 0.02 / math.sqrt(d)
        moves = size * torch.randn(values["kicks"], *weights.shape, generator=random, dtype=torch.float64)
        losses = [float(torch.relu(1 - y * WideHinge(weights + move, slope=0.0, v=v)(x)).mean()) for move in (*moves, 0 * moves[0])]
        net = WideHinge(weights, slope=0.0, v=v)
        free = weights.clone().requires_grad_()
        z = torch.relu(x @ free.T)
        loss = torch.relu(1 - y * v * (z[:, :k].sum(1) - z[:, k:].sum(1))).mean()
        (gradient,) = torch.autograd.grad(loss, free)
        net.train(x, y, eta=1.0, epochs=1)
        positive = float((y > 0).double().mean())
        row: Row = {"seed": seed, "loss": losses[-1], "positive": positive, "spread": max(abs(v - positive) for v in losses)}
        moved = float((net.weights - weights).abs().max())
        result.rows.append(row | {"gradient": float(gradient.abs().max()), "moved": moved})
    return result


def relu(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """How many of many networks learn (e_j, +1), with ReLUs of some width, or leaky."""
    result, k, d = Result(), values["k"], values["d"]
    for seed in seeds:
        columns = torch.randn(values["runs"], d, 2 * k, generator=generator(seed, KEY, 4, k), dtype=torch.float64)
        learnt = theory.lone_coordinates(columns, slope=values["slope"], eta=values["eta"], v=1 / math.sqrt(2 * k))
        result.rows.append({"seed": seed, "success": float(learnt.all(1).double().mean()), "exact": theory.relu_success(k, d)})
    return result


def images(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Threes against fives: errors, updates, bounds, the linear baselines, and how linear the network is."""
    result, k = Result(), values["hidden"] // 2
    for done, seed in enumerate(seeds):
        train, test = two_digits(values["data"], seed, values["train"], values["test"])
        net, record, start = _trained(seed, train, k, values["slope"], values["eta"], epochs=values["epochs"])
        count = len(train[0])
        row: Row = {"seed": seed, "updates": len(record.updates), "epochs": record.epochs, "rows": count, "parameters": start.numel()}
        row |= {"train_error": _error(net, train), "test_error": _error(net, test), "converged": record.converged}
        w, updates, _ = theory.perceptron(*train, epochs=3000)
        svm = theory.hard_margin(*train)
        row |= {"perceptron": updates, "perceptron_error": _wrong(w, test), "norm": float(svm.norm()), "svm_error": _wrong(svm, test)}
        v = 1 / math.sqrt(2 * k)
        most = theory.update_bound(row["norm"], 1.0, slope=values["slope"], eta=values["eta"], k=k, v=v, start=1.0)
        row |= {"most": most, "within": float(len(record.updates) <= most)}
        row["vacuous"] = float(theory.compression_bound(len(record.updates), count).vacuous)
        result.rows.append(row | _bias(net, start, train, test, svm))
        context.tick((done + 1) / len(seeds))
    return result


def _wrong(w: Tensor, data: Data) -> float:
    return float((data[0] @ w * data[1] <= 0).double().mean())


def _bias(net: WideHinge, start: Tensor, train: Data, test: Data, svm: Tensor) -> Row:
    """How linear the network is on new examples, how near to the hard-margin rule that linear part is, and of what rank its change."""
    x = torch.cat([train[0], test[0]])
    outputs = net(test[0])
    fit = torch.linalg.lstsq(x, net(x)[:, None], driver="gelsd").solution[:, 0]
    left = (outputs - test[0] @ fit).square().sum() / (outputs - outputs.mean()).square().sum()
    values = torch.linalg.svdvals(net.weights - start)
    row: Row = {"linear_r2": 1 - float(left), "svm_cosine": float(torch.cosine_similarity(fit, svm, dim=0))}
    return row | {"stable_rank": float(values.square().sum() / values[0] ** 2), "nuclear": float(values.sum())}


def labels(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Random labels: what so many weights can store, and that this says nothing of new examples."""
    result, k, d = Result(), values["k"], values["d"]
    for seed in seeds:
        random = generator(seed, KEY, 6)
        x = torch.nn.functional.normalize(torch.randn(values["n"] + 2000, d, generator=random, dtype=torch.float64), dim=1)
        y = 1.0 - 2.0 * torch.randint(0, 2, (len(x),), generator=random).double()
        train, new = (x[: values["n"]], y[: values["n"]]), (x[values["n"] :], y[values["n"] :])
        net, record, _ = _trained(seed, train, k, values["slope"], values["eta"], epochs=values["epochs"])
        row: Row = {"seed": seed, "converged": float(record.converged), "epochs": record.epochs, "updates": len(record.updates)}
        result.rows.append(row | {"train_error": _error(net, train), "test_error": _error(net, new)})
    return result


def baum(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Baum's algorithm on an intersection of two random halfspaces, under a symmetric law or a shifted one."""
    result, d, n = Result(), values["d"], values["n"]
    for seed in seeds:
        random = generator(seed, KEY, 5)
        planes = torch.randn(2, d, generator=random, dtype=torch.float64)
        planes = torch.nn.functional.normalize(planes, dim=1)
        shift = values["shift"] * torch.nn.functional.normalize(-planes.sum(0), dim=0)
        x = torch.randn(n + 20_000, d, generator=random, dtype=torch.float64) + shift
        positive = (x @ planes.T > 0).all(1)
        rule = learn(x[:n], positive[:n])
        base = min(float(positive.double().mean()), 1 - float(positive.double().mean()))
        error = float((rule(x[n:]) != positive[n:]).double().mean())
        row: Row = {"seed": seed, "error": error, "base": base, "relative": error / base, "consistent": float(rule.consistent)}
        result.rows.append(row | {"train_error": float((rule(x[:n]) != positive[:n]).double().mean())})
    return result
