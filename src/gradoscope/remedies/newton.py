"""Curvature-aware steps: Newton's step on the positive part of a Krylov space, with a line search."""

import math

from gradoscope.errors import GradoscopeError
from gradoscope.measure.curvature import krylov_newton
from gradoscope.objective import Objective
from gradoscope.remedies import Remedy
from gradoscope.training import Live

__all__ = ["KrylovNewton"]


class KrylovNewton(Remedy):
    r"""Replace the optimizer's step by $-\sum_{\lambda_i>0} v_i v_i^\top g/\lambda_i$, eigenpairs of H in a Krylov space of g.

    Directions of negative curvature are left alone, so that only conditioning is mended. The length is halved until
    the loss falls.

    Cost per step: one gradient, `products` Hessian-vector products, and a few forward passes on up to 2,048 examples.

    Source: Martens 2010, Deep learning via Hessian-free optimization (the idea); the positive part as in Dauphin et
    al. 2014.
    """

    takes_optimizer_steps = False

    def __init__(self, products: int = 40, rows: int = 2048) -> None:
        self.products, self.rows = products, rows
        self.name = f"krylov_newton({products})"
        self.explanation = "Each step is a Newton step on the positive curvature seen from the gradient, at no step size."
        self.code = (
            "# a step that knows curvature: L-BFGS on the full gradient, a preconditioner such as K-FAC or Shampoo,\n"
            "# or another parametrisation (normalised layers, whitened inputs)\n"
            "optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn='strong_wolfe')"
        )

    def examples_per_step(self) -> float:
        # A gradient and a product each take about two passes more than a loss; ten losses at most for the length.
        return float(self.rows * (2 * self.products + 5))

    def replace_step(self, live: Live, step: int) -> float | None:
        fresh = live.batches.size is None
        many = max(1, self.rows // (live.batches.batch_size or self.rows))
        batches = [live.batches.batch(step * many + j) for j in range(many)] if fresh else live.batches.sample(self.rows, "fresh")
        objective = Objective.of(live, batches, seed=step)
        gradient = objective.gradient()
        before = objective.loss()
        if not math.isfinite(before) or not bool(gradient.isfinite().all()):
            raise GradoscopeError("the loss or its gradient is not finite where the Newton step starts")
        direction = krylov_newton(objective, gradient, products=self.products, seed=step)
        objective.release()
        theta, length = objective.theta(), 1.0
        for _ in range(10):
            after = float(objective.at(theta + length * direction).mean())
            if math.isfinite(after) and after < before:
                objective._set(theta + length * direction)
                return before
            length /= 2
        return before
