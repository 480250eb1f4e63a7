"""Forward-only: what is flat or saturated passes the gradient on unchanged on the way back."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from gradoscope import tree
from gradoscope.guard import untouched
from gradoscope.remedies import Remedy
from gradoscope.training import Live
from gradoscope.updates.forward_only import ForwardOnlyPass, straight_through

__all__ = ["Unblock", "blocking_modules"]


class Unblock(Remedy):
    r"""Replace the derivative of flat functions by one on the way back: $u'(z)\to 1$.

    Covers sign, floor, ceil, round and their kind wherever they are called; with `saturating`, sigmoid, tanh, ReLU and
    their kind as well; and modules without parameters that change nothing in shape and let no gradient through.

    Source: Shalev-Shwartz, Shamir and Shammah 2017, section 5; Kalai and Sastry 2009; Kakade et al. 2011.
    """

    def __init__(self, *, saturating: bool = False) -> None:
        self.saturating = saturating
        self.name = "unblock(saturating)" if saturating else "unblock"
        self.code = (
            "from gradoscope.updates.forward_only import ForwardOnlyPass\n"
            f"with ForwardOnlyPass(saturating={saturating}):  # around the forward pass\n"
            "    loss = loss_fn(model(x), y)"
        )
        what = "Flat and saturating activations let" if saturating else "Flat activations let"
        self.explanation = f"{what} the gradient pass unchanged on the way back (forward-only); the forward pass is the same."

    def prepare(self, live: Live) -> None:
        for module in blocking_modules(live):
            live.at_close(module.register_forward_hook(_straight_through).remove)

    def forward_context(self) -> AbstractContextManager[Any]:
        return ForwardOnlyPass(saturating=self.saturating)


def _straight_through(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    x = inputs[0]
    if isinstance(output, Tensor) and isinstance(x, Tensor) and output.shape == x.shape and x.is_floating_point():
        return straight_through(output, x)
    return output


def blocking_modules(live: Live) -> list[nn.Module]:
    """Modules without parameters that keep the shape, vary with their input, and pass no gradient at all."""
    found: list[nn.Module] = []

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        x = inputs[0] if inputs else None
        if not (isinstance(x, Tensor) and isinstance(output, Tensor)) or x.shape != output.shape or not x.is_floating_point():
            return
        twin = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            again = module.forward(twin, *inputs[1:])
            grad = torch.autograd.grad(again.sum(), twin, allow_unused=True)[0] if again.requires_grad else None
        if (grad is None or not grad.any()) and float(output.detach().std()) > 0:
            found.append(module)

    leaves = [m for m in live.model.modules() if not list(m.parameters()) and not list(m.children())]
    handles = [m.register_forward_hook(hook) for m in leaves]
    try:
        with untouched(live.model, seed=0), torch.no_grad():
            live.training.loss(live.model, tree.to_device(live.batches.sample(64, "fresh")[0], live.device))
    finally:
        for handle in handles:
            handle.remove()
    return found
