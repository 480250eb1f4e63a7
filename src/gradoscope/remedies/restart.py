"""Another start: the parameters are drawn anew from the same distribution."""

import torch
from torch import nn

from gradoscope.guard import derive_seed, private_random
from gradoscope.remedies import Remedy
from gradoscope.training import Live

__all__ = ["Restart", "redraw"]


class Restart(Remedy):
    """Start from other random parameters: the user's factory where there is one, else the rule of `redraw`."""

    from_checkpoint = False

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = f"restart({number})"
        self.explanation = "The parameters are drawn anew, everything else is kept."
        self.code = f"torch.manual_seed({number})  # before the model is made"

    def prepare(self, live: Live) -> None:
        with private_random(derive_seed(live.seed, 104, self.number)):
            if isinstance(live.training.model, nn.Module):
                redraw(live.model)
            else:
                twin = live.training.model()
                with torch.no_grad():
                    for p, q in zip(live.model.parameters(), twin.parameters(), strict=True):
                        p.copy_(q)
                    for b, c in zip(live.model.buffers(), twin.buffers(), strict=True):
                        b.copy_(c)


def redraw(model: nn.Module) -> None:
    """Draw every parameter anew from the global random stream.

    The rule: a module with `reset_parameters` is asked to do it, as PyTorch does when it is made; every other
    parameter is drawn from a normal distribution with the mean and standard deviation of its present entries.
    """
    reset: set[int] = set()
    for module in reversed(list(model.modules())):  # parts before the whole, which may set them itself, as attention does
        before = [(p, p._version, p.detach().clone()) for p in module.parameters()]
        method = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if before and callable(method):
            method()
            # Only what it has written to: of a weight-normalised layer it resets what is computed from the parameters.
            reset.update(id(p) for p, version, value in before if p._version != version or not torch.equal(p, value))
    with torch.no_grad():
        for p in model.parameters():
            if id(p) not in reset and p.numel() > 1 and p.is_floating_point():
                p.normal_(float(p.mean()), float(p.std()))
