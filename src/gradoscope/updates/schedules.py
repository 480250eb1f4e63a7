r"""The schedule of the lecture: $\eta(t)=\max(C\,t^{-\alpha},\eta_{\min})$."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gradoscope.updates._rule import Range, check

__all__ = ["PowerDecay", "power"]


def power(t: int, c: float, alpha: float, eta_min: float = 0.0) -> float:
    r"""$\eta(t)=\max(C\,t^{-\alpha},\eta_{\min})$ for $t=1,2,\dots$

    Example:
        >>> [power(t, 0.5, 1.0, eta_min=0.1) for t in (1, 2, 5, 100)]
        [0.5, 0.25, 0.1, 0.1]
    """
    return float(max(c * t**-alpha, eta_min))


class PowerDecay(LRScheduler):
    r"""The rate of step $t=1,2,\dots$ is $\max(C\,t^{-\alpha},\eta_{\min})$, C being each group's own learning rate at the start.

    A torch scheduler: call `step()` once after each step of the optimizer. With $\frac12<\alpha\le1$ and $\eta_{\min}=0$ the conditions
    $\sum\eta=\infty$ and $\sum\eta^2<\infty$ hold; with $\alpha>1$ the rates sum to a finite length, and the iterates cannot go further
    than that. With $\eta_{\min}>0$ the rate levels out, and SGD ends in a ball around the optimum. PyTorch has no such schedule.

    Args:
        optimizer: any.
        alpha: $\alpha\ge0$.
        eta_min: the least rate.
        last_epoch: the index of the last step, -1 for a new training.

    Raises:
        ValueError: for an alpha or eta_min that is negative or not finite.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = PowerDecay(optimizer, alpha=0.5, eta_min=0.55)
        >>> rates = []
        >>> for _ in range(4):
        ...     rates.append(round(optimizer.param_groups[0]["lr"], 4))
        ...     optimizer.step()
        ...     schedule.step()
        >>> rates
        [1.0, 0.7071, 0.5774, 0.55]

    Source: Robbins and Monro 1951, A stochastic approximation method (the two conditions).
    """

    def __init__(self, optimizer: Optimizer, alpha: float, eta_min: float = 0.0, last_epoch: int = -1) -> None:
        check("PowerDecay", {"alpha": Range(), "eta_min": Range()}, {"alpha": alpha, "eta_min": eta_min})
        self.alpha, self.eta_min = alpha, eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """The rate of each group for the step ahead."""
        return [power(self.last_epoch + 1, float(c), self.alpha, self.eta_min) for c in self.base_lrs]

    @property
    def sums(self) -> tuple[bool, bool]:
        r"""Whether $\sum\eta(t)=\infty$ and whether $\sum\eta^2(t)<\infty$: both are wanted."""
        return self.eta_min > 0 or self.alpha <= 1, self.eta_min == 0 and self.alpha > 0.5 and math.isfinite(self.alpha)
