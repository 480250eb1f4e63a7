"""What a report draws: curves, spectrum, layers, Taylor predictions and the line from start to end, as plain lists."""

import math
from typing import Any

import numpy as np
import torch

from gradoscope import layer_readings, readings
from gradoscope.case import Case
from gradoscope.loop import advance
from gradoscope.measure.curvature import density
from gradoscope.measure.steps import predict_step
from gradoscope.objective import Objective

__all__ = ["collect"]

LINE_POINTS = 26  # from 0 to 1.25 in steps of a twentieth: the end of the training is one of them


def collect(case: Case) -> dict[str, Any]:
    """Every series that the evidence of a case allows; what fails to be measured is left out, and the case notes why."""
    out: dict[str, Any] = {"loss": _loss(case)}
    for name, make in (("spectrum", _spectrum), ("layers", _layers), ("taylor", _taylor), ("line", _line), ("permutation", _permutation)):
        try:
            value = make(case)
        except Exception as error:  # a picture less, and a note of it; the findings are there already
            case.notes.append(f"the series {name!r} could not be measured: {error}")
            continue
        if value is not None:
            out[name] = value
    return out


def _loss(case: Case) -> dict[str, Any]:
    trace = case.baseline
    every = max(1, len(trace.batch_loss) // 500)
    return {
        "steps": [s for s, _ in trace.curve()],
        "train": [v for _, v in trace.curve()],
        "validation": [v for _, v in trace.curve("validation")] or None,
        "batch_steps": list(range(trace.start, trace.start + len(trace.batch_loss), every)),
        "batch": trace.batch_loss[::every],
    }


def _spectrum(case: Case) -> dict[str, Any]:
    step = max(case.baseline.states)
    reading = readings.curvature(case, step)
    spectrum = reading.spectrum
    grid, values = density(spectrum)
    with case.live(step) as live:
        rates = {float(g.get("lr", math.nan)) for g in live.optimizer.param_groups}
        plain = type(live.optimizer) is torch.optim.SGD and all(not g.get("momentum") for g in live.optimizer.param_groups)
    limit = 2 / rates.pop() if plain and len(rates) == 1 and min(rates, default=1) > 0 else None
    return {
        "step": step,
        "eigenvalues": [float(x) for x in (*spectrum.top, *spectrum.bottom)],
        "residuals": [float(x) for x in (*spectrum.top_residuals, *spectrum.bottom_residuals)],
        "grid": grid.tolist(),
        "density": values.tolist(),
        "learning_rate_limit": limit,
    }


def _layers(case: Case) -> dict[str, Any]:
    start = case.checkpoint(0.0)
    sensitivity = layer_readings.sensitivity(case, start)
    signals = {s.name: s for s in layer_readings.signals(case, start)}
    with case.live(start) as live:
        order = {name: i for i, (name, _) in enumerate(live.model.named_modules())}
    names = sorted({*sensitivity, *signals}, key=lambda n: order.get(n, len(order)))

    def column(attribute: str) -> list[float | None]:
        return [getattr(signals[n], attribute) if n in signals else None for n in names]

    return {
        "names": names,
        "sensitivity": [sensitivity.get(n) for n in names],
        "gradient_norm": column("gradient_rms"),
        "signal": column("output_std_over_samples"),
        "dead": column("dead_share"),
        "saturated": column("saturated_share"),
    }


def _taylor(case: Case) -> dict[str, Any]:
    """Predicted and actual change of the loss over single steps, on the same examples, at every kept checkpoint."""
    out: dict[str, list[float]] = {"steps": [], "actual": [], "first": [], "second": []}
    rows = case.rows(100, 256)
    for step in sorted(case.baseline.states):
        with case.live(step) as live:
            for i in range(step, step + (3 if rows >= 128 else 1)):
                before = Objective.of(live, live.batches.sample(rows, "probe"), seed=3)
                theta = before.theta()
                if advance(live, i, 1) != i + 1:
                    break
                after = before.theta()
                before._set(theta)
                prediction = predict_step(before, after - theta)
                before.release()
                before._set(after)
                for key, value in (("steps", i), ("actual", prediction.actual), ("first", prediction.first), ("second", prediction.second)):
                    out[key].append(float(value))
    return out


def _line(case: Case) -> dict[str, Any] | None:
    """The losses on the straight line from the start to the end of the training."""
    first, last = min(case.baseline.states), max(case.baseline.states)
    if first == last:
        return None
    train, validation = case.probes
    a, b = case.baseline.states[first], case.baseline.states[last]
    points = LINE_POINTS if case.rows(4 * LINE_POINTS, least=1) >= train.rows else 11
    alphas = np.linspace(0, 1.25, points)
    out: dict[str, Any] = {"alpha": alphas.tolist(), "train": [], "validation": [] if validation else None}
    with case.live(last) as live:
        named = dict(live.model.named_parameters())
        for alpha in alphas:
            with torch.no_grad():
                for name, p in named.items():
                    start = a.parameters[name].to(p.device)
                    p.copy_(start + float(alpha) * (b.parameters[name].to(p.device) - start))
            out["train"].append(float(np.mean(train.losses(live))))
            if validation is not None:
                out["validation"].append(float(np.mean(validation.losses(live))))
    return out


def _permutation(case: Case) -> dict[str, Any] | None:
    step = max(case.baseline.states)
    if ("information", step) not in case.taken:
        return None
    reading = readings.information(case, step)
    return None if reading is None else {"null": np.asarray(reading.null).tolist(), "observed": float(reading.statistic)}
