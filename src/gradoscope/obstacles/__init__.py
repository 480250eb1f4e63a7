"""Obstacles: each tests its mechanism on the evidence and asks for the forks that confirm it. One file each.

A new obstacle is one new file here: a subclass of `Obstacle` with a `name`, and `OBSTACLE = ThatClass()`.
"""

import math
from dataclasses import dataclass, field

from scipy import stats

from gradoscope import thresholds as T
from gradoscope.case import Case
from gradoscope.diagnosis import Counterfactual, Evidence, Finding
from gradoscope.measurement import Measurement
from gradoscope.remedies.step_size import StepSize

__all__ = ["Mechanism", "Obstacle", "all_obstacles", "best_step", "evidence", "sentence"]


NO_GAIN = "removing it gains nothing material"  # the summary where the mechanism is there, and its removal alone does not help
REMEDY_NAMES = frozenset({"rescale", "unblock", "unfreeze"})  # remedies whose names are plain words


@dataclass
class Mechanism:
    """The first key: what was measured, and whether it shows the obstacle.

    Attributes:
        holds: True, False, or None where it could not be measured.
        probability: that `holds` is right.
        evidence: the measurements.
        missing: what could not be measured.
    """

    holds: bool | None
    probability: float = 0.95
    evidence: list[Evidence] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def evidence(
    name: str,
    value: object,
    says: str,
    *,
    supports: bool | None = None,
    se: object = None,
    step: int | None = None,
    p: float | None = None,
    unit: str = "1",
    rules_out: tuple[str, ...] = (),
) -> Evidence:
    """One measured quantity with the sentence that it says."""
    return Evidence(Measurement(name, value, se=se, step=step, p=p, unit=unit), sentence(says), supports, rules_out)


def sentence(text: str) -> str:
    """A text as it begins a line: with a capital, unless it begins with a name such as step_size(x10) or rescale."""
    first = text.split(" ", 1)[0]
    return text if first in REMEDY_NAMES or not first.rstrip("',:").isalpha() else text[:1].upper() + text[1:]


class Obstacle:
    """One obstacle. `examine` turns the two keys into a finding; subclasses say what the keys are.

    Attributes:
        name: its fixed name.
        title: one sentence: what it is.
        about: "training" if it holds the training loss up, "validation" otherwise. Where the training loss has
            nothing material left to gain, obstacles about it are absent.
        advice: what to do where it is present.
        after: names of obstacles that must be examined first.
        yields_to: names of causes that explain this one: where one of them is present, and its remedy does nearly as well, this is
            only how it shows. They are examined first too.
    """

    name = ""
    title = ""
    about = "training"
    advice = ""
    after: tuple[str, ...] = ()
    yields_to: tuple[str, ...] = ()

    def mechanism(self, case: Case, known: dict[str, Finding]) -> Mechanism:
        """The first key, measured on the training as it was given."""
        raise NotImplementedError(f"{type(self).__name__} must say how its mechanism is measured")

    def confirm(self, case: Case, known: dict[str, Finding]) -> list[Counterfactual]:
        """The second key: forks under the changes that remove just this obstacle."""
        return []

    def rivals(self, case: Case, best: Counterfactual, known: dict[str, Finding]) -> Evidence | None:
        """Evidence that another, smaller change explains the gain as well, which refutes this obstacle."""
        return None

    def _cause(self, best: Counterfactual, known: dict[str, Finding]) -> Evidence | None:
        """A cause that is present and explains this obstacle."""
        for name in self.yields_to:
            f = known.get(name)
            if f is not None and f.status == "present" and f.gain is not None and f.gain >= T.EXPLAINED * best.gain:
                says = f"{f.counterfactual} gains {f.gain:.0%}: {name} is the cause, and this how it shows"
                return evidence(f"counterfactual {f.counterfactual}", f.gain, says, supports=False)
        return None

    def examine(self, case: Case, known: dict[str, Finding]) -> Finding:
        """The finding: present with both keys, absent where one is refuted, else undetermined."""
        first = self.mechanism(case, known)
        if first.holds is False:
            return self.finding("absent", first.probability, "its mechanism is not there", first)
        if not case.counterfactuals:
            return self.finding("undetermined", 0.5, "mechanism only", first, missing=["counterfactual"])
        tried = [c for c in self.confirm(case, known)]
        ran = [c for c in tried if not c.failed]
        if not ran:
            why = f"counterfactual ({tried[0].failed})" if tried else "counterfactual"
            return self.finding("undetermined", 0.5, "no remedy could be tried", first, missing=[why])
        best = max(ran, key=lambda c: c.shortfall)
        material = case.material(best)
        first.evidence.append(told(best, material))
        rival = (self._cause(best, known) or self.rivals(case, best, known)) if material is not False else None
        if rival is not None:
            first.evidence.append(rival)
            return self.finding("absent", 0.9, "another change explains the gain", first, best)
        if material:
            if first.holds is None:
                return self.finding("undetermined", 0.5, "a remedy helps, but the mechanism could not be measured", first, best)
            sure = first.probability * chance_above(best, T.LEVEL)
            return self.finding("present", sure, self.summary(best), first, best)
        if material is False:
            sure = chance_below(best, T.MATERIAL)
            return self.finding("absent", sure, NO_GAIN, first, best)
        return self.finding(
            "undetermined",
            0.5,
            f"its remedy gains {best.shortfall:.0%} of all there was to remove",
            first,
            best,
            missing=["a clearer gain: more steps, or a larger validation or probe set"],
        )

    def summary(self, best: Counterfactual) -> str:
        """The sentence of a present finding."""
        return f"{best.remedy} brings the loss from {best.loss_unchanged:.4g} to {best.loss_remedy:.4g}"

    def finding(
        self,
        status: str,
        confidence: float,
        summary: str,
        first: Mechanism,
        best: Counterfactual | None = None,
        missing: list[str] | None = None,
    ) -> Finding:
        """Put a finding together."""
        present = status == "present"
        return Finding(
            obstacle=self.name,
            status=status,  # type: ignore[arg-type]
            confidence=min(0.99, max(0.5, confidence)),
            summary=sentence(summary),
            gain=None if best is None else min(1.0, best.gain),
            gain_interval=None if best is None else (best.interval[0], min(1.0, best.interval[1])),
            evidence=tuple(first.evidence),
            missing=tuple((missing or []) + (first.missing if status == "undetermined" else [])),
            remedy=(self.advice or best.explanation) if present and best is not None else self.advice if present else "",
            code=best.code if present and best is not None else "",
            counterfactual=None if best is None else best.remedy,
        )


def best_step(case: Case, *factors: float) -> Counterfactual:
    """The best of a tenth and ten times the step size, of other factors asked for, and of all that were tried before."""
    tried = [case.trial(StepSize(factor)) for factor in (0.1, 10.0, *factors)]
    before = [c for c in case.trials() if c.remedy.startswith("step_size") and c.on == "training"]
    return max([*tried, *before], key=lambda c: -math.inf if c.failed else c.shortfall)


def told(c: Counterfactual, helps: bool | None) -> Evidence:
    """A counterfactual as a line of evidence."""
    return Evidence(
        Measurement(
            f"counterfactual {c.remedy}", c.shortfall, se=c.difference_se * abs(c.shortfall / c.difference) if c.difference else 0.0
        ),
        f"Under {c.remedy} the loss ends at {c.loss_remedy:.4g} instead of {c.loss_unchanged:.4g} "
        f"({c.shortfall:+.0%} of all there was to remove)",
        supports=helps,
    )


def _z(c: Counterfactual, level: float) -> float:
    width = (c.shortfall_interval[1] - c.shortfall_interval[0]) / 4
    return (c.shortfall - level) / max(width, 0.01)


def chance_above(c: Counterfactual, level: float) -> float:
    """The probability that the shortfall which a remedy reveals is above a level (normal approximation)."""
    return float(stats.norm.cdf(_z(c, level)))


def chance_below(c: Counterfactual, level: float) -> float:
    """The probability that it is below."""
    return float(stats.norm.cdf(-_z(c, level)))


def all_obstacles() -> list[Obstacle]:
    """Every obstacle, in the order in which they are examined."""
    from gradoscope.registry import modules

    found = [m.OBSTACLE for m in modules("obstacles") if hasattr(m, "OBSTACLE")]
    ordered: list[Obstacle] = []
    names: set[str] = set()
    waiting = list(found)
    while waiting:
        ready = [o for o in waiting if all(a in names or a not in {f.name for f in found} for a in (*o.after, *o.yields_to))]
        for o in ready or waiting[:1]:
            ordered.append(o)
            names.add(o.name)
            waiting.remove(o)
    return ordered
