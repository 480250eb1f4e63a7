"""Signal or gradient grows with depth or time; cliffs; overflow."""

import numpy as np

from gradoscope import layer_readings
from gradoscope import thresholds as T
from gradoscope.case import Case
from gradoscope.diagnosis import Counterfactual, Evidence, Finding
from gradoscope.obstacles import Mechanism, Obstacle, best_step, evidence
from gradoscope.remedies.clip import Clip
from gradoscope.remedies.rescale import Rescale, rescalable

__all__ = ["OBSTACLE", "ExplodingGradient"]


class ExplodingGradient(Obstacle):
    """The signal grows from layer to layer at the start, or single gradients are far longer than the others."""

    name = "exploding_gradient"
    title = "signal or gradient grows with depth or time, or the loss has cliffs"
    advice = "Rescale the start (or normalise between layers), or clip the gradient norm."
    yields_to = ("unnormalised_inputs", "wrong_loss_output")

    def mechanism(self, case: Case, known: dict[str, Finding]) -> Mechanism:
        found: list[Evidence] = []
        start = case.checkpoint(0.0)
        layers = [s for s in layer_readings.signals(case, start) if s.output_rms > 0]
        growth = max((s.output_rms for s in layers), default=0.0) / max(min((s.output_rms for s in layers[:1]), default=1.0), 1e-30)
        grads = [s.gradient_rms for s in layers if s.gradient_rms and np.isfinite(s.gradient_rms)]
        back = grads[0] / grads[-1] if len(grads) > 1 and grads[-1] > 0 else 1.0
        overflow = any(not np.isfinite(s.output_rms) for s in layer_readings.signals(case, start))
        grows = overflow or growth > T.GROWTH or back > T.GROWTH
        found.append(
            evidence(
                "signal_growth",
                growth,
                f"the signal grows {growth:.3g}-fold through the layers at the start",
                supports=growth > T.GROWTH,
                step=start,
            )
        )
        found.append(
            evidence("gradient_growth", back, f"the gradient grows {back:.3g}-fold on its way back", supports=back > T.GROWTH, step=start)
        )
        through = layer_readings.output_growth(case, start)
        if through is not None:
            grows = grows or through > T.GROWTH
            says = f"the output is {through:.3g} times as large as the input at the start"
            found.append(evidence("output_growth", through, says, supports=through > T.GROWTH, step=start))
        norms = np.array(case.baseline.gradient_norm)
        finite = norms[np.isfinite(norms)]
        tail = float(finite.max() / np.median(finite)) if len(finite) > 1 and np.median(finite) > 0 else 1.0
        # A tail that only the first steps make is the start's; cliffs come later.
        later = finite[len(finite) // 20 :] if len(finite) >= 40 else finite
        tail = float(later.max() / np.median(later)) if len(later) > 1 and np.median(later) > 0 else tail
        cliffs = tail > T.CLIFF or len(finite) < len(norms)
        found.append(evidence("gradient_norm_tail", tail, f"the longest gradient is {tail:.3g} times the median one", supports=cliffs))
        return Mechanism(grows or cliffs, 0.95, found)

    def confirm(self, case: Case, known: dict[str, Finding]) -> list[Counterfactual]:
        # Each form of it has a remedy of its own: a start that grows is rescaled, steps off cliffs are clipped.
        tried: list[Counterfactual] = []
        forms = {e.measurement.name for e in self.mechanism(case, known).evidence if e.supports}
        norms = np.array(case.baseline.gradient_norm)
        finite = norms[np.isfinite(norms)]
        growth = {"signal_growth", "gradient_growth", "output_growth"}
        if forms and len(finite):
            # The two bounds that people use: the median norm of the run, and one.
            bounds = {float(np.median(finite[: max(10, len(finite) // 2)])), 1.0}
            tried += [case.trial(Clip(bound)) for bound in sorted(bounds) if 0 < bound < finite.max()]
        if forms & growth:
            with case.live() as live:
                layers = rescalable(live.model)
            if layers:
                tried.append(case.trial(Rescale()))
        return tried

    def rivals(self, case: Case, best: Counterfactual, known: dict[str, Finding]) -> Evidence | None:
        """Without growth at the start, a smaller step that does about as well means that the step was too large."""
        names = {e.measurement.name for e in self.mechanism(case, known).evidence if e.supports}
        if names & {"signal_growth", "gradient_growth", "output_growth"}:
            return None
        smaller = best_step(case, 0.01)
        if smaller.shortfall < 0.8 * best.shortfall:
            return None
        says = f"nothing grows at the start, and {smaller.remedy} does as well ({smaller.shortfall:.0%})"
        return evidence(f"counterfactual {smaller.remedy}", smaller.shortfall, says, supports=False)


OBSTACLE = ExplodingGradient()
