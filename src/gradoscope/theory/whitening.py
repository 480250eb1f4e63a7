"""Whitening: the second moments of inputs, their inverse root, and the covariance of the patches that a convolution sees."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Whitening", "patches", "whitening"]


@dataclass(frozen=True)
class Whitening:
    r"""A linear change of inputs $x\mapsto T(x-\mu)$ whose outputs are uncorrelated and of one size.

    Attributes:
        matrix: $T=s\,C^{-1/2}$, symmetric, shape (m, m), float64.
        inverse: $T^{-1}$, shape (m, m).
        mean: $\mu$, shape (m,); zero where C is a plain second moment.
        condition: $\kappa(C)$ of what was whitened, inf where C is singular.
        left: how many directions were left alone, as their eigenvalue was below the floor.
    """

    matrix: Tensor
    inverse: Tensor
    mean: Tensor
    condition: float
    left: int


def whitening(
    moment: Tensor, mean: Tensor | None = None, *, scale: Literal["largest", "unit"] = "largest", floor: float = 1e-10
) -> Whitening:
    r"""The whitening $T=s\,C^{-1/2}$ that belongs to a second moment $E\,xx^\top$ of inputs.

    With a filter or weight w' learnt on whitened inputs, the one for plain inputs is $w=Tw'$, thus $C^{-1/2}w'$ and not $C^{1/2}w'$.

    Args:
        moment: $E\,xx^\top$, shape (m, m).
        mean: $E\,x$, shape (m,): given, C is the covariance; None: C is the second moment itself.
        scale: "largest" keeps C's largest eigenvalue, $s=\sqrt{\lambda_{\max}}$, so that the largest curvature of a linear map of the
            inputs, and so the step size that it allows, stays as it was; "unit" is s = 1.
        floor: directions whose eigenvalue is below this share of the largest are left alone (T = 1 there): the data say nothing of
            them, and they would be blown up.

    Cost: m^3 multiplications.

    Example:
        >>> c = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
        >>> t = whitening(c, scale="unit").matrix
        >>> bool(torch.allclose(t @ c @ t, torch.eye(2, dtype=torch.float64)))
        True

    Source: Le Cun, Bottou, Orr and Mueller 1998, Efficient BackProp, section 4.3.
    """
    c = moment.detach().double()
    centre = torch.zeros_like(c[0]) if mean is None else mean.detach().double()
    values, vectors = torch.linalg.eigh(c - centre[:, None] * centre[None, :])
    largest = float(values[-1])
    known = values > max(largest, 0.0) * floor
    s = math.sqrt(largest) if scale == "largest" and largest > 0 else 1.0
    factors = torch.where(known, s / values.clamp(min=torch.finfo(torch.float64).tiny).sqrt(), 1.0)
    condition = largest / float(values[0]) if values[0] > 0 else math.inf
    return Whitening((vectors * factors) @ vectors.T, (vectors / factors) @ vectors.T, centre, condition, int((~known).sum()))


def patches(layer: nn.Module, x: Tensor) -> Tensor:
    """What the weights of a linear or convolutional layer are multiplied with: one row per output place.

    Args:
        layer: `nn.Linear`, or `nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d` with one group.
        x: the layer's input.

    Returns:
        Shape (N, m), in the order of `layer.weight.flatten(1)`.

    Example:
        >>> layer = nn.Conv1d(1, 1, 3, bias=False)
        >>> patches(layer, torch.arange(5.0).reshape(1, 1, 5)).tolist()
        [[0.0, 1.0, 2.0], [1.0, 2.0, 3.0], [2.0, 3.0, 4.0]]
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    d = len(layer.kernel_size)
    if x.dim() == d + 1:
        x = x[None]
    if any(layer._reversed_padding_repeated_twice):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    for axis in range(d):  # each unfold moves one axis of windows to the end
        dilation, size = layer.dilation[axis], layer.kernel_size[axis]
        x = x.unfold(2 + axis, dilation * (size - 1) + 1, layer.stride[axis])[..., ::dilation]
    # (N, channels, places ..., taps ...) -> (N, places ..., channels, taps ...)
    return x.movedim(1, 1 + d).flatten(1 + d).reshape(-1, layer.weight[0].numel())
