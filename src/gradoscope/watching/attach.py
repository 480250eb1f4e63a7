"""How a watch holds on to the user's objects: hooks that stay behind in copies, the wrapped loss function, the marked step."""

import contextlib
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradoscope import tree
from gradoscope.errors import CannotRun
from gradoscope.measure.step_noise import StepNoise

if TYPE_CHECKING:
    from gradoscope.watch import Watch

__all__ = ["Hook", "SeenLoss", "Step", "listen", "listen_to_rows", "nested_step", "rows_of", "tell", "unwrap"]


class Hook:
    """A module hook that stays behind when the module is copied or saved: its copies do nothing."""

    def __init__(self, call: Callable[..., None] | None) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> None:
        # Inside a compiled graph there is nothing to see, and looking would break the graph.
        if self._call is not None and not torch.compiler.is_compiling() and torch.is_grad_enabled():
            self._call(*arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Hook":
        return Hook(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Hook, (None,))


def listen(watch: "Watch", model: nn.Module, criterion: Any) -> list[Any]:
    """Hook the model, and a loss that is a module, for one step; returns the handles."""
    inputs = Hook(lambda module, args, kwargs: watch.guarded(watch.calls.inputs, args, kwargs))
    handles: list[Any] = [
        model.register_forward_pre_hook(inputs, with_kwargs=True),
        model.register_forward_hook(Hook(lambda module, args, output: watch.calls.output(output))),
    ]
    if isinstance(criterion, nn.Module):
        seen = Hook(lambda module, args, kwargs, loss: watch.saw_loss(args, kwargs, loss))
        handles.append(criterion.register_forward_hook(seen, with_kwargs=True))
    return handles


def listen_to_rows(watch: "Watch", noise: StepNoise) -> list[Any]:
    """Hook the layers whose inputs and slopes tell the gradients of single rows; a mistake there ends the watch, and no more."""

    def wrap(call: Callable[..., None]) -> Callable[..., None]:
        return lambda *arguments: watch.guarded(call, *arguments)

    return noise.attach(wrap, Hook)


def rows_of(watch: "Watch") -> StepNoise | None:
    """Hooks for the gradients of single rows, learnt from the call that was just seen; None where they cannot be had."""
    call = watch.calls.first()
    if call is None or call.kwargs or watch.model is not watch.inner or any(hasattr(m, "_orig_mod") for m in watch.inner.modules()):
        return None  # a compiled model runs no hooks, and of several ranks each sees its own rows only
    device = next(watch.inner.parameters()).device
    try:
        return StepNoise(watch.inner, *(tree.to_device(a, device) for a in call.args))
    except Exception:  # whatever a user's model objects to in a single row
        return None


class SeenLoss:
    """The user's loss function, which tells the watch about its calls while a step is looked at."""

    def __init__(self, function: Callable[..., Tensor], watch: "Watch") -> None:
        self.function, self._watch = function, watch
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self.__doc__ = function.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = self.function(*args, **kwargs)
        if self._watch.looking and torch.is_grad_enabled():
            self._watch.saw_loss(args, kwargs, loss)
        return loss

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Tensor]:
        return self.function

    def __reduce__(self) -> tuple[Any, ...]:
        return (_itself, (self.function,))


def _itself(value: Any) -> Any:
    return value


class Step:
    """One optimizer step that the user marks: `with watch.step(batch) as s:`.

    Attributes:
        fired: whether the optimizer stepped.
        skipped: whether the gradient scaler refused the step because of an overflow.
    """

    def __init__(self, watch: "Watch", batch: Any, scaler: Any) -> None:
        self._watch, self.scaler = watch, scaler
        self.batches: list[Any] = [] if batch is None else [batch]
        self.fired = self.skipped = False
        self._found_inf: Tensor | None = None

    def __enter__(self) -> Self:
        self._watch.enter(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._watch.leave(self, failed=kind is not None)

    def stepped(self, found_inf: Any) -> None:
        """The optimizer's step ran; a fused one is told inside by a gradient scaler whether to do nothing."""
        self.fired = True
        self._found_inf = found_inf if isinstance(found_inf, Tensor) else None

    def overflowed(self) -> bool:
        """Whether a fused optimizer ran and did nothing because of an overflow; this waits for the device."""
        return self._found_inf is not None and bool(self._found_inf.item())

    def batch(self, batch: Any) -> None:
        """Name one more batch that this step averages over."""
        self.batches.append(batch)

    def loss(self, loss: Tensor) -> None:
        """Give the loss of one batch of this step, as it is before any scaling, and before any division for accumulation."""
        look = self._watch.looking
        if look:
            self._watch.guarded(look.losses.append, loss.detach())

    def gradients(self) -> None:
        """Say that the gradients of this step are complete and not yet clipped."""
        look = self._watch.looking
        if look:
            self._watch.guarded(look.unclipped, self.scaler)


def tell(message: str) -> None:
    """Warn from inside the user's loop, which goes on even where warnings are turned into errors."""
    with contextlib.suppress(RuntimeWarning):
        warnings.warn(message, RuntimeWarning, stacklevel=4)


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside a compiled one, or inside a wrapper for several ranks.

    Raises:
        CannotRun: where parameters are sharded over ranks: the norm of a shard is no norm, and a whole one needs all ranks.
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            break
        model = inner
    for name, p in model.named_parameters():
        if hasattr(p, "device_mesh") or type(p).__name__ == "FlatParameter":
            raise CannotRun(
                f"the parameters are sharded over ranks ({name} is a {type(p).__name__}), so that no rank holds a whole gradient. "
                "Watch a smaller training of the same model on one rank, or with DistributedDataParallel."
            )
    return model


def nested_step(optimizer: Optimizer) -> bool:
    """Whether `step` may call another `step` that fires the hooks too: a subclass of an optimizer that is itself in use."""
    steps = [vars(c)["step"] for c in type(optimizer).__mro__ if "step" in vars(c)]
    return sum(bool(getattr(s, "hooked", False)) for s in steps) > 1
