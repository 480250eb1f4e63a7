"""Curvature differs so much between directions that every safe step is too short in some."""

from gradoscope import readings
from gradoscope import thresholds as T
from gradoscope.case import Case
from gradoscope.diagnosis import Counterfactual, Evidence, Finding
from gradoscope.obstacles import Mechanism, Obstacle, best_step, evidence
from gradoscope.remedies.newton import KrylovNewton
from gradoscope.remedies.whiten import Whiten, whitenable

__all__ = ["OBSTACLE", "IllConditioning"]

NEWTON_STEPS = 15  # few steps suffice where conditioning is the obstacle, and each costs some forty gradients

NEARLY = 0.9  # of Newton's gain


class IllConditioning(Obstacle):
    """The step is as long as the stiffest direction allows, and the gradient lies where curvature is far smaller."""

    name = "ill_conditioning"
    title = "curvature differs so much between directions that every safe step is too short in some"
    advice = "Take curvature into account: precondition, whiten or normalise the inputs, or use L-BFGS, K-FAC or the like."
    yields_to = ("unnormalised_inputs", "wrong_loss_output")
    after = ("step_too_large", "step_too_small", "vanishing_gradient", "saddle_point")

    def mechanism(self, case: Case, known: dict[str, Finding]) -> Mechanism:
        found: list[Evidence] = []
        rs = [readings.curvature(case, step) for step in readings.window(case)]
        s = max((r.s for r in rs if r.s is not None), default=None)
        if s is None:
            return Mechanism(None, missing=["the optimizer's metric, to compare its step with the curvature"])
        late = [r for r in rs if r.step >= case.first + 0.4 * case.steps and r.c is not None] or [r for r in rs if r.c is not None]
        c = min((r.c for r in late if r.c is not None), default=None)
        if c is None or s == 0:
            return Mechanism(
                False, 0.9, [evidence("step_times_curvature", s, "there is no slope, or no curvature, along the step", supports=False)]
            )
        full = T.STIFF_LOWER < s < T.STIFF_UPPER
        flat = 0 <= c < T.FLAT_CONTRACTION * s
        found.append(
            evidence(
                "step_times_curvature",
                s,
                f"step size times largest curvature is {s:.3g}; 2 is the limit, so there is {'no' if full else ''} room for larger steps",
                supports=full,
                rules_out=("step_too_small",) if full else (),
            )
        )
        found.append(evidence("curvature_along_step", c / s, f"curvature along the gradient is {c / s:.2g} of the largest", supports=flat))
        if full and not flat:
            step = case.checkpoint(0.5)
            share = readings.flat_share(case, step)
            flat = share > T.UNEXPLAINED
            says = f"{share:.0%} of what a Newton step would remove lies where curvature is below a twentieth of the largest"
            found.append(evidence("flat_share", share, says, supports=flat, step=step))
        return Mechanism(full and flat, 0.95, found)

    def confirm(self, case: Case, known: dict[str, Finding]) -> list[Counterfactual]:
        start = case.checkpoint(0.5)
        remedy = KrylovNewton(rows=case.rows(600, 2048, least=64))
        # As many of its dear steps as a quarter of the time for forks allows, but not too few to show anything.
        affordable = int(case.limit / 4 / max(remedy.examples_per_step() * case.seconds_per_example(), 1e-9))
        steps = min(max(affordable, NEWTON_STEPS // 4), NEWTON_STEPS, case.first + case.steps - start)
        newton = case.trial(remedy, start=start, steps=steps)
        if not case.material(newton):
            return [newton]
        with case.live() as live:
            usable = whitenable(live)
        if not usable:
            return [newton]
        # Newton's steps show the obstacle, but few can afford them: where whitened inputs do about as well, they are proposed.
        whitened = case.trial(Whiten())
        return [newton, whitened] if whitened.failed or whitened.shortfall < NEARLY * newton.shortfall else [whitened]

    def rivals(self, case: Case, best: Counterfactual, known: dict[str, Finding]) -> Evidence | None:
        """A step size that does nearly as well means that the step, and not its direction, was wrong."""
        other = best_step(case, 3.0)
        if other.shortfall * 1.5 >= best.shortfall:
            return evidence(
                f"counterfactual {other.remedy}", other.shortfall, f"{other.remedy} alone gains {other.shortfall:.0%}", supports=False
            )
        return None


OBSTACLE = IllConditioning()
