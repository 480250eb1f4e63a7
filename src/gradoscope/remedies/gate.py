"""Gates: what a recurrent network hands on from step to step passes through smooth switches that start open."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gradoscope import tree
from gradoscope.errors import GradoscopeError
from gradoscope.guard import derive_seed, private_random, untouched
from gradoscope.measure.recurrences import Recurrence, recurrences
from gradoscope.remedies import Remedy
from gradoscope.training import Live, split

__all__ = ["Gate", "gated", "time_scales"]


class Gate(Remedy):
    r"""Let the state of every recurrence pass through a gate whose time scales cover the whole sequence.

    A cell $h_t=\phi(x_t,h_{t-1})$ becomes $h_t=f_t\odot h_{t-1}+(1-f_t)\odot\phi(x_t,h_{t-1})$ with
    $f_t=\sigma(Wx_t+b)$, W = 0 and $b=\log u$, $u\sim U(1,T-1)$ at the start: unit i forgets over $u_i$ steps, so that
    $\partial h_T/\partial h_t$ no longer falls exponentially in T - t. An `nn.RNN` is replaced by an LSTM of its size with these
    forget biases and the opposite input biases; an `nn.LSTM` or `nn.GRU` has gates already, and gets the biases.

    W and b join the parameters that the optimizer trains.

    Cost: one forward pass, once; then one more product per step, and for an `nn.RNN` what an LSTM costs.

    Source: Hochreiter and Schmidhuber 1997 (gates); Tallec and Ollivier 2018 (biases from the lengths of the sequences).
    """

    name = "gate"
    explanation = "What is handed on from step to step passes through gates that start open for as long as a sequence lasts."
    from_checkpoint = False
    changes_capacity = True
    code = (
        "# a gated cell in place of the plain one, e.g. nn.LSTM for nn.RNN, that remembers as long as a sequence lasts (T steps):\n"
        "from gradoscope.remedies.gate import time_scales\n"
        "lstm = nn.LSTM(inputs, hidden, batch_first=True)\n"
        "time_scales(lstm, T)"
    )

    def prepare(self, live: Live) -> None:
        found = gated(live)
        if not found:
            raise GradoscopeError("no recurrent layer, and no module that is called again with what it returned")
        group = live.optimizer.param_groups[0]["params"]
        with private_random(derive_seed(live.seed, 107)):
            for recurrence in found:
                new = _add(recurrence, live)
                group.extend(p for p in new if not any(p is held for held in group))


def gated(live: Live) -> list[Recurrence]:
    """The recurrences of a training's model that `Gate` can work on, innermost modules only."""
    batch = tree.to_device(live.batches.sample(8, "fresh")[0], live.device)

    def run() -> None:
        if live.training.loss_fn is not None:
            live.model(*split(batch)[0])
        else:
            live.training.loss(live.model, batch)

    with untouched(live.model, seed=0):
        found = recurrences(live.model, run)
    modules = {id(r.module) for r in found}
    return [r for r in found if not any(id(child) in modules for child in r.module.modules() if child is not r.module)]


def time_scales(layer: nn.Module, length: int) -> None:
    r"""Set the gates' biases of an LSTM or GRU, in place, so that its units forget over 1 to `length` - 1 steps.

    $b_f=\log u$, $u\sim U(1,T-1)$, and $b_i=-b_f$ for an LSTM; the update gate's bias $b_z=\log u$ for a GRU.

    Args:
        layer: `nn.LSTM`, `nn.GRU`, `nn.LSTMCell` or `nn.GRUCell` with biases.
        length: T, steps of a sequence, at least 3.

    Example:
        >>> layer = nn.LSTM(2, 3)
        >>> time_scales(layer, 100)
        >>> bool((layer.bias_ih_l0[3:6] > 0).all())
        True
    """
    cells = isinstance(layer, (nn.LSTM, nn.LSTMCell))
    with torch.no_grad():
        for name, bias in layer.named_parameters():
            if not name.startswith("bias_ih"):
                continue
            blocks = bias.chunk(4 if cells else 3)
            remembered = torch.log(1 + torch.rand_like(blocks[1]) * max(length - 2, 1))
            blocks[1].copy_(remembered)
            if cells:
                blocks[0].copy_(-remembered)
            other = getattr(layer, name.replace("bias_ih", "bias_hh"))
            other.zero_()


def _add(recurrence: Recurrence, live: Live) -> list[nn.Parameter]:
    """Put a gate on one recurrence; the parameters that are to be trained beside the model's own."""
    module = recurrence.module
    if isinstance(module, (nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell)):
        if not module.bias:
            raise GradoscopeError(f"{type(module).__name__} {recurrence.name} has no biases to keep its gates open with")
        time_scales(module, recurrence.length)
        return []
    if isinstance(module, nn.RNNBase):
        addition, hook = _lstm(module, recurrence.length)
    else:
        addition, hook = _cell(recurrence, live)
    addition.to(next(iter(module.parameters()), next(iter(live.model.parameters()))))
    module.add_module("_gradoscope_gate", addition)
    live.at_close(lambda: module._modules.pop("_gradoscope_gate", None))
    live.at_close(module.register_forward_hook(hook, with_kwargs=True).remove)
    return list(addition.parameters())


def _lstm(layer: nn.RNNBase, length: int) -> tuple[nn.Module, Callable[..., Any]]:
    """An LSTM that answers in the place of an `nn.RNN`."""
    lstm = nn.LSTM(
        layer.input_size,
        layer.hidden_size,
        layer.num_layers,
        batch_first=layer.batch_first,
        dropout=layer.dropout,
        bidirectional=layer.bidirectional,
    )
    time_scales(lstm, length)

    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        given = [*args, *kwargs.values()]
        state = given[1] if len(given) > 1 else None
        answer, (hidden, _) = lstm(given[0], None if state is None else (state, torch.zeros_like(state)))
        return answer, hidden

    return lstm, hook


class _Switch(nn.Module):
    """$f=\\sigma(Wx+b)$; without an input the bias alone decides."""

    def __init__(self, inputs: int, size: int, length: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, size))
        self.bias = nn.Parameter(torch.log(1 + torch.rand(size) * max(length - 2, 1)))

    def forward(self, x: Tensor | None) -> Tensor:
        return torch.sigmoid(self.bias if x is None else x @ self.weight + self.bias)


def _cell(recurrence: Recurrence, live: Live) -> tuple[nn.Module, Callable[..., Any]]:
    """A switch for each state that a cell hands on."""
    shapes: list[tuple[int, ...]] = []
    read: list[int] = []  # the place among the arguments of what the switches read, where there is one
    states = {j for _, j in recurrence.links}

    def look(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if shapes:
            return
        given, returned = list(tree.leaves((args, kwargs))), list(tree.leaves(output))
        shapes.extend(tuple(returned[i].shape) for i, _ in recurrence.links)
        parameters = {id(p) for p in live.model.parameters()}
        for j, t in enumerate(given):
            fits = t.is_floating_point() and t.dim() == len(shapes[0]) and t.shape[:-1] == shapes[0][:-1]
            if j not in states and fits and id(t) not in parameters:
                read.append(j)
                shapes.append(tuple(t.shape))
                break

    handle = recurrence.module.register_forward_hook(look, with_kwargs=True)
    try:
        gated(live)
    finally:
        handle.remove()
    width = shapes[-1][-1] if read else 0
    switches = nn.ModuleList(_Switch(width, shapes[k][-1], recurrence.length) for k in range(len(recurrence.links)))

    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        given, returned = list(tree.leaves((args, kwargs))), list(tree.leaves(output))
        for switch, (i, j) in zip(switches, recurrence.links, strict=True):
            if j >= len(given):
                continue  # the first step of a sequence, before there is a state to keep
            kept = switch(given[read[0]] if read else None)
            returned[i] = kept * given[j] + (1 - kept) * returned[i]
        rest = iter(returned)
        return tree.map_tensors(lambda _: next(rest), output)

    return switches, hook
