"""Flat activations: four ways to learn a staircase, and what the gradient has to do with it (F7)."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradoscope.claims import Claim
from gradoscope.problems.steps import Ramp, Smooth, level_index, round_down, thresholds
from gradoscope.stacked import StackedLinear, fit, generator, start_like_source
from gradoscope.studies import _flat_claims, _flat_figures
from gradoscope.studies._flat import (
    BINS,
    KEY,
    LAW,
    LR,
    Target,
    adam,
    batches,
    losses,
    multiplications,
    network,
    predict,
    score,
    steps_to,
)
from gradoscope.studies._flat_plateau import where_it_stands
from gradoscope.study import Context, Figure, Result, Row, Scale, Setting, Study
from gradoscope.theory.single_index import error_bound, glmtron, isotron, second_moment
from gradoscope.updates.forward_only import ForwardOnly

__all__ = ["STUDY", "Flat"]

PROBE = 4096
LOOK_AT = 1024  # of the probe, while the training goes on
GOAL = 1e-3
GAPS = (-1.4, -0.9, -0.5, -0.2, 0.0, 0.1, 0.3, 0.6, 0.9, 1.4)  # b_0 - b*
EPSILONS = (1.0, 0.5, 0.2, 0.1)  # root mean squared errors whose iterations are counted


def _train(approach: str, std: float, steps: int, seeds: int, block: int, cost: float, **more: Any) -> Setting:
    values = {"part": "train", "approach": approach, "std": std, "d": 100, "batch": 256, "steps": steps, "sharpness": 0.0, **more}
    return Setting(values, seeds, block, cost)


class Flat(Study):
    """The four approaches of the sources, the bias' start, and GLMtron and Isotron against their bound."""

    name = "flat"
    title = "Flat activations: a local search that works, but not with the gradient"
    source = "Shalev-Shwartz, Shamir and Shammah 2017, section 5 of the extended version and its figure 7; slides, part 2"
    about = _flat_claims.ABOUT

    def grid(self, scale: Scale) -> list[Setting]:
        """Trainings of the four approaches at both readings of the inputs' law, the sweep over the bias' start, and the bound."""
        if scale == "quick":
            trainings = [
                _train("smooth", 0.01, 3000, 8, 8, 1.2),
                _train("end-to-end", 0.01, 1500, 5, 5, 1.6),
                _train("multi-class", 0.01, 1500, 5, 5, 1.4),
                _train("forward-only", 0.01, 5000, 5, 5, 0.8),
                _train("smooth", 1.0, 3000, 5, 5, 0.6),
                _train("forward-only", 1.0, 5000, 5, 5, 0.8),
            ]
            sweep, size = {"steps": 1200}, {"n": 500, "d": 20, "steps": 400}
        else:
            trainings = [
                _train("smooth", 0.01, 10_000, 10, 10, 4.2),
                _train("smooth", 0.01, 10_000, 5, 5, 4.2, sharpness=50.0),
                _train("end-to-end", 0.01, 10_000, 10, 5, 10.5),
                _train("multi-class", 0.01, 10_000, 10, 5, 9.0),
                _train("forward-only", 0.01, 5000, 10, 10, 0.9),
                _train("smooth", 1.0, 10_000, 10, 10, 2.0),
                _train("end-to-end", 1.0, 10_000, 5, 5, 10.5),
                _train("multi-class", 1.0, 10_000, 5, 5, 9.0),
                _train("forward-only", 1.0, 5000, 10, 10, 0.9),
            ]
            sweep, size = {"steps": 5000}, {"n": 2000, "d": 100, "steps": 1000}
        seeds = 5 if scale == "quick" else 10
        more = [Setting({"part": "bias", "approach": a, "d": 100, "batch": 256, **sweep}, 5, 5, 1.0) for a in ("smooth", "forward-only")]
        for method in ("glmtron", "isotron"):
            more += [Setting({"part": "bound", "method": method, "lipschitz": lip, **size}, seeds, 5, 0.3) for lip in (1.0, 4.0, 16.0)]
        return trainings + more

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """One training of a stack, one sweep over the bias' start, or one run of GLMtron or Isotron."""
        return {"train": _training, "bias": _bias_sweep, "bound": _against_bound}[values["part"]](values, seeds, context)

    def claims(self, scale: Scale) -> list[Claim]:
        """The sources' statements, with corrections where they need some."""
        return _flat_claims.claims(scale)

    def figures(self, scale: Scale) -> list[Figure]:
        """Losses, the curve of each approach, where errors are, the bias' start, the bound."""
        return _flat_figures.figures(scale)


def _training(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """One approach, all seeds stacked."""
    approach, steps = values["approach"], values["steps"]
    target = Target.of(seeds, values["d"], values["std"])
    x, r, index = target.probe(PROBE)
    model = network(approach, target, values["sharpness"])
    curves: list[Row] = []

    def look(step: int, _: Tensor) -> None:
        small = x[:, :LOOK_AT], r[:, :LOOK_AT], index[:, :LOOK_AT]
        found = score(approach, target, model, small)
        for slot, seed in enumerate(seeds):
            curves.append({"seed": seed, "step": step, **{name: row[slot] for name, row in found.items()}})
        context.tick(step / steps)

    began = time.process_time()
    fit(model, adam(model, LR[approach]), batches(target, values["batch"]), _on(approach, target), steps, look=look, every=50)
    spent = time.process_time() - began
    final = score(approach, target, model, (x, r, index))
    before = time.process_time()
    said, meant = predict(approach, target, model, x)
    asked = time.process_time() - before
    wrong, near = meant != index, _distance(r, target)
    once, per_step = multiplications(approach, values["d"], values["batch"])
    rows: list[Row] = []
    for slot, seed in enumerate(seeds):
        reached = steps_to(((c["step"], c["squared"]) for c in curves if c["seed"] == seed), GOAL)
        row: Row = {"seed": seed, **{name: column[slot] for name, column in final.items()}, "steps_to_goal": reached}
        row |= {"cost_to_goal": None if reached is None else reached * per_step, "multiplications_predict": once}
        row |= _levels(index[slot]) | _errors(wrong[slot], near[slot])
        if approach in ("smooth", "forward-only"):
            row |= _beside(model, target, slot)
        if approach == "smooth":
            row |= where_it_stands(target, model, slot, values["sharpness"], (x[slot, :2048], target.values(index)[slot, :2048, None]))
        rows.append(row)
    shown = torch.stack([r, said, target.values(index)], 1)[:, :, :1500] - target.offset
    rates = torch.stack([_rates(w, n) for w, n in zip(wrong, near, strict=True)])
    return Result(rows, curves, {"picture": shown, "rates": rates}, {"training": spent, "prediction": asked})


def _beside(model: nn.Sequential, target: Target, slot: int) -> Row:
    """Where a linear layer stands beside the target: the bias' distance at the start, which is at zero, and at the end; the cosine."""
    layer = model[0]
    assert isinstance(layer, StackedLinear)
    assert layer.bias is not None
    with torch.no_grad():
        cosine = nn.functional.cosine_similarity(layer.weight[slot, :, 0], target.direction[slot], dim=0)
        end = (layer.bias - target.offset)[slot, 0, 0].abs()
    return {"gap": abs(float(target.offset[slot, 0, 0])), "gap_end": float(end), "cosine": float(cosine)}


def _on(approach: str, target: Target) -> Any:
    return lambda model, x, index: losses(approach, target, model, x, index)


def _distance(r: Tensor, target: Target) -> Tensor:
    """From each sum to the nearest threshold."""
    centred = r - target.offset[:, 0]
    inner = thresholds(LAW)[1:]
    above = torch.bucketize(centred, inner).clamp(1, len(inner) - 1)
    return torch.minimum((centred - inner[above - 1]).abs(), (inner[above] - centred).abs())


def _levels(index: Tensor) -> Row:
    """How many levels a probe holds, and the share of the most frequent one."""
    counts = index.bincount()
    return {"levels": int((counts > 0).sum()), "most_frequent": float(counts.max()) / len(index)}


def _errors(wrong: Tensor, near: Tensor) -> Row:
    """The share of the wrong levels among the tenth of the examples that lies nearest to a threshold; 1 where none is wrong."""
    tenth = near <= near.quantile(0.1)
    errors = int(wrong.sum())
    return {"errors": errors, "errors_near": float((wrong & tenth).sum()) / errors if errors else 1.0}


def _rates(wrong: Tensor, near: Tensor) -> Tensor:
    """The share of wrong levels by distance to the nearest threshold; NaN where a bin is empty."""
    bins = torch.bucketize(near, torch.tensor(BINS[1:-1]))
    total = bins.bincount(minlength=len(BINS) - 1).double()
    return bins.bincount(weights=wrong.double(), minlength=len(BINS) - 1) / torch.where(total > 0, total, math.nan)


def _bias_sweep(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """One linear layer with a column per start of the bias: all see the same batches and the same initial weights."""
    smooth = values["approach"] == "smooth"
    target = Target.of(seeds, values["d"], 0.01)
    singles = [start_like_source(nn.Linear(values["d"], 1), generator(seed, KEY, 2)) for seed in seeds]
    weight = torch.stack([s.weight.detach().T for s in singles])  # type: ignore[operator]
    layer = StackedLinear(weight.repeat(1, 1, len(GAPS)), target.offset + torch.tensor(GAPS))
    curve = Smooth(LAW, target.offset) if smooth else None
    last = curve or ForwardOnly(lambda r: round_down(r, LAW, target.offset))
    model = nn.Sequential(layer, last)

    def each(model: nn.Module, x: Tensor, index: Tensor) -> Tensor:
        error: Tensor = model(x) - target.values(index).unsqueeze(-1)
        return error.square().mean(1).sum(1)

    fit(
        model,
        adam(model, 0.01),
        batches(target, values["batch"]),
        each,
        values["steps"],
        look=lambda s, _: context.tick(s / values["steps"]),
    )
    x, _, index = target.probe(PROBE)
    with torch.no_grad():
        meant = level_index(layer(x), LAW, target.offset)
        hard = (target.values(meant) - target.values(index).unsqueeze(-1)).square().mean(1)
        right = (meant == index.unsqueeze(-1)).double().mean(1)
    rows = [
        {"seed": seed, "gap": gap, "hard": float(hard[s, g]), "accuracy": float(right[s, g])}
        for s, seed in enumerate(seeds)
        for g, gap in enumerate(GAPS)
    ]
    return Result(rows)


def _against_bound(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """GLMtron or Isotron on one sample of x ~ N(0, I) for an L-Lipschitz staircase, in double precision."""
    n, d, steps, lip = values["n"], values["d"], values["steps"], values["lipschitz"]
    x, w = [], []
    for seed in seeds:
        draw = generator(seed, KEY, 6)
        w.append(torch.randn(d, generator=draw, dtype=torch.float64))
        x.append(torch.randn(n, d, generator=draw, dtype=torch.float64))
    sample, target = torch.stack(x), torch.stack(w)
    ramp = Ramp(lip).double()
    y = ramp((sample @ target.unsqueeze(-1)).squeeze(-1))
    if values["method"] == "glmtron":
        found = glmtron(sample, y, ramp, steps=steps, lipschitz=lip, target=target)
    else:
        found = isotron(sample, y, steps=steps, lipschitz=lip, target=target)
    assert found.distances is not None
    moments = second_moment(sample)
    rows, curves = [], []
    for slot, seed in enumerate(seeds):
        errors, distances = found.errors[:, slot], found.distances[:, slot]
        moment, away = float(moments[slot]), float(distances[0].sqrt())
        best = errors.cummin(0).values
        bounds = torch.tensor([error_bound(lip, moment, away, t) for t in range(1, steps + 1)], dtype=torch.float64)
        fall = distances[:-1] - distances[1:] - errors[:-1] / (lip**2 * moment)
        row: Row = {"seed": seed, "worst_ratio": float((best[:-1] / bounds).max()), "least_fall": float(fall.min() / distances[0])}
        row |= {"final": float(errors[-1]), "bound": float(bounds[-1]), "moment": moment, "distance": away}
        reached = best.sqrt()
        row |= {f"steps_to_{e}": steps_to(enumerate(reached.tolist()), e) for e in EPSILONS}
        rows.append(row)
        shown = sorted({round(steps ** (k / 40)) for k in range(41)})
        curves += [{"seed": seed, "step": t, "best": float(best[t - 1]), "bound": float(bounds[t - 1])} for t in shown]
    context.tick(1.0)
    return Result(rows, curves)


STUDY = Flat()
