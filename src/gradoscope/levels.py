"""Reference levels of a loss: what the best constant answer gets, and what no answer can better."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradoscope import tree
from gradoscope.guard import untouched
from gradoscope.training import Live, split

__all__ = ["attainable_loss", "constant_loss", "levels"]

ITERATIONS = 60
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)  # of a user's loss on other outputs than the model's


def _minimise(loss: Callable[[Tensor], Tensor], start: Tensor) -> tuple[float, Tensor]:
    """Minimise a loss over a free tensor by L-BFGS with line search; returns the lowest finite value and its point.

    From the model's own answer and from zero: a model whose signal explodes starts too far away to arrive.
    """
    attempts = [_descend(loss, z) for z in ((start, torch.zeros_like(start)) if bool((start.abs() > 10).any()) else (start,))]
    return min(attempts, key=lambda a: a[0])


def _descend(loss: Callable[[Tensor], Tensor], start: Tensor) -> tuple[float, Tensor]:
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


def _ranges(output: Tensor) -> Iterator[tuple[Callable[[Tensor], Tensor], Tensor]]:
    """What free numbers are turned into outputs of the model's kind, and the numbers that give these outputs.

    (Logarithms of) probabilities that sum to one stay so: -log p, say, has no bound otherwise. All else is the numbers
    themselves and, where the loss refuses those, numbers between 0 and 1 if all outputs are such.
    """
    small = torch.finfo(output.dtype).tiny ** 0.5
    for dim in sorted({d for d in (1, output.dim() - 1) if 0 < d < output.dim() and output.shape[d] > 1}):
        if bool((output.logsumexp(dim).abs() < 1e-3).all()):
            yield partial(torch.log_softmax, dim=dim), output
            return
        if bool((output >= 0).all()) and bool(((output.sum(dim) - 1).abs() < 1e-3).all()):
            yield partial(torch.softmax, dim=dim), output.clamp(min=small).log()
            return
    yield (lambda z: z), output
    if bool(((output >= 0) & (output <= 1)).all()):
        yield torch.sigmoid, output.clamp(1e-6, 1 - 1e-6).logit()


def _bounded(value: float, start: float) -> bool:
    """Whether a minimum looks like one, and not like a stop on the way to minus infinity."""
    return math.isfinite(value) and value >= -10 * (abs(start) + 1)


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
    for link, z in _ranges(output):
        try:
            value, _ = _minimise(lambda z, link=link: loss_fn(link(z), target), z)  # type: ignore[misc]
            if isinstance(target, Tensor) and target.shape == output.shape and target.is_floating_point():
                value = min(value, float(loss_fn(target, target)))  # kinks, as that of |x|, stop the search early
        except FAILURES:
            continue
        if _bounded(value, start):
            return value
    return None


def constant_loss(loss_fn: Callable[[Any, Any], Tensor], output: Tensor, target: Any) -> float | None:
    """The loss of the best answer that ignores the input, fitted on one half of the rows and judged on the other.

    None where it has no lower bound in sight, or where rows cannot be told apart.

    Cost: no pass through the model; some 60 evaluations of the loss function for each half.

    Example:
        >>> import torch
        >>> y = torch.tensor([[1.0], [3.0]]).repeat_interleave(10, 0)
        >>> round(constant_loss(torch.nn.functional.mse_loss, torch.zeros(20, 1), y), 6)
        1.0
    """
    n = tree.rows((output, target))
    if n is None or n < 8 or not output.is_floating_point():
        return None
    start = float(loss_fn(output, target))
    for link, z in _ranges(output):
        try:
            value = sum(_crossed(loss_fn, link, z, target, k) for k in (0, 1)) / 2
        except FAILURES:
            continue
        if _bounded(value, start if math.isfinite(start) else 1.0):
            return value
    return None


def _crossed(loss_fn: Callable[[Any, Any], Tensor], link: Callable[[Tensor], Tensor], z: Tensor, target: Any, k: int) -> float:
    """The loss on every other row of the one answer that is best on the rows between."""
    fit, judge = slice(k, None, 2), slice(1 - k, None, 2)
    # Contiguous, as the rows of a batch are: a loss may reshape by `view`.
    here, there = (tree.map_tensors(Tensor.contiguous, tree.take(target, half)) for half in (fit, judge))

    def loss(c: Tensor, target: Any, rows: int) -> Tensor:
        return loss_fn(link(c.expand(rows, *z.shape[1:]).contiguous()), target)

    _, c = _minimise(lambda c: loss(c, here, len(z[fit])), z[fit].mean(0, keepdim=True))
    return float(loss(c, there, len(z[judge])))


def levels(live: Live, rows: int = 512) -> tuple[float | None, float | None]:
    """(constant, attainable) loss of a training with a `loss_fn`; (None, None) where outputs cannot be told apart."""
    loss_fn = live.training.loss_fn
    if loss_fn is None:
        return None, None
    batch = tree.to_device(live.batches.sample(rows, "probe")[0], live.device)
    n = tree.rows(batch)
    if n is not None and n > rows:
        batch = tree.take(batch, slice(0, rows))
    found: list[float | None] = []
    with untouched(live.model, seed=0):
        for level in (constant_loss, attainable_loss):
            try:
                with torch.no_grad():
                    inputs, target = split(batch)
                    output = live.model(*inputs)
                found.append(level(loss_fn, output, target) if isinstance(output, Tensor) else None)
            except FAILURES:
                found.append(None)  # a loss that cannot be cut or optimised has no such level; experiments must tell
    return found[0], found[1]
