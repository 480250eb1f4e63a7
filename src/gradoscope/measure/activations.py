"""Where signal and gradient get lost: statistics of every layer's output and of every activation function."""

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradoscope import tree
from gradoscope.guard import derive_seed, untouched
from gradoscope.measure.sensitivity import layer_sensitivity

__all__ = ["LayerSignal", "layer_sensitivity", "signal_statistics"]

FLAT = frozenset({"sign", "sgn", "floor", "ceil", "round", "trunc", "fix", "heaviside"})
TWO_SIDED = frozenset({"sigmoid", "tanh", "softsign", "hardtanh", "hardsigmoid", "erf", "atan", "arctan", "clamp", "clip"})
# Off for a part of their inputs by design: their zeros are no saturation, unless a unit is off on all samples.
RECTIFIERS = frozenset({"relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "logsigmoid"})
RECTIFIERS |= {"log_sigmoid", "threshold", "hardswish", "clamp_min", "clamp_max", "softshrink", "hardshrink"}
SATURATED = 1e-3  # |derivative| below which an entry passes on next to nothing
ZERO = 1e-6  # |derivative|, or relative spread of the output, that counts as none


@dataclass(frozen=True)
class LayerSignal:
    """What goes through one layer, forward and backward, on one batch.

    Args:
        name: the module's name; an activation that is called as a function is named after the module that calls it.
        kind: the module's class, or the function's name.
        output_rms: root mean square of the output.
        output_std_over_samples: root mean square over units of the standard deviation over the samples: the part of
            the signal that differs between inputs; NaN for a single sample.
        gradient_rms: root mean square of the gradient of the loss by the output; NaN where no gradient arrives.
        dead_share: share of an activation's units (channels) with zero derivative and constant output on all samples.
        saturated_share: share of (sample, unit) entries of an activation with |derivative| < 1e-3: 1 for flat
            functions, 0 for rectifiers, which are off for a part of their inputs by design.
        call: which call of this layer in the pass it is, from 0.
        activation: whether it is an elementwise activation; else both shares are 0.
        bypassed: a flat function whose input has a gradient all the same (straight-through, or a skip connection).
    """

    name: str
    kind: str
    output_rms: float
    output_std_over_samples: float
    gradient_rms: float
    dead_share: float = 0.0
    saturated_share: float = 0.0
    call: int = 0
    activation: bool = False
    bypassed: bool = False


def signal_statistics(model: nn.Module, run: Callable[[], Any], *, seed: int = 0) -> list[LayerSignal]:
    r"""Signal and gradient at every layer, and the dead and saturated units of every activation, in one pass.

    For an output $a_{nu}$ over samples n and units u and a loss J: $\mathrm{rms}(a)$,
    $\sqrt{\mathrm{mean}_u\,\mathrm{var}_n\,a_{nu}}$, $\mathrm{rms}(\partial J/\partial a)$, and shares of the derivative
    $\phi'(z_{nu})$. Activations that are called as functions inside a module's forward pass are seen as well.

    Args:
        model: the module whose layers are looked at: those without children or with parameters of their own.
        run: one forward and one backward pass of `model`; the first dimension of all outputs is the samples.
        seed: what masks are drawn from.

    Returns:
        One entry per layer and call, in the order in which the outputs were computed. Statistics are taken when a
        tensor is computed: in-place changes that follow do not matter, and no tensor is kept alive.

    Cost: one forward and one backward pass, and each activation function once more, forward and backward.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> with torch.no_grad():
        ...     _ = model[0].weight.zero_(), model[0].bias.copy_(torch.tensor([1.0, -1.0]))
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> [s.dead_share for s in signal_statistics(model, lambda: model(x).sum().backward()) if s.activation]
        [0.5]
    """
    watch = _Watch(model)
    with untouched(model, seed=derive_seed(seed, 0)), torch.enable_grad():
        for p in model.parameters():
            p.grad = None  # else the backward pass adds to the user's own in place
        with watch.hooks():
            run()
    return watch.results()


@dataclass
class _Record:
    """A layer's statistics as tensors of no dimension: they are moved off the device together at the end."""

    name: str
    kind: str
    activation: bool = False
    values: dict[str, Tensor] = field(default_factory=dict)


class _Watch(TorchFunctionMode):
    """Sees module outputs through hooks, and elementwise functions through torch's function overrides."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.records: list[_Record] = []
        self._inside: list[tuple[str, nn.Module]] = []
        self._last: weakref.ref[Tensor] | None = None

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Hooks on all modules for the time of the context; afterwards none is left."""
        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                enter, leave = self._hooks_of(name or type(module).__name__, module)
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(leave).remove)
            stack.enter_context(self)
            yield

    def _hooks_of(self, name: str, module: nn.Module) -> tuple[Callable[..., None], Callable[..., None]]:
        kind = type(module).__name__
        layer = next(module.children(), None) is None or next(module.parameters(recurse=False), None) is not None

        def enter(*_: Any) -> None:
            self._inside.append((name, module))

        def leave(_module: nn.Module, _args: Any, output: Any) -> None:
            while self._inside and self._inside.pop()[1] is not module:
                pass  # a forward pass inside raised, and the user's code caught it
            found = next((t for t in tree.leaves(output) if t.is_floating_point() and t.dim()), None)
            if not layer or found is None or _in_backward():
                return
            if self._last is not None and self._last() is found and self.records[-1].name.startswith(f"{name}."):
                # The module is that activation, and was seen as a function already: it keeps the module's name.
                self.records[-1].name, self.records[-1].kind = name, kind
            else:
                self._record(_Record(name, kind), found)

        return enter, leave

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        z = args[0] if args else kwargs.get("input")
        if name not in FLAT | TWO_SIDED | RECTIFIERS or not self._inside or not _is_signal(z) or _in_backward():
            return func(*args, **kwargs)
        record = _Record(f"{self._inside[-1][0]}.{name}", name, activation=True)
        slope = None
        if name not in FLAT:
            slope = _slope(z, (lambda x: func(x, *args[1:], **kwargs)) if args else (lambda x: func(**(kwargs | {"input": x}))))
        elif z.requires_grad:
            # A gradient that the input has all the same tells a straight-through estimator from a hard step.
            _on_gradient(z, lambda g: record.values.__setitem__("bypass", g.abs().amax()))
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.is_floating_point():
            self._record(record, result)
            _add_shares(record, result.detach(), slope, name)
            self._last = weakref.ref(result)
        return result

    def _record(self, record: _Record, output: Tensor) -> None:
        value = output.detach()
        record.values["rms"] = _rms(value)
        if value.shape[0] > 1:
            record.values["std"] = _wide(value).var(dim=0).mean().sqrt()
        if output.requires_grad and not output.is_leaf:
            _on_gradient(output, lambda g: record.values.__setitem__("gradient", _rms(g)))
        self.records.append(record)

    def results(self) -> list[LayerSignal]:
        """All numbers are moved off the device at once; calls of one layer are counted."""
        keys = [(i, key) for i, record in enumerate(self.records) for key in record.values]
        if not keys:
            return []
        device = self.records[0].values["rms"].device
        numbers = torch.stack([_wide(self.records[i].values[key].to(device)) for i, key in keys]).tolist()
        found: list[dict[str, float]] = [{} for _ in self.records]
        for (i, key), number in zip(keys, numbers, strict=True):
            found[i][key] = number
        calls: dict[str, int] = {}
        signals = []
        for record, v in zip(self.records, found, strict=True):
            calls[record.name] = calls.get(record.name, -1) + 1
            signals.append(
                LayerSignal(
                    record.name,
                    record.kind,
                    v["rms"],
                    v.get("std", math.nan),
                    v.get("gradient", math.nan),
                    v.get("dead", 0.0),
                    v.get("saturated", 0.0),
                    calls[record.name],
                    record.activation,
                    v.get("bypass", 0.0) > 0,
                )
            )
        return signals


def _is_signal(z: Any) -> bool:
    """A tensor with samples that is no parameter: a gate computed from parameters alone has no samples."""
    return isinstance(z, Tensor) and z.is_floating_point() and z.dim() > 0 and not (z.is_leaf and z.requires_grad)


def _on_gradient(t: Tensor, action: Callable[[Tensor], None]) -> None:
    """Show the gradient of t to `action`. A hook on the tensor, not on the module, works before in-place changes too."""

    def hook(g: Tensor) -> None:
        action(g.detach())

    t.register_hook(hook)  # type: ignore[no-untyped-call]


def _in_backward() -> bool:
    """Whether a backward pass is running: activation checkpointing repeats forward passes there, seen already."""
    return bool(getattr(torch._C, "_current_graph_task_id", lambda: -1)() != -1)


def _wide(t: Tensor) -> Tensor:
    return t.float() if t.device.type == "mps" else t.double()


def _rms(t: Tensor) -> Tensor:
    dtype = torch.float32 if t.device.type == "mps" else torch.float64
    norm: Tensor = torch.linalg.vector_norm(t, dtype=dtype)
    return norm / math.sqrt(max(1, t.numel()))


def _slope(z: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor | None:
    """The derivative of an elementwise function at each entry of z, on a copy that in-place variants may write to."""
    # Activation checkpointing counts the tensors that are saved around here: these must not be among them.
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t), torch.enable_grad():
        x = z.detach().clone().requires_grad_()
        y = function(x.clone())
        if not isinstance(y, Tensor) or y.shape != x.shape or not y.requires_grad:
            return None
        slope: Tensor = torch.autograd.grad(y.sum(), x)[0]
        return slope


def _add_shares(record: _Record, output: Tensor, slope: Tensor | None, name: str) -> None:
    """The shares of dead units and saturated entries; a flat function has no slope anywhere."""
    silent = torch.ones_like(output, dtype=torch.bool) if slope is None else slope.abs() < ZERO
    if name in FLAT:
        record.values["saturated"] = output.new_ones(())
    elif name in TWO_SIDED and slope is not None:
        record.values["saturated"] = _wide(slope.abs() < SATURATED).mean()
    shares = []
    # Units are channels: the second dimension of images, the last one of sequences. A view that mixes units finds none dead.
    for axis in {1, output.dim() - 1} if output.dim() > 1 else {0}:
        units = output.transpose(0, axis).flatten(1) if output.dim() > 1 else output[None]
        quiet = silent.transpose(0, axis).flatten(1) if output.dim() > 1 else silent[None]
        spread = units.amax(dim=1) - units.amin(dim=1)
        constant = spread <= ZERO * units.abs().amax(dim=1)
        shares.append(_wide(constant & quiet.all(dim=1)).mean())
    record.values["dead"] = torch.stack(shares).amax()
