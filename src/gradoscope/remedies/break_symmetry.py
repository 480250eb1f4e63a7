"""Noise of the size of a usual start, added to the weights as they are: equal units become different."""

import torch

from gradoscope.guard import derive_seed
from gradoscope.remedies import Remedy
from gradoscope.training import Live

__all__ = ["BreakSymmetry"]


class BreakSymmetry(Remedy):
    r"""Add Gaussian noise of variance 1/fan-in to every weight matrix once; biases and vectors stay as they are.

    $W_{ij}\leftarrow W_{ij}+\epsilon_{ij}$, $\epsilon_{ij}\sim N(0, 1/n_{\mathrm{in}})$: what a usual start draws, so that units which were
    copies of each other have different outputs and different gradients, whatever the weights were before.

    Source: Rumelhart, Hinton and Williams 1986, on small random weights; Le Cun et al. 1998, Efficient BackProp, for their size.
    """

    name = "break_symmetry"
    explanation = "Noise of the size of a usual start, of variance 1/fan-in, is added to every weight matrix once."
    from_checkpoint = False
    code = (
        "# before training: units that start equal stay equal\n"
        "with torch.no_grad():\n    for p in model.parameters():\n        if p.dim() > 1:\n"
        "            p += torch.randn_like(p) / p[0].numel() ** 0.5"
    )

    def prepare(self, live: Live) -> None:
        generator = torch.Generator().manual_seed(derive_seed(live.seed, 108))
        with torch.no_grad():
            for _, p in live.trainable():
                if p.dim() > 1:
                    p.add_(torch.randn(p.shape, generator=generator).to(p) / p[0].numel() ** 0.5)
