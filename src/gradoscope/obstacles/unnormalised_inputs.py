"""Scale or offset of the inputs (or targets), and nothing else, makes the training slow or unstable."""

import math

import torch

from gradoscope import thresholds as T
from gradoscope.case import Case
from gradoscope.diagnosis import Counterfactual, Evidence, Finding
from gradoscope.measure.scales import Scales
from gradoscope.obstacles import Mechanism, Obstacle, evidence
from gradoscope.remedies.restart import Restart
from gradoscope.remedies.standardise import Standardise, input_scales, target_scales

__all__ = ["OBSTACLE", "UnnormalisedInputs"]


class UnnormalisedInputs(Obstacle):
    """The numbers that the model is given differ in scale, or are far from zero."""

    name = "unnormalised_inputs"
    title = "the scale or the offset of the inputs (or targets), and nothing else, slows the training down or breaks it"
    advice = "Standardise every feature on the training data: subtract its mean, divide by its standard deviation."

    def mechanism(self, case: Case, known: dict[str, Finding]) -> Mechanism:
        inputs, targets = self._scales(case)
        found: list[Evidence] = []
        for s in inputs:
            off = not 1 / T.OFF_SCALE <= s.size <= T.OFF_SCALE
            found.append(evidence("input_size", s.size, f"the root mean square of the inputs is {s.size:.3g}", supports=off))
            stretched = s.stretch >= T.STRETCH
            says = f"scale and offset of the features alone cost {max(s.stretch, 1.0):.3g} times as many stable steps as standardised ones"
            found.append(evidence("input_stretch", s.stretch, says, supports=stretched))
        if targets is not None:
            size = float((targets.mean.square() + targets.spread.square()).mean().sqrt())
            off = not 1 / T.OFF_SCALE <= size <= T.OFF_SCALE
            found.append(evidence("target_size", size, f"the root mean square of the targets is {size:.3g}", supports=off))
        if not found:
            return Mechanism(
                False, 0.9, [evidence("numeric_inputs", 0, "the model is given no numbers that could be standardised", supports=False)]
            )
        return Mechanism(any(e.supports for e in found), 0.97, found)

    def confirm(self, case: Case, known: dict[str, Finding]) -> list[Counterfactual]:
        inputs, targets = self._scales(case)
        tried = []
        if any(self._off(s) for s in inputs):
            tried.append(case.trial(Standardise()))
            # A step that was chosen for huge inputs is far too short for standardised ones.
            for factor in self._longer(case, inputs):
                if any(case.material(c) and c.loss_remedy - case.best < T.MATERIAL * case.scale for c in tried):
                    break
                tried.append(case.trial(Standardise(step=factor)))
        size = 1.0 if targets is None else float((targets.mean.square() + targets.spread.square()).mean().sqrt())
        if not 1 / T.OFF_SCALE <= size <= T.OFF_SCALE and not any(case.material(c) for c in tried):
            tried.append(case.trial(Standardise(inputs=bool(tried), targets=True)))
        return tried

    def rivals(self, case: Case, best: Counterfactual, known: dict[str, Finding]) -> Evidence | None:
        """A step size that does far better alone, or another start that does as well, means that the inputs' scale is not what holds it."""
        steps = [c for c in case.trials() if c.remedy.startswith("step_size") and c.on == "training" and not c.failed]
        other = max(steps, key=lambda c: c.shortfall, default=None)
        if other is not None and other.shortfall * T.EXPLAINED >= best.shortfall:
            says = f"{other.remedy} alone gains {other.shortfall:.0%}"
            return evidence(f"counterfactual {other.remedy}", other.shortfall, says, supports=False)
        # Standardised inputs lead a start elsewhere: where it is a matter of luck where a start leads, any other one may do as well.
        for number in (1, 2):
            again = case.trial(Restart(number))
            if case.material(again) and again.shortfall >= T.EXPLAINED * best.shortfall:
                says = f"{again.remedy}, on the inputs as they are, gains {again.shortfall:.0%}: the start decides, and not the inputs"
                return evidence(f"counterfactual {again.remedy}", again.shortfall, says, supports=False)
        return None

    @staticmethod
    def _off(s: Scales) -> bool:
        return s.stretch >= T.STRETCH or not 1 / T.OFF_SCALE <= s.size <= T.OFF_SCALE

    @staticmethod
    def _scales(case: Case) -> tuple[list[Scales], Scales | None]:
        start = case.checkpoint(0.0)
        inputs: list[Scales | None] = case.measure("input_scales", start, input_scales)
        targets: Scales | None = case.measure("target_scales", start, target_scales)
        return [s for s in inputs if s is not None], targets

    @staticmethod
    def _longer(case: Case, inputs: list[Scales]) -> tuple[float, ...]:
        """Powers of ten by which the step may grow once the inputs are standardised, largest first.

        Empty where the optimizer has a metric of its own, which follows the size of the gradient.
        """
        with case.live() as live:
            plain = isinstance(live.optimizer, (torch.optim.SGD, torch.optim.ASGD))
        ratio = max(s.largest for s in inputs) / max(s.standardised for s in inputs)
        power = math.floor(math.log10(ratio)) if plain and ratio > 0 else 0
        return tuple(10.0**k for k in range(power, max(power - 3, 0), -1))


OBSTACLE = UnnormalisedInputs()
