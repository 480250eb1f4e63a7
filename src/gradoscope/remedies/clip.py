"""Gradient clipping: a step over a cliff is no longer than the ones before it."""

import torch

from gradoscope.remedies import Remedy
from gradoscope.training import Live

__all__ = ["Clip"]


class Clip(Remedy):
    """Scale the gradient down to the total norm `norm` where it is longer.

    Source: Pascanu, Mikolov and Bengio 2013, On the difficulty of training recurrent neural networks.
    """

    def __init__(self, norm: float) -> None:
        self.norm = float(norm)
        self.name = f"clip({self.norm:.3g})"
        self.explanation = f"Gradients are scaled down to a total norm of at most {self.norm:.3g}, at the same step size."
        self.code = f"torch.nn.utils.clip_grad_norm_(model.parameters(), {self.norm:.3g})  # before optimizer.step()"

    def before_step(self, live: Live) -> None:
        torch.nn.utils.clip_grad_norm_([p for _, p in live.trainable()], self.norm)
