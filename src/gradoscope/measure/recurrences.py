"""Where a model goes through a sequence step by step, and how much of the gradient reaches its first steps."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradoscope import tree

__all__ = ["Recurrence", "recurrences", "time_profile"]


@dataclass(frozen=True)
class Recurrence:
    """A module that hands a state on from step to step.

    Attributes:
        name: of the module in its model; empty for the model itself.
        module: a layer for whole sequences (`nn.RNN`, `nn.GRU`, `nn.LSTM`), or a cell that is called once for each step.
        length: steps of one sequence.
        links: for a cell, which of the tensors that it returns comes back as which of its arguments in the next call, as
            (place among what it returns, place among its arguments); empty for a layer.
    """

    name: str
    module: nn.Module
    length: int
    links: tuple[tuple[int, int], ...] = ()


@dataclass
class _Calls:
    """What is known of a module while a pass is running."""

    last: list[Tensor] = field(default_factory=list)
    links: set[tuple[int, int]] = field(default_factory=set)
    length: int = 1
    longest: int = 1


def recurrences(model: nn.Module, run: Callable[[], Any], least: int = 8) -> list[Recurrence]:
    """The recurrent layers of a model, and every module that is given back what it returned the call before.

    Args:
        model: any module.
        run: one forward pass of it.
        least: shorter sequences are left out: over a few steps nothing vanishes.

    Returns:
        In the order in which they are first called. A loop that is written out without a module for one step is not seen.

    Cost: one forward pass.

    Example:
        >>> rnn = nn.RNN(2, 3)
        >>> recurrences(rnn, lambda: rnn(torch.zeros(20, 1, 2)))[0].length
        20
    """
    names = {module: name for name, module in model.named_modules()}
    calls: dict[nn.Module, _Calls] = {}
    layers: dict[nn.Module, int] = {}

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if isinstance(module, nn.RNNBase):
            length = _length(module, args[0] if args else kwargs.get("input"))
            layers[module] = max(length, layers.get(module, 0))
            calls.setdefault(module, _Calls())
            return
        call = calls.setdefault(module, _Calls())
        given, returned = list(tree.leaves((args, kwargs))), list(tree.leaves(output))
        found = {(i, j) for i, then in enumerate(call.last) for j, now in enumerate(given) if then is now}
        call.length = call.length + 1 if found else 1
        if call.length > call.longest:
            call.longest, call.links = call.length, found
        call.last = [t for t in returned if not any(t is g for g in given)]

    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in names]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    out = []
    for module, call in calls.items():
        length = layers.get(module, call.longest)
        if length >= least:
            out.append(Recurrence(names[module], module, length, tuple(sorted(call.links))))
    return out


def _length(layer: nn.RNNBase, x: Any) -> int:
    """Steps of the longest sequence that a recurrent layer was given."""
    if isinstance(x, nn.utils.rnn.PackedSequence):
        return len(x.batch_sizes)
    if not isinstance(x, Tensor):
        return 0
    return int(x.shape[1 if layer.batch_first and x.dim() == 3 else 0])


def time_profile(recurrence: Recurrence, loss: Callable[[], Tensor]) -> np.ndarray | None:
    r"""How much each step of a sequence moves the loss, $\|\partial J/\partial x_t\|$, shape (length,), float64.

    For a layer $x_t$ are its inputs, for a cell the states that it hands on; the norm is over examples and features.

    Args:
        recurrence: of a model.
        loss: a forward pass of that model that returns its loss, with gradients switched on.

    Returns:
        None where the loss does not depend on them, or the sequences of one pass have no common length.

    Cost: one forward and one backward pass.

    Example:
        >>> rnn = nn.RNN(1, 1)
        >>> with torch.no_grad():
        ...     for p in rnn.parameters():
        ...         _ = p.zero_()
        ...     _ = rnn.weight_hh_l0.fill_(0.5), rnn.weight_ih_l0.fill_(1.0)
        >>> x = torch.zeros(10, 1, 1)
        >>> found = recurrences(rnn, lambda: rnn(x))[0]
        >>> time_profile(found, lambda: rnn(x)[0][-1].sum()).tolist()[-3:]
        [0.25, 0.5, 1.0]
    """
    return _layer_profile(recurrence.module, loss) if isinstance(recurrence.module, nn.RNNBase) else _cell_profile(recurrence, loss)


def _layer_profile(layer: nn.RNNBase, loss: Callable[[], Tensor]) -> np.ndarray | None:
    inputs: list[Tensor] = []

    def hook(module: Any, args: Any) -> Any:
        x = args[0] if args else None
        if not isinstance(x, Tensor) or x.dim() != 3 or inputs:
            return None
        # A leaf in its place: the gradient by the inputs is wanted, and not that of what comes before them.
        inputs.append(x.detach().requires_grad_())
        return (inputs[0], *args[1:])

    handle = layer.register_forward_pre_hook(hook)
    try:
        value = loss()
    finally:
        handle.remove()
    if not inputs or not value.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(value, inputs, allow_unused=True)
    if gradient is None:
        return None
    axis = 1 if layer.batch_first else 0
    profile: np.ndarray = gradient.double().square().sum([d for d in range(3) if d != axis]).sqrt().cpu().numpy()
    return profile


def _cell_profile(recurrence: Recurrence, loss: Callable[[], Tensor]) -> np.ndarray | None:
    states: list[list[Tensor]] = []

    def hook(module: Any, args: Any, output: Any) -> None:
        returned = list(tree.leaves(output))
        states.append([returned[i] for i, _ in recurrence.links])

    handle = recurrence.module.register_forward_hook(hook)
    try:
        value = loss()
    finally:
        handle.remove()
    if len(states) != recurrence.length or not value.requires_grad:
        return None  # several sequences in one pass
    kept = [(t, state) for t, group in enumerate(states) for state in group if state.requires_grad]
    gradients = torch.autograd.grad(value, [state for _, state in kept], allow_unused=True)
    squares = np.zeros(len(states))
    for (t, _), gradient in zip(kept, gradients, strict=True):
        squares[t] += 0.0 if gradient is None else float(gradient.double().square().sum())
    return np.sqrt(squares) if squares.any() else None
