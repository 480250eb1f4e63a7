"""From a training to a diagnosis: what is asked in which order, what rules what out, and how findings are ranked."""

import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import stats

from gradoscope import readings, series
from gradoscope import thresholds as T
from gradoscope.behind import hidden_by, look_behind, look_together
from gradoscope.case import Case
from gradoscope.diagnosis import Diagnosis, Evidence, Finding, Health, Verdict
from gradoscope.errors import GradoscopeError
from gradoscope.obstacles import Mechanism, Obstacle, all_obstacles, evidence
from gradoscope.obstacles._floor import try_alternatives
from gradoscope.references import better_learner
from gradoscope.training import Training
from gradoscope.unseen import by_heart

__all__ = ["diagnose", "diagnose_run", "examine"]

# What a training may simply not have; a finding that only misses this was not testable, and bars no verdict.
UNTESTABLE = {
    "validation data",
    "examples on which independent learners can be fitted",
    "intermediate targets",
    "a loss of output and target",
    "a metric that other losses could serve",
}
Progress = Callable[[str, float], None]


def diagnose(
    training: Training,
    *,
    seed: int = 0,
    counterfactuals: bool = True,
    budget: float = 0.05,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    record: Any = None,
    step_seconds: float | None = None,
) -> Diagnosis:
    """Find out what obstructs a training, on a copy of it: what was handed in is afterwards what it was.

    Args:
        training: what to diagnose.
        seed: of the data order, the probes and every measurement.
        counterfactuals: whether to try remedies on forks; without them no obstacle can be found present.
        budget: the share of the training's time that recording it may take (`record`).
        device: where to run, by default where the model is.
        progress: called with (text, share done).
        record: a `gradoscope.store.Run` to write the unchanged run into.
        step_seconds: what a step is taken to last, instead of timing it: what is tried then does not depend on the machine.

    Returns:
        The verdict with ranked findings, the evidence and every experiment.

    Raises:
        CannotRun: where the training cannot be run as given; the message says how to mend it.

    Cost: the training once, and forks of it for at most as long again (or 45 seconds, if that is more).
    """
    options: dict[str, Any] = {"counterfactuals": counterfactuals, "progress": progress, "record": record, "budget": budget}
    return examine(Case(training, seed=seed, device=device, step_seconds=step_seconds, **options), budget=budget)


def diagnose_run(
    run: Any,
    *,
    seed: int | None = None,
    counterfactuals: bool = True,
    budget: float = 0.05,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Diagnose a training that was recorded in a folder, from its last checkpoint where its recipe can be made again.

    Args:
        run: a `gradoscope.store.Run`.
        seed: by default the recorded one.
        counterfactuals: whether to try remedies on forks.
        budget: told in the report.
        device: where to run.
        progress: called with (text, share done).

    Returns:
        The diagnosis of the rest of the training (at least a quarter of its steps); from the start where the run holds
        no checkpoint. Where the recipe is gone, a diagnosis of what was recorded, whose findings are undetermined.

    Cost: as `diagnose`, for the steps that are left.
    """
    from gradoscope.recorded import diagnose_records
    from gradoscope.target import resolve

    seed = int(run.provenance.get("seed") or 0) if seed is None else seed
    state = run.last_state()
    told = {"run": run.path.name, "target": run.target, "recorded_steps": len(run.records())}
    if run.target is None:
        return diagnose_records(run, "the recipe of its training was not recorded", told)
    try:
        training = resolve(run.target, seed=seed)
    except GradoscopeError as error:
        return diagnose_records(run, f"its training cannot be made again: {error}", told)
    steps = int(run.provenance.get("steps") or training.steps)
    training = replace(training, steps=steps)
    options: dict[str, Any] = {"seed": seed, "device": device, "counterfactuals": counterfactuals, "progress": progress}
    if state is None or state.step == 0:
        return examine(Case(training, **options), budget=budget, provenance=told)
    probes = [r for r in run.records() if "probe" in r]
    initial = float(probes[0]["probe"]) if probes else None
    left = max(steps - state.step, steps // 4, 1)
    case = Case(training, start=state, steps=left, initial=initial, **options)
    case.notes.append(f"forks start from the last checkpoint, step {state.step}, and run for {left} steps")
    return examine(case, budget=budget, provenance=told)


def examine(case: Case, *, budget: float = 0.05, provenance: dict[str, Any] | None = None) -> Diagnosis:
    """Run every obstacle on a case and put the diagnosis together."""
    began = time.perf_counter()
    known = examined(case)
    confirmed = look_behind(case, known, examined) if case.counterfactuals else ()
    health = judge_health(case, known)
    if case.counterfactuals and health.holds is None and case.baseline.broke is None:
        confirmed = look_together(case, known, examined)
        health = judge_health(case, known) if confirmed else health
    findings = ranked(list(known.values()))
    verdict = judge(findings, health)
    case.tell("drawing", 0.95)
    drawn = series.collect(case)
    case.tell("done", 1.0)
    return Diagnosis(
        name=case.training.name,
        verdict=verdict,
        findings=findings,
        healthy=health,
        counterfactuals=(*case.trials(), *confirmed),
        notes=tuple(case.notes),
        cost={
            "training_seconds": case.seconds_baseline,
            "counterfactual_seconds": case.seconds_forks,
            "total_seconds": time.perf_counter() - began,
            "ratio": (time.perf_counter() - began) / max(case.seconds_baseline, 1e-9),
            "forks": len(case.trials()) + len(confirmed),
        },
        provenance=_provenance(case, budget) | (provenance or {}),
        series=drawn,
    )


def examined(case: Case) -> dict[str, Finding]:
    """The finding of every obstacle on a case; what another one explains is left open."""
    _ = case.baseline
    known: dict[str, Finding] = {}
    if case.counterfactuals and not little_to_gain(case) and case.baseline.broke is None:
        # A fixed set of alternatives: without it, nobody knows how well the training could have ended.
        try_alternatives(case)
    obstacles = all_obstacles()
    # Twice: what is material is judged against the best level that any run reached, which is known only when all that
    # the findings ask for has been tried. Nothing is measured or run twice; a new best may call for one more fork.
    for _round in range(2):
        for obstacle in obstacles:
            case.tell(f"examining {obstacle.name}", 0.35 + 0.6 * min(1.0, case.seconds_forks / max(case.limit, 1e-9)))
            known[obstacle.name] = _examine(obstacle, case, known)
    explain(case, known)
    return known


def explain(case: Case, known: dict[str, Finding]) -> None:
    """Let the leading cause explain what a lesser remedy softens.

    Where the remedy of one obstacle gains far more than that of another, the lesser may be an effect of the first, or a
    second obstacle behind it: the same diagnosis on the mended training tells. Until then the lesser is undetermined.
    """
    present = [f for f in known.values() if f.status == "present" and f.gain is not None and f.obstacle != "overfitting"]
    if len(present) < 2:
        return
    first = max(present, key=lambda f: f.gain or 0.0)
    for f in present:
        if f is not first and (f.gain or 0.0) < T.EXPLAINED * (first.gain or 0.0):
            says = f"its remedy gains {f.gain:.0%}, that of {first.obstacle} {first.gain:.0%}, which may explain it"
            missing = (hidden_by(first.obstacle),)
            known[f.obstacle] = replace(f, status="undetermined", confidence=0.5, summary=says, missing=missing, remedy="", code="")


def little_to_gain(case: Case) -> bool:
    """Whether even the lowest loss that any output could get is not materially below what the training reached."""
    headroom = case.headroom
    return headroom is not None and headroom < T.STALLED and case.baseline.broke is None


def _examine(obstacle: Obstacle, case: Case, known: dict[str, Finding]) -> Finding:
    if obstacle.about == "training" and little_to_gain(case):
        headroom = case.headroom or 0.0
        says = f"the training removed {1 - headroom:.1%} of all the loss that any model could; {headroom:.1%} is left"
        return obstacle.finding(
            "absent",
            0.97,
            "nothing material is left to gain",
            Mechanism(False, evidence=[evidence("headroom", headroom, says, supports=False)]),
        )
    try:
        return obstacle.examine(case, known)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # whatever a user's module does in one measurement, the other findings must not be lost
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return obstacle.finding(
            "undetermined", 0.5, "a measurement failed", Mechanism(None), missing=[f"a measurement that failed ({reason})"]
        )


def judge_health(case: Case, known: dict[str, Finding]) -> Health:
    """Healthy: it progresses as well as its alternatives do, or has converged at the best known level."""
    present = [f for f in known.values() if f.status == "present"]
    found: list[Evidence] = []
    share = case.shortfall  # of the best run; without those that only learnt by heart, where there are such
    removed = (case.start_level - case.final) / max(case.start_level - min(case.best, case.final), 1e-12)
    start, end = case.initial, case.final
    drop = _drop(case)
    progressed = drop is not None and drop.p is not None and drop.p < T.ALPHA and end < start
    if drop is not None:
        found.append(Evidence(drop, f"The loss went from {start:.4g} to {end:.4g}", supports=progressed))
    if case.baseline.metric:
        (_, first), (step, last) = case.baseline.metric[0], case.baseline.metric[-1]
        found.append(evidence("validation_metric", last, f"the metric on validation went from {first:.4g} to {last:.4g}", step=step))
    headroom = case.headroom
    if headroom is not None:
        found.append(evidence("headroom", headroom, f"{headroom:.1%} of what any model could remove is left", supports=headroom < T.MINOR))
    ran = [c for c in case.trials() if c.on == "training" and not c.failed]
    tried = [c for c in ran if not by_heart(case, c)]
    if len(tried) < len(ran):
        share = max((c.shortfall for c in tried), default=0.0)
        heart = max((c for c in ran if c not in tried), key=lambda c: c.shortfall)
        says = f"what {heart.remedy} gains on the training examples ({heart.shortfall:.0%}) does not show on new ones: learnt by heart"
        found.append(evidence("learnt_by_heart", heart.shortfall, says))
    if tried:
        best = max(tried, key=lambda c: c.shortfall)
        says = f"The best of {len(tried)} alternatives, {best.remedy}, gains {max(0.0, best.shortfall):.0%} of all there was to remove"
        found.append(evidence("best_alternative", best.shortfall, says, supports=best.shortfall < T.MINOR))
    if present:
        return Health(False, present[0].confidence, f"{present[0].obstacle} is present.", tuple(found))
    if case.baseline.broke is not None:
        return Health(False, 0.99, f"The loss is not finite at step {case.baseline.broke}", tuple(found))
    if not progressed:
        return Health(None, 0.5, "It made no progress, and no cause could be confirmed.", tuple(found), ("the cause of the standstill",))
    if headroom is not None and headroom < T.MINOR:
        return Health(True, 0.97, f"It removed {1 - headroom:.0%} of all the loss that any model could.", tuple(found))
    if case.counterfactuals and (headroom is None or headroom > T.MINOR):
        learner = better_learner(case)
        if learner is not None:
            says = f"{learner.learner} removes {learner.skill:.0%} of the constant answer's error on new examples, far more than this model"
            found.append(evidence(f"skill {learner.learner}", learner.skill, says, se=learner.se, supports=False))
            return Health(
                None,
                0.5,
                f"Another learner ({learner.learner}) does far better on the same data, but no cause could be confirmed.",
                tuple(found),
                ("why this model does not reach what an independent learner does",),
            )
        gains = [c for c in tried if case.material(c)]
        if gains:
            return Health(
                None,
                0.5,
                f"{gains[0].remedy} ends materially lower, but no cause could be confirmed.",
                tuple(found),
                ("the mechanism by which it helps",),
            )
    if not case.counterfactuals:
        return Health(None, 0.5, "It progresses; whether it could do materially better was not tried.", tuple(found), ("counterfactual",))
    if share < T.MINOR:
        return Health(
            True,
            0.9,
            f"The loss went from {start:.4g} to {end:.4g}, and none of {len(tried)} alternatives ends materially lower.",
            tuple(found),
        )
    return Health(
        None,
        0.5,
        f"An alternative ends {share:.0%} lower, but no cause could be confirmed.",
        tuple(found),
        (f"the cause of a shortfall of {share:.0%}; it removed {removed:.0%} of what the best alternative does",),
    )


def _drop(case: Case) -> Any:
    from gradoscope.measurement import Measurement

    first, last = case.baseline.probe[0][1], case.baseline.result()
    d = first - last
    if len(d) < 2 or not np.isfinite(d).all():
        value = float(np.mean(d)) if np.isfinite(d).all() else math.nan
        return Measurement("loss_drop", value, unit="loss", p=0.0 if value > 0 else 1.0)
    se = float(d.std(ddof=1) / math.sqrt(len(d)))
    p = float(stats.t.sf(float(d.mean()) / se, len(d) - 1)) if se > 0 else (0.0 if d.mean() > 0 else 1.0)
    return Measurement("loss_drop", float(d.mean()), se=se, n=len(d), unit="loss", p=p)


def ranked(findings: list[Finding]) -> tuple[Finding, ...]:
    """Present first by gain and those behind others last, then undetermined, then absent."""
    order = {"present": 0, "undetermined": 1, "absent": 2}
    return tuple(
        sorted(
            findings,
            key=lambda f: (
                order[f.status],
                f.behind is not None,
                -(f.gain if f.status == "present" and f.gain is not None else 0.0),
                f.obstacle,
            ),
        )
    )


def judge(findings: tuple[Finding, ...], health: Health) -> Verdict:
    """Obstructed if any finding is present, healthy if its own evidence holds and all that could be tested is absent."""
    if any(f.status == "present" for f in findings):
        return "obstructed"
    testable = [f for f in findings if not (f.status == "undetermined" and set(f.missing) <= UNTESTABLE)]
    if health.holds and all(f.status == "absent" for f in testable):
        return "healthy"
    return "undetermined"


def _provenance(case: Case, budget: float) -> dict[str, Any]:
    from gradoscope import __version__

    training = case.training
    return {
        "gradoscope": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": str(case.device or "as the model"),
        "threads": torch.get_num_threads(),
        "seed": case.seed,
        "steps": training.steps,
        "batch_size": case.batches.batch_size,
        "budget": budget,
        "counterfactuals": case.counterfactuals,
        "argv": sys.argv[:1] and [sys.argv[0].rsplit("/", 1)[-1]],
        "first_reading": readings.window(case),
    }
