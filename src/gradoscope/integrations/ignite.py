"""PyTorch Ignite: watch a trainer engine, and its parts as a `Training`.

watched = gradoscope.integrations.ignite.attach(trainer, model, optimizer, criterion, record="runs/monday")
trainer.run(loader, max_epochs=3)
print(watched.diagnose())
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradoscope.errors import Usage
from gradoscope.integrations._follow import Follower, safely
from gradoscope.integrations._need import need
from gradoscope.training import Training

if TYPE_CHECKING:
    from gradoscope.diagnosis import Diagnosis
    from gradoscope.watch import Watch

__all__ = ["Handler", "attach", "training"]


class Handler:
    """Follows an engine; made by `attach`. `with attach(...) as watched:` removes the hooks also where the engine raises.

    It has no handler for exceptions: an engine that has one no longer raises.
    """

    def __init__(self, begin: dict[str, Any], options: dict[str, Any], *, scaler: Any, accumulate: int) -> None:
        self._begin, self._scaler, self._accumulate = begin, scaler, accumulate
        # A loss that is a module, or the model's own, is seen by hooks: also what a `prepare_batch` makes of a batch.
        loss = begin.get("loss_fn")
        self._seen = begin.get("batch_loss") is None and (loss is None or isinstance(loss, nn.Module))
        self._losses: list[Tensor] = []  # of the step that is under way
        self.follower = Follower(options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching and remove every hook; the engine's own end does the same."""
        self.follower.end()

    @property
    def watch(self) -> "Watch":
        """The watch.

        Raises:
            CannotRun: before the engine runs.
        """
        return self.follower.seen()

    def diagnose(self, **options: Any) -> "Diagnosis":
        """Diagnose the training that was seen, as `Watch.diagnose`; the model stays where it is."""
        return self.follower.diagnose(**options)

    # The engine's events.

    @safely
    def started(self, engine: Any) -> None:
        """The engine begins to run."""
        self._losses = []
        watched = self.follower.begin(**self._begin)
        if not self._seen:
            watched.mark()

    @safely
    def iteration_started(self, engine: Any) -> None:
        """A batch comes."""
        self.follower.batch(None if self._seen else engine.state.batch, self._scaler)

    @safely
    def iteration_completed(self, engine: Any) -> None:
        """A batch is over, and a step with it unless more batches belong to it."""
        out = engine.state.output
        if not self._seen and self.follower.looking and isinstance(out, (float, Tensor)):
            self._losses.append(torch.as_tensor(out).detach().mean())
        if engine.state.iteration % self._accumulate == 0:
            for loss in self._losses:  # only now: the last one comes after the step
                self.follower.loss(loss)
            self._losses = []
            self.follower.step()

    @safely
    def ended(self, engine: Any) -> None:
        """The engine has completed, or was terminated."""
        self.follower.end()


def attach(
    engine: Any,
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: Callable[..., Tensor] | None = None,
    *,
    batch_loss: Callable[[nn.Module, Any], Tensor] | None = None,
    schedule: Any = None,
    scaler: Any = None,
    accumulate: int = 1,
    **options: Any,
) -> Handler:
    """Watch an Ignite engine that trains `model`; nothing that it computes changes.

    Args:
        engine: the trainer, before `run()`.
        model: what it trains.
        optimizer: over the model's parameters.
        loss_fn: the very loss that the engine calls. A module is seen as it is called; of a function, batches (x, y) are assumed.
        batch_loss: `batch_loss(model, engine.state.batch)`, where batches are anything else.
        schedule: the learning-rate scheduler.
        scaler: the gradient scaler.
        accumulate: batches per optimizer step, as `gradient_accumulation_steps`.
        options: what else `gradoscope.watch` takes: `budget`, `record`, `target`, `validation`, `metric`, `data`, `name`, `steps`, `sinks`.

    Returns:
        The handler, with `.watch` and `.diagnose()`.

    Raises:
        Usage: where Ignite is not installed, or `engine` is none.

    Cost: that of `watch`.
    """
    events = need("ignite.engine", "ignite").Events
    if not hasattr(engine, "add_event_handler"):
        raise Usage(f"attach() needs the engine that trains, got {type(engine).__name__}.")
    begin = {"model": model, "optimizer": optimizer, "loss_fn": loss_fn, "batch_loss": batch_loss, "schedule": schedule}
    handler = Handler(begin, options, scaler=scaler, accumulate=accumulate)
    engine.add_event_handler(events.STARTED, handler.started)
    engine.add_event_handler(events.ITERATION_STARTED, handler.iteration_started)
    engine.add_event_handler(events.ITERATION_COMPLETED, handler.iteration_completed)
    for event in (events.COMPLETED, events.TERMINATE):
        engine.add_event_handler(event, handler.ended)
    return handler


def training(
    model: nn.Module | Callable[[], nn.Module],
    optimizer: Optimizer | Callable[..., Optimizer],
    loss_fn: Callable[..., Tensor],
    data: Any,
    *,
    steps: int,
    prepare_batch: Callable[..., Any] | None = None,
    model_fn: Callable[[nn.Module, Any], Any] | None = None,
    model_transform: Callable[[Any], Any] | None = None,
    **changes: Any,
) -> Training:
    """What `create_supervised_trainer` takes, as a `Training` for `gradoscope.diagnose`. Ignite itself is not needed for it.

    Args:
        model: the model.
        optimizer: over its parameters.
        loss_fn: `loss_fn(output, target)`.
        data: what `trainer.run` gets.
        steps: the number of optimizer steps.
        prepare_batch: `prepare_batch(batch, device=..., non_blocking=...)`, which gives (x, y).
        model_fn: `model_fn(model, x)`.
        model_transform: makes of the model's output what the loss gets.
        changes: what else `Training` takes: `accumulate`, `clip_norm`, `schedule`, `validation`, `metric`, `name`, ...
    """
    if prepare_batch is None and model_fn is None and model_transform is None:
        return Training(model=model, optimizer=optimizer, loss_fn=loss_fn, data=data, steps=steps, **changes)

    def batch_loss(module: nn.Module, batch: Any) -> Tensor:
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        x, y = batch if prepare_batch is None else prepare_batch(batch, device=device, non_blocking=False)
        output = module(x) if model_fn is None else model_fn(module, x)
        return loss_fn(output if model_transform is None else model_transform(output), y)

    return Training(model=model, optimizer=optimizer, batch_loss=batch_loss, data=data, steps=steps, **changes)
