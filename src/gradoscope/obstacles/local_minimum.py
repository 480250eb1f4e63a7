"""Near a critical point with no negative curvature, well above what the same model can reach."""

from gradoscope import readings
from gradoscope import thresholds as T
from gradoscope.case import Case
from gradoscope.diagnosis import Counterfactual, Evidence, Finding
from gradoscope.obstacles import Mechanism, Obstacle, evidence
from gradoscope.obstacles._floor import learnt
from gradoscope.remedies.perturb import Perturb
from gradoscope.remedies.restart import Restart
from gradoscope.remedies.step_size import StepSize

__all__ = ["OBSTACLE", "LocalMinimum"]

LEAST = 3  # restarts that are always tried
RESTARTS = 8  # finds what one start in five reaches with a probability of 83%; at least three, more where there is time


class LocalMinimum(Obstacle):
    """No local change helps, and the same model from another start ends far lower."""

    name = "local_minimum"
    title = "the training sits in a local minimum, well above what the same model reaches from other starts"
    advice = "Start elsewhere: several restarts, or a wider model, in which bad minima are rarer."
    yields_to = ("wrong_loss_output",)
    after = (
        "step_too_large",
        "step_too_small",
        "vanishing_gradient",
        "exploding_gradient",
        "saddle_point",
        "frozen_parameters",
        "end_to_end_composition",
    )

    def mechanism(self, case: Case, known: dict[str, Finding]) -> Mechanism:
        found: list[Evidence] = []
        others = [n for n in self.after if n in known and known[n].status == "present"]
        if others:
            says = f"{others[0]} keeps the training from any minimum"
            told = [evidence("other_obstacle", others[0], says, supports=False), *self._place(case, only_known=True)[0]]
            return Mechanism(False, known[others[0]].confidence, told)
        if learnt(case) < T.NOT_LEARNT:
            reading = readings.information(case, case.checkpoint(0.0))
            tried = [c for c in case.trials() if c.remedy.startswith("restart")]
            if reading is not None and reading.p_value > T.INFORMED and len(tried) >= LEAST and not any(case.material(c) for c in tried):
                says = f"from the start the gradient does not know the targets (p = {reading.p_value:.2f}): no minimum of theirs"
                informed = evidence("target_information", reading.statistic, says, supports=False, p=reading.p_value)
                return Mechanism(False, 0.95, [informed, *self._place(case, only_known=True)[0]])
        place, near, downhill = self._place(case)
        found += place
        going, trend, drop = readings.moving(case)
        found.append(evidence("progress", drop, f"the second half removes {drop:.0%} of the excess", supports=not going, p=trend.p))
        return Mechanism(near and not downhill and not going, 0.95, found)

    def _place(self, case: Case, *, only_known: bool = False) -> tuple[list[Evidence], bool, bool]:
        """Gradient and curvature at the end: the evidence, whether a critical point is near, and whether curvature leads down from it.

        Args:
            case: the training.
            only_known: say nothing where nobody has measured it: another reason decides.
        """
        found: list[Evidence] = []
        last = max(readings.window(case))
        if only_known and case.recall("curvature", last) is None:
            return found, False, False
        r = readings.curvature(case, last)
        near = r.gamma < T.GAMMA_CRITICAL
        found.append(
            evidence(
                "relative_gradient",
                r.gamma,
                f"at the end the gradient is {r.gamma:.2g} of what the curvature could supply",
                supports=near,
                step=last,
            )
        )
        mean, se = r.negative
        downhill = mean + 1.96 * se < 0 and -mean > 0.02 * max(r.spectrum.largest, 0.0)
        found.append(
            evidence(
                "negative_curvature",
                mean,
                f"the most negative curvature is {mean:.3g} +- {se:.1g}, the largest {r.spectrum.largest:.3g}",
                supports=not downhill,
                se=se,
                step=last,
                rules_out=() if downhill else ("saddle_point",),
            )
        )
        return found, near, downhill

    def confirm(self, case: Case, known: dict[str, Finding]) -> list[Counterfactual]:
        tried = [c for c in case.trials() if c.remedy.startswith("restart")]
        for number in range(1, RESTARTS + 1):
            tried.append(case.trial(Restart(number)))
            informed = readings.information(case, case.checkpoint(0.0)) if number >= LEAST and learnt(case) < T.NOT_LEARNT else None
            hopeless = informed is not None and informed.p_value > T.INFORMED
            if any(case.material(c) for c in tried) or (number >= LEAST and (hopeless or case.budget_left() < case.limit / 2)):
                break
        return tried

    def rivals(self, case: Case, best: Counterfactual, known: dict[str, Finding]) -> Evidence | None:
        """Whatever frees the training from where it stands shows that it is no minimum."""
        start = case.checkpoint(0.5)
        local = max(
            [case.trial(Perturb(share), start=start) for share in (0.03, 0.1, 0.3)] + [case.trial(StepSize(f)) for f in (0.1, 10.0)],
            key=lambda c: c.shortfall,
        )
        if case.material(local):
            return evidence(
                f"counterfactual {local.remedy}", local.shortfall, f"{local.remedy} frees it: {local.shortfall:.0%}", supports=False
            )
        return None

    def summary(self, best: Counterfactual) -> str:
        return f"from another start the loss ends at {best.loss_remedy:.4g} instead of {best.loss_unchanged:.4g}"


OBSTACLE = LocalMinimum()
