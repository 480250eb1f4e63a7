"""Units that are copies of each other: same output, same gradient, on every example, and so for ever."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gradoscope import tree
from gradoscope.guard import derive_seed, untouched

__all__ = ["twin_share"]

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase)
SAME = 1e-4  # relative difference of two units that counts as rounding
LOOKS = 8  # random projections on which two units must agree


def twin_share(model: nn.Module, run: Callable[[], Any], *, seed: int = 0) -> dict[str, float]:
    r"""The share of each layer's units that have a twin: another unit with the same output and the same gradient.

    Units i and j of a layer with output a over the examples n are twins if $a_{ni}=a_{nj}$ and
    $\partial J/\partial a_{ni}=\partial J/\partial a_{nj}$ for all n. Their incoming weights then get the same gradient, and from equal
    weights they stay equal under any optimizer that treats coordinates alike: the layer is as narrow as it has different units. Compared
    on random projections over the examples, to a relative 1e-4.

    Args:
        model: linear, convolutional and recurrent layers of it are looked at.
        run: one forward pass of `model`, and its backward pass.
        seed: of masks and projections.

    Returns:
        By layer: twins / units, 0 where all differ. Units that put out nothing and get no gradient are twins if their incoming weights are
        the same, as in a start at zero, and else dead. Layers of one unit, and those without a gradient whose weights differ, are left out.

    Cost: one forward and one backward pass.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> _ = [torch.nn.init.constant_(p, 0.1) for p in model.parameters()]
        >>> x = torch.tensor([[1.0, 2.0], [0.5, -1.0]])
        >>> twin_share(model, lambda: model(x).square().sum().backward())
        {'0': 1.0}

    Source: Rumelhart, Hinton and Williams 1986, Learning internal representations by error propagation, on symmetry breaking.
    """
    seen: dict[str, list[Tensor]] = {}
    handles = []

    def hook(name: str, module: nn.Module) -> Callable[..., None]:
        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            a = next((t for t in tree.leaves(output) if t.is_floating_point() and t.dim() > 1), None)
            if a is None or name in seen or not a.requires_grad:
                return
            units = 1 if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) else a.dim() - 1
            seen[name] = [_by_unit(a, units)]
            # On a copy of the graph's value: activations in place may overwrite the output itself.
            a.register_hook(lambda g: seen[name].append(_by_unit(g, units)))  # type: ignore[no-untyped-call]  # torch gives it no types

        return look

    for name, module in model.named_modules():
        if isinstance(module, WEIGHTED):
            handles.append(module.register_forward_hook(hook(name or type(module).__name__, module)))
    try:
        with untouched(model, seed=derive_seed(seed, 0)), torch.enable_grad():
            for p in model.parameters():
                p.grad = None  # else the backward pass adds to the user's own in place
            run()
    finally:
        for handle in handles:
            handle.remove()
    modules = dict(model.named_modules())
    shares = {}
    for name, pair in seen.items():
        if len(pair) == 2 and len(pair[0]) > 1:
            shares[name] = _twins(pair[0], pair[1], _same_weights(modules.get(name, model), len(pair[0]), seed), seed)
    return {name: share for name, share in shares.items() if share is not None}


def _by_unit(a: Tensor, units: int) -> Tensor:
    """Shape (units, everything else), a copy."""
    moved = a.detach().movedim(units, 0)
    return moved.reshape(len(moved), -1).double().clone()


def _same_weights(module: nn.Module, units: int, seed: int) -> Tensor:
    """Which units have the same incoming weights as another one, to the bit, shape (units,)."""
    rows = [p.detach().double().reshape(-1, units, *p.shape[1:]) for p in module.parameters(recurse=False) if len(p) % units == 0]
    same = torch.zeros(units, dtype=torch.bool, device=rows[0].device if rows else None)
    if rows:
        table = torch.cat([r.movedim(1, 0).reshape(units, -1) for r in rows], 1)
        generator = torch.Generator().manual_seed(derive_seed(seed, 2))
        look = table @ torch.randn(table.shape[1], LOOKS, generator=generator, dtype=torch.float64).to(table.device)
        order = look[:, 0].argsort()
        equal = (look[order][1:] == look[order][:-1]).all(1)
        same[order[1:][equal]] = True
        same[order[:-1][equal]] = True
    return same


def _twins(output: Tensor, gradient: Tensor, same_weights: Tensor, seed: int) -> float | None:
    """Twins among units, by agreement on every projection of output and of gradient."""
    if not (output.isfinite().all() and gradient.isfinite().all()) or not (bool(gradient.any()) or bool(same_weights.all())):
        return None
    generator = torch.Generator().manual_seed(derive_seed(seed, 1))
    looks = []
    for values in (output, gradient):
        scale = values.norm(dim=1).max().clamp(min=1e-300)
        directions = torch.randn(values.shape[1], LOOKS, generator=generator, dtype=torch.float64).to(values.device)
        looks.append(values / scale @ directions)
    look = torch.cat(looks, dim=1)
    alive = (output != 0).any(1) | (gradient != 0).any(1) | same_weights.to(look.device)
    # Twins are neighbours in the order of any one projection, but for ties of chance in it that the others tell apart.
    order = look[:, 0].argsort()
    near = (look[order][1:] - look[order][:-1]).abs().amax(1) < SAME
    twin = torch.zeros(len(look), dtype=torch.bool, device=look.device)
    twin[order[1:][near]] = True
    twin[order[:-1][near]] = True
    return float((twin & alive).double().mean())
