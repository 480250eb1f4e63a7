"""One look at one optimizer step: the loss, gradient norms, learning rates, how far the weights moved, what is not finite."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradoscope.measure.step_noise import StepNoise
from gradoscope.watching.budget import Kind
from gradoscope.watching.norms import norms, read, total

__all__ = ["Look"]

MOST_NAMES = 5  # names of layers that one record lists


class Look:
    """Collects what is measured during one step; `record()` gives it as plain numbers.

    Args:
        kind: how much is measured.
        optimizer: whose step it is.
        named: (name, parameter) pairs that the optimizer holds.
        losses_of_calls: gives the losses that hooks saw in this step; they are read with the norms.
        locate: names the first layer whose output is not finite; called at most once per training.
        noise: hooks that see the gradients of single rows in this step, or None.
    """

    def __init__(
        self,
        kind: Kind,
        optimizer: Optimizer,
        named: list[tuple[str, Tensor]],
        losses_of_calls: Callable[[], list[Tensor]],
        locate: Callable[[], str | None],
        noise: StepNoise | None = None,
    ) -> None:
        self._noise = noise
        self.kind, self.optimizer, self._named = kind, optimizer, named
        self._losses_of_calls, self._locate = losses_of_calls, locate
        self.losses: list[Tensor] = []
        self.closure = False
        self.refused = False  # the gradient scaler did not let the optimizer step
        self._earlier = 0  # losses of batches that were accumulated before the one in the closure
        self._told = 0  # how often the gradients were said to be complete
        self._record: dict[str, Any] = {}
        self._weights: list[Tensor] | None = None

    def unclipped(self, scaler: Any = None) -> None:
        """The gradients are complete, perhaps scaled, and not clipped."""
        self._told += 1
        if self._told == 1:  # a closure that is called again has moved on from where the step starts
            self._gradients("unclipped", _pending_scale(scaler, self.optimizer))

    def before_step(self, closure: bool) -> None:
        """The optimizer is about to step; with a closure the gradients are only made inside."""
        if "lr" in self._record:
            return  # a step inside a step
        self.closure, self._earlier = closure, len(self.losses)
        self._record["lr"] = [float(g["lr"]) for g in self.optimizer.param_groups if "lr" in g]
        if not closure:
            if "grad_norm" in self._record:
                self._clipped(_scale(self.optimizer))
            else:
                self._gradients("step", _scale(self.optimizer))
        if self.kind != "light":
            with torch.no_grad():
                self._weights = [p.detach().clone() for _, p in self._named]

    def after_step(self) -> None:
        """The optimizer has stepped."""
        if self.closure and "grad_norm" not in self._record:
            self._gradients("closure", 1.0)
        elif self.closure and self._told == 1:
            self._clipped(1.0)
        if self.closure and self._told:
            self._record["closure_calls"] = self._told
        if self._weights is not None:
            with torch.no_grad():
                moved = norms([p.detach() - w for (_, p), w in zip(self._named, self._weights, strict=True)])
                sizes = norms(self._weights)
                both: list[list[float]] = torch.stack([moved, sizes]).tolist()
            # A weight that starts at zero has no ratio.
            self._record["update_ratio"] = {n: d / w if w else None for (n, _), d, w in zip(self._named, *both, strict=True)}
            self._weights = None

    def record(self) -> dict[str, Any]:
        """What was measured, as plain numbers."""
        if "loss" not in self._record:
            losses = self._losses()
            if losses is not None:
                self._record["loss"] = float(losses)
        if self.refused:
            self._record["skipped"] = True
        return {k: self._record[k] for k in sorted(self._record, key=ORDER.index)}

    def _losses(self) -> Tensor | None:
        losses = self.losses or self._losses_of_calls()
        if self.closure:
            # The first one in the closure was taken at the weights from which the step starts.
            losses = losses[: self._earlier + 1]
        if not losses:
            return None
        return torch.stack([loss.reshape(()).float() if loss.dtype.itemsize < 4 else loss.reshape(()) for loss in losses]).mean()

    def _clipped(self, scale: float) -> None:
        """Compare the gradients as they are now with what they were before clipping."""
        grads = self._grads()[1]
        clipped = total(read(norms(grads), grads)) / scale
        if clipped < self._record["grad_norm"] * (1 - 1e-5):
            self._record["grad_norm_clipped"] = clipped

    def _grads(self) -> tuple[list[str], list[Tensor]]:
        pairs = [(n, p.grad) for n, p in self._named if p.grad is not None]
        return [n for n, _ in pairs], [g for _, g in pairs]

    def _gradients(self, at: str, scale: float) -> None:
        """Measure the gradients as they are now; loss and norms come over in one transfer."""
        names, grads = self._grads()
        found, loss = norms(grads), self._losses()
        if loss is not None and loss.device == found.device:
            kind = torch.promote_types(loss.dtype, found.dtype)
            values: list[float] = torch.cat([loss.to(kind).reshape(1), found.to(kind)]).tolist()
            self._record["loss"], numbers = values[0], values[1:]
        else:
            numbers = found.tolist()
        if not all(map(math.isfinite, numbers)):
            numbers = read(found, grads)
        numbers = [n / scale for n in numbers]
        self._record |= {"grad_norm": total(numbers), "grad_norm_at": at}
        if self.kind != "light":
            self._record["grad_norms"] = dict(zip(names, numbers, strict=True))
            without = [n for n, p in self._named if p.grad is None]
            if without:
                self._record["no_gradient"] = without
        if self._noise is not None and at != "closure":  # a closure runs the batch again and again
            self._rows(self._noise)
        bad = [n for n, value in zip(names, numbers, strict=True) if not math.isfinite(value)]
        if bad or not math.isfinite(self._record.get("loss", 0.0)):
            self._record["nonfinite"] = self._nonfinite(bad)

    def _rows(self, noise: StepNoise) -> None:
        """What the gradients of single rows say about signal and noise; a step that they do not make up says nothing."""
        found = noise.statistics()
        if found.norms is not None:
            values = {"norm_test": found.norms.norm_test, "snr": found.norms.snr, "batch_noise_scale": found.norms.batch_noise_scale}
            kept = {name: value if math.isfinite(value) else None for name, value in values.items()}
            self._record["noise"] = {**kept, "rows": float(found.norms.rows), "share": found.share}

    def _nonfinite(self, bad: list[str]) -> dict[str, Any]:
        layer = self._locate()
        if layer is not None:
            return {"where": "forward", "layer": layer, "gradients": bad[:MOST_NAMES]}
        if not math.isfinite(self._record.get("loss", 0.0)):
            return {"where": "loss", "layer": None, "gradients": bad[:MOST_NAMES]}
        # Backward comes from the end: the last layer in the order of the model is the first that it broke in.
        return {"where": "backward", "layer": bad[-1], "gradients": bad[:MOST_NAMES]}


# The short and telling entries first, for whoever reads the lines themselves.
ORDER = (
    "loss",
    "grad_norm",
    "grad_norm_clipped",
    "grad_norm_at",
    "lr",
    "closure_calls",
    "skipped",
    "nonfinite",
    "noise",
    "grad_norms",
    "update_ratio",
    "no_gradient",
)


def _scale(optimizer: Optimizer) -> float:
    """What a gradient scaler has left in the gradients of a fused optimizer, which divides by it itself."""
    scale = getattr(optimizer, "grad_scale", None)
    return float(scale) if isinstance(scale, Tensor) else 1.0


def _pending_scale(scaler: Any, optimizer: Optimizer) -> float:
    """The factor by which the gradients are still scaled: 1 after `scaler.unscale_(optimizer)`."""
    if scaler is None or not scaler.is_enabled():
        return 1.0
    state = getattr(scaler, "_per_optimizer_states", {}).get(id(optimizer))
    unscaled = state is not None and getattr(state.get("stage"), "name", "READY") != "READY"
    return 1.0 if unscaled else float(scaler.get_scale())
