"""Two obstacles at once hide each other: the same diagnosis on the mended training tells what is behind the first."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

from gradoscope import thresholds as T
from gradoscope.case import Case
from gradoscope.diagnosis import Counterfactual, Finding
from gradoscope.obstacles import NO_GAIN, Obstacle, all_obstacles, sentence
from gradoscope.remedies import Remedy
from gradoscope.remedies.step_size import StepSize

__all__ = ["hidden_by", "look_behind", "look_together"]

Examine = Callable[[Case], dict[str, Finding]]
Mend = tuple[str, Counterfactual, Remedy]  # an obstacle, what one of its remedies did, and that remedy

# The other end of the same scale: what one step of a grid leaves to the next is no obstacle of its own.
SAME_SCALE = {"step_too_large": "step_too_small", "step_too_small": "step_too_large"}
# No obstacle to the training loss, or none that a change of the training removes: what is left where all is mended.
NOT_BEHIND = {"overfitting", "bayes_floor"}
# Longer and shorter steps are scanned in any case; another start mends nothing.
NEVER_BUILT_IN = {*SAME_SCALE, "local_minimum"}
MOST = 3  # remedies that are built in on trial although they gain nothing alone
SCAN = (StepSize(0.1), StepSize(10.0), StepSize(100.0))  # what then must gain before a whole diagnosis is spent on it


def hidden_by(obstacle: str) -> str:
    """What is missing from a finding that a larger one may explain."""
    return f"the same diagnosis once {obstacle} is removed"


def look_behind(case: Case, known: dict[str, Finding], examine: Examine) -> tuple[Counterfactual, ...]:
    """Apply the leading remedy, examine the mended training, and settle what the first diagnosis had to leave open.

    Findings that are present in the mended training join `known` as present, each with `behind` set to what hid it; those that only the
    first obstacle explained become absent. Nothing is done where the mended training has nothing material left to gain, or where the
    remedy is no run of the training's own steps.

    Args:
        case: the training as given.
        known: its findings, changed in place.
        examine: makes the findings of a case.

    Returns:
        The experiments on the mended training that confirmed what is behind.

    Cost: the training once more, and forks for half of what the first diagnosis may take.
    """
    leading = [f for f in known.values() if f.status == "present" and f.gain is not None and f.obstacle not in NOT_BEHIND]
    if not leading:
        return ()
    first = max(leading, key=lambda f: f.gain or 0.0)
    open_ones = [f for f in known.values() if f.missing == (hidden_by(first.obstacle),)]
    found = next((r for c in case.trials() if c.remedy == first.counterfactual and (r := _startable(case, c)) is not None), None)
    if found is None:
        return ()
    used, remedy = found
    lowest = case.attainable if case.attainable is not None else min(case.best, used.loss_remedy)
    left = (used.loss_remedy - lowest) / max(case.start_level - lowest, 1e-300)
    if left < T.MATERIAL:
        for f in open_ones:
            says = f"with {first.obstacle} removed by {used.remedy}, {left:.0%} of all there was to remove is left: nothing material"
            known[f.obstacle] = replace(f, status="absent", confidence=first.confidence, summary=sentence(says), missing=())
        return ()
    mended = _mended(case, used.remedy, remedy)
    behind = examine(mended)
    trials = {c.remedy: c for c in mended.trials()}
    confirmed: list[Counterfactual] = []
    excluded = {first.obstacle, SAME_SCALE.get(first.obstacle), *NOT_BEHIND}
    for name, f in behind.items():
        before = known[name]
        if name in excluded or before.status == "present":
            continue
        if f.status == "present":
            if f.counterfactual in trials:
                confirmed.append(_joined(trials[f.counterfactual], used))
            known[name] = _seen_behind(f, first.obstacle, used, f"behind {first.obstacle}, once {used.remedy} is applied: {f.summary}")
        elif before in open_ones and f.status == "absent":
            summary = f"once {first.obstacle} is removed by {used.remedy}: {f.summary}"
            known[name] = replace(before, status="absent", confidence=f.confidence, summary=sentence(summary), missing=())
    case.seconds_forks += mended.seconds_baseline + mended.seconds_forks
    return tuple(confirmed)


def look_together(case: Case, known: dict[str, Finding], examine: Examine) -> tuple[Counterfactual, ...]:
    """Where nothing helps alone, look for two obstacles each of which makes the other's remedy useless.

    An obstacle whose mechanism is there, and whose removal alone gains nothing, is removed all the same. If another one is present in what
    is left, and both remedies together gain materially against the training as given, both are present: neither remedy alone did.

    Args:
        case: the training as given, in which no obstacle is present.
        known: its findings, changed in place.
        examine: makes the findings of a case.

    Returns:
        The experiment on both remedies, where there is one.

    Cost: for each of at most three such remedies the training and three forks of it; one more diagnosis where one of them gains.
    """
    there = {f.obstacle for f in known.values() if _useless_alone(f)} - NEVER_BUILT_IN
    for name, used, remedy in _in_turn([_of(o, case, known) for o in all_obstacles() if o.name in there])[:MOST]:
        mended = _mended(case, used.remedy, remedy)
        if not any(_gains(case, mended.trial(other)) for other in SCAN):
            continue
        behind = examine(mended)
        for f in sorted(behind.values(), key=lambda f: -(f.gain or 0.0)):
            tried = next((c for c in mended.trials() if c.remedy == f.counterfactual and c.on == "training"), None)
            if f.status != "present" or tried is None or f.obstacle in (name, *NOT_BEHIND) or not _gains(case, tried):
                continue
            joined = f"{used.remedy} + {f.counterfactual}"
            says = f"{joined} together bring the loss from {case.final:.4g} to {tried.loss_remedy:.4g}; neither alone does"
            known[name] = replace(
                known[name],
                status="present",
                confidence=f.confidence,
                gain=f.gain,
                gain_interval=f.gain_interval,
                summary=sentence(says),
                remedy=used.explanation,
                code=used.code,
                counterfactual=joined,
            )
            known[f.obstacle] = _seen_behind(f, name, used, says)
            return (_joined(tried, used),)
    return ()


def _of(obstacle: Obstacle, case: Case, known: dict[str, Finding]) -> list[Mend]:
    """What an obstacle's remedies did alone; without those that changed nothing, to the bit: they found nothing to change."""
    tried = [c for c in obstacle.confirm(case, known) if c.difference != 0]
    return [(obstacle.name, *run) for c in tried if (run := _startable(case, c)) is not None]


def _in_turn(each: list[list[Mend]]) -> list[Mend]:
    """One remedy of every obstacle, then another of each: of one, the last comes first, since it goes furthest."""
    return [m for turn in itertools.zip_longest(*(reversed(e) for e in each)) for m in turn if m is not None]


def _useless_alone(f: Finding) -> bool:
    """Whether an obstacle's mechanism is there, and its remedy gains nothing, or too little to tell."""
    return f.summary == sentence(NO_GAIN) if f.status == "absent" else f.status == "undetermined" and f.counterfactual is not None


def _gains(case: Case, c: Counterfactual) -> bool:
    """Whether a run of the mended training ends materially lower than the training as given."""
    gained = case.final - c.loss_remedy
    whole = max(case.scale, case.start_level - c.loss_remedy)
    return not c.failed and gained >= T.MATERIAL * whole and gained >= T.SIGMAS * c.difference_se


def _seen_behind(f: Finding, first: str, used: Counterfactual, says: str) -> Finding:
    told = tuple(replace(e, says=f"With {used.remedy}: {e.says[:1].lower()}{e.says[1:]}") for e in f.evidence)
    return replace(f, summary=sentence(says), evidence=told, counterfactual=f"{used.remedy} + {f.counterfactual}", behind=first)


def _joined(c: Counterfactual, used: Counterfactual) -> Counterfactual:
    return replace(c, remedy=f"{used.remedy} + {c.remedy}", explanation=f"{used.explanation} {c.explanation}")


def _mended(case: Case, name: str, remedy: Remedy) -> Case:
    """The training with a remedy built in, as a case of its own."""
    return Case(
        remedy(case.training).settled(),
        seed=case.seed,
        device=case.device,
        limit=case.limit / 2,
        start=case.start,
        steps=case.steps,
        step_seconds=case.step_seconds,
        progress=lambda text, share: case.tell(f"with {name}: {text}", 0.9 + 0.05 * share),
    )


def _startable(case: Case, c: Counterfactual) -> tuple[Counterfactual, Remedy] | None:
    """An experiment and its remedy, if the remedy can stand for the training from its start."""
    run = case.tried(c)
    return (c, run[0]) if c.on == "training" and run is not None and run[0].takes_optimizer_steps else None
