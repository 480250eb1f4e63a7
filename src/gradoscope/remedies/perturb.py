"""A random kick, relative to the size of each parameter tensor."""

import torch

from gradoscope.guard import derive_seed
from gradoscope.remedies import Remedy
from gradoscope.training import Live

__all__ = ["Perturb"]


class Perturb(Remedy):
    """Add Gaussian noise of `share` times the root-mean-square of each parameter tensor, then train on."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.name = f"perturb({share:.0%})"
        self.explanation = f"Noise of {share:.0%} of each parameter's size is added once, then the training goes on."
        noise = f"{share} * p.square().mean().sqrt() * torch.randn_like(p)"
        self.code = f"with torch.no_grad():\n    for p in model.parameters():\n        p += {noise}"

    def prepare(self, live: Live) -> None:
        generator = torch.Generator().manual_seed(derive_seed(live.seed, 105))
        with torch.no_grad():
            for _, p in live.trainable():
                noise = torch.randn(p.shape, generator=generator).to(p)
                p.add_(noise * p.square().mean().sqrt() * self.share)
