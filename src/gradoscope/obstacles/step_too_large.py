"""The step size, and only it, is too large."""

import math

import numpy as np

from gradoscope import readings
from gradoscope import thresholds as T
from gradoscope.case import Case
from gradoscope.diagnosis import Counterfactual, Evidence, Finding
from gradoscope.obstacles import Mechanism, Obstacle, evidence
from gradoscope.remedies.larger_batch import LargerBatch
from gradoscope.remedies.step_size import StepSize

__all__ = ["OBSTACLE", "StepTooLarge"]


class StepTooLarge(Obstacle):
    """Steps leave the region in which the loss is what its curvature says; smaller ones do not."""

    name = "step_too_large"
    title = "the step size is too large: steps overshoot, and smaller ones make progress"
    advice = "Lower the learning rate."
    yields_to = ("unnormalised_inputs", "wrong_loss_output")

    def mechanism(self, case: Case, known: dict[str, Finding]) -> Mechanism:
        found: list[Evidence] = []
        readings_ = [readings.curvature(case, step) for step in readings.window(case)]
        known_s = [r for r in readings_ if r.s is not None]
        worst = max(known_s, key=lambda r: r.s or 0.0, default=None)
        if worst is not None and worst.s is not None:
            unstable = worst.s >= T.STABILITY
            found.append(
                evidence(
                    "step_times_curvature",
                    worst.s,
                    f"step size times largest curvature is {worst.s:.3g} at step {worst.step}; 2 is the limit",
                    supports=unstable,
                    se=worst.s_error,
                    step=worst.step,
                    rules_out=("step_too_small",) if unstable else (),
                )
            )
        broke = case.baseline.broke
        # The loss of single steps well above the start: an early jump may end on a plateau below it.
        losses = [v for v in case.baseline.batch_loss if math.isfinite(v)]
        peak = max(losses, default=case.initial)
        jumped = peak > case.initial + 0.5 * case.scale and peak > 2 * float(np.median(losses or [peak]))
        rose = case.final > case.initial
        if broke is not None:
            found.append(
                evidence(
                    "first_non_finite_step",
                    broke,
                    f"the loss is not finite at step {broke} (first seen in {case.baseline.where})",
                    supports=True,
                )
            )
        elif rose:
            found.append(evidence("loss_change", case.final - case.initial, "the loss ends above its start", supports=True, unit="loss"))
        if jumped and broke is None:
            says = f"the loss of a step's own batch jumps to {peak:.3g}, above the start at {case.initial:.3g}"
            found.append(evidence("largest_batch_loss", peak, says, supports=True, unit="loss"))
        holds = broke is not None or rose or jumped or (worst is not None and (worst.s or 0.0) >= T.STABILITY)
        if not holds:
            lost = readings.overshoot(case)
            holds = lost >= T.OVERSHOOT
            says = f"the first steps lose {lost:.0%} of what they gain, each on the very examples that it was made of"
            found.append(evidence("overshoot", lost, says, supports=holds, step=case.first))
        if worst is None and not holds:
            return Mechanism(None, evidence=found, missing=["the optimizer's metric, to compare its step with the curvature"])
        return Mechanism(holds, 0.97, found)

    def confirm(self, case: Case, known: dict[str, Finding]) -> list[Counterfactual]:
        tried: list[Counterfactual] = []
        for factor in (0.1, 0.01, 1e-3, 1e-4):
            c = case.trial(StepSize(factor))
            tried.append(c)
            better = len(tried) < 2 or c.loss_remedy < tried[-2].loss_remedy
            if not better and any(case.material(t) for t in tried):
                break
        return tried

    def rivals(self, case: Case, best: Counterfactual, known: dict[str, Finding]) -> Evidence | None:
        """Where the step is within the stability limit, and averaging over more examples at the same step does as well, it is noise."""
        grown = known.get("exploding_gradient")
        if (
            grown is not None
            and grown.status == "present"
            and grown.counterfactual
            and grown.gain is not None
            and grown.gain >= 0.8 * best.gain
        ):
            says = f"{grown.counterfactual} at the same step size does as well: the step is too large only for what grows"
            return evidence(f"counterfactual {grown.counterfactual}", grown.gain, says, supports=False)
        s = max((r.s for r in (readings.curvature(case, step) for step in readings.window(case)) if r.s is not None), default=None)
        if s is None or s >= T.STABILITY or readings.live_full_batch(case):
            return None
        averaged = case.trial(LargerBatch(16), start=case.checkpoint(0.5))
        if averaged.shortfall < 2 / 3 * best.shortfall:
            return None
        says = f"{averaged.remedy} at the same step size gains {averaged.shortfall:.0%}: noise, and not the step, holds it"
        return evidence(f"counterfactual {averaged.remedy}", averaged.shortfall, says, supports=False)


OBSTACLE = StepTooLarge()
