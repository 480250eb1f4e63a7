"""How much of a recurrent network's last state still depends on an earlier one."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradoscope.errors import CannotRun
from gradoscope.guard import derive_seed
from gradoscope.measurement import Cost, Measurement

__all__ = ["state_jacobians"]

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State], State]


def state_jacobians(
    cell: nn.Module | Callable[[Any, Any], Any],
    inputs: Tensor,
    state: Any = None,
    *,
    probes: int | None = None,
    seed: int = 0,
) -> Measurement:
    r"""The norm of $\partial s_T/\partial s_t$ against the lag T - t, s being all that the network carries from step to step.

    By the chain rule it is a product of T - t one-step Jacobians, so it shrinks or grows exponentially in the lag unless
    their singular values stay near 1. For an LSTM s is the hidden and the cell state together: with the cell state held
    fixed, the path that matters would be cut.

    Args:
        cell: `nn.RNN`, `nn.GRU` or `nn.LSTM` (any number of layers, one direction), the cells `nn.RNNCell`, `nn.GRUCell`,
            `nn.LSTMCell`, or a function `cell(x_t, state) -> state` with a tensor or a tuple of tensors of shape (n, ...).
        inputs: the sequence: (T, n, ...), for the modules with `batch_first=True` (n, T, ...). In float64 the norms reach down to
            1e-308, in float32 to 1e-38.
        state: the state before the first step, as the cell takes it; None for zeros (not with a function).
        probes: None for exact spectral norms. Else the number of random vectors v of signs: $\mathbb E\|v^\top J\|^2=\|J\|_F^2$ for
            any size of the state, with standard errors.
        seed: what the vectors are drawn from.

    Returns:
        value: shape (T + 1,), by lag from 0 to T: the root mean square over the n sequences of the spectral norm (exact) or of the
        Frobenius norm (estimated, with `se` over the vectors). `details`: "norms" of shape (T + 1, n), "states" of shape
        (T + 1, n, size), by time from 0.

    Raises:
        CannotRun: for a bidirectional module, or a function without a state.

    Cost: one forward pass step by step, and one backward pass for each number of the state (exact) or each probe; exact
    norms hold a matrix of size x size for each step and sequence. A Jacobian-vector product instead would need a pass for each lag.

    Example:
        >>> halve = lambda x, h: 0.5 * h + x
        >>> state_jacobians(halve, torch.zeros(3, 1, 2), torch.zeros(1, 2)).value.tolist()
        [1.0, 0.5, 0.25, 0.125]
    """
    step, parts, sequence = _stepper(cell, inputs, state)
    n = sequence.shape[1]
    shapes = [part.shape[1:] for part in parts]
    sizes = [math.prod(shape) for shape in shapes]
    with torch.enable_grad():
        joined = torch.cat([part.detach().reshape(n, -1) for part in parts], dim=1).requires_grad_()
        states = [joined]
        for current in sequence:
            pieces = torch.split_with_sizes(joined, sizes, dim=1)
            new = step(current, tuple(piece.reshape(n, *shape) for piece, shape in zip(pieces, shapes, strict=True)))
            joined = torch.cat([part.reshape(n, -1) for part in new], dim=1)
            states.append(joined)
        rows = _rows(states, sum(sizes), probes, seed)
    details: dict[str, Any] = {"states": torch.stack([s.detach() for s in states]).cpu().numpy()}
    steps = len(sequence)
    if probes is None:
        norms = torch.linalg.matrix_norm(rows, ord=2).cpu().numpy()[::-1]
        value, se, method = _root_mean_square(norms), None, "exact: every row of the Jacobian"
    else:
        squares = rows.double().square().sum(-1).cpu().numpy()[::-1]  # (lag, sequence, probe)
        norms, mean = np.sqrt(squares.mean(-1)), squares.mean(-2)
        value = np.sqrt(mean.mean(-1))
        spread = mean.std(-1, ddof=1) / math.sqrt(probes) if probes > 1 else np.full(steps + 1, math.nan)
        se = np.divide(spread, 2 * value, out=np.zeros_like(value), where=value > 0)
        method = f"{probes} random vectors: Frobenius norms"
    count = sum(sizes) if probes is None else probes
    cost = Cost(forward=1, backward=count, examples=n * (1 + count))
    return Measurement("state_jacobians", value, se=se, n=n, method=method, cost=cost, details=details | {"norms": norms})


def _root_mean_square(norms: np.ndarray) -> np.ndarray:
    """Over the last dimension; scaled, so that the squares of tiny numbers do not vanish."""
    top = norms.max(axis=-1, keepdims=True)
    scaled = np.divide(norms, top, out=np.zeros_like(norms), where=top > 0)
    return np.asarray(top[..., 0] * np.sqrt(np.square(scaled).mean(-1)))


def _rows(states: list[Tensor], size: int, probes: int | None, seed: int) -> Tensor:
    """Rows of the Jacobians, or random combinations of them; shape (time, n, rows, size)."""
    last = states[-1]
    if probes is None:
        vectors = torch.eye(size, dtype=last.dtype, device=last.device)
    else:
        random = torch.Generator().manual_seed(derive_seed(seed, 1))
        vectors = (torch.randint(0, 2, (probes, size), generator=random) * 2 - 1).to(last)
    found = []
    for vector in vectors:
        gradients = torch.autograd.grad(last, states, vector.expand_as(last), retain_graph=True, allow_unused=True)
        found.append(torch.stack([torch.zeros_like(last) if g is None else g for g in gradients]))
    return torch.stack(found, dim=2)


def _stepper(cell: Any, inputs: Tensor, state: Any) -> tuple[Step, State, Tensor]:
    """A function of (x_t, tuple of (n, ...)), its first state, and the inputs with time first."""
    if isinstance(cell, nn.RNNBase):
        return _module(cell, inputs, state)
    if state is None and isinstance(cell, nn.RNNCellBase):
        zeros = inputs.new_zeros(inputs.shape[1], cell.hidden_size)
        state = (zeros, zeros) if isinstance(cell, nn.LSTMCell) else zeros
    if state is None:
        raise CannotRun("a function needs `state`, the state before the first step: a tensor (n, ...) or a tuple of them.")
    if isinstance(state, Tensor):
        return (lambda x, parts: (cell(x, parts[0]),)), (state,), inputs
    return (lambda x, parts: tuple(cell(x, parts))), tuple(state), inputs


def _module(cell: nn.RNNBase, inputs: Tensor, state: Any) -> tuple[Step, State, Tensor]:
    if cell.bidirectional:
        raise CannotRun("a bidirectional network has no state that goes forward in time only; measure each direction by itself.")
    if inputs.dim() != 3:
        raise CannotRun(f"`inputs` must be a batch of sequences with three dimensions, got shape {tuple(inputs.shape)}.")
    sequence = inputs.transpose(0, 1) if cell.batch_first else inputs
    gated = isinstance(cell, nn.LSTM)
    if state is None:
        zeros = [inputs.new_zeros(cell.num_layers, sequence.shape[1], cell.hidden_size)]
        if gated:
            width = cell.proj_size or cell.hidden_size
            zeros = [inputs.new_zeros(cell.num_layers, sequence.shape[1], width), *zeros]
        state = tuple(zeros) if gated else zeros[0]
    parts = tuple(part.transpose(0, 1) for part in (state if gated else (state,)))

    def step(x: Tensor, now: State) -> State:
        held = tuple(part.transpose(0, 1).contiguous() for part in now)
        row = x[:, None] if cell.batch_first else x[None]
        _, new = cell(row, held if gated else held[0])
        return tuple(part.transpose(0, 1) for part in (new if gated else (new,)))

    return step, parts, sequence
