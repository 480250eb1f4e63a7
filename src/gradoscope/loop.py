"""The one training loop, used by the diagnosis, its forks, studies and trials."""

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from gradoscope.errors import CannotRun, GradoscopeError
from gradoscope.guard import derive_seed, private_random, seed_all
from gradoscope.state import State
from gradoscope.training import Live

__all__ = ["Watcher", "advance", "prepare"]

# Called after each step with (live, step index, training loss of that step); returning True stops the loop.
Watcher = Callable[[Live, int, float], bool | None]


def prepare(live: Live, state: State) -> None:
    """Put `live` at `state` and apply the training's changes to it once."""
    state.restore(live)
    for change in live.training.changes:
        change.prepare(live)


def advance(live: Live, start: int, steps: int, watchers: Sequence[Watcher] = ()) -> int:
    """Train `live` from step `start` for `steps` steps; returns the step it stands at.

    Step i uses batch i and random streams seeded by (seed, i): two forks from one state see the same data, masks and
    noise, however differently they step. The global random streams are afterwards what they were. A loss that is not
    finite ends the loop after the step that produced it.

    Cost: one forward and one backward pass per batch and step.

    Raises:
        CannotRun: where the model or loss fails, with the user's own error and what was expected.
    """
    live.model.train()
    needs_closure = _needs_closure(live)
    with private_random():
        for i in range(start, start + steps):
            seed_all(derive_seed(live.seed, 102, i))
            loss = _step(live, i, needs_closure)
            stop = False
            for watcher in watchers:
                stop = bool(watcher(live, i, loss)) or stop
            if stop or not math.isfinite(loss):
                return i + 1
    return start + steps


def _step(live: Live, i: int, needs_closure: bool) -> float:
    training = live.training
    for change in training.all_changes:
        replaced = change.replace_step(live, i)
        if replaced is not None:
            return replaced
    many = training.accumulate * math.prod(c.batches_per_step() for c in training.all_changes)
    many = _whole_data(live, many)
    scale = math.prod(c.step_scale() for c in training.all_changes)

    def closure() -> Tensor:
        live.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=live.device)
        with ExitStack() as stack:
            for change in training.all_changes:
                stack.enter_context(change.forward_context())
            for j in range(many):
                loss = scalar(live, i * many + j) / many
                check_gradient(loss)
                loss.backward()  # type: ignore[no-untyped-call]
                total = total + loss.detach()
        return total

    def prepare_gradients() -> None:
        for change in training.all_changes:
            change.before_step(live)
        if training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_([p for _, p in live.trainable()], training.clip_norm)

    groups = live.optimizer.param_groups
    rates = [group["lr"] for group in groups if "lr" in group]
    try:
        if scale != 1:
            for group in groups:
                if "lr" in group:
                    group["lr"] = group["lr"] * scale
        if needs_closure:

            def whole() -> float:
                value = closure()
                prepare_gradients()
                return float(value)

            value = float(live.optimizer.step(whole) or 0.0)
        else:
            total = closure()
            prepare_gradients()
            live.optimizer.step()
            value = float(total)
    finally:
        for group, rate in zip((g for g in groups if "lr" in g), rates, strict=True):
            if scale != 1:
                group["lr"] = rate
    if live.schedule is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the scheduler misses the wrapper that a copied optimizer goes without
            if "metrics" in inspect.signature(live.schedule.step).parameters:
                live.schedule.step(value)
            else:
                live.schedule.step()
    return value


def _whole_data(live: Live, many: int) -> int:
    """No more batches per step than an epoch has: the full gradient, and not the same rows twice."""
    per_epoch = live.batches.per_epoch
    return many if per_epoch is None else max(min(many, per_epoch), live.training.accumulate)


def _needs_closure(live: Live) -> bool:
    parameter = inspect.signature(type(live.optimizer).step).parameters.get("closure")
    return parameter is not None and parameter.default is parameter.empty


def check_gradient(loss: Tensor) -> None:
    """Raise CannotRun where the loss cannot be differentiated."""
    if not loss.requires_grad:
        raise CannotRun(
            "the loss does not depend on any trainable parameter (it has requires_grad=False). "
            "Look for a .detach(), torch.no_grad(), .item(), argmax or an integer cast between model and loss."
        )


def scalar(live: Live, i: int) -> Tensor:
    """The loss of batch i, or CannotRun with what was expected and what came."""
    return scalar_of(live, live.batches.batch(i), f"at step {i}")


def scalar_of(live: Live, batch: Any, where: str) -> Tensor:
    """The loss of a batch that messages call `where`, e.g. "at step 3"."""
    try:
        loss = live.loss(batch)
    except GradoscopeError:
        raise
    except (KeyboardInterrupt, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}".rstrip(".")
        raise CannotRun(f"the forward pass or the loss failed {where}: {text}.{_advice(live, batch)}") from error
    if not isinstance(loss, Tensor):
        raise CannotRun(f"the loss must be a scalar tensor, but it is a {type(loss).__name__}. Return the tensor itself, without .item().")
    if loss.numel() != 1:
        raise CannotRun(f"the loss must be a scalar, but its shape is {tuple(loss.shape)}. Use reduction='mean', or .mean() at the end.")
    return loss.reshape(())


def _advice(live: Live, batch: object) -> str:
    """What came, in the terms that a wrong shape or dtype is mended in."""
    if live.training.loss_fn is None:
        return " The error comes from `batch_loss(model, batch)`."
    try:
        from gradoscope.training import split

        inputs, target = split(batch)
        with torch.no_grad():
            output = live.model(*(x.to(live.device) if isinstance(x, Tensor) else x for x in inputs))
    except Exception:  # the model itself failed: its own message says more than we could
        shapes = [f"{tuple(x.shape)} {x.dtype}" for x in inputs if isinstance(x, Tensor)] if "inputs" in locals() else []
        return f" The model was given inputs of shape {', '.join(shapes) or 'unknown'}."

    def told(value: object) -> str:
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"

    advice = f" `loss_fn(output, target)` got as output {told(output)} and as target {told(target)}."
    if not isinstance(output, Tensor):
        advice += " Pick the tensor out in `loss_fn`, or use `batch_loss(model, batch)`."
    else:
        advice += " Class indices are torch.int64 of shape (N,); regression targets have the dtype and shape of the output."
    return advice
