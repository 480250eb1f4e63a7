"""What the study of the shared filter runs on the expected loss without overlap: formula, critical points, descent, escape."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradoscope.stacked import generator
from gradoscope.study import Context, Result, Row
from gradoscope.theory import convnet as theory
from gradoscope.theory.overlap import on_sphere

__all__ = ["KEY", "critical", "descent", "escape", "formula", "guarantees", "ray", "surface"]

KEY = 643  # of this study's random streams
CHUNK = 25_000  # inputs drawn at once


def formula(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The closed form against samples, and its gradient against central differences, at random points of several lengths."""
    result, k, m, n, h = Result(), values["k"], values["m"], values["samples"], 1e-6
    for done, seed in enumerate(seeds):
        random = generator(seed, KEY, 1, k)
        target, w = (on_sphere(1, m, random)[0] * length for length in (1.0, 0.5 + seed % 5 / 4))
        total, squares = 0.0, 0.0
        for start in range(0, n, CHUNK):
            x = theory.sample(min(CHUNK, n - start), k, m, random)
            error = (torch.relu(x @ w).mean(1) - torch.relu(x @ target).mean(1)).square()
            total, squares = total + float(error.sum()), squares + float(error.square().sum())
        mean = total / n
        se = math.sqrt((squares / n - mean**2) / n)
        eye = torch.eye(m, dtype=torch.float64)
        slope = (theory.loss(w + h * eye, target, k) - theory.loss(w - h * eye, target, k)) / (2 * h)
        exact = theory.gradient(w, target, k)
        row: Row = {"seed": seed, "z": abs(mean - float(theory.loss(w, target, k))) / se}
        result.rows.append(row | {"gradient_error": float((slope - exact).norm() / exact.norm())})
        context.tick((done + 1) / len(seeds))
    return result


def critical(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Gradients, curvatures and losses at the critical points of random teachers."""
    result, k, m = Result(), values["k"], values["m"]
    alpha, _, gamma = theory.constants(k)
    for seed in seeds:
        random = generator(seed, KEY, 2, k)
        s = 0.5 + float(torch.rand(1, generator=random, dtype=torch.float64)) * 2
        target = on_sphere(1, m, random)[0] * s
        slopes = theory.one_sided_slope(torch.cat([on_sphere(200, m, random), -target[None] / s]), target, k)
        top = theory.hessian(target, target, k)
        values_at_target = torch.linalg.eigvalsh(top)
        row: Row = {
            "seed": seed,
            "alpha": alpha,
            "gradient_target": float(theory.gradient(target, target, k).norm()),
            "slope_max": float(slopes.max()),
            "slope_spread": float(slopes.max() - slopes.min()),
            "slope_back": float(slopes[-1]),
            "radial_error": abs(float(values_at_target[-1]) - 2 * gamma / k**2),
            "transverse_error": float((values_at_target[:-1] - 1 / k).abs().max()),
            "condition": float(values_at_target[-1] / values_at_target[0]),
        }
        if k > 1:
            row |= _at_saddle(target, k, m, random)
        result.rows.append(row)
    return result


def _at_saddle(target: Tensor, k: int, m: int, random: torch.Generator) -> Row:
    alpha, s = theory.constants(k)[0], float(target.norm())
    saddle = -alpha * target
    eigenvalues = torch.linalg.eigvalsh(theory.hessian(saddle, target, k))
    across = on_sphere(1, m, random)[0]
    across = across - (across @ target) * target / s**2
    across = across / across.norm()
    here = theory.loss(saddle, target, k)
    second: Row = {}
    for h in (1e-3, 1e-4, 1e-5):
        both = theory.loss(torch.stack([saddle + h * s * across, saddle - h * s * across]), target, k).sum()
        second[f"second_{h:g}"] = float((both - 2 * here) / (h * s) ** 2)
    phi = torch.tensor([1e-2, 3e-2], dtype=torch.float64)
    points = alpha * s * (torch.sin(phi)[:, None] * across - torch.cos(phi)[:, None] * target / s)
    drop = here - theory.loss(points, target, k)
    return second | {
        "gradient_saddle": float(theory.gradient(saddle, target, k).norm()),
        "flat": float(eigenvalues[:-1].abs().max()),
        "loss_error": abs(float(here) - theory.saddle_loss(k, s)),
        "exponent": float((drop[1] / drop[0]).log() / (phi[1] / phi[0]).log()),
        "coefficient": float(drop[0] / phi[0] ** 3) * 3 * math.pi * k / (alpha * s * s),
    }


def descent(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Gradient descent from random unit vectors: how many arrive, after how many steps, how fast at the end."""
    result, k, m = Result(), values["k"], values["m"]
    step = values["step"] * theory.step_limit(k)
    for seed in seeds:
        random = generator(seed, KEY, 3, k)
        target, starts = on_sphere(1, m, random)[0], on_sphere(values["starts"], m, random)
        run = theory.descend(starts, target, k, step=step, steps=values["steps"], tolerance=1e-6)
        steps = run.reached[run.reached >= 0].double()
        arrived = run.reached.clamp(1, len(run.gradients) - 1)
        each = torch.arange(len(starts))
        ratios = run.gradients[arrived, each] / run.gradients[arrived - 1, each]
        row: Row = {"seed": seed, "share": float((run.reached >= 0).double().mean()), "factor": float(ratios.median())}
        result.rows.append(row | {"median": float(steps.median()), "most": float(run.reached.max()), "predicted": 1 - step / k})
        at = range(0, len(run.losses), 2)
        result.curves += [{"seed": seed, "step": t, "loss": float(run.losses[t].median()), "worst": float(run.losses[t].max())} for t in at]
    return result


def guarantees(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Every guarantee at every step, from starts of lengths 0.01 to 10, at several step sizes below the limit."""
    result, k, m = Result(), values["k"], values["m"]
    lengths = torch.logspace(-2, 1, 12, dtype=torch.float64)
    for seed in seeds:
        random = generator(seed, KEY, 4, k)
        target = on_sphere(1, m, random)[0]
        starts = on_sphere(12, m, random) * lengths[:, None]
        starts[0] = -target * lengths[0] + 1e-3 * starts[0]  # nearly on the ray that leads to the saddle
        for part in (0.1, 0.5, 0.99):
            step = part * theory.step_limit(k)
            broken = theory.guarantees(theory.descend(starts, target, k, step=step, steps=values["steps"]), 1.0, k, step)
            result.rows.append({"seed": seed, "step_share": part, **{name: float(v.max()) for name, v in broken.items()}})
    return result


def escape(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Steps from an angle phi beside the saddle to the other half-space, times phi; one run for each phi."""
    k, m = values["k"], 4
    step = values["step"] * theory.step_limit(k)
    alpha = theory.constants(k)[0]
    target = torch.eye(m, dtype=torch.float64)[0]
    rows: list[Row] = []
    for phi in values["angles"]:
        start = torch.zeros(1, m, dtype=torch.float64)
        start[0, 0], start[0, 1] = -alpha * math.cos(phi), alpha * math.sin(phi)
        most = int(3 * theory.escape_steps(k, step, phi)) + 100
        run = theory.descend(start, target, k, step=step, steps=most, until=lambda theta: bool((theta < math.pi / 2).all()))
        taken = len(run.losses) - 1
        rows.append({"phi": phi, "steps": taken, "product": taken * phi, "predicted": theory.escape_steps(k, step, phi)})
    return Result(rows)


def ray(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Descent from exactly opposite the teacher: it stays on the ray and ends at the saddle."""
    k = values["k"]
    target = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    starts = -target * torch.tensor([0.01, 0.3, 1.0, 5.0], dtype=torch.float64)[:, None]
    run = theory.descend(starts, target, k, step=0.5 * theory.step_limit(k), steps=values["steps"])
    saddle = -theory.constants(k)[0] * target
    return Result([{"distance": float((run.w - saddle).norm(dim=1).max()), "loss": float(run.losses[-1].max())}])


def surface(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The loss over the plane of w along and across w*, and paths of descent from a ring of starts."""
    k, n = values["k"], values["points"]
    x, y = torch.linspace(-1.4, 1.5, n, dtype=torch.float64), torch.linspace(-1.25, 1.25, n, dtype=torch.float64)
    along, across = torch.meshgrid(x, y, indexing="xy")
    heights = theory.polar_loss(torch.hypot(along, across), torch.atan2(across.abs(), along), 1.0, k)
    turns = torch.tensor([0.3, 0.55, 0.75, 0.88, 0.95, 0.985, -0.45, -0.8, -0.93, -0.99], dtype=torch.float64) * math.pi
    starts = 1.15 * torch.stack([torch.cos(turns), torch.sin(turns)], 1)
    target = torch.tensor([1.0, 0.0], dtype=torch.float64)
    run = theory.descend(starts, target, k, step=values["step"] * theory.step_limit(k), steps=values["steps"], keep_path=True)
    assert run.path is not None
    return Result([{"arrived": float((run.reached >= 0).double().mean())}], arrays={"loss": heights, "x": x, "y": y, "paths": run.path})
