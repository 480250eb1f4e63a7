"""Norms of gradients, weights and updates of many parameters at once, with one transfer from the device."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["norms", "read", "total"]


def norms(tensors: Sequence[Tensor]) -> Tensor:
    r"""The Euclidean norms $\|t_i\|_2$, shape (len(tensors),), accumulated in float32 or wider, without waiting for the device.

    Sparse gradients are coalesced first: duplicate rows add up before they are squared.

    Cost: one read of the tensors.

    Example:
        >>> norms([torch.tensor([3.0, 4.0]), torch.zeros(2)])
        tensor([5., 0.])
    """
    if not tensors:
        return torch.zeros(0)
    with torch.no_grad():
        dense = [t.detach().coalesce().values() if t.is_sparse else t.detach() for t in tensors]
        out: list[Tensor | None] = [None] * len(dense)
        groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for i, t in enumerate(dense):
            groups.setdefault((t.device, t.dtype), []).append(i)
        for (_, dtype), places in groups.items():
            wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else None
            found = torch._foreach_norm([dense[i] for i in places], 2, dtype=wide)
            for i, value in zip(places, found, strict=True):
                out[i] = value
        kept = [value.real if value.is_complex() else value for value in out if value is not None]
        first, kinds = kept[0], {value.dtype for value in kept}
        if len(kinds) > 1 or len(groups) > 1:
            kind = torch.float64 if torch.float64 in kinds else torch.float32
            kept = [value.to(first.device, kind) for value in kept]
        return torch.stack(kept)


def total(values: Sequence[float]) -> float:
    """The norm of the whole from the norms of its parts; NaN stays NaN."""
    if any(math.isnan(v) for v in values):
        return math.nan
    return math.hypot(*values)


def read(values: Tensor, tensors: Sequence[Tensor]) -> list[float]:
    """The norms as numbers; one that overflowed although its tensor is finite is taken again in float64. One transfer."""
    numbers: list[float] = values.tolist()
    for i, number in enumerate(numbers):
        if not math.isfinite(number):
            t = tensors[i].detach()
            t = t.coalesce().values() if t.is_sparse else t
            numbers[i] = float(torch.linalg.vector_norm(t, dtype=torch.complex128 if t.is_complex() else torch.float64))
    return numbers
