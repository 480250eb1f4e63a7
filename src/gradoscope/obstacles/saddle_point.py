"""Near a critical point with negative curvature, or in a symmetric subspace that the dynamics never leave."""

from gradoscope import layer_readings, readings
from gradoscope import thresholds as T
from gradoscope.case import Case
from gradoscope.diagnosis import Counterfactual, Evidence, Finding
from gradoscope.obstacles import Mechanism, Obstacle, evidence
from gradoscope.remedies.break_symmetry import BreakSymmetry
from gradoscope.remedies.line_search import LineSearch
from gradoscope.remedies.perturb import Perturb

__all__ = ["OBSTACLE", "SaddlePoint"]


class SaddlePoint(Obstacle):
    """The gradient is next to nothing and the loss falls along negative curvature, or units are copies of each other and stay so."""

    name = "saddle_point"
    title = "the training sits near a saddle point, or in a symmetric subspace that its steps never leave"
    advice = "Leave the saddle: a larger or asymmetric start, noise, or a step along negative curvature."
    yields_to = ("wrong_loss_output",)
    after = ("step_too_large",)

    def _place(self, case: Case) -> readings.Curvature:
        """The checkpoint at which the gradient is smallest relative to the curvature."""
        return min((readings.curvature(case, step) for step in readings.window(case)), key=lambda r: r.gamma)

    def _first_place(self, case: Case) -> int:
        """The first checkpoint that is near a saddle: from there on the run is held, and from there it has the most steps to go."""
        for step in readings.window(case):
            r = readings.curvature(case, step)
            if r.gamma < T.GAMMA_CRITICAL and self._negative(r):
                return step
        return self._place(case).step

    @staticmethod
    def _negative(r: readings.Curvature) -> bool:
        mean, se = r.negative
        share = -mean / max(r.spectrum.largest, 1e-30) if r.spectrum.largest > 0 else 1.0
        return mean + 1.96 * se < 0 and share > T.NEGATIVE_SHARE

    def mechanism(self, case: Case, known: dict[str, Finding]) -> Mechanism:
        found: list[Evidence] = []
        r = self._place(case)
        near = r.gamma < T.GAMMA_CRITICAL
        found.append(
            evidence(
                "relative_gradient",
                r.gamma,
                f"at step {r.step} the gradient is {r.gamma:.2g} of what the curvature could supply",
                supports=near,
                step=r.step,
            )
        )
        mean, se = r.negative
        negative = self._negative(r)
        found.append(
            evidence(
                "negative_curvature",
                mean,
                f"curvature along the most negative direction is {mean:.3g} +- {se:.1g} on other examples",
                supports=negative,
                se=se,
                step=r.step,
                rules_out=("local_minimum",) if negative else (),
            )
        )
        _, trend, drop = readings.moving(case)
        stuck = drop < T.SLOW
        found.append(evidence("progress", drop, f"the second half removes {drop:.0%} of the excess", supports=stuck, p=trend.p))
        copies = layer_readings.twins(case, case.checkpoint(0.5))
        layer = max(copies, key=lambda name: copies[name], default=None)
        symmetric = layer is not None and copies[layer] >= T.TWINS
        if layer is not None and copies[layer] > 0:
            says = f"half way, {copies[layer]:.0%} of the units of {layer} are copies of another one, with the same gradient"
            found.append(evidence("twin_share", copies[layer], says, supports=symmetric, step=case.checkpoint(0.5)))
        return Mechanism((near and negative and stuck) or symmetric, 0.97, found)

    def confirm(self, case: Case, known: dict[str, Finding]) -> list[Counterfactual]:
        copies = layer_readings.twins(case, case.checkpoint(0.5))
        if max(copies.values(), default=0.0) >= T.TWINS:
            broken = case.trial(BreakSymmetry())
            if case.material(broken):
                return [broken]
        start = self._first_place(case)
        if start >= case.first + 0.9 * case.steps:
            start = case.checkpoint(0.5)
        tried = [case.trial(LineSearch("negative_curvature"), start=start)]
        if not case.material(tried[0]):
            # A symmetric start: noise breaks the symmetry in all directions at once, a line in one only.
            tried.append(case.trial(Perturb(0.1)))
        return tried

    def rivals(self, case: Case, best: Counterfactual, known: dict[str, Finding]) -> Evidence | None:
        """A plain line search along the gradient that does as well means that the saddle is not what holds it."""
        if best.remedy.startswith("perturb") or best.remedy == BreakSymmetry.name:
            return None
        along = case.trial(LineSearch("gradient"), start=best.start)
        r = self._place(case)
        if along.shortfall * 1.5 >= best.shortfall and (r.c is None or r.c >= 0) and r.gamma > T.GAMMA_MOVING:
            return evidence(
                "counterfactual line_search(gradient)",
                along.shortfall,
                f"one long step along the gradient gains {along.shortfall:.0%}, about as much as along negative curvature",
                supports=False,
            )
        return None


OBSTACLE = SaddlePoint()
