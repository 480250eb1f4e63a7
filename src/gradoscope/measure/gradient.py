"""Norms of gradients and updates, per parameter and per group, without a device transfer for each."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["group_norms", "layer_norms", "missing_gradients", "update_ratios"]


def missing_gradients(parameters: Sequence[tuple[str, Tensor]]) -> list[str]:
    """The names of the parameters whose `.grad` is None: no gradient was computed, which is not the same as zero.

    Args:
        parameters: (name, parameter) pairs.

    Example:
        >>> layer = torch.nn.Linear(1, 1)
        >>> missing_gradients(list(layer.named_parameters()))
        ['weight', 'bias']
    """
    return [name for name, p in parameters if p.grad is None]


def layer_norms(parameters: Sequence[tuple[str, Tensor]], grads: Tensor | None = None, *, scale: float | Tensor = 1.0) -> dict[str, float]:
    r"""The Euclidean norm $\|g_l\|$ of the gradient of each parameter.

    Args:
        parameters: (name, parameter) pairs.
        grads: the gradient as one vector, shape (dim,), in the order of `parameters`; None reads each `.grad`.
        scale: what the gradients were multiplied by (a `GradScaler`'s scale); norms are divided by it.

    Returns:
        Name to norm. Parameters whose `.grad` is None are left out: `missing_gradients` lists them.

    Raises:
        ValueError: where `grads` has another length than the parameters together.

    Cost: no passes; one fused pass over the gradients and one transfer per device.

    Example:
        >>> w = torch.zeros(2, requires_grad=True)
        >>> layer_norms([("w", w)], torch.tensor([3.0, 4.0]))
        {'w': 5.0}
    """
    if grads is None:
        named = [(name, p.grad) for name, p in parameters if p.grad is not None]
        names, tensors = [n for n, _ in named], [g for _, g in named]
    else:
        sizes = [p.numel() for _, p in parameters]
        if grads.numel() != sum(sizes):
            raise ValueError(f"the gradient has {grads.numel()} entries, but the parameters have {sum(sizes)} together.")
        names, tensors = [n for n, _ in parameters], list(torch.split(grads.detach().reshape(-1), sizes))
    factor = 1 / float(scale)
    return dict(zip(names, (factor * norm for norm in _norms(tensors)), strict=True))


def group_norms(optimizer: Optimizer) -> dict[str, float]:
    r"""The norm $\|g\|$ of the gradient of each parameter group, before clipping if it is called before it.

    A fused optimizer under a `GradScaler` sees scaled gradients and says so in `grad_scale`: they are unscaled here.

    Returns:
        A group's `name` (or its index, where it has none) to its norm; groups without any gradient are left out.

    Cost: no passes; one fused pass over the gradients and one transfer per device.

    Example:
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> group_norms(torch.optim.SGD([w], lr=0.1))
        {'0': 2.0}
    """
    pairs: list[tuple[str, Tensor]] = []
    for index, group in enumerate(optimizer.param_groups):
        key = str(group.get("name", index))
        pairs += [(key, p.grad) for p in group["params"] if p.grad is not None]
    squares: dict[str, list[float]] = defaultdict(list)
    for (key, _), norm in zip(pairs, _norms([g for _, g in pairs]), strict=True):
        squares[key].append(norm)
    scale: Any = getattr(optimizer, "grad_scale", None)
    factor = 1.0 if scale is None else 1 / float(scale)
    return {key: factor * math.hypot(*norms) for key, norms in squares.items()}


def update_ratios(before: Sequence[Tensor], after: Sequence[Tensor], names: Sequence[str]) -> dict[str, float]:
    r"""How far one step moved each parameter, in units of the parameter: $\|\theta'-\theta\|/\|\theta\|$.

    Args:
        before: copies of the parameters before the step.
        after: the parameters after it.
        names: their names.

    Returns:
        Name to ratio; 0 where nothing moved, infinity where a parameter that was all zero moved.

    Cost: no passes; one fused pass over the parameters and one transfer per device.

    Example:
        >>> update_ratios([torch.tensor([2.0])], [torch.tensor([2.5])], ["w"])
        {'w': 0.25}
    """
    with torch.no_grad():
        moved = torch._foreach_sub([a.detach() for a in after], [b.detach() for b in before]) if before else []
    norms = _norms([*moved, *before])
    ratios = {}
    for name, change, size in zip(names, norms[: len(before)], norms[len(before) :], strict=True):
        ratios[name] = 0.0 if change == 0 else change / size if size != 0 else math.inf
    return ratios


def _norms(tensors: Sequence[Tensor]) -> list[float]:
    """The norm of each tensor, in order: fused per device and data type, then one transfer per device."""
    places: dict[torch.device, dict[torch.dtype, list[int]]] = defaultdict(lambda: defaultdict(list))
    dense: list[Tensor] = []
    for i, t in enumerate(tensors):
        t = t.detach()
        # Uncoalesced values hold an entry in several pieces, whose norm is not the norm of their sum.
        dense.append(t.coalesce().values() if t.layout == torch.sparse_coo else t)
        places[dense[i].device][dense[i].dtype].append(i)
    result = [0.0] * len(dense)
    for by_type in places.values():
        order, parts = [], []
        for dtype, indices in by_type.items():
            # Half precision overflows in the sum of squares.
            wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else None
            norms = torch._foreach_norm([dense[i] for i in indices], 2, dtype=wide)
            parts += [n.full_tensor() if hasattr(n, "full_tensor") else n for n in norms]
            order += indices
        widest = torch.float64 if any(p.dtype == torch.float64 for p in parts) else torch.float32
        for i, value in zip(order, torch.stack([p.to(widest) for p in parts]).tolist(), strict=True):
            result[i] = value
    return result
