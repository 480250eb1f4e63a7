"""The losses of single examples from a model's outputs, where the loss of a batch is their mean."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gradoscope import tree
from gradoscope.objective import Objective

__all__ = ["Examples"]

LOSSES = (
    F.cross_entropy,
    F.nll_loss,
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.soft_margin_loss,
    F.multilabel_soft_margin_loss,
)
MEANS = (torch.mean, torch.Tensor.mean)


class _Unreduced(TorchFunctionMode):
    """Remembers what a loss took its mean of."""

    def __init__(self) -> None:
        super().__init__()
        self.result: Any = None
        self.each: Any = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in LOSSES and kwargs.get("reduction", "mean") == "mean":
            self.each = func(*args, **{**kwargs, "reduction": "none"})
            self.result = self.each.mean()
            return self.result
        result = func(*args, **kwargs)
        if func in MEANS and len(args) == 1 and not kwargs:
            self.result, self.each = result, args[0]
        return result


class Examples:
    r"""Cuts $J_k=\frac1n\sum_i\ell(o_i,t_i)$ into its terms: the loss is asked again, with the outputs given, and not to take the mean.

    Where the mean is not the last thing that a loss does, it is asked for one example at a time (mapped, not looped).

    Args:
        objective: the loss and its batches.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self.sizes = [tree.rows(b) or 0 for b in objective.batches]
        self._how: Callable[[int, Any], Tensor] | None = None

    @property
    def weights(self) -> np.ndarray:
        """Of all examples, so that the weighted sum is the mean over batches, shape (N,)."""
        k = len(self.sizes)
        return np.concatenate([np.full(n, 1 / (k * n)) for n in self.sizes])

    def losses(self, k: int, outputs: Any) -> Tensor:
        """Of batch k at P points, from outputs of shape (P, n, ...): shape (P, n), float64."""
        assert self._how is not None
        with torch.no_grad():
            return self._how(k, outputs).double()

    def fit(self, batch_losses: Sequence[Sequence[float]], outputs: Sequence[Any], rounding: float) -> bool:
        """Find how the losses of examples are had at P points, so that their means are those of the batches; False where they are not.

        Args:
            batch_losses: of each batch, shape (K, P).
            outputs: of each batch, shape (P, n, ...).
            rounding: the relative difference that rounding may make.
        """
        if not all(self.sizes) or any(o is None for o in outputs):
            return False
        for k, output in enumerate(outputs):
            if any(t.dim() < 2 or t.shape[1] != self.sizes[k] for t in tree.leaves(output)):
                return False
        for how in (self._without_inputs, self._flat, self._mapped):
            try:
                self._how = how
                pairs = zip(batch_losses, outputs, strict=True)
                if all(_same(self.losses(k, output).cpu().numpy(), np.array(loss), rounding) for k, (loss, output) in enumerate(pairs)):
                    return True
            except Exception:  # a loss that needs the model itself, or its inputs, or cannot be mapped
                continue
        return False

    def _without_inputs(self, k: int, outputs: Any) -> Tensor:
        """As `_flat`, for losses of the output and the target alone: the inputs need not be repeated."""
        batch = self._objective.batches[k]
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise TypeError
        points = next(tree.leaves(outputs)).shape[0]
        hollow = [tree.map_tensors(lambda t: t.new_zeros(points * self.sizes[k], 0), part) for part in batch[:-1]]
        return self._unreduced(k, outputs, (*hollow, _repeat(batch[-1], points)))

    def _flat(self, k: int, outputs: Any) -> Tensor:
        """All points as one batch, the mean of which is not taken."""
        return self._unreduced(k, outputs, _repeat(self._objective.batches[k], next(tree.leaves(outputs)).shape[0]))

    def _unreduced(self, k: int, outputs: Any, batch: Any) -> Tensor:
        points, n = next(tree.leaves(outputs)).shape[:2]
        given = tree.map_tensors(lambda t: t.flatten(0, 1), outputs)
        with _Unreduced() as mode:
            loss = self._objective._loss(lambda *_, **__: given, batch)  # type: ignore[arg-type]
        if loss is not mode.result or mode.each.shape[:1] != (points * n,):
            raise TypeError
        rows: Tensor = mode.each.detach()
        return rows.reshape(points, n, -1).mean(-1)

    def _mapped(self, k: int, outputs: Any) -> Tensor:
        """One example at a time."""
        batch = self._objective.batches[k]

        def one(output: Any, example: Any) -> Tensor:
            given = tree.map_tensors(lambda t: t[None], output)
            loss: Tensor = self._objective._loss(lambda *_, **__: given, tree.map_tensors(lambda t: t[None], example))  # type: ignore[arg-type]
            return loss.reshape(())

        rows = torch.vmap(one, randomness="same")
        return torch.vmap(lambda output: rows(output, batch), randomness="same")(outputs)


def _repeat(part: Any, points: int) -> Any:
    return tree.map_tensors(lambda t: t.expand(points, *t.shape).flatten(0, 1), part)


def _same(each: np.ndarray, loss: np.ndarray, rounding: float) -> bool:
    """Whether the means over the examples are the losses, at points where these are finite, of which there must be one."""
    finite = np.isfinite(loss)
    if not finite.any():
        return False
    each, loss = each[finite], loss[finite]
    bound = rounding * np.maximum(np.abs(loss), np.abs(each).mean(1))
    return bool(np.all(np.abs(each.mean(1) - loss) <= bound))
