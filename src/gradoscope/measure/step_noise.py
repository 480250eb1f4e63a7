"""Signal and noise of the gradient at every step of a training, from hooks inside its own backward pass."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradoscope import tree
from gradoscope.errors import CannotRun
from gradoscope.guard import untouched
from gradoscope.measure._per_sample_layers import Given, Looked, Outer, Piece, by_rows, covered, pieces
from gradoscope.measure._recording import Recorder, Shapes
from gradoscope.measure.noise import NormStatistics, norm_statistics

__all__ = ["StepNoise", "StepStatistics"]

Wrap = Callable[[Callable[..., None]], Callable[..., None]]
AGREE = 1e-2  # how far sums over rows and the gradients may be apart, in float32 and across the layers' sizes


@dataclass(frozen=True)
class StepStatistics:
    """What one step's backward pass told.

    Attributes:
        norms: signal, noise and the norm test of the gradient by the covered parameters; None where there is nothing to tell.
        squares: the squared norm of each row's gradient by them, shape (B,), float64, scaled as `.grad` is.
        share: how much of the squared norm of the whole gradient they have.
        why: why there is nothing to tell, else "".
    """

    norms: NormStatistics | None
    squares: np.ndarray
    share: float
    why: str = ""


@dataclass(eq=False)
class _Seen:
    """What the backward pass left of one layer: its rows' squares, and a random projection of the sum of their gradients."""

    squares: Tensor
    probes: dict[str, Tensor] = field(default_factory=dict)


class StepNoise:
    r"""Norm test, signal-to-noise ratio and noise scale of each step, at a fraction of the step's own cost.

    Each covered layer's input and slope give the squared norms of its rows' gradients (see `per_sample`); no single gradient is
    formed where it need not be, no random number is drawn, and nothing that the training computes changes. With the norm of the
    gradient itself, which the training has anyway, $\mathrm{tr}\,\Sigma=\frac{B}{B-1}(\overline{|g_n|^2}-|\bar g|^2)$.

    Layers that are not covered (recurrent layers, batch normalisation in training mode, a user's own parameters, layers that see
    no row) are left out of both norms, so the ratios are those of the covered parameters; `share` says how much they are.
    Whether what the hooks saw is the gradient is tested at each step by random projections of both, which also find the factor
    of a gradient scaler; a gradient that was accumulated over several passes is noticed and not told.

    Args:
        model: the module that is trained.
        example: the arguments of its forward pass, a batch as the training sees it. One row of it is run once to learn which axis
            of each layer holds the rows.

    Raises:
        CannotRun: where no layer is covered, or the example has no rows.

    Cost: hooks during the passes; half a step more for linear layers, up to a step more for small convolutions.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
        >>> noise = StepNoise(model, x)
        >>> with noise.on():
        ...     model(x).mean().backward()
        >>> noise.statistics().norms.snr
        1.5

    Source: as `per_sample` and `noise.norm_statistics`.
    """

    def __init__(self, model: nn.Module, *example: Any) -> None:
        self.model = model
        rows = tree.rows(example)
        if rows is None:
            raise CannotRun("the example batch has no common first dimension, so its rows cannot be told apart.")
        self._one, self._two = self._shapes(example, rows, 1), self._shapes(example, rows, min(2, rows))
        self._layers = self._sighted()
        if not self._layers:
            raise CannotRun("no layer's gradients of single rows can be seen by hooks. Use noise_statistics() on several batches.")
        self._seen: dict[nn.Module, _Seen] = {}
        self._calls: dict[nn.Module, int] = {}
        self._rows = 0
        self._wrap: Wrap = lambda call: call
        self._vectors: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}

    @contextmanager
    def on(self) -> Iterator[None]:
        """Watch the forward and the backward pass of one step inside."""
        handles = self.attach()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def attach(self, wrap: Wrap = lambda call: call, hook: Wrap = lambda call: call) -> list[Any]:
        """Put the hooks on until their handles are removed.

        Args:
            wrap: put around everything that runs inside the training, in the forward and in the backward pass.
            hook: put around what is registered at the modules.
        """
        self._seen, self._calls, self._rows, self._wrap = {}, {}, 0, wrap
        return [layer.register_forward_hook(hook(wrap(self._called)), prepend=True) for layer in self._layers]

    def statistics(self) -> StepStatistics:
        """What the last backward pass told, given the `.grad` that it left: ask before they are clipped or dropped."""
        with torch.no_grad():
            return self._statistics()

    def _statistics(self) -> StepStatistics:
        told = [(m, s) for m, s in self._seen.items() if self._calls[m] == 1 and all(p.grad is not None for p in _own(m).values())]
        everything = [p.grad for p in self.model.parameters() if p.grad is not None]
        if not told or self._rows < 2:
            return StepStatistics(None, np.zeros(0), 0.0, "no covered layer was run once with at least two rows and got a gradient")
        pairs = [(self._project(p.grad), s.probes[name], p) for m, s in told for name, p in _own(m).items() if p.grad is not None]
        grads = torch.stack([g.to(pairs[0][0]) for g, _, _ in pairs]).double()
        sums = torch.stack([s.to(pairs[0][0]) for _, s, _ in pairs]).double()
        factor = float((grads @ sums) / (sums @ sums)) if float(sums @ sums) > 0 else math.nan
        away = float((grads - factor * sums).norm())
        if not away <= AGREE * float(grads.norm()):
            why = "the gradients are not those of this one pass (accumulated over several, clipped, or used outside of their layers)"
            return StepStatistics(None, np.zeros(0), 0.0, why)
        squares = torch.stack([s.squares for _, s in told]).sum(0).double().cpu().numpy() * (factor * self._rows) ** 2
        own = _square([p.grad for _, _, p in pairs if p.grad is not None])
        whole = _square(everything)
        return StepStatistics(norm_statistics(squares, own), squares, own / whole if whole > 0 else 0.0)

    def _called(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A covered layer has run: wait for the slope at its output."""
        if (
            not torch.is_grad_enabled()
            or not isinstance(output, Tensor)
            or not output.requires_grad
            or len(args) != 1
            or not covered(layer)
        ):
            return
        self._calls[layer] = self._calls.get(layer, 0) + 1
        if self._calls[layer] > 1:
            return
        inputs, kept = args[0].detach(), self._layers[layer]
        took = self._wrap(self._took)
        output.register_hook(lambda slope: took(layer, inputs, slope, kept))  # type: ignore[no-untyped-call]  # torch's

    def _took(self, layer: nn.Module, inputs: Tensor, slope: Tensor, shapes: Shapes) -> None:
        """The slope has come: reduce it to a few numbers and let go of it."""
        if layer in self._seen:
            return
        with torch.no_grad():
            one, axis = shapes[1], self._axes[layer]
            count = inputs.shape[axis] // one[axis] if inputs.dim() == len(one) else 0
            if count < 2 or (self._rows and count != self._rows):
                return
            a, d = (by_rows(t, _fit(t, axis, count), count) for t in (inputs, slope.detach()))
            found = pieces(layer, a, d, single=inputs.dim()) if a is not None and d is not None else None
            if found is None:
                return
            self._rows = count
            parts = [piece.squares() for piece in found.values()]
            self._seen[layer] = _Seen(sum(parts[1:], parts[0]), {name: self._probe(piece) for name, piece in found.items()})

    # Random projections of a gradient, and of the sum over rows of what it is made of.

    def _vector(self, length: int, like: Tensor) -> Tensor:
        key = (length, like.device, like.dtype)
        if key not in self._vectors:
            self._vectors[key] = torch.randn(length, generator=torch.Generator().manual_seed(length)).to(like)
        return self._vectors[key]

    def _probe(self, piece: Piece) -> Tensor:
        if isinstance(piece, Outer):
            left = piece.slopes @ self._vector(piece.slopes.shape[-1], piece.slopes)
            return (left * (piece.inputs @ self._vector(piece.inputs.shape[-1], piece.inputs))).sum()
        if isinstance(piece, Looked):
            rows = self._vector(piece.entries, piece.slopes)[piece.index]
            return ((piece.slopes @ self._vector(piece.slopes.shape[-1], piece.slopes)) * rows).sum()
        total = piece.values.sum(0) if isinstance(piece, Given) else piece.whole(slice(None)).sum(0)
        return torch.dot(total, self._vector(len(total), total))

    def _project(self, grad: Tensor) -> Tensor:
        dense = grad.to_dense() if grad.is_sparse else grad
        dense = dense if dense.dtype.itemsize >= 4 else dense.float()
        if dense.dim() == 2:
            return self._vector(dense.shape[0], dense) @ (dense @ self._vector(dense.shape[1], dense))
        return torch.dot(dense.reshape(-1), self._vector(dense.numel(), dense))

    # What each layer sees of one row.

    def _shapes(self, example: Any, rows: int, count: int) -> list[Shapes]:
        recorder = Recorder(self.model)
        batch = tree.take(example, slice(0, min(count, rows)))
        with untouched(self.model), torch.enable_grad():
            for m in self.model.modules():
                if isinstance(m, nn.modules.batchnorm._BatchNorm):
                    m.training = False  # one row has no variance
            with recorder.on():
                self.model(*batch)
        return [(id(c.layer), c.inputs.shape, c.shape) for c in recorder.calls]

    def _sighted(self) -> dict[nn.Module, Shapes]:
        """The layers that are called once, see the rows in one axis of input and output, and share no parameter."""
        modules = {id(m): m for m in self.model.modules()}
        owners: dict[int, int] = {}
        for m in self.model.modules():
            for p in m._parameters.values():
                if p is not None:
                    owners[id(p)] = owners.get(id(p), 0) + 1
        found: dict[nn.Module, Shapes] = {}
        self._axes: dict[nn.Module, int] = {}
        if [s[0] for s in self._one] != [s[0] for s in self._two]:
            return {}
        ids = [s[0] for s in self._one]
        for one, two in zip(self._one, self._two, strict=True):
            layer = modules[one[0]]
            sees = all(sum(n != m for n, m in zip(a, b, strict=True)) == 1 for a, b in ((one[1], two[1]), (one[2], two[2])))
            if sees and ids.count(one[0]) == 1 and all(owners[id(p)] == 1 for p in _own(layer).values()):
                found[layer] = one
                self._axes[layer] = next(k for k, (n, m) in enumerate(zip(one[1], two[1], strict=True)) if n != m)
        return found


def _own(layer: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in layer._parameters.items() if p is not None and p.requires_grad}


def _fit(t: Tensor, axis: int, count: int) -> torch.Size:
    """The shape of one row; other axes than that of the rows may be longer or shorter than the example's (sequences of any length)."""
    return torch.Size(n // count if k == axis else n for k, n in enumerate(t.shape))


def _square(grads: list[Tensor]) -> float:
    norms = torch._foreach_norm([g.coalesce().values() if g.is_sparse else g for g in grads])
    return float(torch.stack([n.double() for n in norms]).square().sum())
