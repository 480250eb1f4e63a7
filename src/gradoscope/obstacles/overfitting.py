"""Training goes well, validation does not."""

import numpy as np

from gradoscope import thresholds as T
from gradoscope import tree
from gradoscope.batches import TensorBatches
from gradoscope.case import Case
from gradoscope.diagnosis import Counterfactual, Evidence, Finding
from gradoscope.measure.generalization import gap
from gradoscope.obstacles import Mechanism, Obstacle, chance_above, chance_below, evidence
from gradoscope.remedies import Remedy
from gradoscope.remedies.more_data import MoreData
from gradoscope.remedies.weight_decay import WeightDecay

__all__ = ["OBSTACLE", "Overfitting"]


class _EarlyStop(Remedy):
    """Stop where the validation loss was lowest, the step chosen on one half of the examples and judged on the other."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.name = "early_stopping"
        self.explanation = f"The training stops at step {step}, where the validation loss was lowest."
        self.code = f"# keep the parameters of about step {step}: those with the lowest validation loss"


class Overfitting(Obstacle):
    """The validation loss is materially above the training loss, and regularisation, more data or stopping lowers it."""

    name = "overfitting"
    title = "the training goes well, validation does not"
    about = "validation"
    advice = "More data or augmentation, regularisation, or stopping early."
    yields_to = ("missing_symmetry",)

    def mechanism(self, case: Case, known: dict[str, Finding]) -> Mechanism:
        if not case.baseline.validation:
            return Mechanism(None, missing=["validation data"])
        train, valid = case.baseline.result(), case.baseline.result("validation")
        if not (np.isfinite(train).all() and np.isfinite(valid).all()):
            return Mechanism(
                False,
                0.95,
                [evidence("first_non_finite_step", case.baseline.broke, "the training loss itself is not finite", supports=False)],
            )
        m = gap(train, valid)
        whole = case.start_level - min(case.final, case.start_level)
        if whole < 1e-6 * max(abs(case.start_level), 1e-30):
            return Mechanism(
                False, 0.95, [evidence("removed_share", 0.0, "the training removed nothing: there is nothing to overfit", supports=False)]
            )
        share, se = float(m.value) / whole, float(m.se or 0.0) / whole
        removed = whole / max(case.start_level - (case.attainable if case.attainable is not None else min(case.best, case.final)), 1e-12)
        wide = share > T.MINOR and share - 1.645 * se > T.LEVEL
        says = f"validation loss {valid.mean():.4g}, training loss {train.mean():.4g}: {share:.0%} of the progress is lost on new data"
        found: list[Evidence] = [
            evidence(
                "generalisation_gap",
                share,
                says,
                se=se,
                supports=wide,
            )
        ]
        if removed < T.UNEXPLAINED:
            found.append(evidence("removed_share", removed, f"the training itself removed only {removed:.0%} of its loss", supports=False))
            # With next to nothing learnt there is nothing to overfit, unless the validation loss rises for it.
            wide = wide and removed > T.NOT_LEARNT
        return Mechanism(wide, 0.95, found)

    def examine(self, case: Case, known: dict[str, Finding]) -> Finding:
        first = self.mechanism(case, known)
        if first.holds is None:
            return self.finding("undetermined", 0.5, "there are no validation data", first)
        if first.holds is False:
            return self.finding("absent", first.probability, "validation follows training", first)
        if not case.counterfactuals:
            return self.finding("undetermined", 0.5, "mechanism only", first, missing=["counterfactual"])
        tried = self.confirm(case, known)
        best = max(tried, key=lambda c: c.gain)
        for c in tried:
            first.evidence.append(
                evidence(
                    f"counterfactual {c.remedy}",
                    c.gain,
                    f"under {c.remedy} the validation loss is {c.loss_remedy:.4g} instead of {c.loss_unchanged:.4g}",
                    supports=c.gain > T.MINOR,
                )
            )
        cause = self._cause(best, known)
        if cause is not None:
            first.evidence.append(cause)
            return self.finding("absent", 0.9, "another change explains the gain", first, best)
        if best.gain >= T.MINOR and best.interval[0] > T.LEVEL:
            says = f"{best.remedy} brings the validation loss from {best.loss_unchanged:.4g} to {best.loss_remedy:.4g}"
            return self.finding("present", first.probability * chance_above(best, T.LEVEL), says, first, best)
        if best.interval[1] < T.MINOR:
            return self.finding(
                "absent", chance_below(best, T.MATERIAL), "nothing that was tried lowers the validation loss materially", first, best
            )
        return self.finding(
            "undetermined", 0.5, f"the best remedy removes {best.gain:.0%} of the gap", first, best, missing=["more validation data"]
        )

    def confirm(self, case: Case, known: dict[str, Finding]) -> list[Counterfactual]:
        tried = [self._early_stop(case)]
        more = self._more_data(case)
        if more is not None:
            tried.append(more)
        if not any(c.gain >= T.MINOR and c.interval[0] > T.LEVEL for c in tried):
            tried += [case.validate(WeightDecay(w)) for w in (1e-3, 1e-2, 1e-1)]
        return tried

    def _early_stop(self, case: Case) -> Counterfactual:
        changed, step = case.baseline.lowest("validation")
        return case.judge_validation(_EarlyStop(step), changed, case.baseline.curve("validation"), slice(None))

    def _more_data(self, case: Case) -> Counterfactual | None:
        train, valid = case.batches, case.validation
        if not isinstance(train, TensorBatches) or not isinstance(valid, TensorBatches) or type(train.data) is not type(valid.data):
            return None
        probe = case.probes[1]
        if probe is None or len(probe.batches) != 1 or case.training.loss_fn is None:
            return None
        parts = len(case.baseline.validation[0][1])
        rows = tree.rows(probe.batches[0]) or 0
        # The probe cuts its rows into equal parts: the rows of the first half of the parts go into the training.
        cut = int(np.array_split(np.arange(rows), parts)[parts // 2][0])
        extra = tree.take(probe.batches[0], slice(0, cut))
        return case.validate(MoreData(extra), slice(parts // 2, None))


OBSTACLE = Overfitting()
