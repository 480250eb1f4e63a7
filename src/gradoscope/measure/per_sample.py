"""Gradients of single samples: their norms and inner products, from hooks inside one backward pass, by `vmap` where hooks cannot see."""

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gradoscope import tree
from gradoscope.errors import CannotRun, Usage
from gradoscope.measure._per_sample_layers import Given, Piece, gram_of, joined, squares_of
from gradoscope.measure._recording import Recording, Shapes, Single, couples
from gradoscope.measure.noise import NoiseStatistics, NormStatistics, norm_statistics, statistics_of_products
from gradoscope.measure.sensitivity import _one_by_one, _single_rows, _vectorised
from gradoscope.measurement import Cost, Measurement
from gradoscope.objective import Objective, flat

__all__ = ["PerSample", "RowSlopes", "per_sample"]

# What was proven of an objective's batch: the shapes that one row has in each call, and what the loss does with its rows. Shapes are
# not proven again at other parameters, as long as the same layers are called with the same shapes.
_PROVEN: "weakref.WeakKeyDictionary[Objective, dict[int, _Proof]]" = weakref.WeakKeyDictionary()
MOST_PRODUCTS = 1 << 27  # entries of single-sample gradients that are kept for inner products, where hooks cannot see


@dataclass(frozen=True)
class PerSample:
    r"""The gradients $g_n$ of the rows of one batch, scaled so that their mean is the gradient of the batch's loss.

    Attributes:
        names: the parameters, in the order of the columns of `squares`.
        squares: $|g_{n,p}|^2$ by row and parameter, shape (B, P), float64.
        gradient_square: $|\frac1B\sum_n g_n|^2$; None where it was not asked for.
        products: $g_n\cdot g_m$, shape (B, B), float64; None where they were not asked for.
        hooked: the parameters whose gradients came from hooks; the others came from single rows.
        method: how, and what limits the numbers.
        cost: the passes spent.
    """

    names: tuple[str, ...]
    squares: np.ndarray
    gradient_square: float | None
    products: np.ndarray | None
    hooked: tuple[str, ...]
    method: str
    cost: Cost = field(default_factory=Cost)

    def __repr__(self) -> str:
        return f"PerSample({len(self.squares)} rows, {len(self.hooked)} of {len(self.names)} parameters from hooks, {self.method!r})"

    @property
    def norms(self) -> np.ndarray:
        """$|g_n|$, shape (B,)."""
        norms: np.ndarray = np.sqrt(self.squares.sum(axis=1))
        return norms

    def norm_statistics(self) -> NormStatistics:
        """Signal, noise and the norm test from norms alone (see `noise.norm_statistics`).

        Raises:
            Usage: where the measurement was taken without `mean=True`.
        """
        square = self.gradient_square
        if square is None:
            raise Usage("the norm test needs the gradient of the whole batch: pass `mean=True` (or `products=True`) to per_sample().")
        return norm_statistics(self.squares.sum(axis=1), square)

    def noise(self, *, flips: int = 999, seed: int = 0) -> NoiseStatistics:
        """Signal, noise and the sign-flip test of the rows' gradients (see `noise.noise_statistics`), a row being a batch of one.

        Raises:
            Usage: where the measurement was taken without `products=True`.
        """
        if self.products is None:
            raise Usage("the test of the signal needs inner products: pass `products=True` to per_sample().")
        return statistics_of_products(self.products, 1, flips=flips, seed=seed)

    def to_measurement(self, step: int | None = None) -> Measurement:
        """The root mean square of the norms, with its standard error over the rows."""
        total = self.squares.sum(axis=1)
        mean, count = float(total.mean()), len(total)
        value = math.sqrt(mean)
        se = float(total.std(ddof=1)) / math.sqrt(count) / (2 * value) if count > 1 and value > 0 else None
        details = {"norms": self.norms, "squares": self.squares, "names": self.names}
        return Measurement(
            "per_sample_norm", value, se=se, n=count, step=step, unit="loss", method=self.method, cost=self.cost, details=details
        )


def per_sample(
    objective: Objective,
    k: int = 0,
    *,
    mean: bool = False,
    products: bool = False,
    way: Literal["auto", "rows"] = "auto",
    verify: bool = True,
    seed: int = 0,
) -> PerSample:
    r"""The norms, and on request the inner products, of the gradients of the single rows of batch k.

    A linear layer with input a and slope d at its output has $g_n=\sum_t d_{nt}a_{nt}^\top$, whose norm needs no matrix of the weight's
    size; convolutions, embeddings and normalisations have formulas of the same kind. Their inputs and slopes come from one
    backward pass that computes no gradient by a parameter. Parameters of other layers, and those used outside of their layer,
    are differentiated row by row, vectorised where the model allows it. Which parameter belongs where is read off the graph.

    The $g_n$ are scaled so that $\frac1B\sum_n g_n$ is the gradient of the loss as it is, whatever its reduction and weights.

    Args:
        objective: the loss.
        k: the batch, whose rows are the samples.
        mean: whether to compute the norm of their mean as well.
        products: whether to compute all inner products as well (implies `mean`).
        way: "rows" differentiates all rows singly: the slow way, for comparison.
        verify: whether to differentiate one row by itself and compare it, once for an objective; with dropout, whose masks differ, the
            sum of the rows is compared with the gradient of the batch.
        seed: what masks are drawn from.

    Returns:
        Norms by row and parameter. Batch normalisation in training mode couples the rows: its statistics are held fixed.

    Raises:
        CannotRun: where the batch has no rows, or the loss couples them, so that a row has no gradient of its own.

    Cost: one forward and one backward pass (without the gradients by parameters), a pass of one row, and for what hooks cannot see as
    many single passes as rows. Memory: all layers' inputs and slopes; cut the objective's data into more batches where that is too much.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
        >>> per_sample(Objective(model, lambda m, b: m(b[0]).mean(), [(x,)])).norms.tolist()
        [5.0, 1.0]

    Source: Goodfellow 2015, Efficient per-example gradient computations, arXiv:1510.01799; for sequences Li et al. 2022, arXiv:2110.05679.
    """
    batch = objective.batches[k]
    count = tree.rows(batch)
    if count is None:
        raise CannotRun(
            "the batch has no common first dimension, so its rows cannot be told apart. Use batch_gradients() and noise_statistics()."
        )
    if way not in ("auto", "rows"):
        raise Usage(f"`way` must be 'auto' or 'rows', got {way!r}.")
    with _single_rows(objective, batch, seed) as note:
        taken = _Pass(objective, k, count, want_gradient=mean or products, verify=verify) if way == "auto" else None
        parts: dict[int, list[Piece]] = taken.parts if taken is not None else {}
        left = [i for i in range(len(objective.parameters)) if i not in parts]
        rest = _rest(objective, k, left, count, seed, products=products) if left else None
    squares = np.zeros((count, len(objective.parameters)))
    with torch.no_grad():
        for i, group in parts.items():
            squares[:, i] = squares_of(group).double().cpu().numpy() * count**2
        total = (
            sum((gram_of(g) * count**2 for g in parts.values()), torch.zeros((), dtype=torch.float64)).cpu().numpy() if products else None
        )
    if rest is not None:
        squares[:, left] = rest.squares
        total = None if total is None else total + rest.products
    gradient_square = None if total is None else float(total.mean())
    if gradient_square is None and mean:
        gradient_square = taken.gradient_square if taken is not None else float(objective.batch_gradient(k).double().square().sum())
    names = tuple(name for name, _ in objective.named)
    hooked = tuple(names[i] for i in sorted(parts))
    how = "hooks" if not left else rest.method if rest is not None and not parts else f"hooks; {len(left)} parameters by {rest.method}"  # type: ignore[union-attr]  # left
    why = taken.note if taken is not None else ""
    cost = Cost(1 + count * bool(left), 1 + count * bool(left), count)
    return PerSample(names, squares, gradient_square, total, hooked, how + note + why, cost)


class _Pass(Recording):
    """One forward and backward pass of the loss with hooks: the pieces of each parameter that they account for in full."""

    def __init__(self, objective: Objective, k: int, count: int, *, want_gradient: bool, verify: bool) -> None:
        super().__init__(objective, k, count)
        self.gradient_square: float | None = None
        parameters = objective.parameters
        if not self.loss.requires_grad:
            self.parts = {i: [Given(p.new_zeros(count, 1))] for i, p in enumerate(parameters)}
            self.gradient_square = 0.0
            return
        self.trace([self.loss])
        proof = _PROVEN.setdefault(objective, {}).get(k)
        if proof is not None and proof.stamp != self.stamp:
            proof = None
        prove = verify and (proof is None or not proof.compared)
        whole = want_gradient or (self.random and prove)
        wanted: list[Any] = [c.edge for c in self.calls] + (parameters if whole else [p for _, p in self.spread])
        found = torch.autograd.grad(self.loss, wanted, allow_unused=True) if wanted else ()
        gradients = found[len(self.calls) :] if whole else None
        if gradients is not None:
            self.gradient_square = float(flat(gradients, parameters).double().square().sum())
        known = proof is not None and not prove
        single = Single(proof.shapes, None, []) if proof is not None and known else self.single(gradients=prove and not self.random)
        with torch.no_grad():
            self.collect(found[: len(self.calls)], single.shapes)
            if single.gradients is not None:
                wrong, factor = self.apart(lambda i: self.of_row(i) * count, single.gradients, scaled=True)
                if not wrong and abs(factor - 1) > self.tolerance:
                    summed = abs(factor / count - 1) <= self.tolerance
                    self.note = "; the loss is a sum over rows" if summed else "; the loss weighs its rows"
            elif prove and gradients is not None:
                wrong, _ = self.apart(lambda i: joined(self.parts[i]).whole(slice(None)).sum(0), gradients, scaled=False)
            else:
                wrong = []
        if wrong and single.gradients is not None:
            wrong = self._by_output(k, wrong)
        self.drop(wrong)
        if proof is not None and known:
            self.note = proof.note
            self.parts = {i: g for i, g in self.parts.items() if i in proof.good or not proof.compared}
        else:
            compared = single.gradients is not None or (prove and gradients is not None)
            _PROVEN[objective][k] = _Proof(self.stamp, single.shapes, frozenset(self.parts), self.note, compared)

    def _by_output(self, k: int, wrong: list[int]) -> list[int]:
        """Which gradients of one row are wrong, given the slope of the whole batch's loss at that row's output.

        The loss of a single row says little where sums and means over rows are mixed; if it does not couple the rows, this slope is
        all that the row's gradient needs of it.
        """
        again = RowSlopes(self.objective, k)
        if len(again.outputs) != 1 or not again.outputs[0].dim() or len(again.outputs[0]) != self.count:
            return wrong
        output = again.outputs[0]
        slopes = torch.autograd.grad(again.loss, output, create_graph=True)[0]
        own = [t for t in again.single(gradients=False, output=True).outputs if t.requires_grad]
        if len(own) != 1 or couples(slopes, output, self._row):
            return wrong
        gradients = torch.autograd.grad(own[0], self.objective.parameters, slopes[self._row : self._row + 1], allow_unused=True)
        with torch.no_grad():
            self.note = "; the loss weighs its rows"
            return self.apart(self.of_row, gradients, scaled=False)[0]


class RowSlopes(Recording):
    r"""One forward pass whose graph is kept, for the norms $|J_n^\top c_n|^2$ of any cotangents c at the model's output.

    Use it within `objective.inside(k)`.

    Attributes:
        outputs: what the model returned, as far as it depends on the parameters.
        loss: the loss of the batch.
        count: rows.
    """

    def __init__(self, objective: Objective, k: int) -> None:
        count = tree.rows(objective.batches[k])
        if count is None:
            raise CannotRun("the batch has no common first dimension, so its rows cannot be told apart.")
        self.outputs: list[Tensor] = []
        keep = objective.model.register_forward_hook(
            lambda _m, _i, o: self.outputs.extend(t for t in tree.leaves(o) if t.is_floating_point() and t.requires_grad)
        )
        try:
            super().__init__(objective, k, count)
        finally:
            keep.remove()
        self._shapes: list[Shapes] | None = None
        if self.outputs:
            self.trace(self.outputs)

    def squares(self, output: Tensor, cotangent: Tensor) -> Tensor:
        """The squared norms by row, shape (B,), over all parameters.

        Raises:
            CannotRun: where hooks do not account for all parameters, or the model couples the rows.
        """
        wanted: list[Any] = [c.edge for c in self.calls] + [p for _, p in self.spread]
        found = torch.autograd.grad(output, wanted, cotangent, allow_unused=True, retain_graph=True)
        fresh = self._shapes is None
        single = self.single(gradients=False, output=True) if self._shapes is None else Single(self._shapes, None, [])
        self._shapes = single.shapes
        with torch.no_grad():
            self.collect(found[: len(self.calls)], single.shapes)
        own = [t for t in single.outputs if t.requires_grad]
        if fresh and not self.random and len(own) == 1:
            row = slice(self._row, self._row + 1)
            gradients = torch.autograd.grad(own[0], self.objective.parameters, cotangent[row], allow_unused=True)
            with torch.no_grad():
                self.drop(self.apart(self.of_row, gradients, scaled=False)[0])
        if len(self.parts) < len(self.objective.parameters):
            lacking = next(name for i, (name, _) in enumerate(self.objective.named) if i not in self.parts)
            raise CannotRun(f"hooks do not account for the gradients of single rows by {lacking}.")
        with torch.no_grad():
            total = squares_of(self.parts[0])
            for i in range(1, len(self.parts)):
                total = total + squares_of(self.parts[i])
        return total


@dataclass(frozen=True)
class _Proof:
    stamp: tuple[Any, ...]
    shapes: list[Shapes]
    good: frozenset[int]  # parameters whose gradients of one row were those of autograd
    note: str
    compared: bool


@dataclass
class _Rest:
    squares: np.ndarray
    products: np.ndarray
    method: str


def _rest(objective: Objective, k: int, left: list[int], count: int, seed: int, *, products: bool) -> _Rest:
    """The parameters that hooks do not account for, differentiated row by row."""
    part = objective.restricted([objective.named[i][0] for i in left])
    part.batches = [objective.batches[k]]
    if products and count * part.dim > MOST_PRODUCTS:
        raise CannotRun(
            f"inner products of {count} gradients by {part.dim:,} parameters that hooks cannot see take too much memory: use fewer rows."
        )
    generator = torch.Generator().manual_seed(seed)
    probe = torch.randn(part.dim, generator=generator).to(part.parameters[0])
    batch, sizes = part.batches[0], [p.numel() for p in part.parameters]

    def reduced(grads: Sequence[Tensor]) -> Tensor:
        row = torch.cat([g.reshape(-1) for g in grads])
        values = torch.stack([r.square().sum() for r in torch.split(row, sizes)] + [torch.dot(row, probe)])
        return torch.cat([values, row]) if products else values

    method = "vectorised rows"
    try:
        found = _vectorised(part, reduced, batch)
    except Exception:  # whatever the model objects to in vmap: single rows are slower, and right
        method = "single rows"
        found = _one_by_one(part, reduced, batch, list(range(count)), seed)
    found = found.detach().double()
    grads = part._differentiate(part._loss(part.model, batch).reshape(()), create_graph=False)
    whole = float(torch.dot(flat(grads, part.parameters).double(), probe.double()))
    rows = found[:, len(left)]
    # Of a mean over rows the mean of the rows' gradients is the gradient, of a sum their sum.
    spread = float(rows.std() if count > 1 else rows.abs().mean()) + float(rows.abs().mean())
    random = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0 for m in part.model.modules())
    factor = next((f for f in (1.0, float(count)) if abs(f * float(rows.mean()) - whole) <= 1e-3 * f * spread + 1e-30), None)
    if factor is None and random:
        factor, method = 1.0, method + " with masks of their own"
    if factor is None:
        raise CannotRun(
            "the loss couples its rows (pairs, ranks, a normalisation over the batch), so that a row has no gradient of its own. "
            "Use batch_gradients() over several batches, and noise_statistics()."
        )
    values = found[:, len(left) + 1 :].cpu().numpy() * factor
    return _Rest(found[:, : len(left)].cpu().numpy() * factor**2, values @ values.T if products else np.zeros(()), method)
