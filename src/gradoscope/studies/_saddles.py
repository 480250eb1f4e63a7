"""What the study of saddle points runs: paths, the flow against descent, functions without a minimum, noise."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import integrate, optimize, stats
from torch import Tensor

from gradoscope.diagnose import diagnose
from gradoscope.stacked import generator
from gradoscope.studies._critical import network
from gradoscope.study import Context, Result, Row
from gradoscope.theory.saddles import (
    MONKEY,
    PLATEAU,
    SADDLE,
    Rule,
    descend,
    discrete_slide,
    escape_time,
    flow,
    second_order_step,
    slide,
)
from gradoscope.training import Training

__all__ = ["RULES", "SURFACES", "diagnosed", "escape", "flatness", "flows", "halving", "no_minimum", "noise", "small_network", "surfaces"]

KEY = 587  # of this study's random streams
RULES: tuple[Rule, ...] = ("gradient", "newton", "damped", "saddle-free")
SURFACES = {s.name: s for s in (SADDLE, MONKEY, PLATEAU)}
START = (0.4, 1e-3)


def surfaces(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The four rules on one surface, from one start."""
    surface, result = SURFACES[values["surface"]], Result()
    start = torch.tensor(START, dtype=torch.float64)
    for rule in RULES:
        damping = values["damping"] if rule == "damped" else 0.0
        path = descend(surface, start, rule, steps=values["steps"], radius=values["radius"], eta=values["eta"], damping=damping)
        end = path[-1]
        row: Row = {"rule": rule, "x": float(end[0]), "y": float(end[1]), "loss": float(surface.value(end))}
        result.rows.append(row | {"gradient": float(surface.gradient(end).norm())})
        result.arrays[rule] = path
    return result


def small_network(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The same four rules on a tanh network 3-3-1, from many starts near the saddle at the origin."""
    result = Result()
    for seed in seeds:
        net = network("random", seed, 1e-4, 3, 60, 3)
        start = 0.1 * torch.randn(values["starts"], net.dim, generator=generator(seed, KEY, 1), dtype=torch.float64)
        for rule in RULES:
            p = start.clone()
            for step in range(values["steps"] + 1):
                g = net.gradient(p)
                if step % values["every"] == 0:
                    result.curves.append({"seed": seed, "rule": rule, "step": step, "loss": float(net.loss(p).median())})
                if step == values["steps"]:
                    break
                bend = g if rule == "gradient" else net.hessian(p)
                damping = 0.01 if rule == "damped" else 0.0
                p = p + second_order_step(g, bend, rule, damping=damping, radius=0.5, eta=0.3)
            eigenvalues = torch.linalg.eigvalsh(net.hessian(p))
            critical = g.norm(dim=1) < 1e-6
            down = (eigenvalues < -1e-9).sum(1) > 0
            row: Row = {"seed": seed, "rule": rule, "loss": float(net.loss(p).median()), "critical": float(critical.double().mean())}
            result.rows.append(row | {"saddle": float((critical & down).double().mean()), "down": float(down.double().mean())})
    return result


def _quadratic(d: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """A symmetric matrix with eigenvalues between -1 and 2, one of them 0, and a gradient."""
    q = torch.linalg.qr(torch.randn(d, d, generator=random, dtype=torch.float64)).Q
    values = torch.linspace(-1, 2, d, dtype=torch.float64)
    values[d // 3] = 0.0
    h = q * values @ q.T
    return (h + h.T) / 2, torch.randn(d, generator=random, dtype=torch.float64)


def flows(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The closed form of the flow against an integrator, the one of descent against a loop, and Newton's step as their limit."""
    result = Result()
    for seed in seeds:
        h, g = _quadratic(values["d"], generator(seed, KEY, 2))
        t, eta, steps = values["t"], values["eta"], round(values["t"] / values["eta"])
        a, b = h.numpy(), g.numpy()
        solved = integrate.solve_ivp(
            lambda _, x, a=a, b=b: -b - a @ x, (0, t), np.zeros(len(b)), method="DOP853", rtol=1e-11, atol=1e-13
        ).y[:, -1]
        exact = flow(h, g, t).numpy()
        x = torch.zeros_like(g)
        for _ in range(steps):
            x = x - eta * (g + h @ x)
        lam, vectors = torch.linalg.eigh(h)
        closed = -vectors @ (discrete_slide(lam, eta, steps) * (vectors.T @ g))
        along = -slide(lam, 60.0) * (vectors.T @ g)  # each by itself: what is repelled is e^60 times as large
        newton = -(vectors.T @ g) / lam
        stiff = lam > 0.5
        result.rows.append(
            {
                "seed": seed,
                "ode": float(np.linalg.norm(solved - exact) / np.linalg.norm(exact)),
                "descent": float((x - closed).norm() / closed.norm()),
                "newton": float(((along - newton)[stiff] / newton[stiff]).abs().max()),
                "repelled": float((along[0] * newton[0]).sign()),
            }
        )
    return result


def halving(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """How far descent lags behind the flow along lambda = -1 at a fixed time, as the step size is halved."""
    one = torch.tensor([-1.0], dtype=torch.float64)
    t = values["t"]
    true = math.expm1(t)
    slides = {eta: float(discrete_slide(one, eta, round(t / eta))) for eta in (0.1, 0.05, 0.025, 0.0125)}
    return Result([{"eta": eta, "error": abs(slid - true) / true} for eta, slid in slides.items()])


def escape(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The time to go a distance of 1 along negative curvature: descent with a small step, in between steps by interpolation."""
    curvatures, slopes = values["curvatures"], values["slopes"]
    lam = np.repeat(np.array(curvatures), len(slopes))
    g = np.tile(np.array(slopes), len(curvatures))
    rate = values["rate"]
    eta, x, k = rate / lam, np.zeros(len(lam)), 0
    times = np.full(len(lam), np.nan)
    while np.isnan(times).any():
        new = x + eta * (g + lam * x)
        k += 1
        crossed = np.isnan(times) & (new >= 1)
        times[crossed] = (k - 1 + (1 - x[crossed]) / (new[crossed] - x[crossed])) * eta[crossed]
        x = np.minimum(new, 10.0)
    rows: list[Row] = []
    for curvature, slope, measured in zip(lam, g, times, strict=True):
        predicted = escape_time(-float(curvature), float(slope))
        error = abs(float(measured) - predicted) / predicted
        rows.append(
            {"curvature": float(curvature), "slope": float(slope), "measured": float(measured), "predicted": predicted, "error": error}
        )
    return Result(rows)


def flatness(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Steps of gradient descent from y0 to y = 1, at a saddle and on a plateau."""
    rows: list[Row] = []
    slopes: dict[str, Callable[[float], float]] = {"saddle": lambda y: -2 * y + y**3, "plateau": lambda y: -3 * y**3 + 1.5 * y**5}
    for name, slope in slopes.items():
        for start in values["starts"]:
            y, steps = start, 0
            while y < 1:
                y, steps = y - values["eta"] * slope(y), steps + 1
            rows.append({"surface": name, "start": start, "steps": steps})
    return Result(rows)


def _functions(kind: str, seed: int) -> tuple[Tensor, float]:
    """Rows a of a sum of losses of the margins a.theta, and how fast |theta| grows with ln t (the inverse of the largest margin)."""
    random = generator(seed, KEY, 5)
    if kind == "exp":
        return torch.ones(1, 1, dtype=torch.float64), 1.0
    if kind == "softplus":
        a = torch.diag(0.5 + torch.rand(3, generator=random, dtype=torch.float64))
        return a, float((1 / a.diagonal()).norm())  # each coordinate has its own margin
    x = torch.randn(40, 2, generator=random, dtype=torch.float64)
    x = x[x[:, 0].abs() > 0.3]  # a gap: separable by the first coordinate
    a = x * x[:, :1].sign()
    # the largest margin: the shortest w with a.w >= 1
    rows = a.numpy()
    constraint = {"type": "ineq", "fun": lambda w: rows @ w - 1, "jac": lambda w: rows}
    w = optimize.minimize(lambda w: w @ w / 2, np.array([1 / 0.3, 0.0]), jac=lambda w: w, constraints=[constraint], method="SLSQP").x
    return a, float(np.linalg.norm(w))


def no_minimum(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Gradient descent on functions whose infimum is at infinity: loss, gradient, curvature and size at steps spread evenly in log."""
    result = Result()
    for seed in seeds or (0,):
        a, growth = _functions(values["kind"], seed)
        theta = torch.zeros(a.shape[1], dtype=torch.float64)
        eta = values["eta"] / float(a.square().sum(1).max())
        looks = sorted({int(v) for v in np.geomspace(1, values["steps"], 60)})
        rows: list[Row] = []
        for step in range(1, values["steps"] + 1):
            margin = a @ theta
            pull = torch.exp(-margin) if values["kind"] == "exp" else torch.sigmoid(-margin)
            theta = theta + eta * (a.T @ pull) / len(a)
            if step in looks:
                margin = a @ theta
                pull = torch.exp(-margin) if values["kind"] == "exp" else torch.sigmoid(-margin)
                bend = pull if values["kind"] == "exp" else pull * (1 - pull)
                loss = pull if values["kind"] == "exp" else torch.nn.functional.softplus(-margin)
                top = float(torch.linalg.eigvalsh((a.T * bend) @ a / len(a))[-1])
                gradient = float((a.T @ pull / len(a)).norm())
                rows.append({"step": step, "loss": float(loss.mean()), "gradient": gradient, "curvature": top, "norm": float(theta.norm())})
        result.curves += [{"seed": seed, **row} for row in rows]
        result.rows.append({"seed": seed, **_falling(rows, growth)})
        context.tick(len(result.rows) / max(len(seeds), 1))
    return result


def _falling(rows: list[Row], growth: float) -> Row:
    """The signs of a function without a minimum, on the later half of a run."""
    late = rows[len(rows) // 2 :]
    step = np.array([r["step"] for r in late])
    series = {k: np.array([r[k] for r in late]) for k in ("loss", "gradient", "curvature", "norm")}
    ratio = {k: series[k][-1] / series[k][0] for k in series}
    fit = stats.linregress(np.log(step), series["norm"])
    return {
        "trend_loss": float(stats.kendalltau(step, series["loss"]).statistic),
        "trend_gradient": float(stats.kendalltau(step, series["gradient"]).statistic),
        "trend_curvature": float(stats.kendalltau(step, series["curvature"]).statistic),
        "together": math.log(ratio["curvature"]) / math.log(ratio["loss"]),
        "straight": float(fit.rvalue**2),
        "slope": float(fit.slope),
        "relative_slope": float(fit.slope) / growth,
    }


def diagnosed(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """What the diagnosis says of a logistic regression on separable data, which has no minimum."""
    result = Result()
    for seed in seeds:
        a, _ = _functions("logistic", seed)
        x, y = a.float(), torch.ones(len(a), 1)
        y[::2] = 0  # half of the rows turned round, which changes no margin
        x[::2] *= -1
        training = Training(
            model=lambda: torch.nn.Linear(2, 1, bias=False),
            optimizer=lambda params: torch.optim.SGD(params, lr=values["eta"]),
            loss_fn=torch.nn.functional.binary_cross_entropy_with_logits,
            data=(x, y),
            steps=values["steps"],
            name="separable",
        )
        found = diagnose(training, seed=seed, step_seconds=1e-3)
        row: Row = {"seed": seed, "verdict": found.verdict}
        row |= {name: found[name].status for name in ("local_minimum", "saddle_point", "vanishing_gradient")}
        result.rows.append(row)
        context.tick(len(result.rows) / len(seeds))
    return result


def noise(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    r"""$(1-ab)^2$ from its stable manifold a = -b, or $(1-\mathrm{relu}(w))^2$ from w = -5, with noise on the gradient."""
    result, eta, s = Result(), values["eta"], values["noise"]
    for seed in seeds or (0,):
        random = generator(seed, KEY, 6)
        runs = values["runs"] if s > 0 else 1  # without noise all runs are one
        p = torch.full((2, runs), values["start"], dtype=torch.float64)
        if values["surface"] == "factored":
            p[1] = -p[1]
        steps = torch.full((runs,), values["steps"])
        for t in range(values["steps"]):
            if values["surface"] == "factored":
                slope = -2 * (1 - p[0] * p[1]) * p.flip(0)
            else:
                slope = torch.where(p > 0, -2 * (1 - p), torch.zeros_like(p))
            if s > 0:
                slope = slope + s * torch.randn(2, runs, generator=random, dtype=torch.float64)
            p = p - eta * slope
            reached = (p[0] * p[1] if values["surface"] == "factored" else p.clamp_min(0).amax(0)) >= 0.5
            steps = torch.where(reached & (steps == values["steps"]), torch.tensor(t + 1), steps)
            if bool((steps < values["steps"]).all()):
                break
        out = steps < values["steps"]
        away = float((p[0] + p[1]).abs().max()) if values["surface"] == "factored" else float((p - values["start"]).abs().max())
        result.rows.append({"seed": seed, "steps": float(steps.double().mean()), "escaped": float(out.double().mean()), "away": away})
    return result
