"""What the study of local geometry runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradoscope.measure.critical import classify, critical_point, objective_at
from gradoscope.measure.curvature import curvature_along
from gradoscope.measure.geometry import curvature_shares, hessian, kantorovich_bound
from gradoscope.measure.steps import predict_step, step_curvature
from gradoscope.objective import Objective
from gradoscope.problems._data import digits
from gradoscope.stacked import generator
from gradoscope.study import Context, Result, Row

__all__ = ["FUNCTIONS", "OPTIMIZERS", "classification", "curvature", "efficiency", "flat_minima", "optimal_step", "quadratic", "steps"]

KEY = 719  # of this study's random streams
LENGTHS = (0.5, 1.0, 1.9, 2.1, 4.0)  # steps in units of the best one
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "gradient descent": lambda params: torch.optim.SGD(params, lr=2.0),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.4, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=0.05),
}


def _objective(seed: int, hidden: int = 4, rows: int = 200) -> Objective:
    """A tanh network 6-h-10 on the principal components of digits, float64, cross-entropy on all rows."""
    (x, y), _ = digits(seed, train=rows)
    x = x.double() - x.double().mean(0)
    x = x @ torch.linalg.svd(x, full_matrices=False).Vh[:6].T
    x = x / x.std()
    model = nn.Sequential(nn.Linear(6, hidden), nn.Tanh(), nn.Linear(hidden, 10)).double()
    random = generator(seed, KEY, 1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=random, dtype=torch.float64))
    return Objective(model, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), [(x, y)])


def _train(objective: Objective, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    for p, g in zip(objective.parameters, objective.split(objective.gradient()), strict=True):
        p.grad = g
    optimizer.step()


def _definite(d: int, condition: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """A positive definite matrix with eigenvalues spread evenly in the logarithm from 1 to the condition number, and its eigenvectors."""
    vectors = torch.linalg.qr(torch.randn(d, d, generator=random, dtype=torch.float64)).Q
    return torch.logspace(0, float(np.log10(condition)), d, dtype=torch.float64), vectors


def _quadratic_objective(values: Tensor, vectors: Tensor, point: Tensor, height: float = 0.0) -> Objective:
    h = vectors * values @ vectors.T
    return objective_at(lambda p: height + p @ h @ p / 2, point)


def curvature(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """1.1: curvature along g, a step of Adam and a random direction: by one product, and by all eigenvalues."""
    result = Result()
    for seed in seeds:
        objective = _objective(seed)
        optimizer = torch.optim.Adam(objective.parameters, lr=0.01)
        for _ in range(values["steps"]):
            _train(objective, optimizer)
        here, g = objective.theta(), objective.gradient()
        _train(objective, optimizer)
        step = objective.theta() - here
        objective._set(here)
        random = torch.randn(objective.dim, generator=generator(seed, KEY, 2), dtype=torch.float64)
        for name, direction in (("gradient", g), ("step", step), ("random", random)):
            shares = curvature_shares(objective, direction)
            direct = float(curvature_along(objective, direction).value)
            top = float(np.abs(shares.eigenvalues).max())
            quadratic = float(direction @ objective.hvp(direction))
            row: Row = {"seed": seed, "direction": name, "curvature": direct, "error": abs(direct - shares.curvature) / top}
            row["literal"] = abs(quadratic - shares.curvature) / abs(shares.curvature)
            order = np.argsort(shares.eigenvalues)
            row["top_tenth"] = float(shares.shares[order[-len(order) // 10 :]].sum())
            result.rows.append(row)
            for value, share in zip(shares.eigenvalues, shares.shares, strict=True):
                result.curves.append({"seed": seed, "direction": name, "eigenvalue": float(value), "share": float(share)})
        context.tick(len(result.rows) / 3 / len(seeds))
    return result


def quadratic(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """1.2 and 1.3 on quadratics: Taylor's second order is exact, eps* lies between 1/lambda_max and 1/lambda_min, the worst case."""
    result = Result()
    for seed in seeds:
        random = generator(seed, KEY, 3)
        lam, vectors = _definite(values["d"], values["condition"], random)
        point = torch.randn(values["d"], generator=random, dtype=torch.float64)
        objective = _quadratic_objective(lam, vectors, point)
        rho = max(
            abs(predict_step(objective, torch.randn(values["d"], generator=random, dtype=torch.float64)).rho)
            for _ in range(values["draws"])
        )
        inside = []
        for _ in range(values["draws"]):
            at = _quadratic_objective(lam, vectors, torch.randn(values["d"], generator=random, dtype=torch.float64))
            best = step_curvature(at).details["optimal_step"]
            inside.append(1 / float(lam[-1]) * (1 - 1e-12) <= best <= 1 / float(lam[0]) * (1 + 1e-12))
        # g along v_max: the least that any gradient of this length gains
        worst = _quadratic_objective(lam, vectors, vectors[:, -1] / lam[-1])
        g, eps = worst.gradient(), 0.7 / float(lam[-1])
        gg = float(g @ g)
        predicted = -(eps - eps**2 * float(lam[-1]) / 2) * gg
        found = predict_step(worst, -eps * g)
        row: Row = {"seed": seed, "rho": rho, "inside": float(np.mean(inside)), "worst": abs(found.second - predicted) / gg}
        concave = objective_at(lambda p: -p.square().sum(), point)
        row["concave"] = float(step_curvature(concave).details["optimal_step"])
        result.rows.append(row)
    return result


def steps(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """1.2: what each step was predicted to do, and did, and how far from quadratic the loss is; with and without the guard."""
    result = Result()
    for seed in seeds:
        for name, make in OPTIMIZERS.items():
            objective = _objective(seed)
            optimizer = make(objective.parameters)
            rhos = []
            for at in range(values["steps"]):
                here = objective.theta()
                _train(objective, optimizer)
                step = objective.theta() - here
                objective._set(here)
                found = predict_step(objective, step)
                objective._set(here + step)
                rhos.append(abs(found.rho))
                result.curves.append(
                    {"seed": seed, "optimizer": name, "step": at, "first": found.first, "second": found.second, "actual": found.actual}
                )
            result.rows.append({"seed": seed, "optimizer": name, "rho": float(np.median(rhos)), "largest": float(np.max(rhos))})
        context.tick((seeds.index(seed) + 1) / len(seeds))
    return result


def converged(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """1.2 at rest: descent on a quadratic that lies 1 above zero, until its steps change nothing but rounding."""
    result = Result()
    for seed in seeds:
        random = generator(seed, KEY, 4)
        lam, vectors = _definite(values["d"], 10.0, random)
        objective = _quadratic_objective(lam, vectors, torch.randn(values["d"], generator=random, dtype=torch.float64), height=1.0)
        alarms = guarded = late = 0
        for _ in range(values["steps"]):
            step = -0.1 * objective.gradient()
            found = predict_step(objective, step)
            far = not abs(found.rho) <= 0.1
            late += found.negligible
            alarms += far
            guarded += far and not found.negligible
            objective._set(objective.theta() + step)
        row: Row = {"seed": seed, "alarms": alarms / values["steps"], "guarded": guarded / values["steps"], "late": late / values["steps"]}
        result.rows.append(row)
    return result


def optimal_step(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """1.3 along a training by gradient descent: eps*, and what steps of other lengths are predicted to do and would do."""
    result = Result()
    for seed in seeds:
        objective = _objective(seed)
        model = actual = beyond = total = 0
        for at in range(values["steps"]):
            g = objective.gradient()
            eps = float(step_curvature(objective, g).details["optimal_step"])
            if at % values["every"] == 0:
                top = float(torch.linalg.eigvalsh(hessian(objective))[-1])
                result.curves.append({"seed": seed, "step": at, "optimal": eps if np.isfinite(eps) else float("nan"), "top": top})
                for factor in LENGTHS if np.isfinite(eps) else ():
                    found = predict_step(objective, -factor * eps * g, gradient=g)
                    total += 1
                    model += (factor > 2) == (found.second > 0)
                    actual += (factor > 2) == (found.actual > 0)
            beyond += values["eta"] > 2 * eps
            objective._set(objective.theta() - values["eta"] * g)
        row: Row = {"seed": seed, "model": model / max(total, 1), "actual": actual / max(total, 1), "tried": total}
        result.rows.append(row | {"beyond": beyond / values["steps"]})
        context.tick(len(result.rows) / len(seeds))
    return result


def efficiency(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """1.4: Kantorovich's efficiency of random gradients against its bound, and along gradient descent."""
    result = Result()
    for seed in seeds:
        random = generator(seed, KEY, 5, values["condition"])
        lam, vectors = _definite(values["d"], float(values["condition"]), random)
        # the eigenbasis will do: the ratio depends on the components of g along the eigenvectors alone
        g = torch.randn(values["draws"], values["d"], generator=random, dtype=torch.float64)
        weights = torch.cat([g.square(), (g * lam).square()])
        e = weights.sum(1).square() / ((weights * lam).sum(1) * (weights / lam).sum(1))
        two = torch.zeros(values["d"], dtype=torch.float64)
        two[0] = two[-1] = 1.0  # the worst case: as much along each end
        found = curvature_shares(_quadratic_objective(lam, vectors, vectors @ (two / lam)), vectors @ two)
        bound = kantorovich_bound(float(values["condition"]))
        row: Row = {"seed": seed, "least": float(e.min()), "most": float(e.max()), "bound": bound}
        row |= {"over": float((e.min() - bound) / bound), "worst": abs(found.efficiency - bound)}
        theta = torch.randn(values["d"], generator=random, dtype=torch.float64)
        for at in range(values["steps"] + 1):
            g = lam * theta
            if at % values["every"] == 0:
                w = g.square()
                now = float(w.sum() ** 2 / ((w * lam).sum() * (w / lam).sum()))
                result.curves.append({"seed": seed, "step": at, "efficiency": now})
            theta = theta - g / lam[-1]
        row["last"] = now
        result.rows.append(row)
    return result


Function = Callable[[Tensor], Tensor]
FUNCTIONS: dict[str, tuple[Function, tuple[float, ...], str]] = {
    "bowl": (lambda p: p[0] ** 2 + 3 * p[1] ** 2, (0.3, -0.2), "minimum"),
    "hill": (lambda p: -(p[0] ** 2) - 3 * p[1] ** 2 + p[0] * p[1], (0.3, -0.2), "maximum"),
    "saddle": (lambda p: 5 * p[0] ** 2 - p[1] ** 2 + p[1] ** 4 / 4, (0.4, 0.1), "saddle"),
    "well": (lambda p: 5 * p[0] ** 2 - p[1] ** 2 + p[1] ** 4 / 4, (0.2, 1.3), "minimum"),
    "valley": (lambda p: (p[0] ** 2 + p[1] ** 2 - 1) ** 2, (0.8, 0.9), "degenerate"),
    "trough": (lambda p: p[0] ** 2 - p[1] ** 2 + 0 * p[2], (0.3, 0.2, 0.1), "degenerate saddle"),
    "tail": (lambda p: torch.exp(-p[0]) + p[1] ** 2, (0.0, 0.5), "not critical"),
    "bump": (lambda p: p[0] + 0.5 * p[0] ** 3 + p[1] ** 2, (0.4, 0.3), "not critical"),
}


def classification(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """1.5: functions whose critical points are known by hand."""
    rows: list[Row] = []
    for name, (function, start, expected) in FUNCTIONS.items():
        found = critical_point(objective_at(function, torch.tensor(start, dtype=torch.float64)), iterations=values["iterations"])
        rows.append(
            {"function": name, "expected": expected, "found": found.label, "right": float(found.label == expected), "reason": found.reason}
        )
        rows[-1] |= {"gradient": found.gradient_norm, "moved": found.moved}
    return Result(rows)


def flat_minima(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """1.5: the flat directions at global minima of |QW - diag(3, 2, 1)|^2 with k hidden units."""
    result, k = Result(), values["k"]
    gamma = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))

    def loss(p: Tensor) -> Tensor:
        return (p[: 3 * k].view(3, k) @ p[3 * k :].view(k, 3) - gamma).square().sum()

    for seed in seeds:
        mix = torch.randn(k, k, generator=generator(seed, KEY, 6), dtype=torch.float64) + 2 * torch.eye(k, dtype=torch.float64)
        q, w = gamma[:, :k] @ mix, torch.linalg.inv(mix) @ torch.eye(3, dtype=torch.float64)[:k]
        point = torch.cat([q.flatten(), w.flatten()])
        found = classify(objective_at(loss, point))
        row: Row = {"seed": seed, "zero": found.zero, "negative": found.negative, "loss": found.loss, "label": found.label}
        result.rows.append(row | {"gradient": found.gradient_norm})
    return result
