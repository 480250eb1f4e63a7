"""One shared ReLU filter: why gradient descent succeeds on Gaussian inputs, and where it does not (Brutzkus and Globerson 2017)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradoscope.claims import Claim
from gradoscope.studies import _convnet as smooth
from gradoscope.studies import _convnet_hard as hard
from gradoscope.studies._convnet_claims import claims
from gradoscope.studies._convnet_figures import figures
from gradoscope.study import Context, Figure, Result, Scale, Setting, Study

__all__ = ["OVERLAPS", "STUDY", "ConvNetStudy"]

PARTS: dict[str, Callable[[Mapping[str, Any], Sequence[int], Context], Result]] = {
    "formula": smooth.formula,
    "critical": smooth.critical,
    "descent": smooth.descent,
    "guarantees": smooth.guarantees,
    "escape": smooth.escape,
    "ray": smooth.ray,
    "surface": smooth.surface,
    "reduction": hard.reduction,
    "hardness": hard.hardness,
    "overlap": hard.overlap,
    "teachers": hard.teachers,
    "directions": hard.directions,
    "bad-minimum": hard.bad_minimum,
    "connected": hard.connected,
    "two-layers": hard.two_layers,
    "diagnosed": hard.diagnosed,
}
OVERLAPS: dict[Scale, tuple[tuple[int, int, int], ...]] = {  # filter, stride, patches
    "quick": ((2, 1, 3), (2, 1, 10), (3, 1, 5), (4, 1, 10), (4, 2, 10), (4, 4, 10), (8, 4, 10), (8, 8, 10)),
    "paper": (
        *((2, 1, 3), (2, 1, 10), (3, 1, 5), (3, 1, 20), (4, 1, 10), (4, 2, 10), (4, 4, 10)),
        *((8, 1, 10), (8, 2, 10), (8, 4, 10), (8, 8, 10), (16, 1, 10), (16, 4, 10)),
    ),
}
CONNECTED: dict[Scale, tuple[tuple[int, int], ...]] = {  # teachers, students
    "quick": ((6, 6), (8, 8), (10, 10), (10, 11)),
    "paper": ((6, 6), (8, 8), (10, 10), (10, 11), (10, 12)),
}
MEAN_SHARES: dict[Scale, tuple[float, ...]] = {"quick": (0.0, 0.2, 0.6), "paper": (0.0, 0.1, 0.2, 0.3, 0.5, 0.6, 1.0)}
ELEMENTS = (6, 9, 12, 16, 20, 24)
TARGETS = ("convnet:gaussian", "convnet:saddle", "convnet:overlap")


class ConvNetStudy(Study):
    """The expected loss of a shared filter in closed form, descent on it, and what changes with inputs, overlap and more layers."""

    name = "convnet"
    title = "A filter that gradient descent always finds, and the saddle, inputs and overlaps that stand in its way"
    source = "Globerson, How SGD can succeed despite non-convexity and over-parameterization (slides); Brutzkus & Globerson 2017 and others"
    about = (
        "A network averages one ReLU filter over patches of its input that do not overlap; a teacher of the same form gives the answers. "
        "For standard normal inputs the expected loss has a closed form. It is not convex, and still has no bad minimum: its critical "
        "points are the teacher w*, a saddle opposite it at -alpha w*, and 0, where it has no derivative. The slides' expression lacks a "
        "constant (it is not 0 at w*), which changes nothing else.",
        "Below a step size of one over the largest curvature, each step of gradient descent turns towards w*, and the length of w "
        "never falls below the smaller of its start and alpha. So it arrives from every start off one ray. The source's O(eps^-2) steps "
        "are the descent lemma, which holds and is loose: the end is linear, with the factor 1 - lambda/k.",
        "The saddle is not strict: along m - 1 directions its curvature is zero, and the loss falls with the third power of the angle. "
        "Leaving it therefore takes a time of one over the distance, and not its logarithm.",
        "The guarantee is about the inputs. A training set that encodes the NP-complete problem of set splitting is exactly realisable "
        "too; on instances with 24 elements no random start finds the teacher, while on Gaussian inputs with the same teacher all "
        "do. With only two samples per weight even Gaussian inputs leave some starts in minima of the sample: 'the same size' has to mean "
        "three samples per weight, or more, before every start succeeds.",
        "Where patches overlap, strict local minima appear, and random starts find the teacher with a probability of 0.7 to 0.9. Fully "
        "connected layers have bad minima as well, which one more neuron removes; with a second trained layer there is one bad "
        "critical point in closed form, a minimum or a saddle by the sign of one inner product.",
        "The diagnosis, which knows nothing of this, names the saddle and the local minimum from the curvature and from what "
        "changes help. On samples it can see no such saddle by automatic differentiation: all negative curvature of a ReLU network "
        "with one layer sits in its kinks. The saddle of the catalogue therefore is the one of the expected loss.",
    )

    def grid(self, scale: Scale) -> list[Setting]:
        """Exact parts, descents on the expected loss, then everything with many starts."""
        paper = scale == "paper"
        samples = 400_000 if paper else 50_000
        found = [Setting({"part": "formula", "k": k, "m": 4, "samples": samples}, 5, 5, samples * k * 2e-7) for k in (1, 2, 4, 8, 16)]
        found += [Setting({"part": "critical", "k": k, "m": 6}, 5, 5, 0.01) for k in (1, 2, 5, 6, 20, 30)]
        found.append(Setting({"part": "descent", "k": 5, "m": 8, "starts": 500, "step": 0.5, "steps": 120}, 5, 5, 0.05))
        found += [Setting({"part": "guarantees", "k": k, "m": 8, "steps": 2000 if paper else 150}, 5, 5, 0.3) for k in (1, 2, 5, 20)]
        angles = (0.3, 0.1, 0.03, 0.01, 0.003) if paper else (0.3, 0.1, 0.03, 0.01)
        found += [Setting({"part": "escape", "k": k, "angles": angles, "step": 0.5}, 0, 1, 0.5) for k in (2, 5, 20)]
        found.append(Setting({"part": "ray", "k": 5, "steps": 200}, 0, 1, 0.1))
        found.append(Setting({"part": "surface", "k": 5, "points": 200, "step": 0.25, "steps": 400}, 0, 1, 0.2))
        return [*found, *self._inputs(paper), *self._overlaps(scale), *self._others(scale)]

    def _inputs(self, paper: bool) -> list[Setting]:
        starts, steps = (384, 3000) if paper else (64, 1500)
        found = [Setting({"part": "reduction", "elements": 9, "instances": 12, "runs": 200 if paper else 40, "steps": 500}, 5, 5, 0.5)]
        base = {"part": "hardness", "starts": starts, "steps": steps}
        for ratio in (1.0, 1.5, 2.0):
            laws = ("splitting", "gaussian", "many")
            found += [Setting({**base, "elements": 24, "ratio": ratio, "inputs": law}, 5, 5, starts * steps * 1e-6) for law in laws]
        small = (d for d in ELEMENTS if d != 24)
        return [
            *found,
            *(Setting({**base, "elements": d, "ratio": 1.0, "inputs": "splitting"}, 5, 5, starts * steps * 1e-6) for d in small),
        ]

    def _overlaps(self, scale: Scale) -> list[Setting]:
        paper, steps = scale == "paper", 3000
        pairs = 60 if paper else 40
        found = [
            Setting(
                {"part": "overlap", "m": m, "stride": stride, "k": k, "pairs": pairs, "steps": steps}, 5, 5, 0.02 * pairs * m / stride / 8
            )
            for m, stride, k in OVERLAPS[scale]
        ]
        size = {"teachers": 40, "starts": 50} if paper else {"teachers": 15, "starts": 20}
        found += [Setting({"part": "teachers", "m": m, "k": 10, **size, "steps": steps}, 5, 5, 2 if paper else 0.3) for m in (2, 4)]
        ring = {"starts": 72, "spacing": 2.5} if paper else {"starts": 36, "spacing": 5.0}
        found += [Setting({"part": "directions", "k": k, **ring, "steps": steps}, 0, 1, 0.5) for k in (2, 3, 20)]
        return [*found, Setting({"part": "bad-minimum", "starts": 400, "steps": steps}, 0, 1, 0.1)]

    def _others(self, scale: Scale) -> list[Setting]:
        paper = scale == "paper"
        starts = 20 if paper else 12
        found = [Setting({"part": "connected", "k": k, "n": n, "starts": starts, "steps": 2500}, 5, 5, 0.6) for k, n in CONNECTED[scale]]
        size = {"starts": 80, "steps": 6000} if paper else {"starts": 30, "steps": 2000}
        found += [Setting({"part": "two-layers", "m": 8, "k": 8, "mean_share": q, **size}, 5, 5, 0.4) for q in MEAN_SHARES[scale]]
        return [*found, *(Setting({"part": "diagnosed", "target": name}, 5, 1, 3.0) for name in TARGETS)]

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """One setting."""
        return PARTS[values["part"]](values, seeds, context)

    def claims(self, scale: Scale) -> list[Claim]:
        """Of the slides, of the papers behind them, and of the derivations that correct them."""
        return claims(scale, OVERLAPS[scale], CONNECTED[scale], MEAN_SHARES[scale])

    def figures(self, scale: Scale) -> list[Figure]:
        """The surface with paths, escape, overlap, hardness, other networks."""
        return figures(scale)


STUDY = ConvNetStudy()
