"""Scale and offset of the numbers that a model is given, and how much they alone slow gradient descent down."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Scales", "by_feature", "scales"]

CONSTANT = 1e-6  # of the largest spread: a feature that varies less is taken as constant
QUICKEST = 0.1  # the share of features whose spread may be smaller than the one that is told: rarely lit pixels


@dataclass(frozen=True)
class Scales:
    r"""Scale and offset of features.

    Attributes:
        mean: of each feature, shape (f,), float64.
        spread: standard deviation of each, shape (f,); 1 where a feature is constant.
        varies: which features vary, shape (f,).
        size: root mean square over all features.
        stretch: $\kappa/\kappa'$, times as many stable steps of gradient descent as for the same features standardised.
        largest: $\lambda_{\max}(E[\tilde x\tilde x^\top])$ with $\tilde x=(x,1)$.
        standardised: the same of the standardised features.
    """

    mean: Tensor
    spread: Tensor
    varies: Tensor
    size: float
    stretch: float
    largest: float
    standardised: float


def by_feature(x: Tensor, channels: int | None = None) -> Tensor:
    """Rows of features from a batch of inputs.

    Args:
        x: shape (n, f), (n, ..., f), or with `channels` the channel's dimension there, as images (n, c, h, w) have it.
        channels: None: 1 for four and more dimensions, else the last.
    """
    if x.dim() < 2:
        return x.reshape(-1, 1)
    dim = channels if channels is not None else 1 if x.dim() >= 4 else -1
    return x.movedim(dim, -1).reshape(-1, x.shape[dim])


def scales(rows: Tensor) -> Scales:
    r"""How much the scale and the offset of features alone slow gradient descent down.

    For a linear map of the inputs the curvature is proportional to $M=E[\tilde x\tilde x^\top]$. The largest eigenvalue of M
    bounds the step; a feature of standard deviation $s_j$ is then learnt in some $\lambda_{\max}(M)/s_j^2$ steps. With the features
    standardised it takes $\lambda_{\max}(M')$ steps; the ratio, $\frac{\lambda_{\max}(M)}{s^2\lambda_{\max}(M')}$ with s the first
    decile of the spreads, is what standardising them, and nothing else, saves.

    Args:
        rows: shape (n, f).

    Returns:
        The scales. Features that are constant, and values that are not finite, count for nothing.

    Raises:
        ValueError: where there is no feature.

    Example:
        >>> x = torch.randn(10_000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([100.0, 1.0])
        >>> 8_000 < scales(x).stretch < 12_000
        True
    """
    if rows.dim() != 2 or rows.shape[1] == 0:
        raise ValueError(f"expected rows of features, of shape (n, f) with f > 0, got {tuple(rows.shape)}.")
    x = torch.nan_to_num(rows.detach().double(), nan=0.0, posinf=0.0, neginf=0.0)
    mean, spread = x.mean(0), x.std(0, correction=0)
    varies = spread > CONSTANT * max(float(spread.max()), 1e-300)
    spread = torch.where(varies, spread, torch.ones_like(spread))
    size = float(x.square().mean().sqrt())
    if not bool(varies.any()):
        return Scales(mean, spread, varies, size, 1.0, size**2 + 1, 1.0)
    kept = x[:, varies]
    largest, standardised = _top(kept), _top((kept - mean[varies]) / spread[varies])
    slow = float(torch.quantile(spread[varies], QUICKEST, interpolation="lower"))
    return Scales(mean, spread, varies, size, largest / slow**2 / standardised, largest, standardised)


def _top(x: Tensor) -> float:
    """The largest eigenvalue of the second moment of (x, 1)."""
    padded = torch.cat([x, x.new_ones(len(x), 1)], dim=1) / len(x) ** 0.5
    return float(torch.linalg.matrix_norm(padded, ord=2) ** 2)
