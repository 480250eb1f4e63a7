"""Does the gradient depend on the targets at all? A permutation test."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gradoscope import tree
from gradoscope.errors import CannotRun
from gradoscope.guard import derive_seed, seed_all, untouched
from gradoscope.measurement import Cost, Measurement

__all__ = ["TargetInformation", "batch_information", "target_information"]

Parameters = Sequence[Tensor | tuple[str, Tensor]]
Normalise = Literal["none", "layer"]
Context = Callable[[], AbstractContextManager[Any]]
KEEP = 1 << 28  # bytes of gradients that are kept; beyond that they are computed twice
CHUNK = 16  # backward passes done at once: more were slower in trials on MLPs and CNNs, as activations leave the cache


@dataclass(frozen=True)
class TargetInformation:
    """How far the gradient under the true targets lies from the gradients under permuted ones.

    Args:
        statistic: T, the distance of the true gradient from the mean over permutations.
        null: the same distance of each permuted gradient, shape (R,).
        p_value: the share of distances, T among them, that are at least T; at least 1 / (R + 1).
        permutations: R.
        relative: T over the root mean square of `null`: about 1 where the targets do not matter.
        layers: the same ratio for each parameter alone; those whose gradient does not vary are left out.
        method: how the gradients were taken.
        note: what a reader must know, "" if nothing.
        cost: passes spent.
    """

    statistic: float
    null: np.ndarray
    p_value: float
    permutations: int
    relative: float
    layers: dict[str, float] = field(default_factory=dict, repr=False)
    method: str = ""
    note: str = ""
    cost: Cost = field(default_factory=Cost, repr=False)

    def to_measurement(self, step: int | None = None) -> Measurement:
        """The relative distance as a measurement, with the p-value; its standard error is the spread of the null."""
        rms = float(np.sqrt(np.mean(self.null**2))) if len(self.null) else 0.0
        se = float(self.null.std(ddof=1)) / rms if rms > 0 and len(self.null) > 1 else math.nan
        details = {"null": self.null, "statistic": self.statistic, "layers": self.layers, "note": self.note}
        return Measurement(
            "target_information", self.relative, se=se, n=self.permutations, step=step, p=self.p_value, method=self.method,
            cost=self.cost, details=details,
        )  # fmt: skip


def target_information(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    inputs: tuple[Any, ...],
    target: Any,
    parameters: Parameters,
    *,
    permutations: int = 199,
    seed: int = 0,
    context: Context = nullcontext,
    mode: Literal["train", "eval"] = "train",
    normalise: Normalise = "none",
) -> TargetInformation:
    r"""Whether the gradient under the true targets differs from that under permuted ones.

    $$T=\frac{|G(y)-\bar G|}{\sqrt{1+1/R}},\quad T_j=|G(\pi_jy)-\bar G|\sqrt{\tfrac{R}{R-1}},\quad
    \bar G=\tfrac1R\sum_jG(\pi_jy),\quad p=\frac{1+\#\{T_j\ge T\}}{R+1}$$
    Taking the mean out removes what does not depend on which row has which target (class frequencies, regularisers).
    The forward pass is done once, with fixed masks, and its graph kept. The backward pass is linear in the gradient
    by the output, so distances from the mean are had from one backward pass each, and no gradient is stored.

    Args:
        model: called as `model(*inputs)`.
        loss_fn: `loss_fn(output, target)`, a scalar.
        inputs: the inputs of one batch. Use rows that were not trained on: on memorised data the test is trivial.
        target: the targets, a tensor (or tree of tensors) of shape (N, ...); rows are permuted.
        parameters: the parameters to differentiate by, with or without their names.
        permutations: R.
        seed: what masks and permutations are drawn from.
        context: makes a context manager around the passes.
        mode: "train" or "eval", the mode the model is put in.
        normalise: "layer" divides each parameter's gradient by its root mean square distance over all R + 1
            targets, so that no layer drowns the others.

    Returns:
        The statistic, its null distribution and the p-value: 1, with a note, where the gradient is the same for all
        targets, and NaN where it is not finite.

    Raises:
        CannotRun: where the targets have no rows to permute.

    Cost: one forward and R + 1 backward passes, and four more, three of which check the short way against the plain gradient.

    Example:
        >>> model, x = torch.nn.Linear(1, 1), torch.linspace(-1, 1, 32).reshape(-1, 1)
        >>> test = target_information(model, torch.nn.functional.mse_loss, (x,), 3 * x, list(model.parameters()))
        >>> test.p_value, test.relative > 3
        (0.005, True)

    Source: Shalev-Shwartz, Shamir & Shammah (2017), Failures of Gradient-Based Deep Learning, arXiv:1703.07950.
    """
    names, tensors = _split(parameters)
    orders = _orders(target, permutations, seed)

    def targets(j: int) -> Any:
        return target if j == 0 else tree.take(target, orders[j - 1])

    with _inside(model, mode, context, seed):
        output = model(*inputs)
        examples = len(orders[0]) * (permutations + 1)
        if isinstance(output, Tensor) and not output.requires_grad:
            return _nothing(permutations, "the output does not depend on any of these parameters", Cost(1, 0, examples))

        drawn = derive_seed(seed, 2)

        def loss_of(out: Any, j: int) -> Tensor:
            seed_all(drawn)  # a loss that draws random numbers draws the same for each permutation
            return loss_fn(out, targets(j)).reshape(())

        def gradient(j: int) -> list[Tensor]:
            return _filled(torch.autograd.grad(loss_of(output, j), tensors, retain_graph=True, allow_unused=True), tensors)

        if isinstance(output, Tensor):
            through = _Through(output, tensors, loss_of, permutations)
            if through.agrees(gradient):
                cost = Cost(1, permutations + 5, examples)
                return _test(through.squares(), (names, tensors), normalise, "one forward pass, gradients through the output", cost)
        distances = _squares(gradient, permutations, tensors)
    cost = Cost(1, permutations + 1, examples)
    return _test(distances, (names, tensors), normalise, "one forward pass, gradients of the whole loss", cost)


def batch_information(
    model: nn.Module,
    batch_loss: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    parameters: Parameters,
    *,
    permutations: int = 199,
    seed: int = 0,
    context: Context = nullcontext,
    mode: Literal["train", "eval"] = "train",
    normalise: Normalise = "none",
) -> TargetInformation:
    """The test of `target_information` where only `batch_loss(model, batch)` is known: the batch's last tensor is permuted.

    Args:
        model: the module.
        batch_loss: `batch_loss(model, batch)`, a scalar.
        batch: a tensor tree whose last tensor holds the targets, one row per example.
        parameters: the parameters to differentiate by, with or without their names.
        permutations: R.
        seed: what masks and permutations are drawn from.
        context: makes a context manager around the passes.
        mode: "train" or "eval", the mode the model is put in.
        normalise: as in `target_information`.

    Raises:
        CannotRun: where the batch has fewer than two tensors or the last one has no rows.

    Cost: R + 1 forward and backward passes, twice as many where the gradients do not fit into 256 MiB.

    Example:
        >>> model, x = torch.nn.Linear(1, 1), torch.linspace(-1, 1, 32).reshape(-1, 1)
        >>> loss = lambda m, b: (m(b["x"]) - b["y"]).square().mean()
        >>> batch_information(model, loss, {"x": x, "y": 3 * x}, list(model.parameters()), permutations=49).p_value
        0.02
    """
    names, tensors = _split(parameters)
    found = list(tree.leaves(batch))
    if len(found) < 2:
        raise CannotRun(f"permuting targets needs a batch with inputs and targets as tensors, this one has {len(found)} tensor(s).")
    target, last = found[-1], len(found) - 1
    orders = _orders(target, permutations, seed)

    def gradient(j: int) -> list[Tensor]:
        count = iter(range(len(found)))
        replaced = tree.map_tensors(lambda t: target[orders[j - 1]] if next(count) == last and j > 0 else t, batch)
        with _inside(model, mode, context, seed):
            loss = batch_loss(model, replaced).reshape(())
            if not loss.requires_grad:
                return [torch.zeros_like(p) for p in tensors]
            return _filled(torch.autograd.grad(loss, tensors, allow_unused=True), tensors)

    cost = Cost(permutations + 1, permutations + 1, (permutations + 1) * len(target))
    distances = _squares(gradient, permutations, tensors)
    return _test(distances, (names, tensors), normalise, "one forward and backward pass per permutation", cost)


class _Through:
    """Distances of gradients from their mean, by way of the gradient of the loss by the model's output."""

    def __init__(self, output: Tensor, parameters: list[Tensor], loss: Callable[[Tensor, int], Tensor], permutations: int) -> None:
        self.output, self.parameters, self.loss, self.permutations = output, parameters, loss, permutations
        size = (permutations + 1) * output.numel() * output.element_size()
        self._kept: dict[int, Tensor] | None = {} if size <= KEEP else None
        self._batched = sum(p.numel() for p in parameters) * CHUNK * output.element_size() <= KEEP

    def cotangent(self, j: int) -> Tensor:
        """The gradient of the loss by the output under the j-th targets."""
        if self._kept is not None and j in self._kept:
            return self._kept[j]
        leaf = self.output.detach().requires_grad_()
        loss = self.loss(leaf, j)
        grad = torch.autograd.grad(loss, leaf, allow_unused=True)[0] if loss.requires_grad else None
        value = torch.zeros_like(leaf) if grad is None else grad
        if self._kept is not None:
            self._kept[j] = value
        return value

    def backward(self, cotangent: Tensor) -> list[Tensor]:
        return _filled(torch.autograd.grad(self.output, self.parameters, cotangent, retain_graph=True, allow_unused=True), self.parameters)

    def agrees(self, gradient: Callable[[int], list[Tensor]]) -> bool:
        """Whether targets act through the output alone, judged by the difference of two gradients."""
        true = gradient(0)
        plain = [a - b for a, b in zip(true, gradient(1), strict=True)]
        short = self.backward(self.cotangent(0) - self.cotangent(1))
        error = _size([a - b for a, b in zip(plain, short, strict=True)])
        size = max(_size(true), _size(plain))
        return error <= 1e3 * torch.finfo(self.output.dtype).eps * size or not math.isfinite(error)

    def squares(self) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances from the mean per parameter, shape (R + 1, L), and the squared size of the mean, (L,)."""
        mean = _mean([self.output], lambda j: [self.cotangent(j)], self.permutations)[0]
        scale = _squared(self.backward(mean))
        rows = []
        for start in range(0, self.permutations + 1, CHUNK):
            chunk = [self.cotangent(j) - mean for j in range(start, min(start + CHUNK, self.permutations + 1))]
            rows.append(self._chunk(chunk))
        return torch.cat(rows).double().cpu().numpy(), scale.double().cpu().numpy()

    def _chunk(self, cotangents: list[Tensor]) -> Tensor:
        """Squared norms of several backward passes, shape (C, L): at once, 1 to 5 times as fast, where every operation can."""
        if self._batched:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # an operation without a batching rule is slow, and right
                    grads = torch.autograd.grad(
                        self.output, self.parameters, torch.stack(cotangents), retain_graph=True, allow_unused=True, is_grads_batched=True
                    )
                none = cotangents[0].new_zeros(len(cotangents), 1)
                rows = [none if g is None else g.reshape(len(cotangents), -1) for g in grads]
                return torch.stack([torch.linalg.vector_norm(row, dim=1) for row in rows], dim=1).square()
            except RuntimeError:  # an operation that cannot run batched, or too little memory for the chunk
                self._batched = False
        return torch.stack([_squared(self.backward(c)) for c in cotangents])


def _squares(gradient: Callable[[int], list[Tensor]], permutations: int, parameters: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """As `_Through.squares`, from whole gradients: kept where they fit, else computed a second time."""
    size = (permutations + 1) * sum(p.numel() * p.element_size() for p in parameters)
    kept: dict[int, list[Tensor]] = {}

    def cached(j: int) -> list[Tensor]:
        if j in kept:
            return kept[j]
        value = gradient(j)
        if size <= KEEP:
            kept[j] = value
        return value

    mean = _mean(parameters, cached, permutations)
    rows = [_squared([g - m for g, m in zip(cached(j), mean, strict=True)]) for j in range(permutations + 1)]
    return torch.stack(rows).double().cpu().numpy(), _squared(mean).double().cpu().numpy()


def _mean(like: Sequence[Tensor], value: Callable[[int], list[Tensor]], permutations: int) -> list[Tensor]:
    """The mean over the permutations, as the first plus the mean distance from it: equal values have exactly their own as mean."""
    first = value(1)
    wide = [torch.float64 if t.device.type != "mps" else torch.float32 for t in like]
    total = [torch.zeros_like(t, dtype=w) for t, w in zip(like, wide, strict=True)]
    for j in range(2, permutations + 1):
        for sum_, part, start in zip(total, value(j), first, strict=True):
            sum_ += part - start
    return [start + (sum_ / permutations).to(start.dtype) for sum_, start in zip(total, first, strict=True)]


def _squared(tensors: list[Tensor]) -> Tensor:
    """The squared norm of each tensor, shape (L,)."""
    return torch.stack([n.float() if n.dtype in (torch.float16, torch.bfloat16) else n for n in torch._foreach_norm(tensors)]).square()


def _size(tensors: list[Tensor]) -> float:
    return math.sqrt(float(_squared(tensors).sum()))


def _test(
    distances: tuple[np.ndarray, np.ndarray], named: tuple[list[str], list[Tensor]], normalise: Normalise, method: str, cost: Cost
) -> TargetInformation:
    """The statistic, its null distribution and the p-value from squared distances, shape (R + 1, L), and sizes, (L,)."""
    (squares, scale), (names, tensors) = distances, named
    r, eps = len(squares) - 1, max(torch.finfo(p.dtype).eps for p in tensors)
    if not np.isfinite(squares).all():
        nan = math.nan
        return TargetInformation(nan, np.full(r, nan), nan, r, nan, {}, method, "a gradient is not finite", cost)
    squares = squares * np.array([1 / (1 + 1 / r)] + [r / (r - 1)] * r)[:, None]
    # Distances at the level of rounding are none: equal gradients are only equal up to the order of summation.
    squares[:, squares.mean(axis=0) <= (16 * eps) ** 2 * scale] = 0.0
    pooled = squares.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.sqrt(squares[0] / squares[1:].mean(axis=0))
        summed = (np.where(pooled > 0, squares / pooled, 0.0) if normalise == "layer" else squares).sum(axis=1)
    roots = np.sqrt(summed)
    null, statistic = roots[1:], float(roots[0])
    if not roots.any():
        return _nothing(r, "the gradient is the same for all permutations of the targets", cost, method)
    rms = float(np.sqrt(np.mean(null**2)))
    # Equal up to rounding counts as equal, as for targets that repeat.
    p = (1 + int((null >= statistic * (1 - 1e-6)).sum())) / (r + 1)
    layers = {name: float(ratio) for name, ratio, size in zip(names, ratios, pooled, strict=True) if size > 0}
    return TargetInformation(statistic, null, p, r, statistic / rms if rms > 0 else math.inf, layers, method, "", cost)


def _nothing(permutations: int, note: str, cost: Cost, method: str = "") -> TargetInformation:
    return TargetInformation(0.0, np.zeros(permutations), 1.0, permutations, 0.0, {}, method, note, cost)


def _orders(target: Any, permutations: int, seed: int) -> list[Tensor]:
    """The permutations of the rows, on the targets' device, drawn with a generator of their own."""
    if permutations < 2:
        raise ValueError(f"a permutation test needs at least 2 permutations, got {permutations}.")
    n = tree.rows(target)
    if n is None or n < 2:
        raise CannotRun("the targets have no rows to permute: expected tensors of shape (N, ...) with N >= 2.")
    device = next(tree.leaves(target)).device
    generator = torch.Generator().manual_seed(derive_seed(seed, 1))
    return [torch.randperm(n, generator=generator).to(device) for _ in range(permutations)]


@contextmanager
def _inside(model: nn.Module, mode: str, context: Context, seed: int) -> Iterator[None]:
    with untouched(model, seed=derive_seed(seed, 0)), context(), torch.enable_grad():
        model.train(mode == "train")
        yield


def _split(parameters: Parameters) -> tuple[list[str], list[Tensor]]:
    """Names and tensors; a parameter without a name is called by its place. Frozen ones are left out."""
    pairs: list[tuple[str, Tensor]] = []
    for i, item in enumerate(parameters):
        name, p = (str(i), item) if isinstance(item, Tensor) else item
        if p.requires_grad:
            pairs.append((name, p))
    if not pairs:
        raise CannotRun("the target information test needs at least one parameter with requires_grad=True, got none.")
    return [name for name, _ in pairs], [p for _, p in pairs]


def _filled(grads: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """A gradient that is None, as of a parameter that the loss does not use, counts as zero."""
    return [torch.zeros_like(p) if g is None else g.coalesce().to_dense() if g.is_sparse else g for g, p in zip(grads, like, strict=True)]
