"""Regularisation: shrink the parameters at every step."""

from gradoscope.remedies import Remedy
from gradoscope.training import Live

__all__ = ["WeightDecay"]


class WeightDecay(Remedy):
    r"""Add $\lambda\theta$ to the gradient of every parameter with at least two dimensions."""

    from_checkpoint = False

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.name = f"weight_decay({strength:g})"
        self.explanation = f"Weights are decayed with strength {strength:g}."
        self.code = f"optimizer = type(optimizer)(model.parameters(), weight_decay={strength:g})  # other settings as before"

    def before_step(self, live: Live) -> None:
        for _, p in live.trainable():
            if p.grad is not None and p.dim() > 1:
                p.grad.add_(p.detach(), alpha=self.strength)
