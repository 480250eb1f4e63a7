"""One long step along a chosen direction, its length found by a search; then the training goes on as before."""

import math
from typing import Literal

import torch

from gradoscope.measure.curvature import extreme_eigenvalues
from gradoscope.objective import Objective
from gradoscope.remedies import Remedy
from gradoscope.training import Live

__all__ = ["LineSearch"]


class LineSearch(Remedy):
    r"""Move once to $\theta+a\,d$ with the best length a, d being negative curvature, the gradient, or random.

    Lengths are tried in units of $\sqrt{2|J|/|\lambda|}$, the distance over which curvature $\lambda$ makes up the
    whole loss, in both directions of d. Direction and length come from examples other than those that judge the result
    wherever the data are sampled afresh.

    Cost: about 30 Hessian-vector products for negative curvature, and 26 forward passes.
    """

    def __init__(self, direction: Literal["negative_curvature", "gradient"], products: int = 30) -> None:
        self.direction, self.products = direction, products
        self.name = f"line_search({direction})"
        words = {"negative_curvature": "the direction of most negative curvature", "gradient": "the full gradient"}
        self.explanation = f"One long step along {words[direction]}, then the training goes on as before."
        self.code = (
            "from gradoscope.remedies.line_search import LineSearch\n"
            "from gradoscope.training import Live\n"
            "with Live.of(training) as live:  # the gradoscope.Training that was diagnosed\n"
            f"    LineSearch({direction!r}).prepare(live)"
        )

    def prepare(self, live: Live) -> None:
        objective = Objective.of(live, live.batches.sample(512, "fresh"), seed=11)
        spectrum = extreme_eigenvalues(objective, k=1, max_products=self.products, tolerance=0.05, seed=live.seed)
        if self.direction == "negative_curvature":
            direction = spectrum.bottom_vectors[0]
            curvature = abs(float(spectrum.bottom[0]))
        else:
            direction = objective.gradient()
            curvature = abs(spectrum.largest_magnitude)
        norm = float(direction.norm())
        loss = objective.loss()
        if norm == 0 or curvature == 0 or not math.isfinite(loss):
            return
        direction = direction.to(objective.parameters[0].dtype) / norm
        unit = math.sqrt(2 * abs(loss) / curvature)
        theta, best = objective.theta(), (loss, 0.0)
        for power in range(-8, 5):
            for sign in (1.0, -1.0):
                length = sign * unit * 2.0**power
                value = float(objective.at(theta + length * direction).mean())
                if math.isfinite(value) and value < best[0]:
                    best = (value, length)
        objective.release()
        with torch.no_grad():
            objective._set(theta + best[1] * direction)
