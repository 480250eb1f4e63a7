"""The step size, and only it, is too small."""

from gradoscope import readings
from gradoscope import thresholds as T
from gradoscope.case import Case
from gradoscope.diagnosis import Counterfactual, Evidence, Finding
from gradoscope.obstacles import Mechanism, Obstacle, evidence
from gradoscope.remedies.step_size import StepSize

__all__ = ["OBSTACLE", "StepTooSmall"]


class StepTooSmall(Obstacle):
    """Every step is far shorter than curvature allows, along a gradient that is there."""

    name = "step_too_small"
    title = "the step size is too small: far larger steps are stable and make progress"
    advice = "Raise the learning rate."
    yields_to = ("unnormalised_inputs", "wrong_loss_output")
    after = ("step_too_large", "vanishing_gradient", "saddle_point")

    def mechanism(self, case: Case, known: dict[str, Finding]) -> Mechanism:
        found: list[Evidence] = []
        rs = [readings.curvature(case, step) for step in readings.window(case)]
        s = [r for r in rs if r.s is not None]
        if not s:
            return Mechanism(None, missing=["the optimizer's metric, to compare its step with the curvature"])
        # The later checkpoints: schedules and adaptive rates start with other steps than they go on with.
        worst = max(s[len(s) // 2 :], key=lambda r: r.s or 0.0)
        small = (worst.s or 0.0) < T.SMALL_STEP
        found.append(
            evidence(
                "step_times_curvature",
                worst.s,
                f"step size times largest curvature is at most {worst.s:.2g}, where 2 is the limit",
                supports=small,
                se=worst.s_error,
                step=worst.step,
                rules_out=("step_too_large", "ill_conditioning") if small else (),
            )
        )
        gamma = max(r.gamma for r in rs)
        there = gamma > T.GAMMA_MOVING
        found.append(
            evidence(
                "relative_gradient",
                gamma,
                f"the gradient is {gamma:.2g} times what the curvature could supply",
                supports=there,
                rules_out=("saddle_point", "local_minimum") if there else (),
            )
        )
        rest = self._left_in_basin(rs[-1])
        if rest is not None:
            # At rest in a minimum: longer steps along the same gradient lead no further, and those that leave it leap out.
            there = False
            says = f"at the end the gradient leads down by {rest:.1%} of the excess, to the minimum that the run sits in"
            found.append(evidence("left_in_basin", rest, says, supports=False, step=rs[-1].step))
        elif not small and case.counterfactuals:
            longer = case.trial(StepSize(10.0))
            small = case.material(longer) is True
            says = f"steps ten times as long are stable on this training and end at {longer.loss_remedy:.4g}"
            if small:
                found.append(evidence("counterfactual step_size(x10)", longer.shortfall, says, supports=True))
        return Mechanism(small and there, 0.97, found)

    @staticmethod
    def _left_in_basin(r: readings.Curvature) -> float | None:
        r"""What small steps still remove, $|G|^2/2\lambda_{min}$, as a share of the excess, where all curvature is positive."""
        lowest = float(r.spectrum.bottom[0]) - float(r.spectrum.bottom_residuals[0])
        if lowest <= 0 or r.gamma >= T.GAMMA_CRITICAL:
            return None
        share = r.gamma**2 * abs(r.spectrum.largest_magnitude) / lowest
        return share if share < T.LEVEL else None

    def confirm(self, case: Case, known: dict[str, Finding]) -> list[Counterfactual]:
        largest = max((r.s or 0.0) for r in (readings.curvature(case, step) for step in readings.window(case)))
        tried: list[Counterfactual] = []
        # Up to the stability limit of what was seen, in steps of ten from the largest stable one downwards.
        top = min(1e6, max(10.0, 1.0 / max(largest, 1e-6)))
        factors = [f for f in (10.0, 100.0, 1e3, 1e4, 1e5, 1e6) if f <= top * 3]
        for factor in factors[::-1][:4]:
            tried.append(case.trial(StepSize(factor)))
            if len(tried) > 1 and tried[-1].loss_remedy > tried[-2].loss_remedy:
                break
        return tried


OBSTACLE = StepTooSmall()
