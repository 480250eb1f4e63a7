"""The expected gradient is nearly the same whatever the target function, so no gradient method can find it."""

from gradoscope import readings
from gradoscope import thresholds as T
from gradoscope.case import Case
from gradoscope.diagnosis import Evidence, Finding
from gradoscope.learners import PARITY, THIS_MODEL
from gradoscope.obstacles import Mechanism, Obstacle, evidence
from gradoscope.obstacles._floor import learnt, material_gain, memorises
from gradoscope.references import repeats, scores

__all__ = ["OBSTACLE", "UninformativeGradient"]


class UninformativeGradient(Obstacle):
    """The gradient does not know the targets; nothing local helps; yet the targets can be had by other means."""

    name = "uninformative_gradient"
    title = "the gradient carries no information on the targets, so that no gradient method can learn them"
    advice = (
        "No step size, batch or optimizer will help: give intermediate targets, features in which the target is simple, "
        "or use a method that is not gradient based."
    )
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
        "end_to_end_composition",
    )

    def mechanism(self, case: Case, known: dict[str, Finding]) -> Mechanism:
        found: list[Evidence] = []
        share = learnt(case)
        found.append(
            evidence("learnt_share", share, f"of the constant answer's loss {share:.1%} was removed", supports=share < T.NOT_LEARNT)
        )
        if share >= T.NOT_LEARNT:
            return Mechanism(False, 0.97, found)
        values = []
        for step in dict.fromkeys((case.checkpoint(0.0), case.checkpoint(1.0))):
            reading = readings.information(case, step)
            if reading is None:
                return Mechanism(None, evidence=found, missing=["targets that can be told from the batch, for the permutation test"])
            values.append(reading.p_value)
            supports = reading.p_value > T.INFORMED
            says = (
                f"at step {step} the gradient under the true targets differs from that under permuted ones with p = {reading.p_value:.3f}"
            )
            found.append(
                evidence(
                    "target_information",
                    reading.statistic,
                    says,
                    supports=supports,
                    step=step,
                    p=reading.p_value,
                    rules_out=() if supports else (self.name,),
                )
            )
        return Mechanism(min(values) > T.INFORMED, 0.95, found)

    def examine(self, case: Case, known: dict[str, Finding]) -> Finding:
        first = self.mechanism(case, known)
        cause = next((n for n in self.after if n in known and known[n].status == "present"), None)
        if first.holds is False:
            return self.finding("absent", first.probability, "the gradient knows the targets, or the training has learnt", first)
        if cause is not None:
            return self.finding("absent", known[cause].confidence, f"{cause} explains it", first)
        if not case.counterfactuals:
            return self.finding("undetermined", 0.5, "mechanism only", first, missing=["counterfactual"])
        helps = material_gain(case)
        if helps is not None:
            first.evidence.append(
                evidence(
                    f"counterfactual {helps.remedy}",
                    helps.shortfall,
                    f"{helps.remedy} learns: a gradient method finds the target",
                    supports=False,
                )
            )
            return self.finding("absent", 0.95, f"{helps.remedy} learns it by gradients", first)
        fits = memorises(case)
        if fits is not None:
            first.evidence.append(
                evidence(
                    "memorised_share",
                    fits,
                    f"the same network removes {fits:.0%} of the loss on 32 fixed examples: it has the capacity and the gradient path",
                    supports=fits > 0.5,
                )
            )
        found = scores(case)
        for score in found or []:
            first.evidence.append(
                evidence(
                    f"skill {score.learner}",
                    score.skill,
                    f"{score.learner} removes {score.skill:.1%} of the constant answer's error on new examples",
                    se=score.se,
                    supports=score.better or None,
                )
            )
        able = [s for s in found or [] if s.better and s.learner != THIS_MODEL]
        plain = [s for s in able if s.learner != PARITY]
        if plain:
            return self.finding("absent", 0.9, f"{plain[0].learner} find the targets: they are no secret to simple methods", first)
        repeated = repeats(case)
        if repeated is not None:
            says = f"{repeated[0]:.0%} of the targets' variance is left among {repeated[1]} examples with equal inputs"
            first.evidence.append(evidence("noise_among_equal_inputs", repeated[0], says, supports=repeated[0] < T.UNEXPLAINED))
            if first.holds and repeated[0] < T.MINOR and not able:
                return self.finding("present", 0.9, "the gradient does not depend on the targets, though the inputs determine them", first)
            if repeated[0] > 1 - T.MINOR:
                return self.finding("absent", 0.9, "the targets vary as much among equal inputs: there is nothing to learn", first)
        if first.holds and able and (fits is None or fits > 0.5):
            best = max(able, key=lambda s: s.skill)
            return self.finding(
                "present", 0.95, f"the gradient does not depend on the targets, though {best.learner} learns them ({best.skill:.0%})", first
            )
        if first.holds and case.training.noise_free and (fits is None or fits > 0.5):
            says = "the inputs determine the targets, as the training says of itself (noise_free)"
            first.evidence.append(evidence("noise_free", 1.0, says, supports=True))
            return self.finding("present", 0.85, "the gradient does not depend on the targets, though the inputs determine them", first)
        return self.finding(
            "undetermined",
            0.5,
            "the gradient does not depend on the targets; whether the inputs determine them is open",
            first,
            missing=["a learner, intermediate targets, or `noise_free=True` if the inputs determine the targets"],
        )


OBSTACLE = UninformativeGradient()
