"""What the update rules share: checked hyperparameters, dense real gradients, clipping, a look ahead."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["LookAheadRule", "Range", "Rule", "check", "gradient_norm"]

Closure = Callable[[], Any]


@dataclass(frozen=True)
class Range:
    """Where a hyperparameter may lie.

    Args:
        low: the lower end.
        high: the upper end.
        closed: whether the lower end itself is allowed; a finite upper end never is.
        optional: whether None is allowed.
    """

    low: float = 0.0
    high: float = math.inf
    closed: bool = True
    optional: bool = False

    def __str__(self) -> str:
        if math.isinf(self.high):
            words = f"a finite number {'of at least' if self.closed else 'above'} {self.low:g}"
        else:
            words = f"a number from {self.low:g}{'' if self.closed else ' (excluded)'} to below {self.high:g}"
        return words + (" or None" if self.optional else "")

    def holds(self, value: Any) -> bool:
        """Whether a value is allowed."""
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        return (value >= self.low if self.closed else value > self.low) and value < self.high


def check(rule: str, ranges: dict[str, Range], values: dict[str, Any]) -> None:
    """Raise ValueError for the first hyperparameter that is out of its range.

    Example:
        >>> check("SGD", {"lr": Range()}, {"lr": -1})
        Traceback (most recent call last):
        ValueError: SGD: lr must be a finite number of at least 0, got -1.
    """
    for name, allowed in ranges.items():
        if not allowed.holds(values[name]):
            raise ValueError(f"{rule}: {name} must be {allowed}, got {values[name]!r}.")


def gradient_norm(parameters: Iterable[Tensor]) -> float:
    r"""$\sqrt{\sum_p|\nabla_p|^2}$ over the gradients that are there, summed in float64."""
    total = 0.0
    for p in parameters:
        if p.grad is not None:
            g = p.grad.coalesce().values() if p.grad.is_sparse else p.grad
            total += float(torch.linalg.vector_norm(g, dtype=torch.complex128 if g.is_complex() else torch.float64)) ** 2
    return math.sqrt(total)


class Rule(Optimizer):
    r"""A rule that treats every number by itself: $\theta\leftarrow\theta+\Delta(g,\text{state})$.

    Parameters whose gradient is None are left alone, and so is their state. A sparse gradient counts as the dense one that it stands
    for: moments decay everywhere. A complex parameter is the pair of its real and imaginary part. With `max_norm` $=c$ the whole gradient
    is scaled by $\min(1,c/|g|)$, $|g|$ taken over all groups; `torch.nn.utils.clip_grad_norm_` scales by $c/(|g|+10^{-6})$ instead. A norm
    that is not finite is not clipped.

    Subclasses set `ranges` and write `update`.
    """

    ranges: ClassVar[dict[str, Range]] = {"lr": Range()}

    def __init__(self, params: Any, **defaults: Any) -> None:
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as any optimizer does; its hyperparameters are checked.

        Raises:
            ValueError: for a hyperparameter out of its range, or a `max_norm` other than that of the groups before.
        """
        checked = {name: dict(param_group).get(name, default) for name, default in self.defaults.items()}
        check(type(self).__name__, {**self.ranges, "max_norm": Range(closed=False, optional=True)}, checked)
        if any(group["max_norm"] != checked["max_norm"] for group in self.param_groups):
            raise ValueError(f"{type(self).__name__}: max_norm bounds the norm over all groups, so that it must be the same in each.")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """One step.

        Args:
            closure: computes the loss, calls backward and returns the loss, or None where the gradients are there already.

        Returns:
            What the closure returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.apply()
        return loss

    def apply(self) -> None:
        """Move every parameter by its gradient."""
        limit = self.param_groups[0]["max_norm"]
        norm = gradient_norm(p for p, _ in self._all()) if limit is not None else 0.0
        scale = limit / norm if limit is not None and limit < norm < math.inf else 1.0
        for p, group in self._all():
            if p.grad is not None:
                g = p.grad.to_dense() if p.grad.layout != torch.strided else p.grad
                g = g if scale == 1.0 else g * scale
                pair = (torch.view_as_real(p), torch.view_as_real(g.resolve_conj())) if p.is_complex() else (p, g)
                self.update(*pair, self.state[p], group)

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Write the next value into p.

        Args:
            p: the parameter, real.
            g: its gradient, of its shape; not to be written to.
            state: what the rule keeps of this parameter; empty at first.
            group: the hyperparameters.
        """
        raise NotImplementedError

    def _all(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for group in self.param_groups:
            for p in group["params"]:
                yield p, group


class LookAheadRule(Rule):
    """A rule whose gradient is taken at another point than where the parameters stand, so that it needs a closure."""

    @torch.no_grad()
    def step(self, closure: Closure) -> Any:  # type: ignore[override]
        """One step: move to where the gradient is wanted, call the closure there, come back, and move by the rule.

        Args:
            closure: clears the gradients, computes the loss, calls backward and returns the loss.

        Returns:
            What the closure returned: the loss at the point of the look ahead, not where the parameters stand.
        """
        kept = []
        try:
            for p, group in self._all():
                if self.state.get(p):
                    kept.append((p, p.clone()))
                    real = torch.view_as_real(p) if p.is_complex() else p
                    real.add_(self.shift(self.state[p], group))
            with torch.enable_grad():
                loss = closure()
        finally:
            for p, value in kept:
                p.copy_(value)
        self.apply()
        return loss

    def shift(self, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """From the parameter to the point of the look ahead, of the parameter's shape."""
        raise NotImplementedError
