"""The fixed examples on which a training and its forks are compared, with the loss of each of K parts."""

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gradoscope import tree
from gradoscope.errors import CannotRun
from gradoscope.guard import untouched
from gradoscope.training import Live, split

__all__ = ["Probe", "flops_per_row"]

PARTS = 32  # pairs of part losses, enough for a t interval; more would only cost time


class Probe:
    """Fixed batches, cut into parts whose losses are the units of every paired comparison.

    The training loss is measured in training mode with fixed masks (it is what the optimizer sees), the validation
    loss in evaluation mode (it is what users report).

    Cost of `losses`: one forward pass over the examples.
    """

    def __init__(self, live: Live, batches: list[Any], mode: Literal["train", "eval"]) -> None:
        self.training, self.mode = live.training, mode
        batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in live.model.modules())
        self._mixes_rows = mode == "train" and batch_norm
        self.rows = sum(tree.rows(b) or 1 for b in batches)
        self.batches = self._cut(batches)

    def __repr__(self) -> str:
        return f"Probe({self.rows} rows, {len(self.batches)} batches, {self.mode})"

    def _cut(self, batches: list[Any]) -> list[Any]:
        """Parts for a `batch_loss`; with a `loss_fn` one forward pass is enough, and its output is cut."""
        if self.training.loss_fn is not None:
            return batches
        parts = []
        per_batch = max(1, PARTS // len(batches))
        for b in batches:
            n = tree.rows(b)
            if n is None or self._mixes_rows:
                parts.append(b)
                continue
            cuts = np.array_split(np.arange(n), min(per_batch, n))
            parts += [tree.take(b, slice(int(index[0]), int(index[-1]) + 1)) for index in cuts]
        return parts

    def losses(self, live: Live) -> np.ndarray:
        """The loss of each part, shape (parts,), float64; NaN and infinity are passed on."""
        values: list[float] = []
        for k, batch in enumerate(self.batches):
            with untouched(live.model, seed=k), torch.no_grad():
                live.model.train(self.mode == "train")
                on_device = tree.to_device(batch, live.device)
                if self.training.loss_fn is None:
                    values.append(float(self.training.loss(live.model, on_device)))
                else:
                    values += self._part_losses(live, on_device)
        return np.array(values)

    def _part_losses(self, live: Live, batch: Any) -> list[float]:
        assert self.training.loss_fn is not None
        inputs, target = split(batch)
        output = live.model(*inputs)
        n = tree.rows((output, target))
        if n is None or n < 2:
            return [float(self.training.loss_fn(output, target))]
        parts = max(2, min(PARTS // max(1, len(self.batches)), n))
        losses = []
        for index in np.array_split(np.arange(n), parts):
            piece = slice(int(index[0]), int(index[-1]) + 1)
            losses.append(self.training.loss_fn(tree.take(output, piece), tree.take(target, piece)).reshape(()))
        return [float(v) for v in torch.stack(losses).double().tolist()]

    def metric(self, live: Live) -> float | None:
        """The user's metric over all examples, or None where there is none."""
        if self.training.metric is None or self.training.loss_fn is None:
            return None
        outputs, targets = [], []
        for k, batch in enumerate(self.batches):
            with untouched(live.model, seed=k), torch.no_grad():
                live.model.train(self.mode == "train")
                inputs, target = split(tree.to_device(batch, live.device))
                outputs.append(live.model(*inputs))
                targets.append(target)
        try:
            value = self.training.metric(tree.concatenate(outputs), tree.concatenate(targets))
            return float(value) if not isinstance(value, Tensor) or value.numel() == 1 else math.nan
        except Exception as error:
            raise CannotRun(
                f"`metric(output, target)` failed on the validation examples: {type(error).__name__}: {error}. It is given all outputs "
                "and all targets at once, as tensors, and returns one number."
            ) from error


def flops_per_row(live: Live, batch: Any) -> float | None:
    """Floating-point operations of one forward pass per example, or None where they cannot be counted.

    Cost: one forward pass over the batch.
    """
    n = tree.rows(batch)
    if n is None or any(isinstance(m, nn.RNNBase) for m in live.model.modules()):
        return None  # the fused recurrent kernels are not counted
    counter = FlopCounterMode(display=False)
    try:
        with untouched(live.model, seed=0), torch.no_grad(), counter:
            live.training.loss(live.model, tree.to_device(batch, live.device))
    except Exception:  # the training itself will tell what is wrong with its loss
        return None
    return counter.get_total_flops() / n
