"""The surrogate is minimised; the metric that counts is not."""

from gradoscope import thresholds as T
from gradoscope.case import Case
from gradoscope.diagnosis import Finding
from gradoscope.obstacles import Mechanism, Obstacle, chance_above, chance_below, evidence
from gradoscope.references import better_learner
from gradoscope.remedies.surrogate import OtherSurrogate
from gradoscope.scoring import Comparison, Score, alternatives, compare, score

__all__ = ["OBSTACLE", "SurrogateMismatch"]


class SurrogateMismatch(Obstacle):
    """The loss is as low as it gets, and another loss of the same outputs ends better by the metric and worse by this one."""

    name = "surrogate_mismatch"
    title = "the surrogate is minimised, the metric that counts is not"
    about = "metric"
    advice = "Minimise a loss that follows the metric more closely, or choose the decision by the metric."
    # Last of all: only where nothing else holds the loss up is it minimised.
    after = (
        "bayes_floor",
        "end_to_end_composition",
        "exploding_gradient",
        "frozen_parameters",
        "ill_conditioning",
        "local_minimum",
        "low_gradient_snr",
        "overfitting",
        "saddle_point",
        "step_too_large",
        "step_too_small",
        "uninformative_gradient",
        "unnormalised_inputs",
        "vanishing_gradient",
        "wrong_loss_output",
    )

    def examine(self, case: Case, known: dict[str, Finding]) -> Finding:
        if case.training.metric is None or case.training.loss_fn is None:
            return self._open("there is no metric beside the loss")
        was = score(case)
        if was is None:
            return self._open("the metric of right answers is unknown")
        first = self._left(case, was, known)
        if first.holds is False:
            return self.finding("absent", first.probability, first.evidence[-1].says, first)
        if not case.counterfactuals:
            return self.finding("undetermined", 0.5, "mechanism only", first, missing=["counterfactual"])
        compared = compare(case, [OtherSurrogate(s) for s in alternatives(case)])
        tried = [c for c in compared if not c.counterfactual.failed]
        if not tried:
            return self._open("no other loss fits the outputs and targets")
        return self._judge(tried, was, first)

    def _open(self, why: str) -> Finding:
        return self.finding("undetermined", 0.5, why, Mechanism(None), missing=["a metric that other losses could serve"])

    def _left(self, case: Case, was: Score, known: dict[str, Finding]) -> Mechanism:
        """The first key: the loss is minimised, and the metric leaves much."""
        left = was.left
        says = f"by the metric the run leaves {left:.0%} of all there was to gain on the training examples"
        found = [evidence("metric_left", left, says, supports=left > T.STALLED)]
        if left <= T.STALLED:
            return Mechanism(False, 0.95, found)
        holding = [
            f.obstacle for f in known.values() if f.status == "present" and f.obstacle not in (self.name, "overfitting", "bayes_floor")
        ]
        share = case.shortfall
        learner = None if holding else better_learner(case)
        minimised = not holding and share < T.MATERIAL and learner is None
        says = (
            f"{holding[0]} holds the loss itself up"
            if holding
            else f"{learner.learner} does far better on the same data"
            if learner is not None
            else f"the best of all runs leaves the loss {share:.0%} lower"
        )
        found.append(evidence("shortfall", share, says, supports=minimised))
        return Mechanism(minimised, 0.9, found)

    def _judge(self, tried: list[Comparison], was: Score, first: Mechanism) -> Finding:
        """The second key: another loss ends better by the metric, and no better by the loss as given."""
        best = max(tried, key=lambda c: c.counterfactual.shortfall)
        c = best.counterfactual
        says = f"under {c.remedy} the metric ends at {c.loss_remedy:.4g}, not {c.loss_unchanged:.4g}; the loss as given {best.price:+.0%}"
        large = c.shortfall >= T.MATERIAL or (c.shortfall >= T.STALLED and c.gain >= T.UNEXPLAINED)
        material = large and c.difference > T.SIGMAS * c.difference_se
        first.evidence.append(evidence(f"counterfactual {c.remedy}", c.shortfall, says, supports=material))
        if not material:
            if c.shortfall_interval[1] < T.MATERIAL or c.difference <= 0:
                return self.finding("absent", chance_below(c, T.MATERIAL), "no other loss ends materially better by the metric", first, c)
            return self.finding("undetermined", 0.5, "another loss may do better by the metric", first, c, missing=["more examples"])
        if best.price < -T.MINOR:
            return self.finding("absent", 0.9, "the other loss lowers the loss as given too: that was not minimised", first, c)
        if best.new is not None:
            better, se = best.new
            says = f"on validation examples the metric is {better:+.3g} better"
            first.evidence.append(evidence("metric_gain_validation", better, says, se=se, supports=better > 0))
            if better <= 0:
                return self.finding("absent", 0.9, "what another loss gains by the metric does not show on new examples", first, c)
        summary = f"{c.remedy} brings the metric from {c.loss_unchanged:.4g} to {c.loss_remedy:.4g}"
        return self.finding("present", first.probability * chance_above(c, T.LEVEL), summary, first, c)


OBSTACLE = SurrogateMismatch()
