"""The mean gradient is there but drowned in the noise of its estimate."""

from gradoscope import readings
from gradoscope import thresholds as T
from gradoscope.case import Case
from gradoscope.diagnosis import Counterfactual, Evidence, Finding
from gradoscope.obstacles import Mechanism, Obstacle, best_step, evidence
from gradoscope.obstacles._parts import same_gradient
from gradoscope.remedies.decompose import Decompose
from gradoscope.remedies.larger_batch import LargerBatch

__all__ = ["OBSTACLE", "LowGradientSnr", "averaged"]

TIMES = 16  # a sixteenth of the variance: a quarter of the noise's standard deviation


class LowGradientSnr(Obstacle):
    """Noise takes back what the mean gradient gains; averaging over more examples at the same step size does not."""

    name = "low_gradient_snr"
    title = "the gradient is drowned in the noise of its estimate"
    advice = "Lower the variance of the gradient: a larger batch, averaging, a better estimator, or a decaying step size."
    yields_to = ("unnormalised_inputs", "wrong_loss_output")
    after = ("step_too_large",)

    def mechanism(self, case: Case, known: dict[str, Finding]) -> Mechanism:
        found: list[Evidence] = []
        if readings.live_full_batch(case):
            return Mechanism(
                False, 0.99, [evidence("batch_share", 1.0, "every step sees the whole data set: its gradient has no noise", supports=False)]
            )
        holds = False
        for step in (case.checkpoint(0.5), case.checkpoint(1.0)):
            reading = readings.noise(case, step)
            if reading is None:
                continue
            statistics, terms = reading
            scale = statistics.batch_noise_scale
            below = scale > statistics.batch
            found.append(
                evidence(
                    "noise_scale",
                    scale,
                    f"at step {step} signal and noise are equal at {scale:.3g} examples per step; it has {statistics.batch}",
                    supports=below,
                    step=step,
                    p=statistics.p_value,
                )
            )
            if not terms:
                continue
            d, c, m = terms["D"], terms["C"], terms["M"]
            net = float(d.value) - float(c.value)
            taken = float(m.value)
            drowned = taken > T.NOISE_SHARE * max(net, 0.0) or scale > T.NOISIER * statistics.batch
            says = f"per step the mean gradient removes {net:.2g} and noise adds {taken:.2g}"
            found.append(evidence("noise_loss_per_step", taken, says, supports=drowned, se=m.se, step=step, unit="loss"))
            holds = holds or (below and drowned)
        return Mechanism(holds, 0.95, found)

    def confirm(self, case: Case, known: dict[str, Finding]) -> list[Counterfactual]:
        tried = [averaged(case)]
        if same_gradient(case) is not None:
            # Targets of the parts that give the same mean gradient are an estimate of it with less variance.
            tried.append(case.trial(Decompose(alone=True)))
        return tried

    def rivals(self, case: Case, best: Counterfactual, known: dict[str, Finding]) -> Evidence | None:
        """Beyond the stability limit the step fails without noise too; averaging then only softens it."""
        s = max((r.s for r in (readings.curvature(case, step) for step in readings.window(case)) if r.s is not None), default=None)
        if s is None or s < T.STABILITY:
            return None
        smaller = best_step(case, 0.01)
        if smaller.shortfall < best.shortfall:
            return None
        says = (
            f"step size times largest curvature reaches {s:.3g}, beyond the limit of 2 without any noise, and {smaller.remedy} gains more"
        )
        return evidence("step_times_curvature", s, says, supports=False)


def averaged(case: Case) -> Counterfactual:
    """The training at the same step size with far more examples per step, from the start where that is affordable, else from the middle."""
    each = case.baseline.seconds / max(1, case.steps) * TIMES
    affordable = int(case.limit / 4 / max(each, 1e-9))
    start = case.first if affordable >= case.steps else case.checkpoint(0.5)
    steps = case.first + case.steps - start
    return case.trial(LargerBatch(TIMES), start=start, steps=max(min(steps, 60), min(steps, affordable)))


OBSTACLE = LowGradientSnr()
