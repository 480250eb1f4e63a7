"""Nothing is left to gain: label noise or missing information."""

from gradoscope import readings
from gradoscope import thresholds as T
from gradoscope.case import Case
from gradoscope.diagnosis import Evidence, Finding
from gradoscope.obstacles import Mechanism, Obstacle, evidence
from gradoscope.obstacles._floor import learnt, material_gain, scores

__all__ = ["OBSTACLE", "BayesFloor"]


class BayesFloor(Obstacle):
    """The loss is high, has stopped falling, and neither a change of the training nor another learner does better."""

    name = "bayes_floor"
    title = "the loss is at the floor that noise in the targets, or information missing from the inputs, sets"
    advice = "Better targets or more informative inputs; no change of the training lowers this loss."
    after = (
        "step_too_large",
        "step_too_small",
        "vanishing_gradient",
        "exploding_gradient",
        "saddle_point",
        "local_minimum",
        "low_gradient_snr",
        "ill_conditioning",
        "frozen_parameters",
        "uninformative_gradient",
    )

    def mechanism(self, case: Case, known: dict[str, Finding]) -> Mechanism:
        found: list[Evidence] = []
        left = 1 - learnt(case)
        high = left > T.UNEXPLAINED
        found.append(evidence("unexplained_share", left, f"{left:.0%} of the constant answer's loss is left", supports=high))
        if not high:
            return Mechanism(False, 0.95, found)
        going, trend, drop = readings.moving(case)
        stopped = not going or drop < T.LEVEL
        found.append(evidence("progress", drop, f"the second half removes {drop:.0%} of the excess", supports=stopped, p=trend.p))
        return Mechanism(stopped, 0.9, found)

    def examine(self, case: Case, known: dict[str, Finding]) -> Finding:
        first = self.mechanism(case, known)
        if first.holds is False:
            return self.finding("absent", first.probability, "the loss is low, or still falling", first)
        cause = next((n for n in self.after if n in known and known[n].status == "present"), None)
        if cause is not None:
            return self.finding("absent", known[cause].confidence, f"{cause} explains it", first)
        if not case.counterfactuals:
            return self.finding("undetermined", 0.5, "mechanism only", first, missing=["counterfactual"])
        helps = material_gain(case)
        if helps is not None:
            first.evidence.append(
                evidence(f"counterfactual {helps.remedy}", helps.shortfall, f"{helps.remedy} goes below this level", supports=False)
            )
            return self.finding("absent", 0.95, f"{helps.remedy} goes below this level", first)
        found = scores(case)
        if not found:
            return self.finding(
                "undetermined",
                0.5,
                "no independent learner could be tried",
                first,
                missing=["examples on which independent learners can be fitted"],
            )
        achieved = learnt(case)
        for score in found:
            beats = score.skill - 2 * score.se > achieved + T.LEVEL
            first.evidence.append(
                evidence(
                    f"skill {score.learner}",
                    score.skill,
                    f"{score.learner} removes {score.skill:.1%} of the constant answer's error on new examples",
                    se=score.se,
                    supports=not beats,
                )
            )
        best = max(found, key=lambda s: s.skill)
        if best.better and best.skill - 2 * best.se > achieved + T.LEVEL:
            return self.finding("absent", 0.95, f"{best.learner} does better on new examples ({best.skill:.0%})", first)
        return self.finding("present", 0.8, "neither a change of the training nor an independent learner goes below this level", first)


OBSTACLE = BayesFloor()
