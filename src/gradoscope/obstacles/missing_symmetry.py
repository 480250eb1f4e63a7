"""The model ignores a symmetry that its problem has."""

from typing import Any

from torch import Tensor

from gradoscope import thresholds as T
from gradoscope import tree
from gradoscope.case import Case
from gradoscope.comparison import paired
from gradoscope.diagnosis import Counterfactual, Finding
from gradoscope.measure.invariance import law_under, natural_groups
from gradoscope.measure.symmetry import Group, equivariance_defect
from gradoscope.measurement import Measurement
from gradoscope.obstacles import Mechanism, Obstacle, chance_above, evidence
from gradoscope.obstacles.overfitting import OBSTACLE as OVERFITTING
from gradoscope.remedies import Remedy
from gradoscope.remedies.equivariant import Equivariant, Sliding
from gradoscope.remedies.symmetrise import Symmetrise
from gradoscope.training import Live, split

__all__ = ["OBSTACLE", "MissingSymmetry"]

Missing = tuple[Group, Measurement, Measurement]  # a group, the test that the examples have it, the defect of the model

ROWS = 2048
LEAST = 64  # examples from which laws can be told apart
MOST, EACH = 3, 2  # families that are tried, and groups of each
JUDGED = 256  # examples on which the model's own defect is measured


class MissingSymmetry(Obstacle):
    """Validation stays behind; the examples have a symmetry that the model lacks; with it, the same data generalise."""

    name = "missing_symmetry"
    title = "the model ignores an invariance of the problem"
    about = "validation"
    advice = "Give the model the symmetry, or train on examples moved by it."

    def examine(self, case: Case, known: dict[str, Finding]) -> Finding:
        first = OVERFITTING.mechanism(case, known)
        if first.holds is None:
            return self.finding("undetermined", 0.5, "there are no validation data", first)
        if first.holds is False:
            return self.finding("absent", first.probability, "validation follows training", first)
        families = self._symmetries(case)
        if not families:
            says = "no group that was tried leaves the law of the examples as it is, or the model respects those that do"
            first.evidence.append(evidence("symmetries", 0, says, supports=False))
            return self.finding("absent", 0.9, "no symmetry is missing", first)
        for group, law, defect in (found for family in families for found in family):
            says = f"examples look the same under {group.name} (p = {law.p:.2g}), the model's answers do not (defect {defect.value:.2g})"
            first.evidence.append(evidence("equivariance_defect", defect.value, says, se=defect.se, supports=True))
        if not case.counterfactuals:
            return self.finding("undetermined", 0.5, "mechanism only", first, missing=["counterfactual"])
        helped: list[Counterfactual] = []
        for family in families:
            for group, _, _ in family:
                better = [c for remedy in _remedies(group) if (c := self._generalises(case, remedy, group, first)) is not None]
                helped += better
                if better:
                    break  # the smaller groups of the family are part of this one
        if not helped:
            return self.finding("absent", 0.9, "with the symmetry the same examples generalise no better", first)
        best = max(helped, key=lambda c: c.gain)
        summary = f"{best.remedy} brings the validation loss from {best.loss_unchanged:.4g} to {best.loss_remedy:.4g}"
        return self.finding("present", first.probability * chance_above(best, T.LEVEL), summary, first, best)

    @staticmethod
    def _generalises(case: Case, remedy: Remedy, group: Group, first: Mechanism) -> Counterfactual | None:
        """The second key: with the symmetry the same examples generalise, beyond what stopping in time does."""
        c = case.validate(remedy)
        tried = case.tried(c)
        if c.failed or tried is None:
            return None
        stopped, step = case.baseline.lowest("validation")
        lowest = float(stopped.mean())
        left = max(lowest - min(case.attainable or 0.0, lowest), 1e-12)
        gain, se = paired(stopped, tried[1].lowest("validation")[0])
        # A group of two doubles the examples at most, which any two halves of a data set do for each other.
        enough = T.UNEXPLAINED if group.name.startswith(("change of sign", "reflection")) else T.MATERIAL
        clear = gain > T.SIGMAS * se and gain >= enough * left
        says = f"under {remedy.name} the validation loss gets down to {lowest - gain:.4g}, unchanged to {lowest:.4g} at step {step}"
        first.evidence.append(evidence(f"counterfactual {remedy.name}", gain / left, says, se=se / left, supports=clear))
        return c if clear and c.gain >= T.MINOR else None

    @staticmethod
    def _symmetries(case: Case) -> list[list[Missing]]:
        """The groups that leave the law of the examples as it is and that the model does not respect, by family, the largest first."""

        def read(live: Live) -> list[list[Missing]]:
            if live.training.loss_fn is None:
                return []
            inputs, target = split(tree.concatenate(live.batches.sample(ROWS, "fresh")))
            if not isinstance(target, Tensor) or len(target) < LEAST:
                return []
            parts: Any = inputs if len(inputs) > 1 else inputs[0]
            found: list[list[Missing]] = []
            kept: set[str] = set()
            for family in natural_groups(parts, target):
                missing = []
                for group in family:
                    law = law_under(parts, target, group, seed=case.seed) if group.name not in kept else None
                    if law is None or law.p is None or law.p <= T.ALPHA:
                        continue
                    kept.add(group.name)
                    defect = _defect(live, inputs, target, group)
                    if defect is not None and float(defect.value) > T.MINOR:
                        missing.append((group, law, defect))
                found.append(missing[:EACH])
            return [family for family in found if family][:MOST]

        found: list[list[Missing]] = case.measure("symmetries", max(case.baseline.states), read)
        return found


def _remedies(group: Group) -> list[Remedy]:
    orders = group.name.startswith("permutations of") and "blocks" not in group.name
    slides = group.name.startswith("shifts")
    return [Symmetrise(group), *([Equivariant()] if orders else []), *([Sliding()] if slides else [])]


def _defect(live: Live, inputs: tuple[Tensor, ...], target: Tensor, group: Group) -> Measurement | None:
    """How far the model is from the symmetry; None where its answers do not move as the targets do."""
    few = tuple(x[:JUDGED].to(live.device) for x in inputs)
    parts: Any = few if len(few) > 1 else few[0]

    def answer(x: Any) -> Tensor:
        z: Tensor = live.model(*x) if isinstance(x, tuple) else live.model(x)
        # Scores of classes stand in dimension 1 where the targets' entries stand in the last: the entries come first.
        behind = isinstance(z, Tensor) and z.dim() == target.dim() + 1 and target.dim() > 1 and z.shape[2:] == target.shape[1:]
        return z.movedim(1, -1) if behind else z

    try:
        return equivariance_defect(answer, parts, group, samples=4, model=live.model)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None


OBSTACLE = MissingSymmetry()
