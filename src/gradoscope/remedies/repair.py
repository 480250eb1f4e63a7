"""The loss that fits the output and the targets, in place of one that does not."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gradoscope import tree
from gradoscope.errors import GradoscopeError
from gradoscope.guard import untouched
from gradoscope.measure.pairing import INVERSES, Mismatch
from gradoscope.remedies import Remedy
from gradoscope.training import Live, Training, split

__all__ = ["Repair"]


class Repair(Remedy):
    """Leave the last activation out where it does not belong, and minimise the loss that fits.

    An activation that is a module is passed by; one that is called as a function is inverted, which is the same up to rounding.

    Args:
        mismatch: what does not fit, of `measure.pairing.mismatches`.
    """

    name = "repair_loss"
    from_checkpoint = False

    def __init__(self, mismatch: Mismatch) -> None:
        self.mismatch = mismatch
        left_out = "" if mismatch.activation == "none" else f" of the output without its {mismatch.activation}"
        self.explanation = f"The loss that fits the targets{left_out} is minimised."
        self.code = mismatch.code

    def __call__(self, training: Training) -> Training:
        return replace(training.with_change(self), loss_fn=self.mismatch.repaired)

    def prepare(self, live: Live) -> None:
        if self.mismatch.activation == "none":
            return
        module = _last_module(live)
        if module is not None:
            live.at_close(module.register_forward_hook(lambda _module, inputs, _output: inputs[0]).remove)
            return
        inverse = INVERSES.get(self.mismatch.activation)
        if inverse is None:
            raise GradoscopeError(f"the {self.mismatch.activation} at the output is no module of its own that could be left out")
        live.at_close(live.model.register_forward_hook(lambda _module, _inputs, output: inverse(output)).remove)


def _last_module(live: Live) -> nn.Module | None:
    """The module without parameters whose output is, or is reshaped to, the model's output."""
    last: list[tuple[nn.Module, Tensor]] = []

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and inputs and isinstance(inputs[0], Tensor) and inputs[0].shape == output.shape:
            last.append((module, output))

    activations = (nn.Softmax, nn.Sigmoid, nn.ReLU, nn.Tanh, nn.Softplus)
    handles = [m.register_forward_hook(hook) for m in live.model.modules() if isinstance(m, activations)]
    try:
        with untouched(live.model, seed=0), torch.no_grad():
            inputs, _ = split(tree.to_device(live.batches.sample(4, "fresh")[0], live.device))
            answer = live.model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    for module, output in reversed(last):
        if isinstance(answer, Tensor) and output.data_ptr() == answer.data_ptr() and output.numel() == answer.numel():
            return module
    return None
