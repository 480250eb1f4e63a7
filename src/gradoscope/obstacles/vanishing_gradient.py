"""Flat, saturated or dead activations, or signal lost with depth or time, keep the gradient from some layers."""

import math

from gradoscope import layer_readings
from gradoscope import thresholds as T
from gradoscope.case import Case
from gradoscope.diagnosis import Counterfactual, Evidence, Finding
from gradoscope.obstacles import Mechanism, Obstacle, evidence
from gradoscope.remedies.activation import ReluActivation
from gradoscope.remedies.gate import Gate
from gradoscope.remedies.rescale import Rescale, rescalable
from gradoscope.remedies.unblock import Unblock

__all__ = ["OBSTACLE", "VanishingGradient"]


class VanishingGradient(Obstacle):
    """Some layer's sensitivity is a small part of another's, or nothing passes through it."""

    name = "vanishing_gradient"
    title = "the gradient does not reach some layers: flat, saturated or dead activations, or signal lost with depth"
    advice = "Let the gradient through: another start or activation, normalisation, gates, or a forward-only backward pass."
    yields_to = ("unnormalised_inputs", "wrong_loss_output")
    after = ("step_too_large", "exploding_gradient", "saddle_point")

    def mechanism(self, case: Case, known: dict[str, Finding]) -> Mechanism:
        found: list[Evidence] = []
        holds = False
        for step in dict.fromkeys((case.checkpoint(0.0), case.checkpoint(0.5))):
            reading = layer_readings.sensitivity(case, step)
            layers = {k: v for k, v in reading.items() if math.isfinite(v)}
            if not layers:
                continue
            low, high = min(layers, key=lambda k: layers[k]), max(layers, key=lambda k: layers[k])
            ratio = layers[low] / layers[high] if layers[high] > 0 else 0.0
            small = ratio < T.SENSITIVITY_RATIO
            what = (
                "no layer's parameters change any example's loss to first order"
                if layers[high] == 0
                else f"layer {low} is {ratio:.1e} times as sensitive as layer {high} at step {step}"
            )
            if low == high and not small:
                what = f"layer {low} is the only one, and a gradient reaches it at step {step}"
            found.append(evidence("layer_sensitivity_ratio", ratio, what, supports=small, step=step))
            holds = holds or small
            for layer in layer_readings.signals(case, step):
                if layer.dead_share >= T.DEAD_SHARE:
                    holds = True
                    found.append(
                        evidence(
                            f"dead_share {layer.name}",
                            layer.dead_share,
                            f"{layer.dead_share:.0%} of the units of {layer.name} give the same output for every example",
                            supports=True,
                            step=step,
                        )
                    )
                elif layer.saturated_share >= T.SATURATED_SHARE:
                    holds = True
                    found.append(
                        evidence(
                            f"saturated_share {layer.name}",
                            layer.saturated_share,
                            f"{layer.saturated_share:.0%} of {layer.name} has no slope",
                            supports=True,
                            step=step,
                        )
                    )
            if holds and step == case.checkpoint(0.0):
                break
        over_time = layer_readings.time_ratio(case, case.checkpoint(0.0))
        if over_time is not None:
            faded = over_time < T.TIME_RATIO
            says = f"the first inputs of a sequence move the loss {over_time:.1e} times as much as those that move it most"
            found.append(evidence("time_sensitivity_ratio", over_time, says, supports=faded, step=case.checkpoint(0.0)))
            holds = holds or faded
        if not found:
            return Mechanism(None, missing=["per-example gradients by layer"])
        return Mechanism(holds, 0.97, found)

    def confirm(self, case: Case, known: dict[str, Finding]) -> list[Counterfactual]:
        tried = []
        blocked = all(v == 0 for v in layer_readings.sensitivity(case, case.checkpoint(0.0)).values())
        with case.live() as live:
            layers = rescalable(live.model)
        if layers and not blocked:
            tried.append(case.trial(Rescale()))
        if not tried or not case.material(tried[-1]):
            tried.append(case.trial(Unblock()))
        if not case.material(tried[-1]):
            tried.append(case.trial(Unblock(saturating=True)))
        if not case.material(tried[-1]):
            tried.append(case.trial(ReluActivation()))
        if not case.material(tried[-1]) and self._fades(case):
            tried.append(case.trial(Gate()))
        return tried

    @staticmethod
    def _fades(case: Case) -> bool:
        """Whether the gradient vanishes over time."""
        over_time = layer_readings.time_ratio(case, case.checkpoint(0.0))
        return over_time is not None and over_time < T.TIME_RATIO

    def rivals(self, case: Case, best: Counterfactual, known: dict[str, Finding]) -> Evidence | None:
        """Where a step along negative curvature does as well, layers are cut off only because a saddle point is there."""
        grown = known.get("exploding_gradient")
        if grown is not None and grown.status == "present":
            says = "a start that grows from layer to layer explains what a start of even scale gains"
            return evidence(f"counterfactual {grown.counterfactual}", grown.gain, says, supports=False)
        saddle = known.get("saddle_point")
        if saddle is None or saddle.status != "present" or saddle.gain is None:
            return None
        # Longer steps along the gradient that is there do as well only where it reaches what has to learn.
        along = [(c.remedy, c.gain) for c in case.trials() if c.remedy == "line_search(gradient)" and not c.failed]
        remedy, gain = max([(saddle.counterfactual, saddle.gain), *along], key=lambda pair: pair[1])
        if gain < T.SAME_GAIN * best.gain:
            return None
        says = f"{remedy} does as well: the gradient vanishes because the start is a saddle point"
        return evidence(f"counterfactual {remedy}", gain, says, supports=False)


OBSTACLE = VanishingGradient()
