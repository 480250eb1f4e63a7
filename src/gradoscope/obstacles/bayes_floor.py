"""Nothing is left to gain: label noise or missing information."""

from gradoscope import readings
from gradoscope import thresholds as T
from gradoscope.case import Case
from gradoscope.diagnosis import Evidence, Finding
from gradoscope.learners import THIS_MODEL
from gradoscope.obstacles import Mechanism, Obstacle, evidence
from gradoscope.obstacles._floor import learnt, material_gain
from gradoscope.references import better_learner, repeats, scores

__all__ = ["OBSTACLE", "BayesFloor"]


class BayesFloor(Obstacle):
    """The loss is high, has stopped falling, and neither a change of the training nor another learner does better."""

    name = "bayes_floor"
    title = "the loss is at the floor that noise in the targets, or information missing from the inputs, sets"
    advice = "Better targets or more informative inputs; no change of the training lowers this loss."
    after = (
        "wrong_loss_output",
        "unnormalised_inputs",
        "step_too_large",
        "step_too_small",
        "vanishing_gradient",
        "exploding_gradient",
        "saddle_point",
        "local_minimum",
        "low_gradient_snr",
        "ill_conditioning",
        "frozen_parameters",
        "end_to_end_composition",
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
        for score in found:
            first.evidence.append(
                evidence(
                    f"skill {score.learner}",
                    score.skill,
                    f"{score.learner} removes {score.skill:.1%} of the constant answer's error",
                    se=score.se,
                )
            )
        better = better_learner(case)
        if better is not None:
            return self.finding("absent", 0.95, f"{better.learner} does better on new examples ({better.skill:.0%})", first)
        if all(s.learner != THIS_MODEL for s in found):
            able = max(found, key=lambda s: s.skill)
            if able.better and able.skill > learnt(case) + T.MINOR:
                return self.finding("absent", 0.9, f"{able.learner} does better on new examples ({able.skill:.0%})", first)
        informed = self._informed(case)
        if informed is not None:
            first.evidence.append(informed)
        repeated = repeats(case)
        if repeated is not None:
            says = f"{repeated[0]:.0%} of the targets' variance is left among {repeated[1]} examples with equal inputs"
            noisy = repeated[0] > 1 - learnt(case) - T.MINOR
            first.evidence.append(evidence("noise_among_equal_inputs", repeated[0], says, supports=noisy))
            if not noisy:
                return self.finding("absent", 0.9, "the inputs determine the targets better than this", first)
        elif learnt(case) < T.NOT_LEARNT and (informed is None or not informed.supports):
            return self.finding(
                "undetermined",
                0.5,
                "nothing learns the targets: noise, or a function that no learner here can find",
                first,
                missing=["repeated inputs with their targets, or `noise_free=True`, to tell noise from a hidden function"],
            )
        return self.finding("present", 0.8, "neither a change of the training nor an independent learner goes below this level", first)

    def _informed(self, case: Case) -> Evidence | None:
        """Did the gradient ever know the targets? Then it found what there was, and noise is what is left."""
        taken = [readings.information(case, step) for step in (case.checkpoint(0.0), case.checkpoint(1.0))]
        p = min((r.p_value for r in taken if r is not None), default=None)
        if p is None:
            return None
        knew = p <= T.INFORMED
        says = f"the gradient {'knew the targets at some point' if knew else 'never knew the targets'} (p = {p:.3f})"
        return evidence("target_information", p, says, supports=knew, p=p)


OBSTACLE = BayesFloor()
