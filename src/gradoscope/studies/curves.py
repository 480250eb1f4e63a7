"""Piecewise-linear curves: one task, four approaches, and a condition number that decides between them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from gradoscope.claims import Claim
from gradoscope.guard import private_random
from gradoscope.problems._curves import autoencoder_network, integrator, windows
from gradoscope.stacked import unstack
from gradoscope.studies import _curves_claims, _curves_figures
from gradoscope.studies._curves_theory import estimates, landscape, monte_carlo, spectra, theorem, whole_map
from gradoscope.studies._curves_train import (
    OPTIMUM,
    Curves,
    Rule,
    curves,
    filter_maps,
    judged,
    marks,
    moments,
    reached,
    settled,
    slopes_of,
    statistics,
    train_autoencoder,
    train_filter,
    train_linear,
)
from gradoscope.study import Context, Figure, Result, Row, Scale, Setting, Study
from gradoscope.theory import curves as theory

__all__ = ["STUDY", "PiecewiseLinearCurves"]

SNAPSHOTS = (500, 10_000, 50_000)  # figure 5 of the paper
SHOWN = 2  # curves that are drawn


class PiecewiseLinearCurves(Study):
    """The study of curves: trainings by four approaches, the spectra behind them, theorem 3, and what mends it."""

    name: ClassVar[str] = "curves"
    title: ClassVar[str] = "Piecewise-linear curves: an ill-conditioned problem, and the architecture that makes it easy to whiten"
    source: ClassVar[str] = (
        "Shalev-Shwartz, Shamir and Shammah 2017, section 4 and figure 5; extended version, section 4, theorem 3; slides, part 1"
    )
    about: ClassVar[tuple[str, ...]] = (
        "A curve f is piecewise linear, and its three breakpoints and changes of slope p are to be found from its n = 100 points. As f = "
        "W p with W summing twice, the answer is one fixed linear map, U = W^-1, which takes second differences. Four approaches are "
        "trained: (a) all n x n entries of U, (b) a filter of three taps, whose optimum is [1, -2, 1], (c) the same filter on windows "
        "whitened by the inverse root of their 3x3 covariance, (d) a deep autoencoder with two code units per breakpoint. (a), (b) and "
        "(c) are convex and can all be exact; what separates them is the condition number of their Hessian: 1.35e8, 1.55e6 (1.38e5 under "
        "the code's law), 1.",
        "Two laws of the data exist. The text draws breakpoints without replacement and changes from U[-1, 1] (the paper's law); the "
        "authors' code draws one of four patterns of slopes, and no breakpoint in the first and last three points (the code's law). (a) "
        "trains in float32, as the source does, (b) and (c) in float64 by sufficient statistics, nine numbers per curve, which take the "
        "same steps as the plain loop up to rounding; (d) in float32. Adam is PyTorch's: its epsilon is added to the bias-corrected "
        "root, where the source's TensorFlow adds it to the uncorrected one. Windows reach over zeros before the start of a curve, where "
        "f is 0; the code leaves out the first two points. Breakpoints are read off p as its three largest |p|, as the slides define the "
        "curve's parameters, and compared with the true ones: exactly, and within one point.",
        "W is shifted by one against the curve as the sources write it: (W p) at i is f at i + 1. Taken literally, f(x) = sum a [x - "
        "theta]_+ at x = 0..n-1 has a dictionary with a zero row and a zero column, of rank n - 1, which no map inverts.",
        "Where the sources are right: (a) fails, (b) is far better and (c) works at once; the condition number of the filter is "
        "Theta(n^3), 1.5 n^3 in the limit; a whitening of 3x3 numbers needs few curves where one of n x n needs thousands. Where they "
        "are loose: Omega(n^3.5) for W'W is 1.2943 n^4 = 16/beta^4 n^4, beta the first root of cos b cosh b = -1; the lower bound 1/2 of "
        "theorem 3 is near 4 exp(-eta lambda S^2 / 2). Where they are wrong: theorem 3 does not diverge from eta lambda S^2 = 1 on under "
        "its own loss with the factor 1/2, but from 2 (1 is right for the slides' loss without it); the slide's 'return C^(1/2) x' must "
        "be C^(-1/2) x; under the stated law (b) is far from done after 50,000 steps, so figure 5 must show the code's law; and Adam "
        "does help, thirtyfold against gradient descent, though AdaGrad does not and neither comes near whitening.",
        "The largest entry of |U_t - U|, which the code prints, says nothing under its own law: the entries of p that are always 0 leave "
        "their rows of U where they started, at a distance of exactly 2, however well the rest is learnt. No local minimum and no "
        "saddle is involved: (a), (b) and (c) are convex quadratics, whose smallest curvature is given, and in (d) the way along the most "
        "negative curvature is worth next to nothing. By its own loss, the autoencoder even learns well: rounding a kink off costs that "
        "loss next to nothing, which is ill-conditioning seen from the other side.",
    )

    def grid(self, scale: Scale) -> list[Setting]:
        quick = scale == "quick"
        base = {"n": 100, "k": 3, "curves": 10_000}
        grid: list[Setting] = []
        for law in ("code", "paper"):
            steps = 5_000 if quick else 50_000
            grid.append(Setting({"part": "linear", "law": law, "lr": 1e-4, "steps": steps, "batch": 100, **base}, 5, 5, steps * 2e-4))
            source = {"law": law, "whitened": False, "optimizer": "adam", "lr": 0.05, "steps": 50_000, "batch": 100}
            whitened = {"law": law, "whitened": True, "optimizer": "adam", "lr": 0.99, "steps": 500, "batch": 10}
            grid += [Setting({"part": "filter", **v, **base}, 10, 5, c) for v, c in ((source, 0.7), (whitened, 0.15))]
        for lr in (1e-3, 1e-2):
            steps = 1_000 if quick else 10_000
            grid.append(Setting({"part": "linear", "law": "code", "lr": lr, "steps": steps, "batch": 100, **base}, 5, 5, steps * 2e-4))
        for optimizer, lr in (("sgd", 0.0), ("adagrad", 0.05), ("adagrad", 0.5), ("adagrad", 5.0), ("adam", 0.005), ("adam", 0.5)):
            values = {
                "law": "code",
                "whitened": False,
                "optimizer": optimizer,
                "lr": lr,
                "steps": 20_000 if quick else 50_000,
                "batch": 100,
            }
            grid.append(Setting({"part": "filter", **values, **base}, 5, 5, 0.3 if quick else 0.7))
        grid += self._autoencoders(quick, base)
        grid.append(Setting({"part": "spectra", "largest": 400 if quick else 1600}, 0, cost=0.5 if quick else 10))
        grid.append(Setting({"part": "theorem", "n": 30, "small": 6, "steps": 20_000}, 0, cost=1))
        grid.append(Setting({"part": "runs", "n": 6, "runs": 400, "batch": 20, "steps": 2_000, "scaled": 1.0}, 5, 5, 0.8))
        grid.append(Setting({"part": "estimates", "n": 100}, 5, 5, 0.2))
        for count in (200, 10_000):
            values = {"law": "paper", "used": count, "steps": 200, "batch": 100, "rate": 0.3}
            grid.append(Setting({"part": "whole", **values, **base}, 5, 5, 0.4))
        return grid

    def _autoencoders(self, quick: bool, base: dict[str, Any]) -> list[Setting]:
        """The source's autoencoder, four times as wide, and two layers deeper; at the quick scale all are a quarter as wide."""
        if quick:
            shapes = [("paper", 0.25, 0, 1_000, 5), ("paper", 1.0, 0, 1_000, 5), ("paper", 0.25, 2, 1_000, 5)]
        else:
            shapes = [("paper", 1.0, 0, 50_000, 5), ("anywhere", 1.0, 0, 50_000, 2)]
            shapes += [("paper", 4.0, 0, 10_000, 1), ("paper", 1.0, 2, 10_000, 2)]
        found = []
        for law, width, depth, steps, seeds in shapes:
            values = {"law": law, "width": width, "depth": depth, "lr": 1e-3, "steps": steps, "batch": 100}
            cost = steps * 1.5e-3 * (width**2 if width > 1 else max(width, 0.3)) * (1 + depth / 10)
            found.append(Setting({"part": "autoencoder", **values, **base}, seeds, 1, cost))
        return found

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        part = values["part"]
        if part == "spectra":
            return Result(spectra(tuple(n for n in (25, 50, 100, 200, 400, 800, 1600) if n <= values["largest"])))
        if part == "theorem":
            return Result(*theorem(values["n"], values["small"], values["steps"]))
        options = {k: v for k, v in values.items() if k != "part"}
        if part == "runs":
            return Result([{"seed": s, **row} for s in seeds for row in monte_carlo(s, **options)])
        if part == "estimates":
            counts = (30, 100, 300, 1_000, 3_000, 10_000)
            return Result([{"seed": s, **row} for s in seeds for row in estimates(s, values["n"], counts)])
        data = [curves(values["law"], s, values["n"], values["k"], values["curves"]) for s in seeds]
        if part == "whole":
            return _whole(values, seeds, data)
        return {"linear": _linear, "filter": _filter, "autoencoder": _autoencoder}[part](values, seeds, data, context)

    def claims(self, scale: Scale) -> list[Claim]:
        return _curves_claims.claims(scale)

    def figures(self, scale: Scale) -> list[Figure]:
        return _curves_figures.figures(scale)


class _Album:
    """What a training looks like on the way: rows for its curves, and the decoded curves of seed 0 for figure 5."""

    def __init__(self, values: Mapping[str, Any], seeds: Sequence[int], data: Sequence[Curves]) -> None:
        self.values, self.seeds, self.data = values, seeds, data
        self.rows: list[Row] = []
        self.decoded: list[torch.Tensor] = []
        self.w = integrator(values["n"])

    def add(self, step: int, slopes: Sequence[torch.Tensor], **more: Sequence[float]) -> None:
        """Predicted changes of slope on the validation curves, one tensor per seed, and further numbers per seed."""
        for s, (seed, p) in enumerate(zip(self.seeds, slopes, strict=True)):
            row = judged(p.double(), self.data[s], self.values["k"])
            self.rows.append({"seed": seed, "step": step, **row, **{k: float(v[s]) for k, v in more.items()}})
        if 0 in self.seeds and step in {min(s, self.values["steps"]) for s in SNAPSHOTS}:
            self.decoded.append((slopes[list(self.seeds).index(0)][:SHOWN].double() @ self.w.T).float())

    def result(self, more: Sequence[Row]) -> Result:
        """The last look at each seed with further columns as its outcome."""
        last = {row["seed"]: row for row in self.rows}
        rows = [{**last[seed], **extra} for seed, extra in zip(self.seeds, more, strict=True)]
        arrays = {}
        if self.decoded:
            zero = list(self.seeds).index(0)
            arrays = {"decoded": torch.stack(self.decoded), "truth": self.data[zero].f_validation[:SHOWN].float()}
        return Result(rows, self.rows, arrays)


def _linear(values: Mapping[str, Any], seeds: Sequence[int], data: Sequence[Curves], context: Context) -> Result:
    album, goal = _Album(values, seeds, data), torch.from_numpy(theory.second_difference(values["n"])).T

    def look(step: int, v: torch.Tensor) -> None:
        errors = [float((u.double() - goal).abs().max()) for u in v]
        album.add(step, [d.f_validation @ u.double() for d, u in zip(data, v, strict=True)], max_error=errors)

    train_linear(data, seeds, lr=values["lr"], steps=values["steps"], batch=values["batch"], look=look, tick=context.tick)
    ends = [torch.linalg.eigvalsh(2 * d.f.T @ d.f / len(d.f)) for d in data]
    return album.result([{"smallest": float(e[0]), "largest": float(e[-1])} for e in ends])


def _filter(values: Mapping[str, Any], seeds: Sequence[int], data: Sequence[Curves], context: Context) -> Result:
    stats = np.stack([statistics(d) for d in data])
    c, maps = moments(stats), filter_maps(stats, values["whitened"])
    hessians = 2 * maps @ c @ maps
    ends = np.linalg.eigvalsh(hessians)
    rates = np.full((len(seeds), 1), values["lr"]) if values["lr"] else 1 / ends[:, -1:]
    rule = Rule(values["optimizer"], rates)
    path = train_filter(stats, seeds, rule, steps=values["steps"], batch=values["batch"], maps=maps, tick=context.tick)
    album, errors = _Album(values, seeds, data), np.abs(path - OPTIMUM).max(axis=2)
    for step in marks(values["steps"]):
        p = [windows(d.f_validation) @ torch.from_numpy(w) for d, w in zip(data, path[step], strict=True)]
        album.add(step, p, error=list(errors[step]))
    first, stays = reached(errors), settled(errors)
    more = []
    for s in range(len(seeds)):
        plain = theory.descent_steps(2 * c[s], -OPTIMUM, tolerance=0.01, rate=1 / np.linalg.eigvalsh(2 * c[s])[-1])
        row = {"reached": first[s], "settled": stays[s], "descent": plain, "smallest": float(ends[s, 0]), "largest": float(ends[s, -1])}
        # What the slide returns: C^(1/2) times the filter of the whitened windows, in place of C^(-1/2).
        row["slide_error"] = float(np.abs(np.linalg.solve(maps[s], np.linalg.solve(maps[s], path[-1, s])) - OPTIMUM).max())
        more.append(row)
    return album.result(more)


def _autoencoder(values: Mapping[str, Any], seeds: Sequence[int], data: Sequence[Curves], context: Context) -> Result:
    album = _Album(values, seeds, data)

    def look(step: int, model: Any) -> None:
        with torch.no_grad():
            decoded = model(torch.stack([d.f_validation for d in data]).float()).double()
        truth = torch.stack([d.f_validation for d in data])
        album.add(step, [slopes_of(f) for f in decoded], mse=[float(x) for x in (decoded - truth).square().mean((1, 2))])

    shape = {name: values[name] for name in ("lr", "steps", "batch", "width", "depth", "k")}
    stacked = train_autoencoder(data, seeds, **shape, look=look, tick=context.tick)
    more = []
    for s in range(len(seeds)):
        with private_random():  # a start that is overwritten
            blank = autoencoder_network(values["n"], values["k"], values["width"], values["depth"])
        single = unstack(stacked, s, blank)
        more.append(landscape(single, data[s].f_validation))
    return album.result(more)


def _whole(values: Mapping[str, Any], seeds: Sequence[int], data: Sequence[Curves]) -> Result:
    rows, lines = [], []
    for seed, d in zip(seeds, data, strict=True):
        options = {name: values[name] for name in ("steps", "batch", "rate")}
        losses = whole_map(d, seed, curves=values["used"], **options)
        rows.append({"seed": seed, "reached": next((float(i) for i, x in enumerate(losses) if x < 0.01), math.inf)})
        lines += [{"seed": seed, "step": i, "relative": min(x, 1e6)} for i, x in enumerate(losses)]
    return Result(rows, lines)


STUDY = PiecewiseLinearCurves()
