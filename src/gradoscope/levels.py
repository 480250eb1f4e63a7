"""Reference levels of a loss: what the best constant answer gets, and what no answer can better."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradoscope import tree
from gradoscope.guard import untouched
from gradoscope.training import Live, split

__all__ = ["attainable_loss", "constant_loss", "levels"]

ITERATIONS = 60


def _minimise(loss: Callable[[Tensor], Tensor], start: Tensor) -> tuple[float, Tensor]:
    """Minimise a loss over a free tensor by L-BFGS with line search; returns the lowest finite value and its point."""
    z = start.detach().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([z], lr=1.0, max_iter=ITERATIONS, history_size=10, line_search_fn="strong_wolfe")
    best: list[Any] = [math.inf, start.detach().clone()]

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(z)
        value.backward()  # type: ignore[no-untyped-call]
        number = float(value.detach())
        if math.isfinite(number) and number < best[0]:
            best[0], best[1] = number, z.detach().clone()
        return value

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return best[0], best[1]


def attainable_loss(loss_fn: Callable[[Any, Any], Tensor], output: Tensor, target: Any) -> float | None:
    """The lowest loss that any outputs get on these targets, or None where it has no lower bound in sight.

    The outputs themselves are optimised, starting from the model's: no model can do better on the same targets. Zero for
    squared error and cross-entropy, the entropy of the targets under label smoothing.

    Cost: no pass through the model; some 60 evaluations of the loss function.

    Example:
        >>> import torch
        >>> y = torch.tensor([0, 1, 2])
        >>> attainable_loss(torch.nn.functional.cross_entropy, torch.zeros(3, 3), y) < 1e-3
        True
    """
    start = float(loss_fn(output, target))
    if not output.is_floating_point() or not math.isfinite(start):
        return None
    value, _ = _minimise(lambda z: loss_fn(z, target), output)
    if not math.isfinite(value) or value < -10 * (abs(start) + 1):
        return None
    return value


def constant_loss(loss_fn: Callable[[Any, Any], Tensor], output: Tensor, target: Any) -> float | None:
    """The loss of the best answer that ignores the input, fitted on one half of the rows and judged on the other.

    Cost: no pass through the model; some 60 evaluations of the loss function for each half.
    """
    n = tree.rows((output, target))
    if n is None or n < 8 or not output.is_floating_point():
        return None
    halves = [slice(0, n, 2), slice(1, n, 2)]
    values = []
    for fit, judge in (halves, halves[::-1]):
        here, there = tree.take(target, fit), tree.take(target, judge)

        count, others = len(output[fit]), len(output[judge])

        def loss(c: Tensor, here: Any = here, count: int = count) -> Tensor:
            return loss_fn(c.expand(count, *output.shape[1:]), here)

        _, c = _minimise(loss, output[fit].mean(0, keepdim=True))
        values.append(float(loss_fn(c.expand(others, *output.shape[1:]), there)))
    value = sum(values) / 2
    return value if math.isfinite(value) else None


def levels(live: Live, rows: int = 512) -> tuple[float | None, float | None]:
    """(constant, attainable) loss of a training with a `loss_fn`; (None, None) where outputs cannot be told apart."""
    loss_fn = live.training.loss_fn
    if loss_fn is None:
        return None, None
    batch = tree.to_device(live.batches.sample(rows, "probe")[0], live.device)
    n = tree.rows(batch)
    if n is not None and n > rows:
        batch = tree.take(batch, slice(0, rows))
    try:
        with untouched(live.model, seed=0):
            with torch.no_grad():
                inputs, target = split(batch)
                output = live.model(*inputs)
            if not isinstance(output, Tensor):
                return None, None
            return constant_loss(loss_fn, output, target), attainable_loss(loss_fn, output, target)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None, None  # a loss that cannot be cut or optimised has no such levels; experiments must tell
