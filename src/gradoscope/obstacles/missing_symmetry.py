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
from gradoscope.remedies.equivariant import Equivariant
from gradoscope.remedies.symmetrise import Symmetrise
from gradoscope.training import Live, split

__all__ = ["OBSTACLE", "MissingSymmetry"]

ROWS = 2048
LEAST = 64  # examples from which laws can be told apart
MOST = 4  # groups that are tried, those that the model respects least
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
        found = self._symmetries(case)
        if not found:
            says = "no group that was tried leaves the law of the examples as it is, or the model respects those that do"
            first.evidence.append(evidence("symmetries", 0, says, supports=False))
            return self.finding("absent", 0.9, "no symmetry is missing", first)
        for group, law, defect in found:
            says = f"examples look the same under {group.name} (p = {law.p:.2g}), the model's answers do not (defect {defect.value:.2g})"
            first.evidence.append(evidence("equivariance_defect", defect.value, says, se=defect.se, supports=True))
        if not case.counterfactuals:
            return self.finding("undetermined", 0.5, "mechanism only", first, missing=["counterfactual"])
        return self._judge(case, [group for group, _, _ in found], first)

    def _judge(self, case: Case, groups: list[Group], first: Mechanism) -> Finding:
        """The second key: with the symmetry the same examples generalise, beyond what stopping in time does."""
        stopped, step = case.baseline.lowest("validation")
        floor = min(case.attainable or 0.0, float(stopped.mean()))
        left = max(float(stopped.mean()) - floor, 1e-12)
        best: tuple[float, Counterfactual] | None = None
        pairs = [g for g in groups if g.name.startswith(("change of sign", "reflection"))]
        for remedy in self._remedies(groups):
            c = case.validate(remedy)
            tried = case.tried(c)
            if c.failed or tried is None:
                continue
            gain, se = paired(stopped, tried[1].lowest("validation")[0])
            # A group of two doubles the examples at most, which any two halves of a data set do for each other.
            enough = T.UNEXPLAINED if isinstance(remedy, Symmetrise) and remedy.group in pairs else T.MATERIAL
            clear = gain > T.SIGMAS * se and gain >= enough * left
            says = (
                f"under {remedy.name} the validation loss gets down to {float(stopped.mean()) - gain:.4g}, unchanged and stopped at step "
                f"{step} to {float(stopped.mean()):.4g}"
            )
            first.evidence.append(evidence(f"counterfactual {remedy.name}", gain / left, says, se=se / left, supports=clear))
            if clear and c.gain >= T.MINOR and (best is None or c.gain > best[1].gain):
                best = (gain / left, c)
        if best is None:
            return self.finding("absent", 0.9, "with the symmetry the same examples generalise no better", first)
        c = best[1]
        says = f"{c.remedy} brings the validation loss from {c.loss_unchanged:.4g} to {c.loss_remedy:.4g}"
        return self.finding("present", first.probability * chance_above(c, T.LEVEL), says, first, c)

    @staticmethod
    def _remedies(groups: list[Group]) -> list[Remedy]:
        reorders = any(g.name.startswith("permutations of") and "blocks" not in g.name for g in groups)
        return [*(Symmetrise(g) for g in groups), *([Equivariant()] if reorders else [])]

    @staticmethod
    def _symmetries(case: Case) -> list[tuple[Group, Measurement, Measurement]]:
        """The groups that leave the law of the examples as it is, the largest of each family, and that the model does not respect."""

        def read(live: Live) -> list[tuple[Group, Measurement, Measurement]]:
            if live.training.loss_fn is None:
                return []
            batches = live.batches.sample(ROWS, "fresh")
            inputs, target = split(tree.concatenate(batches))
            if not isinstance(target, Tensor) or len(target) < LEAST:
                return []
            parts: Any = inputs if len(inputs) > 1 else inputs[0]
            found, kept = [], set()
            for family in natural_groups(parts, target):
                for group in family:
                    if group.name in kept:
                        break
                    law = law_under(parts, target, group, seed=case.seed)
                    if law.p is None or law.p <= T.ALPHA:
                        continue
                    kept.add(group.name)
                    defect = _defect(live, inputs, target, group)
                    if defect is not None and float(defect.value) > T.MINOR:
                        found.append((group, law, defect))
                    break
            return sorted(found, key=lambda f: -float(f[2].value))[:MOST]

        found: list[tuple[Group, Measurement, Measurement]] = case.measure("symmetries", max(case.baseline.states), read)
        return found


def _defect(live: Live, inputs: tuple[Tensor, ...], target: Tensor, group: Group) -> Measurement | None:
    """How far the model is from the symmetry; None where its answers do not move as the targets do."""
    few = tuple(x[:JUDGED].to(live.device) for x in inputs)
    parts: Any = few if len(few) > 1 else few[0]

    def answer(x: Any) -> Tensor:
        z = live.model(*x) if isinstance(x, tuple) else live.model(x)
        # Scores of classes stand in dimension 1 where the targets' entries stand in the last: the entries come first.
        behind = isinstance(z, Tensor) and z.dim() == target.dim() + 1 and target.dim() > 1 and z.shape[2:] == target.shape[1:]
        return z.movedim(1, -1) if behind else z

    try:
        return equivariance_defect(answer, parts, group, samples=4, model=live.model)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None


OBSTACLE = MissingSymmetry()
