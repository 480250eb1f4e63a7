"""Steps whose length is searched and not set."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradoscope.updates._closure import ClosureObjective, check_step
from gradoscope.updates._rule import Range, check

__all__ = ["LineSearch", "backtrack"]

HALVINGS = 60  # 2^-60 of the first length is below the rounding of any parameter


def backtrack(loss: Callable[[Tensor], float], theta: Tensor, direction: Tensor, before: float, slope: float, length: float) -> float:
    r"""The first of $a,\frac a2,\frac a4,\dots$ with $J(\theta+a\,d)\le J(\theta)+10^{-4}a\,g^\top d$ (Armijo), 0 where none is.

    Args:
        loss: J of a vector of parameters.
        theta: where the step starts, shape (dim,).
        direction: d, shape (dim,).
        before: J there.
        slope: $g^\top d$.
        length: a, the first length to try.

    Cost: one evaluation for each length.

    Example:
        >>> x = torch.tensor([1.0], dtype=torch.float64)
        >>> backtrack(lambda t: float(t.square()), x, -2 * x, before=1.0, slope=-4.0, length=4.0)
        0.5
    """
    if not slope < 0 or not math.isfinite(before):
        return 0.0
    for _ in range(HALVINGS):
        after = loss(theta + length * direction)
        if math.isfinite(after) and after <= before + 1e-4 * length * slope:
            return length
        length /= 2
    return 0.0


class LineSearch(Optimizer):
    r"""Steepest descent with a line search: $\theta-a\,g$ with the first a that lowers the loss enough, see `backtrack`.

    The first length tried is `lr`, and then `growth` times the last one that was taken. The loss never rises. PyTorch has a line search
    only inside `LBFGS`.

    Args:
        params: the parameters, one group of real ones.
        lr: the first length of all to try.
        growth: by how much the next search starts longer.

    Raises:
        ValueError: for a hyperparameter out of its range, several groups, or complex parameters.

    Cost per step: one gradient and, as a rule, two losses more.

    Example:
        >>> x = torch.tensor([2.0, 1.0], requires_grad=True)
        >>> optimizer = LineSearch([x])
        >>> losses = [float(optimizer.step(lambda: x[0] ** 2 + 10 * x[1] ** 2)) for _ in range(50)]
        >>> all(a >= b for a, b in zip(losses, losses[1:])), losses[-1] < 1e-3
        (True, True)

    Source: Armijo 1966, Minimization of functions having Lipschitz continuous first partial derivatives.
    """

    ranges: ClassVar[dict[str, Range]] = {"lr": Range(closed=False), "growth": Range(low=1.0)}

    def __init__(self, params: Any, lr: float = 1.0, growth: float = 2.0) -> None:
        check("LineSearch", self.ranges, {"lr": lr, "growth": growth})
        super().__init__(params, {"lr": lr, "growth": growth})
        check_step("LineSearch", self.param_groups)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> float:  # type: ignore[override]
        """One step.

        Args:
            closure: gives the loss, the same function at each call; it may call backward or not.

        Returns:
            The loss before the step.
        """
        parameters, group = check_step("LineSearch", self.param_groups), self.param_groups[0]
        state = self.state[parameters[0]]
        objective = ClosureObjective(parameters, closure, state.get("t", 0))
        g, before, theta = objective.slope, objective.value, objective.theta()
        length = state["length"] * group["growth"] if state.get("length") else group["lr"]
        state["t"] = state.get("t", 0) + 1
        taken = backtrack(objective.loss_at, theta, -g, before, -float(g.double().square().sum()), length)
        if taken > 0:
            objective._set(theta - taken * g)
            state["length"] = taken
        return before
