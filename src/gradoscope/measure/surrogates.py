"""Losses that stand in for what counts: those that fit a training's outputs and targets, and the outputs that would be right."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Surrogate", "perfect_output", "shifts_of_scores", "surrogates"]

Loss = Callable[[Any, Any], Tensor]
SURE = 20.0  # a score that leaves no doubt about a class
SLOPE = 4.0  # values half a unit from the threshold are scores of two: as sure as a logistic output is of a clear example
DRAWS = 4  # random outputs on which two losses are compared
FAILURES = (RuntimeError, ValueError, TypeError, IndexError)


@dataclass(frozen=True)
class Surrogate:
    """A loss that could be minimised in the place of the given one.

    Attributes:
        name: "hinge", "balanced", "absolute" ...
        says: what it asks for, in words.
        loss: of (output, target), scaled so that its gradient at the outputs is as long as the given loss's.
        code: how a user writes it.
    """

    name: str
    says: str
    loss: Loss
    code: str


def surrogates(loss_fn: Loss, output: Tensor, target: Any) -> list[Surrogate]:
    r"""The other usual losses for the same outputs and targets, each with a gradient of the given one's length.

    - classes (whole numbers, one score per class): cross-entropy, cross-entropy with every class of equal weight, hinge
      $\max(0,1-z_y+\max_{j\ne y}z_j)$, squared error of the scores against one-hot targets;
    - two classes (0 and 1, or -1 and 1): logistic, balanced logistic, hinge, squared error, in scores or values as the given loss has it;
    - real numbers: squared and absolute error, and relative error where all are of one sign.

    Each is multiplied by $\|\partial L/\partial z\|/\|\partial L'/\partial z\|$ at `output`, so that the step size fits as before.

    Args:
        loss_fn: the given loss of (output, target).
        output: of the model at its start, shape (n, ...).
        target: as the loss takes it.

    Returns:
        Nothing where the targets are none of these; the given loss is not among them.

    Cost: some ten evaluations of each loss, none of the model.

    Example:
        >>> z = torch.randn(33, 3, generator=torch.Generator().manual_seed(0))
        >>> [s.name for s in surrogates(F.cross_entropy, z, torch.arange(33) % 3)]
        ['hinge', 'squared']
    """
    if not isinstance(target, Tensor) or not output.is_floating_point() or len(output) < 8:
        return []
    output = output.detach()
    found = []
    for candidate in _candidates(loss_fn, output, target):
        try:
            if not _same(loss_fn, candidate.loss, output, target):
                found.append(_as_steep(candidate, loss_fn, output, target))
        except FAILURES:
            continue  # a loss that refuses these outputs cannot be compared
    return found


def perfect_output(loss_fn: Loss, output: Tensor, target: Any) -> Tensor | None:
    """Outputs that are right on every example, in the form that the loss takes, or None where that is unknown.

    Example:
        >>> y = torch.tensor([0, 1, 2, 2, 1, 0, 1, 2])
        >>> bool((perfect_output(F.cross_entropy, torch.zeros(8, 3), y).argmax(1) == y).all())
        True
    """
    if not isinstance(target, Tensor):
        return None
    dim = _class_dim(output, target)
    if dim is not None:
        right = F.one_hot(target.long(), output.shape[dim]).movedim(-1, dim).to(output)
        return right if bool(((output >= 0) & (output <= 1)).all()) else SURE * (2 * right - 1)
    if target.shape != output.shape:
        return None
    values = target.to(output)
    signs = _signs(values)
    return SURE * signs if signs is not None and not _in_values(loss_fn, output, values) else values


def shifts_of_scores(output: Tensor, target: Any) -> list[Tensor]:
    r"""Numbers to add to all outputs that move the decision and nothing else: a threshold for yes or no, favours for rarer classes.

    For targets of two values: what puts the threshold 0 or 1/2 at each tenth of the outputs' range from the 2nd to the 98th percentile. For
    classes of shares $p_k$: $-\tau\log p_k$ for $\tau$ = 1/4, 1/2, 1 and 2. Nothing for other targets.

    Args:
        output: shape (n, ...).
        target: as the loss takes it.
    """
    if not isinstance(target, Tensor):
        return []
    dim = _class_dim(output, target)
    if dim is not None:
        counts = torch.bincount(target.flatten().long(), minlength=output.shape[dim]).to(output)
        favour = -(counts.clamp_min(1) / counts.sum()).log()
        shape = [-1 if d == dim else 1 for d in range(output.dim())]
        return [tau * (favour - favour.mean()).reshape(shape) for tau in (0.25, 0.5, 1.0, 2.0)]
    if target.shape != output.shape or not target.is_floating_point() or _signs(target) is None:
        return []
    levels = (
        output.detach().flatten()[:100_000].double().quantile(torch.linspace(0.02, 0.98, 20, dtype=torch.float64, device=output.device))
    )
    middle = 0.5 if bool(((output >= 0) & (output <= 1)).all()) else 0.0
    return [(middle - level).to(output) for level in levels]


def _candidates(loss_fn: Loss, output: Tensor, target: Tensor) -> Iterator[Surrogate]:
    dim = _class_dim(output, target)
    if dim is not None:
        yield from _of_classes(output, target, dim)
    elif target.shape == output.shape and target.is_floating_point():
        signs = _signs(target)
        if signs is None:
            yield from _of_numbers(target)
        else:
            yield from _of_two_classes(loss_fn, output, target, signs)


def _class_dim(output: Tensor, target: Tensor) -> int | None:
    """The dimension of `output` that holds one score per class, where the targets are classes."""
    if target.is_floating_point() or target.is_complex() or output.dim() != target.dim() + 1:
        return None
    for dim in (1, output.dim() - 1):
        if output.shape[dim] > 1 and output.shape[:dim] + output.shape[dim + 1 :] == target.shape:
            return dim if bool(((target >= 0) & (target < output.shape[dim])).all()) else None
    return None


def _signs(target: Tensor) -> Tensor | None:
    """-1 and 1 for targets that are two classes, else None."""
    values = target.unique()  # type: ignore[no-untyped-call]  # torch gives it no types
    if len(values) != 2:
        return None
    low, high = float(values[0]), float(values[1])
    return (2 * target - (high + low)) / (high - low) if (low, high) in ((0.0, 1.0), (-1.0, 1.0)) else None


def _in_values(loss_fn: Loss, output: Tensor, target: Tensor) -> bool:
    """Whether the loss asks for the targets themselves, and not for scores that may grow."""
    there = float(loss_fn(target.to(output), target))
    further = target.to(output) + (target - target.mean()).to(output)
    try:
        return there <= float(loss_fn(further, target)) and there <= float(loss_fn(output, target))
    except FAILURES:
        return True  # a loss of probabilities refuses what lies beyond them


def _of_classes(output: Tensor, target: Tensor, dim: int) -> Iterator[Surrogate]:
    classes = output.shape[dim]
    counts = torch.bincount(target.flatten().long(), minlength=classes).double()
    weight = torch.where(counts > 0, counts.sum() / (counts.clamp_min(1) * (counts > 0).sum()), 0.0).to(output)
    probabilities = bool(((output >= 0) & (output <= 1)).all()) and bool(((output.sum(dim) - 1).abs() < 1e-3).all())

    def scores(z: Tensor) -> Tensor:
        z = z.movedim(dim, 1)
        return z.clamp_min(1e-30).log() if probabilities else z

    def hinge(z: Tensor, y: Tensor) -> Tensor:
        s = scores(z)
        own = s.gather(1, y.long().unsqueeze(1))
        others = s.scatter(1, y.long().unsqueeze(1), -torch.inf).amax(1, keepdim=True)
        return (1 - own + others).clamp_min(0).mean()

    def squared(z: Tensor, y: Tensor) -> Tensor:
        return (z.movedim(dim, -1) - F.one_hot(y.long(), classes).to(z)).square().mean()

    yield Surrogate(
        "cross_entropy", "cross-entropy", lambda z, y: F.cross_entropy(scores(z), y.long()), "loss = F.cross_entropy(scores, y)"
    )
    yield Surrogate(
        "balanced",
        "cross-entropy with every class of the same weight",
        lambda z, y: F.cross_entropy(scores(z), y.long(), weight=weight.to(z)),
        "loss = F.cross_entropy(scores, y, weight=len(y) / (classes * torch.bincount(y)))",
    )
    yield Surrogate("hinge", "a hinge: no more than a margin", hinge, "loss = F.multi_margin_loss(scores, y)")
    yield Surrogate("squared", "squared error of the scores", squared, "loss = F.mse_loss(scores, F.one_hot(y, classes).float())")


def _of_two_classes(loss_fn: Loss, output: Tensor, target: Tensor, signs: Tensor) -> Iterator[Surrogate]:
    low, high = float(target.min()), float(target.max())
    values = _in_values(loss_fn, output, target)
    positive = float((signs > 0).double().mean())

    def sign(y: Tensor) -> Tensor:
        return (2 * y - (high + low)) / (high - low)

    def score(z: Tensor) -> Tensor:
        return sign(z) if values else z

    def logistic(z: Tensor, y: Tensor) -> Tensor:
        return F.softplus(-(SLOPE if values else 1.0) * sign(y) * score(z)).mean()

    def balanced(z: Tensor, y: Tensor) -> Tensor:
        weight = torch.where(y == high, 0.5 / positive, 0.5 / (1 - positive))
        return (weight * F.softplus(-(SLOPE if values else 1.0) * sign(y) * score(z))).mean()

    def hinge(z: Tensor, y: Tensor) -> Tensor:
        return (1 - sign(y) * score(z)).clamp_min(0).mean()

    def squared(z: Tensor, y: Tensor) -> Tensor:
        return (score(z) - sign(y)).square().mean()

    yield Surrogate("logistic", "the logistic loss", logistic, "loss = F.softplus(-sign * score).mean()  # sign: -1 or 1")
    yield Surrogate(
        "balanced",
        "the logistic loss with both classes of the same weight",
        balanced,
        "loss = F.binary_cross_entropy_with_logits(score, y, pos_weight=(1 - y).sum() / y.sum())",
    )
    yield Surrogate("hinge", "a hinge: no more than a margin", hinge, "loss = (1 - sign * score).clamp_min(0).mean()  # sign: -1 or 1")
    yield Surrogate("squared", "squared error", squared, "loss = F.mse_loss(score, sign)  # sign: -1 or 1")


def _of_numbers(target: Tensor) -> Iterator[Surrogate]:
    least = float(target.abs().median()) * 0.01
    yield Surrogate("squared", "squared error", lambda z, y: (z - y).square().mean(), "loss = F.mse_loss(output, y)")
    yield Surrogate("absolute", "absolute error", lambda z, y: (z - y).abs().mean(), "loss = F.l1_loss(output, y)")
    if bool((target > 0).all()) or bool((target < 0).all()):
        # An error relative to a number of either sign is unbounded where the sign changes.
        yield Surrogate(
            "relative",
            "relative error",
            lambda z, y: ((z - y).abs() / y.abs().clamp_min(least)).mean(),
            "loss = ((output - y).abs() / y.abs()).mean()",
        )


def _random_outputs(output: Tensor) -> Iterator[Tensor]:
    random = torch.Generator().manual_seed(0)
    spread = output.double().std().clamp_min(1e-6).to(output)
    for _ in range(DRAWS):
        z = torch.randn(output.shape, generator=random).to(output)
        yield (
            z.softmax(1)
            if bool(((output >= 0) & (output <= 1)).all()) and output.dim() > 1 and output.shape[1] > 1
            else (z.sigmoid() if bool(((output >= 0) & (output <= 1)).all()) else output.mean() + spread * z)
        )


def _same(a: Loss, b: Loss, output: Tensor, target: Tensor) -> bool:
    """Whether one loss is the other one times a number, plus a number."""
    pairs = torch.tensor([[float(a(z, target)), float(b(z, target))] for z in _random_outputs(output)], dtype=torch.float64)
    d = pairs - pairs.mean(0)
    across = float((d[:, 0] * d[:, 1]).sum())
    return across > 0 and across**2 >= (1 - 1e-6) * float(d[:, 0].square().sum() * d[:, 1].square().sum())


def _slope(loss: Loss, output: Tensor, target: Tensor) -> float:
    z = output.clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(z, target), z)
    return float(gradient.double().norm())


def _as_steep(candidate: Surrogate, loss_fn: Loss, output: Tensor, target: Tensor) -> Surrogate:
    given, own = _slope(loss_fn, output, target), _slope(candidate.loss, output, target)
    factor = given / own if given > 0 and own > 0 and given / own < float("inf") else 1.0
    plain = candidate.loss
    return Surrogate(candidate.name, candidate.says, lambda z, y: factor * plain(z, y), candidate.code)
