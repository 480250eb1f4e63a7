"""Does a training get stuck at a minimum, at a saddle, take a detour, cross bumps, wind through a canyon? Each with a number.

The five questions are those of Goodfellow's slides; every answer rests on numbers with an interval, or with what chance would give.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gradoscope import thresholds as T
from gradoscope.landscape.questions import TOP, Bumps, Canyon, Place
from gradoscope.landscape.walks import Straightness
from gradoscope.measure.steps import wilson

__all__ = ["Answer", "Number", "answers"]


@dataclass(frozen=True)
class Number:
    """A number that an answer rests on.

    Args:
        name: what it is, in words.
        value: the number.
        low: lower end of its 95% interval, or of what chance gives; NaN where there is none.
        high: upper end.
        note: what the interval is, and how the number was taken.
    """

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan
    note: str = ""


@dataclass(frozen=True)
class Answer:
    """One of the five questions, answered.

    Args:
        key: "minimum", "saddle", "detour", "bumps" or "canyon".
        question: in words.
        answer: "yes", "no", "in part" or "cannot be told".
        says: the reason, in one or two sentences.
        numbers: what it rests on.
    """

    key: str
    question: str
    answer: str
    says: str
    numbers: tuple[Number, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def answers(
    end: Place | None,
    places: Sequence[Place],
    straight: Straightness | None,
    found: Bumps | None,
    turns: Canyon | None,
    *,
    left: float,
    fallen: float,
) -> list[Answer]:
    """The five questions, each answered from what was measured; what was not measured cannot be told.

    Args:
        end: the reading at the end of the run.
        places: all readings along the run, the end included.
        straight: its test against random walks.
        found: barriers between recorded points.
        turns: cosines of displacements.
        left: share of the loss that there was to remove that is left at the end, the best of all runs being the reference; NaN where no
            other run says how low it can get.
        fallen: the loss that the run removed.

    Returns:
        The answers in the order of the source.

    Cost: none.
    """
    return [_minimum(end, left), _saddle(end, places), _detour(straight), _bumps(found, fallen), _canyon(turns, places)]


def _untold(key: str, question: str, missing: str) -> Answer:
    return Answer(key, question, "cannot be told", f"Not measured: {missing}.")


def _critical(p: Place) -> tuple[Number, ...]:
    g, r, s = p.gradient, p.gamma, p.spectrum
    return (
        Number(f"gradient norm at step {p.step}", g[0], g[1], g[2], "unbiased, 95% interval over parts of the data"),
        Number(
            "the same as a share of what the curvature could supply", r[0], r[1], r[2], f"near a critical point below {T.GAMMA_CRITICAL}"
        ),
        Number("smallest eigenvalue", s.smallest, s.smallest - s.bottom_residuals[0], s.smallest + s.bottom_residuals[0], "residual bound"),
        Number(
            "curvature along its direction, on other examples",
            p.negative[0],
            p.negative[0] - 1.96 * p.negative[1],
            p.negative[0] + 1.96 * p.negative[1],
            "95% interval",
        ),
        Number("largest eigenvalue", s.largest, s.largest - s.top_residuals[0], s.largest + s.top_residuals[0], "residual bound"),
    )


def _minimum(end: Place | None, left: float) -> Answer:
    key, question = "minimum", "Does it get stuck at a local minimum?"
    if end is None:
        return _untold(key, question, "gradient and curvature at the end")
    numbers = (*_critical(end), Number("share of the loss left, the best run being 0", left, note="against the best of all runs"))
    share = f"The gradient at the end is {end.gamma[0]:.2g} of what the curvature could supply"
    if end.near is None:
        return Answer(key, question, "cannot be told", f"{share}, which is near the threshold within its error.", numbers)
    if not end.near:
        return Answer(key, question, "no", f"{share}: no critical point is near, the loss still has a slope.", numbers)
    if end.downhill:
        return Answer(key, question, "no", f"{share}, but curvature leads down from there: it is no minimum.", numbers)
    if not math.isfinite(left):
        return Answer(
            key,
            question,
            "cannot be told",
            f"{share}, without negative curvature: near a minimum. No other run says whether a good one.",
            numbers,
        )
    if left >= T.MATERIAL:
        return Answer(key, question, "yes", f"{share}, without negative curvature, and another run ends far lower.", numbers)
    if left <= T.MINOR:
        return Answer(key, question, "no", f"{share}: it arrived near a minimum, and no run that was tried ends much lower.", numbers)
    return Answer(key, question, "cannot be told", f"{share}, near a minimum; another run ends somewhat lower.", numbers)


def _saddle(end: Place | None, places: Sequence[Place]) -> Answer:
    key, question = "saddle", "Does it get stuck at a saddle point?"
    if end is None:
        return _untold(key, question, "gradient and curvature at the end")
    if end.near and end.downhill:
        says = "The gradient at the end is next to nothing, and the loss falls along a direction of negative curvature."
        return Answer(key, question, "yes", says, _critical(end))
    passed = [p for p in places if p.near and p.downhill and p is not end]
    if passed:
        closest = min(passed, key=lambda p: p.gamma[0])
        says = f"It does not end at one, but at step {closest.step} it stood near one."
        return Answer(key, question, "in part", says, _critical(closest))
    if end.near is None and end.downhill:
        says = "There is negative curvature at the end, and the gradient is near the threshold within its error."
        return Answer(key, question, "cannot be told", says, _critical(end))
    why = "a slope remains" if end.near is False else "no negative curvature beyond the error"
    others = ", ".join(str(p.step) for p in places if p is not end)
    says = f"It is not near one at the end ({why}){f', nor at the other steps that were looked at ({others})' if others else ''}."
    return Answer(key, question, "no", says, _critical(end))


def _beside(name: str, value: float, control: np.ndarray, note: str) -> Number:
    low, high = np.quantile(control, (0.025, 0.975))
    return Number(name, value, float(low), float(high), note)


def _detour(straight: Straightness | None) -> Answer:
    key, question = "detour", "Does it make a detour around obstacles?"
    if straight is None:
        return _untold(key, question, "a path of at least three steps")
    plain = "95% of random walks of the same steps"
    momentum = f"95% of walks with the path's own autocorrelation, up to {straight.lags} displacements apart"
    length, aside = "length of the path / distance of its ends", "largest distance from the straight line / its length"
    numbers = (
        _beside(length, straight.detour, straight.plain_detour, plain),
        _beside("the same", straight.detour, straight.matched_detour, momentum),
        _beside(aside, straight.residual, straight.plain, plain),
        _beside("the same", straight.residual, straight.matched, momentum),
    )
    says = {
        "a detour": "It strays further from the straight line than random walks of the same steps do.",
        "straighter than chance": (
            "It is straighter than random walks of the same steps, also those with its own momentum; but it is not straight."
        ),
        "no straighter than chance": (
            "It strays from the straight line, but no more than a random walk of the same steps: nothing that needs an obstacle."
        ),
    }[straight.verdict]
    return Answer(key, question, "yes" if straight.verdict == "a detour" else "no", says, numbers)


def _bumps(found: Bumps | None, fallen: float) -> Answer:
    key, question = "bumps", "Does it have to cross bumps?"
    if found is None or not np.isfinite(found.tested).any():
        return _untold(key, question, "the loss between recorded points, over at least four examples or batches")
    known = np.isfinite(found.tested)
    crossed, count = int(found.significant[known].sum()), int(known.sum())
    low, high = wilson(crossed / count, count)
    k = int(np.nanargmax(np.where(known, found.tested, -np.inf)))
    width = 1.96 * found.se[k]
    place = f"steps {found.steps[k, 0]} to {found.steps[k, 1]}, on {found.unit} that did not choose it; 95% interval"
    numbers = (
        Number("share of segments with a barrier", crossed / count, low, high, f"{crossed} of {count} segments; Wilson's interval"),
        Number("highest barrier", found.tested[k], found.tested[k] - width, found.tested[k] + width, place),
        Number("the same as a share of the loss removed", found.tested[k] / fallen if fallen > 0 else math.nan, note=""),
    )
    if not crossed:
        return Answer(
            key, question, "no", f"On none of {count} segments between recorded points does the loss rise above both ends.", numbers
        )
    says = f"On {crossed} of {count} segments between recorded points the loss rises above both ends: the run jumps across, or goes around."
    return Answer(key, question, "yes", says, numbers)


def _canyon(turns: Canyon | None, places: Sequence[Place]) -> Answer:
    key, question = "canyon", "Does it wind through a twisting canyon?"
    if turns is None or not places:
        return _untold(key, question, "displacements and the gradient's place in the spectrum")
    chance = "95% interval; random walks of the same steps: "
    numbers = [
        Number(f"cosine of displacements {lag} apart", c, c - 1.96 * se, c + 1.96 * se, f"{chance}{low:.2g} to {high:.2g}")
        for lag, c, se, low, high in zip(*vars(turns).values(), strict=True)
    ]
    for p in places:
        name = f"share of the gradient in the {TOP} steepest directions, step {p.step}"
        numbers.append(Number(name, p.steep[0], p.steep[1], p.steep[2], f"95% interval; chance {p.chance:.2g}"))
    walled = [p for p in places if p.steep[1] > 0.5]
    where = f"at {len(walled)} of the {len(places)} places that were looked at"
    walls = f"Most of the gradient points at steep walls {where}" if walled else "The gradient does not point at steep walls"
    back = bool(turns.cosine[0] + 1.96 * turns.se[0] < turns.low[0])
    keeps = bool(turns.cosine[-1] - 1.96 * turns.se[-1] > turns.high[-1])
    apart = f"displacements {turns.lags[-1]} apart"
    if back:
        return Answer(
            key, question, "yes" if walled else "in part", f"{walls}; neighbouring displacements partly undo each other.", tuple(numbers)
        )
    if keeps:
        return Answer(key, question, "in part" if walled else "no", f"{walls}; {apart} still agree: it hardly twists.", tuple(numbers))
    says = f"{walls}; whether {apart} still agree is within the error of what random walks do."
    return Answer(key, question, "in part" if walled else "cannot be told", says, tuple(numbers))
