"""What the study of convex rates computes: logistic losses, quadratics, hard functions, a cliff, gradient flow; everything in float64."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradoscope.objective import Objective
from gradoscope.stacked import blank, generator
from gradoscope.study import Context, Result, Row
from gradoscope.theory.convex import (
    WorstFunction,
    accelerate,
    accelerated_bound,
    conjugate_gradients,
    curvature_ratio,
    descend,
    flow_of,
    gap_bound,
    hardest_for_descent,
    linear_bound,
    lower_bound,
    quadratic_rate,
)

__all__ = ["PARTS", "Logistic"]

KEY = 853  # of this study's random streams: 1 logistic data, 2 quadratics, 3 networks
ROUNDING = 1e-13  # of the starting gap: below it a gap is rounding
DRAWN = 60  # points of a curve in a figure


class Logistic:
    """Stacked logistic losses with a ridge, mean over rows, on labels that no plane separates.

    Args:
        seeds: S of them; each has its own data.
        rows: examples.
        d: inputs.
        ridge: mu/2 times the squared norm is added.
    """

    def __init__(self, seeds: Sequence[int], rows: int, d: int, ridge: float) -> None:
        xs, ys = [], []
        for seed in seeds:
            random = generator(seed, KEY, 1)
            x = torch.randn(rows, d, generator=random, dtype=torch.float64)
            score = x @ torch.randn(d, generator=random, dtype=torch.float64)
            xs.append(x)
            ys.append(torch.where(torch.rand(rows, generator=random, dtype=torch.float64) < torch.sigmoid(score), 1.0, -1.0).double())
        self.z = torch.stack(xs) * torch.stack(ys)[..., None]  # (S, rows, d), each row times its label
        self.ridge = ridge
        moment = self.z.transpose(1, 2) @ self.z / rows
        self.smoothness = torch.linalg.eigvalsh(moment)[:, -1] / 4 + ridge  # L of each, shape (S,)

    def losses(self, theta: Tensor) -> Tensor:
        """theta of shape (..., S, d); returns (..., S)."""
        margins = torch.einsum("snd,...sd->...sn", self.z, theta)
        mean: Tensor = nn.functional.softplus(-margins).mean(-1)
        return mean + self.ridge / 2 * theta.square().sum(-1)

    def gradient(self, theta: Tensor) -> Tensor:
        """Shape (S, d)."""
        slope = torch.sigmoid(-torch.bmm(self.z, theta[..., None]))
        return -torch.bmm(self.z.transpose(1, 2), slope)[..., 0] / self.z.shape[1] + self.ridge * theta

    def minimizer(self) -> Tensor:
        """By Newton's method with halved steps, to the rounding of the gradient; shape (S, d)."""
        theta = torch.zeros(self.z.shape[0], self.z.shape[2], dtype=torch.float64)
        eye = torch.eye(theta.shape[1], dtype=torch.float64)
        for _ in range(60):
            p = torch.sigmoid(-torch.bmm(self.z, theta[..., None]))
            hessian = self.z.transpose(1, 2) @ (p * (1 - p) * self.z) / self.z.shape[1] + self.ridge * eye
            direction = torch.linalg.solve(hessian, -self.gradient(theta))
            here, scale = self.losses(theta), torch.ones(len(theta), 1, dtype=torch.float64)
            for _ in range(30):
                worse = self.losses(theta + scale * direction) > here + 1e-15
                scale = torch.where(worse[:, None], scale / 2, scale)
            theta = theta + scale * direction
        return theta


def _shown(steps: int) -> Tensor:
    """Indices for a curve on a logarithmic axis, 1 to `steps`."""
    shown: Tensor = torch.unique(torch.logspace(0, np.log10(steps), DRAWN).round().long().clamp(1, steps))
    return shown


def logistic(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """6.1: gaps of gradient descent and of its acceleration against every bound."""
    steps, mu = values["steps"], values["mu"]
    problem = Logistic(seeds, values["rows"], values["d"], mu)
    best = problem.minimizer()
    start = torch.zeros_like(best)
    length, distance = problem.smoothness, (start - best).norm(dim=-1)
    t = torch.arange(steps + 1)
    paths = {
        "descent": descend(problem.gradient, start, 1 / length[:, None], steps),
        "nesterov": accelerate(problem.gradient, start, length[:, None], steps),
    }
    result = Result()
    gaps = {name: problem.losses(path) - problem.losses(best) for name, path in paths.items()}
    for i, seed in enumerate(seeds):
        scale, d = float(length[i]), float(distance[i])
        gap, fast = gaps["descent"][:, i], gaps["nesterov"][:, i]
        bounds = {kind: gap_bound(t, scale, d, kind) for kind in ("lecture", "standard", "tight")}
        bounds |= {"linear": linear_bound(t, scale, mu, float(gap[0]))}
        told = gap > ROUNDING * gap[0]  # further down, gap and J* are rounding
        row: Row = {"seed": seed, "L": scale, "distance": d, "final": float(gap[-1])}
        row |= {f"over_{kind}": float((gap / bound)[told].max()) for kind, bound in bounds.items()}
        row["over_accelerated"] = float((fast / accelerated_bound(t, scale, d))[fast > ROUNDING * gap[0]].max())
        row["gradient_at_best"] = float(problem.gradient(best)[i].norm())
        result.rows.append(row)
        for k in _shown(steps).tolist():
            point = {"seed": seed, "step": k, "descent": float(gap[k]), "nesterov": float(fast[k])}
            point |= {kind: float(bound[k]) for kind, bound in bounds.items()}
            result.curves.append({**point, "accelerated": float(accelerated_bound(t, scale, d)[k])})
    return result


def quadratic(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """6.2: rates on quadratics against the theorem and the lecture's bound; 6.4: uphill steps against the curvature inequality."""
    kappa, d = values["kappa"], values["d"]
    steps = int(values["steps_per_kappa"] * kappa)
    h = torch.logspace(0, float(np.log10(kappa)), d, dtype=torch.float64)
    start = torch.stack([torch.randn(d, generator=generator(seed, KEY, 2), dtype=torch.float64) for seed in seeds])
    result = Result(rows=[{"seed": seed} for seed in seeds])

    def gap(path: Tensor) -> Tensor:
        return 0.5 * (h * path.square()).sum(-1)

    for name, step in (("at_L", 1 / kappa), ("best", 2 / (kappa + 1))):
        path = gap(descend(lambda x: h * x, start, step, steps))
        for i, row in enumerate(result.rows):
            since = 3 * steps // 4  # far below 1e-13, and exact still: the minimum is 0 at 0
            rate = float((path[steps, i] / path[since, i]) ** (1 / (steps - since)))
            row[f"rate_{name}"], row[f"off_{name}"] = rate, abs(rate / quadratic_rate(kappa, 1.0, step) - 1)
            row[f"lecture_{name}"] = rate / (1 - 1 / kappa)
    diverging = gap(descend(lambda x: h * x, start, 2.2 / kappa, 60))
    etas = [(0.5 + 5 * ((t * 0.618) % 1)) / kappa for t in range(60)]  # some steps of which go uphill
    path = descend(lambda x: h * x, start, lambda t: etas[t], 60)
    for i, row in enumerate(result.rows):
        bound = gap_bound(torch.arange(61), kappa, float(start[i].norm()), "lecture")
        row["over_lecture_large_step"] = float((diverging[:, i] / bound).max())
        rises = gap(path)[1:, i] > gap(path)[:-1, i]
        g = h * path[:-1, i]
        uphill = torch.tensor(etas, dtype=torch.float64) * curvature_ratio(g, h * g, 1.0) > 1
        row["uphill"], row["agree"] = float(rises.double().mean()), float((rises == uphill).double().mean())
    return result


def worst(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """6.3: three methods on Nesterov's worst function, and the function on which descent attains its bound."""
    result = Result()
    for t in values["times"]:
        f, methods = WorstFunction(2 * t + 1), _methods(2 * t + 1, t)
        bound = float(lower_bound(torch.tensor(t), 1.0, float(f.minimizer.norm())))
        ratios = {name: float(f.loss(path[-1]) - f.minimum) / bound for name, path in methods.items()}
        x = torch.ones(1, dtype=torch.float64)
        for _ in range(t):
            x = x - x.clamp(-1 / (2 * t + 1), 1 / (2 * t + 1))
        attained = float(hardest_for_descent(x, t)[0] / gap_bound(torch.tensor(t), 1.0, 1.0, "tight"))
        result.rows.append({"t": t, **ratios, "attained": attained})
    long, few = values["long"], 11
    f, methods = WorstFunction(2 * long + 1), _methods(2 * long + 1, long)
    lower = lower_bound(torch.arange(long + 1), 1.0, float(f.minimizer.norm()))
    gaps = {name: f.loss(path) - f.minimum for name, path in methods.items()}
    fitted = slice(10, 61)
    for name, gap in gaps.items():
        slope = np.polyfit(np.log(np.arange(10, 61)), np.log(gap[fitted].numpy()), 1)[0]
        result.rows.append({"t": long, "method": name, "slope": float(slope)})
    result.curves += [
        {"step": k, "lower": float(lower[k]), **{name: float(gap[k]) for name, gap in gaps.items()}} for k in range(1, long + 1)
    ]
    f = WorstFunction(few)
    exact = _methods(few, few)["conjugate"]
    bound = float(lower_bound(torch.tensor(few), 1.0, float(f.minimizer.norm())))
    result.rows.append({"t": few, "few": float(f.loss(exact[-1]) - f.minimum) / bound})
    return result


def _methods(d: int, steps: int) -> dict[str, Tensor]:
    f, start = WorstFunction(d), torch.zeros(d, dtype=torch.float64)
    return {
        "descent": descend(f.gradient, start, 1.0, steps),
        "nesterov": accelerate(f.gradient, start, 1.0, steps),
        "conjugate": conjugate_gradients(f.gradient, f.product, start, steps),
    }


def _cliff_slope(w: Tensor) -> Tensor:
    return 5 * w**4 * (w**5 - 1)


def cliff(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    r"""6.4: $\frac12(w^5-1)^2$ from w = 2, plain, clipped, and with step sizes that fall."""
    eta, steps = values["lr"], values["steps"]
    schedules: dict[str, Callable[[int], float]] = {
        "constant": lambda t: eta,
        "sqrt": lambda t: eta / (1 + t / 10) ** 0.5,
        "inverse": lambda t: eta / (1 + t / 10),
    }
    result = Result()
    for clip in (None, values["clip"]):
        for name, schedule in schedules.items():
            for kind in (torch.float32, torch.float64):
                path = descend(_cliff_slope, torch.tensor([2.0], dtype=kind), schedule, steps, clip=clip)[:, 0]
                loss = 0.5 * (path**5 - 1) ** 2
                finite = int(loss.isfinite().long().cumprod(0).sum()) - 1
                row: Row = {"clipped": clip is not None, "schedule": name, "bits": 32 if kind == torch.float32 else 64}
                row |= {"finite_steps": finite, "final": float(loss[-1]) if finite == steps else float("inf")}
                result.rows.append({**row, "w": float(path[-1]) if finite == steps else float("nan")})
                if kind == torch.float64:
                    result.curves += [{**row, "step": k, "w": float(path[k]), "loss": float(loss[k])} for k in range(min(finite, 160) + 1)]
    return result


def flows(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """6.5: gradient descent against gradient flow, for step sizes that are halved."""
    result = Result()
    for seed in seeds:
        objective = _objective(values["kind"], seed)
        start = objective.theta()

        def gradient(theta: Tensor, objective: Objective = objective) -> Tensor:
            with objective.moved(theta):
                return objective.gradient()

        exact = flow_of(objective, [0.0, values["time"]])[-1]
        errors = []
        for steps in values["steps"]:
            end = descend(gradient, start, values["time"] / steps, steps)[-1]
            errors.append(float((end - exact).norm()))
            result.curves.append({"seed": seed, "eta": values["time"] / steps, "error": errors[-1], "moved": float((exact - start).norm())})
        ratios = [a / b for a, b in pairwise(errors)]
        result.rows.append({"seed": seed, "least": min(ratios), "most": max(ratios), "error": errors[-1] / float((exact - start).norm())})
    return result


def _objective(kind: str, seed: int) -> Objective:
    """A logistic loss of five inputs, or the squared error of a tanh network of 21 parameters; 40 examples, float64."""
    random = generator(seed, KEY, 3)
    x = torch.randn(40, 5 if kind == "logistic" else 2, generator=random, dtype=torch.float64)
    model: nn.Module
    if kind == "logistic":
        model = blank(5, 1, dtype=torch.float64)
        y = (torch.rand(40, 1, generator=random, dtype=torch.float64) < torch.sigmoid(2 * x[:, :1])).double()
        loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.binary_cross_entropy_with_logits
    else:
        first, last = (blank(*size, dtype=torch.float64) for size in ((2, 5), (5, 1)))
        model = nn.Sequential(first, nn.Tanh(), last)
        y = (x[:, :1] * x[:, 1:]).sin()
        loss = nn.functional.mse_loss
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=random, dtype=torch.float64) * 0.7)
    return Objective(model, lambda m, batch: loss(m(batch[0]), batch[1]), [(x, y)])


PARTS: dict[str, Callable[[Mapping[str, Any], Sequence[int], Context], Result]] = {
    "logistic": logistic,
    "quadratic": quadratic,
    "worst": worst,
    "cliff": cliff,
    "flow": flows,
}
