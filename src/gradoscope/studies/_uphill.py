"""What the study of uphill steps computes: SGD on quadratics with noise on the gradient, and estimators of signal and noise."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from gradoscope.landscape._subject import subject
from gradoscope.landscape.evidence import gradient_norms
from gradoscope.landscape.record import record
from gradoscope.measure.noise import expected_step, noise_statistics
from gradoscope.measure.progress import trend
from gradoscope.problems import find
from gradoscope.stacked import generator, numpy_generator
from gradoscope.study import Context, Result, Row
from gradoscope.training import Live

__all__ = ["PARTS", "curvature_share", "spectrum"]

KEY = 863  # of this study's random streams: 1 chains, 2 batches with a signal, 3 without, 4 least squares
F64 = torch.float64


def spectrum(d: int, condition: float) -> np.ndarray:
    """Eigenvalues from 1 to the condition number, evenly in the logarithm."""
    return np.geomspace(1.0, condition, d)


def curvature_share(eigenvalues: np.ndarray, eta: float) -> float:
    r"""C/(C + M) where SGD with additive noise is stationary: $\sum\frac{\eta\lambda^2}{2-\eta\lambda}$ over that plus $\sum\lambda$.

    The variance along an eigenvector is $v=\eta s^2/\lambda(2-\eta\lambda)$, $C=\frac12\eta^2\sum\lambda^3v$ and
    $M=\frac12\eta^2s^2\sum\lambda$; and $D=\eta\sum\lambda^2v=C+M$ whatever eta is.

    Example:
        >>> round(curvature_share(np.array([1.0]), 0.2), 3), round(curvature_share(np.array([1.0]), 1.9), 3)
        (0.1, 0.95)
    """
    c = float((eta * eigenvalues**2 / (2 - eta * eigenvalues)).sum())
    return c / (c + float(eigenvalues.sum()))


def chains(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """2.1: many chains of SGD on one quadratic from afar until they are stationary; each step's terms, and what it did."""
    lam, eta, steps, runs, result = spectrum(values["d"], values["condition"]), values["eta"], values["steps"], values["runs"], Result()
    for at, seed in enumerate(seeds):
        draw = numpy_generator(seed, KEY, 1)
        theta = np.full((runs, len(lam)), values["start"])
        told = np.zeros((steps, 6))  # D, C, M, what happened, standard error of its distance from -D + C + M, share uphill
        own = np.zeros(steps)
        for t in range(steps):
            g = theta * lam
            noise = draw.standard_normal(theta.shape)
            step = -eta * (g + noise)
            d, c = eta * (g**2).sum(1), eta**2 / 2 * (lam * g**2).sum(1)
            m = eta**2 / 2 * float(lam.sum())
            change = (g * step).sum(1) + (lam * step**2).sum(1) / 2
            missed = change - (c + m - d)
            told[t] = [d.mean(), c.mean(), m, change.mean(), missed.std() / math.sqrt(runs), (change > 0).mean()]
            # a batch's own loss is J + noise' theta: what SGD sees of its step on the batch that made it
            own[t] = ((change + (noise * step).sum(1)) > 0).mean()
            theta = theta + step
        context.tick((at + 1) / len(seeds))
        late = told[steps // 2 :]
        d, c, m = late[:, :3].mean(0)
        predicted = told[:, 1] + told[:, 2] - told[:, 0]
        row: Row = {"seed": seed, "z": float(np.abs((told[:, 3] - predicted) / told[:, 4])[:: max(1, steps // 20)].max())}
        row |= {"balance": d / (c + m), "share": c / (c + m), "theory": curvature_share(lam, eta)}
        row |= {"early": float(told[0, 0] / (told[0, 1] + told[0, 2])), "uphill_early": float(told[:5, 5].mean())}
        result.rows.append(row | {"uphill_late": float(late[:, 5].mean()), "own_late": float(own[steps // 2 :].mean())})
        looks = np.concatenate([np.arange(min(10, steps)), np.geomspace(10, max(steps - 1, 10), 50).round().astype(int)])
        for t in np.unique(looks[looks < steps]).tolist():
            point = dict(zip(("D", "C", "M", "change"), told[t, :4].tolist(), strict=True))
            result.curves.append({"seed": seed, "step": t, **point, "uphill": float(told[t, 5])})
    return result


def estimates(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """2.1 and 2.2: signal, trace and the three terms from K batch gradients, many times over, against what they are."""
    d, k, repeats, eta, result = values["d"], values["k"], values["repeats"], values["eta"], Result()
    lam = torch.from_numpy(spectrum(d, values["condition"]))
    for at, seed in enumerate(seeds):
        random = generator(seed, KEY, 2)
        mean = values["signal"] * torch.ones(d, dtype=F64)
        exact = {"signal": float(mean @ mean), "trace": float(d), "D": eta * float(mean @ mean)}
        exact |= {"C": eta**2 / 2 * float(mean @ (lam * mean)), "M": eta**2 / 2 * float(lam.sum())}
        found: dict[str, list[float]] = {name: [] for name in exact}
        worst, powerful = 0.0, 0
        for repeat in range(repeats):
            g = mean + torch.randn(k, d, generator=random, dtype=F64)
            seen = noise_statistics(g, batch=1, flips=values["flips"], seed=repeat)
            powerful += seen.p_value <= 0.05
            # two batch sizes, 1 and k: (B1 |g1|^2 - B0 |g0|^2)/(B1 - B0), with |g0|^2 averaged over the k small ones
            two = (k * float(g.mean(0).square().sum()) - float(g.square().sum(1).mean())) / (k - 1)
            worst = max(worst, abs(two - seen.signal))
            terms = expected_step(g, lambda v: lam * v, eta)
            for name in found:
                found[name].append(getattr(seen, name) if name in ("signal", "trace") else terms[name].value)
        row: Row = {"seed": seed, "two_batches": worst, "power": powerful / repeats}
        for name, told in found.items():
            row[f"z_{name}"] = (float(np.mean(told)) - exact[name]) / (float(np.std(told, ddof=1)) / math.sqrt(repeats))
        result.rows.append(row)
        context.tick((at + 1) / len(seeds))
    return result


def null(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """2.2 where there is no signal: how often the test says there is, how often U is negative, how often no batch size is named."""
    result = Result()
    for at, seed in enumerate(seeds):
        random, outcomes = generator(seed, KEY, 3), []
        for repeat in range(values["repeats"]):
            g = torch.randn(values["k"], values["d"], generator=random, dtype=F64)
            outcomes.append(noise_statistics(g, batch=1, flips=values["flips"], seed=repeat))
        row: Row = {"seed": seed, "rejected": float(np.mean([o.p_value <= 0.05 for o in outcomes]))}
        row["negative"] = float(np.mean([o.signal <= 0 for o in outcomes]))
        result.rows.append(row | {"unbounded": float(np.mean([math.isinf(o.batch_noise_scale) for o in outcomes]))})
        context.tick((at + 1) / len(seeds))
    return result


def parts_of_all(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """2.2 on a finite data set at its minimum: the gradients of its K parts sum to zero, so that U is negative."""
    rows, k, result = values["rows"], values["k"], Result()
    for seed in seeds:
        draw = numpy_generator(seed, KEY, 4)
        x = draw.standard_normal((rows, values["d"]))
        y = x.sum(1) + draw.standard_normal(rows)
        theta = np.linalg.lstsq(x, y, rcond=None)[0]
        each = (x @ theta - y)[:, None] * x
        g = torch.from_numpy(each.reshape(k, rows // k, -1).mean(1))
        seen = noise_statistics(g, batch=rows // k, flips=values["flips"])
        result.rows.append({"seed": seed, "of_trace": seen.signal * k / seen.trace, "unbounded": float(math.isinf(seen.batch_noise_scale))})
    return result


def norms(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """2.3: a training of the catalogue; the norm of its batches' gradients, and that of the gradient on many examples, along the run."""
    result = Result()
    for at, seed in enumerate(seeds):
        training = find(values["problem"], seed=seed)
        with Live.of(training, seed=seed) as live:
            start = time.perf_counter()
            kept = record(live, values["steps"] or training.steps, most=values["looks"])
            seen = gradient_norms(subject(live, rows=values["rows"], seed=seed).train, kept.points, kept.steps, kept.gradient_norm)
            result.timings[f"{values['problem']}, seed {seed}"] = time.perf_counter() - start
        loss, snapshot, running = seen.loss, seen.snapshot, seen.running
        row: Row = {
            "seed": seed,
            "fallen": float(1 - loss[-1] / loss[0]),
            "trend": trend(loss).value,
            "kept": float(snapshot[-1] / snapshot[1]),
        }
        row |= {"of_largest": float(snapshot[-1] / snapshot.max()), "running": float(running[-1] / running[1])}
        result.rows.append(row)
        for k, step in enumerate(kept.steps.tolist()):
            point: Row = {"seed": seed, "step": int(step), "loss": float(loss[k]), "snapshot": float(snapshot[k])}
            result.curves.append(point | {"running": float(running[k])})
        context.tick((at + 1) / len(seeds))
    return result


PARTS: dict[str, Callable[[Mapping[str, Any], Sequence[int], Context], Result]] = {
    "chains": chains,
    "estimates": estimates,
    "null": null,
    "parts": parts_of_all,
    "norms": norms,
}
