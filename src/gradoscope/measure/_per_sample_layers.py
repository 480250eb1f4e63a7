"""Per-sample gradients of single layers from their inputs and the slopes at their outputs, formed only where that is cheaper."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import grad as weight_gradients
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["Piece", "by_rows", "covered", "gram_of", "pieces", "squares_of"]

CHUNK = 1 << 24  # entries of single-sample gradients that are formed at a time
CONVOLUTIONS = {
    nn.Conv1d: weight_gradients.conv1d_weight,
    nn.Conv2d: weight_gradients.conv2d_weight,
    nn.Conv3d: weight_gradients.conv3d_weight,
}
NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)


class Piece(Protocol):
    """The gradients of B samples by one parameter, from one or more calls of its layer."""

    count: int  # samples
    size: int  # entries of the gradient of one sample

    def squares(self) -> Tensor:
        """Squared norms, shape (B,)."""

    def whole(self, rows: slice) -> Tensor:
        """The gradients of some samples, shape (b, size)."""


class Outer:
    r"""A linear layer's weight: $G_n=\sum_t d_{nt}a_{nt}^\top$ from inputs (B, T, in) and slopes (B, T, out).

    $|G_n|^2=\sum_{t,s}(a_{nt}\cdot a_{ns})(d_{nt}\cdot d_{ns})$ needs no matrix of the weight's size; for long sequences the matrix
    is the smaller one. Counted operations decide.
    """

    def __init__(self, inputs: Tensor, slopes: Tensor) -> None:
        self.inputs, self.slopes = inputs, slopes
        self.count, self.size = len(inputs), inputs.shape[-1] * slopes.shape[-1]

    def squares(self) -> Tensor:
        length, width = self.inputs.shape[1], self.inputs.shape[2] + self.slopes.shape[2]
        if length == 1:
            return _squared(self.inputs) * _squared(self.slopes)
        # A matrix that is written and read again costs about as much as 15 operations per entry (measured on CPUs).
        if 2 * length**2 * width + 30 * length**2 > (2 * length + 15) * self.size or length**2 > CHUNK:
            return _chunked(self)
        step = max(1, CHUNK // length**2)
        parts = []
        for start in range(0, self.count, step):
            a, d = self.inputs[start : start + step], self.slopes[start : start + step]
            parts.append((torch.bmm(a, a.transpose(1, 2)) * torch.bmm(d, d.transpose(1, 2))).sum((1, 2)))
        return torch.cat(parts).clamp_min(0)

    def whole(self, rows: slice) -> Tensor:
        return torch.bmm(self.slopes[rows].transpose(1, 2), self.inputs[rows]).flatten(1)


class Convolved:
    """A convolution's weight: the gradient of each sample by the library's own kernel, vectorised over the samples."""

    def __init__(self, layer: Any, inputs: Tensor, slopes: Tensor) -> None:
        self.layer, self.inputs, self.slopes = layer, inputs, slopes
        self.count, self.size = len(inputs), layer.weight.numel()

    def squares(self) -> Tensor:
        return _chunked(self)

    def whole(self, rows: slice) -> Tensor:
        layer, a, d = self.layer, self.inputs[rows], self.slopes[rows]
        padding = layer.padding
        if layer.padding_mode != "zeros":
            mode, sides = layer.padding_mode, layer._reversed_padding_repeated_twice
            padded = nn.functional.pad(a.flatten(0, 1), sides, mode=mode)
            a = padded.reshape(*a.shape[:2], *padded.shape[1:])
            padding = 0
        elif isinstance(padding, str):
            a, padding = nn.functional.pad(a, layer._reversed_padding_repeated_twice), 0
        weight_gradient: Callable[..., Tensor] = CONVOLUTIONS[type(layer)]

        def single(x: Tensor, slope: Tensor) -> Tensor:
            return weight_gradient(x, layer.weight.shape, slope, layer.stride, padding, layer.dilation, layer.groups)

        if len(a) == 1:
            return single(a[0], d[0]).reshape(1, -1)
        return vmap(single)(a, d).flatten(1)


class Looked:
    """An embedding's table: the slopes (B, T, dim) at the rows (B, T) that each sample looked up."""

    def __init__(self, table: Tensor, index: Tensor, slopes: Tensor) -> None:
        self.entries, self.index, self.slopes = len(table), index, slopes
        self.count, self.size = len(index), table.numel()

    def squares(self) -> Tensor:
        # Slopes that meet in one row of one sample add up before they are squared.
        owner = torch.arange(self.count, device=self.index.device)[:, None] * self.entries
        keys, place = torch.unique(owner + self.index, return_inverse=True)
        met = self.slopes.new_zeros(len(keys), self.slopes.shape[-1]).index_add_(0, place.reshape(-1), self.slopes.flatten(0, 1))
        return self.slopes.new_zeros(self.count).index_add_(0, keys // self.entries, met.square().sum(1))

    def whole(self, rows: slice) -> Tensor:
        index, slopes = self.index[rows], self.slopes[rows]
        owner = torch.arange(len(index), device=index.device)[:, None] * self.entries
        out = slopes.new_zeros(len(index) * self.entries, slopes.shape[-1])
        return out.index_add_(0, (owner + index).reshape(-1), slopes.flatten(0, 1)).reshape(len(index), -1)


class Given:
    """Gradients that are small enough, or that were formed anyway: shape (B, size)."""

    def __init__(self, values: Tensor) -> None:
        self.values = values.flatten(1)
        self.count, self.size = self.values.shape

    def squares(self) -> Tensor:
        return _squared(self.values)

    def whole(self, rows: slice) -> Tensor:
        return self.values[rows]


@dataclass
class Sum:
    """A parameter that is used in several ways (a table that is also the last layer): what each way gives, added."""

    parts: Sequence[Piece]

    def __post_init__(self) -> None:
        self.count, self.size = self.parts[0].count, self.parts[0].size

    def squares(self) -> Tensor:
        return _chunked(self)

    def whole(self, rows: slice) -> Tensor:
        total = self.parts[0].whole(rows)
        for part in self.parts[1:]:
            total = total + part.whole(rows)
        return total


def _squared(values: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return norms.square()


def _chunked(piece: Piece) -> Tensor:
    step = max(1, CHUNK // max(1, piece.size))
    return torch.cat([_squared(piece.whole(slice(s, s + step))) for s in range(0, piece.count, step)])


def joined(parts: Sequence[Piece]) -> Piece:
    """Several calls of one layer as one piece: a linear layer or a table that is used twice is a longer sequence."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if all(isinstance(p, Outer) for p in parts):
        return Outer(torch.cat([p.inputs for p in parts], 1), torch.cat([p.slopes for p in parts], 1))  # type: ignore[attr-defined]  # all Outer
    if all(isinstance(p, Looked) for p in parts):
        table = torch.empty(first.entries, 0, device="meta")  # type: ignore[attr-defined]  # all Looked
        merged = Looked(table, torch.cat([p.index for p in parts], 1), torch.cat([p.slopes for p in parts], 1))  # type: ignore[attr-defined]  # all Looked
        merged.size = first.size
        return merged
    if all(isinstance(p, Given) for p in parts):
        return Given(sum(p.whole(slice(None)) for p in parts))  # type: ignore[arg-type]  # a sum of tensors
    return Sum(parts)


def squares_of(parts: Sequence[Piece]) -> Tensor:
    """The squared norms of the gradients by one parameter, shape (B,), from the pieces of all its calls."""
    return joined(parts).squares()


def gram_of(parts: Sequence[Piece]) -> Tensor:
    """The inner products between the samples' gradients by one parameter, shape (B, B), float64 where the device has it."""
    piece = joined(parts)
    wide = torch.float32 if piece_device(piece).type == "mps" else torch.float64
    if isinstance(piece, Outer) and piece.inputs.shape[1] == 1:
        a, d = piece.inputs[:, 0].to(wide), piece.slopes[:, 0].to(wide)
        return (a @ a.T) * (d @ d.T)
    step = max(1, CHUNK // max(1, piece.size))
    blocks = [slice(s, min(s + step, piece.count)) for s in range(0, piece.count, step)]
    total = torch.zeros(piece.count, piece.count, dtype=wide, device=piece_device(piece))
    for i, left in enumerate(blocks):
        rows = piece.whole(left).to(wide)
        for right in blocks[: i + 1]:
            product = rows @ (rows if right == left else piece.whole(right).to(wide)).T
            total[left, right], total[right, left] = product, product.T
    return total


def piece_device(piece: Piece) -> torch.device:
    device: torch.device = piece.whole(slice(0, 1)).device
    return device


def covered(layer: nn.Module) -> bool:
    """Whether the gradients of this layer's own parameters follow from its input and the slope at its output by a formula here."""
    own = {name for name, p in layer._parameters.items() if p is not None}
    if not own or "forward" in vars(layer) or not own <= {"weight", "bias"} or "weight" not in own:
        return False  # also a reparametrised weight, which is no parameter
    kind = type(layer)
    if kind is nn.Embedding:
        return not (layer.scale_grad_by_freq or layer.max_norm is not None)
    if isinstance(layer, _BatchNorm):
        return kind in NORMS and not layer.training and layer.running_mean is not None
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm):
        return kind in NORMS and not layer.track_running_stats
    return kind is nn.Linear or kind in CONVOLUTIONS or kind in NORMS or kind is getattr(nn, "RMSNorm", None)


def by_rows(t: Tensor, single: torch.Size, count: int) -> Tensor | None:
    """A tensor with its samples first, shape (B, ...), told from the shape that it has for one sample; None where it has none."""
    if count == 1:
        return t.unsqueeze(0)
    if t.dim() != len(single):
        return None
    axes = [k for k, (n, one) in enumerate(zip(t.shape, single, strict=True)) if n != one]
    if len(axes) != 1 or t.shape[axes[0]] != count * single[axes[0]]:
        return None
    k = axes[0]
    return t.reshape(*t.shape[:k], count, single[k], *t.shape[k + 1 :]).movedim(k, 0)


def pieces(layer: Any, inputs: Tensor, slopes: Tensor, *, single: int) -> dict[str, Piece] | None:
    """The pieces of a layer's own parameters from one call: inputs and slopes with the samples first (`by_rows`).

    Args:
        layer: a layer that is `covered`.
        inputs: shape (B, 1 or more, ...), the axis after the samples being what one sample has in the layer's batch axis.
        slopes: the same at its output, of the sum of all samples' losses.
        single: how many axes the layer's input has.

    Returns:
        Parameter name ("weight", "bias") to piece, for the trainable ones; None where the shapes do not fit the layer.
    """
    found: dict[str, Piece] = {}
    wanted = {name for name, p in layer._parameters.items() if p is not None and p.requires_grad}
    dtype = layer.weight.dtype if layer.weight.dtype.itemsize >= 4 else torch.float32
    slopes = slopes.to(dtype)
    if type(layer) is nn.Embedding:
        found["weight"] = _lookup(layer, inputs, slopes)
        return {name: piece for name, piece in found.items() if name in wanted}
    inputs = inputs.to(dtype)
    if type(layer) is nn.Linear:
        a, d = inputs.flatten(1, -2), slopes.flatten(1, -2)
        if a.shape[-1] != layer.in_features or d.shape[-1] != layer.out_features:
            return None
        found["weight"] = Outer(a, d)
        if "bias" in wanted:
            found["bias"] = Given(d.sum(1))
    elif type(layer) in CONVOLUTIONS:
        if inputs.dim() != layer.weight.dim() + 1 or single != layer.weight.dim():
            return None
        found["weight"] = Convolved(layer, inputs, slopes)
        if "bias" in wanted:
            found["bias"] = Given(slopes.sum([k for k in range(1, slopes.dim()) if k != 2]))
    else:
        products = _scaled(layer, inputs, slopes)
        if products is None:
            return None
        found["weight"], found["bias"] = Given(products[0]), Given(products[1])
    return {name: piece for name, piece in found.items() if name in wanted}


def _lookup(layer: Any, index: Tensor, slopes: Tensor) -> Piece:
    index, slopes = index.reshape(len(index), -1), slopes.reshape(len(slopes), -1, slopes.shape[-1])
    if layer.padding_idx is not None:
        slopes = slopes * (index != layer.padding_idx).unsqueeze(-1)
    return Looked(layer.weight, index, slopes)


def _scaled(layer: Any, inputs: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor] | None:
    """Sums over a sample's positions of slope times normalised input, and of the slope, by entry of the weight."""
    if isinstance(layer, nn.LayerNorm) or type(layer) is getattr(nn, "RMSNorm", None):
        shape = layer.normalized_shape
        plain = torch.nn.functional.layer_norm(inputs, shape, eps=layer.eps) if isinstance(layer, nn.LayerNorm) else _root(layer, inputs)
        if slopes.shape[-len(shape) :] != tuple(shape):
            return None
        entries = math.prod(shape)
        return (slopes * plain).reshape(len(slopes), -1, entries).sum(1), slopes.reshape(len(slopes), -1, entries).sum(1)
    # The others have an entry per channel: (B, m, C, positions).
    if inputs.dim() < 3 or slopes.shape[2] != len(layer.weight):
        return None
    d = slopes.flatten(3) if slopes.dim() > 3 else slopes.unsqueeze(-1)
    if isinstance(layer, _BatchNorm) and layer.running_var is not None and layer.running_mean is not None:
        a = inputs.flatten(3) if inputs.dim() > 3 else inputs.unsqueeze(-1)
        total = d.sum((1, 3))
        spread = torch.rsqrt(layer.running_var + layer.eps).to(d)
        return ((d * a).sum((1, 3)) - total * layer.running_mean.to(d)) * spread, total
    merged = inputs.flatten(0, 1)
    if isinstance(layer, nn.GroupNorm):
        plain = torch.nn.functional.group_norm(merged, layer.num_groups, eps=layer.eps)
    else:
        plain = torch.nn.functional.instance_norm(merged, eps=layer.eps)
    plain = plain.reshape(d.shape)
    return (d * plain).sum((1, 3)), d.sum((1, 3))


def _root(layer: Any, inputs: Tensor) -> Tensor:
    return torch.nn.functional.rms_norm(inputs, layer.normalized_shape, eps=layer.eps)
