"""Attach to a live training loop, within a budget, without changing what it computes."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from gradoscope.errors import CannotRun, Usage
from gradoscope.measure.step_noise import StepNoise
from gradoscope.store import Run
from gradoscope.training import Live, Training, check_parameters
from gradoscope.watching.attach import SeenLoss, Step, listen, listen_to_rows, nested_step, rows_of, tell, unwrap
from gradoscope.watching.budget import Budget, Kind, Timetable
from gradoscope.watching.calls import Calls, Reservoir, keep
from gradoscope.watching.look import Look
from gradoscope.watching.outlets import Outlets, Sink
from gradoscope.watching.rebuild import NO_TARGETS, notes, rebuild, summary
from gradoscope.watching.replay import first_nonfinite_layer, model_on_batch
from gradoscope.watching.snapshots import Snapshots

if TYPE_CHECKING:
    from gradoscope.diagnosis import Diagnosis

__all__ = ["Step", "Watch", "watch"]


def watch(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: Callable[..., Tensor] | None = None,
    *,
    batch_loss: Callable[[nn.Module, Any], Tensor] | None = None,
    data: Any = None,
    validation: Any = None,
    schedule: Any = None,
    metric: Callable[[Any, Any], float] | None = None,
    budget: float = 0.05,
    record: Path | str | None = None,
    target: str | None = None,
    steps: int | None = None,
    name: str | None = None,
    noise: bool = False,
    sinks: Sequence[Sink] = (),
) -> "Watch":
    r"""Watch a training from its own loop; nothing that the loop computes changes.

    Where the loss is a module, nothing inside the loop changes either::

        watch = gradoscope.watch(model, optimizer, criterion)        # before the loop
        ...                                                          # the loop as it is
        print(watch.diagnose())                                      # after it

    Where the loss is a function, the watch has to see its targets. Either call it by the name that the watch gives
    (`loss_fn = watch.loss_fn` before the loop), or name where the batches come from (`data=loader`), which is read
    after the loop and never beside it. A model that returns its own loss (a scalar, or the entry "loss") needs neither.

    With accumulation, clipping before the step, or a gradient scaler, say where things happen::

        for batch in loader:
            with watch.step(batch, scaler=scaler) as s:               # one block per optimizer step
                loss = criterion(model(batch[0]), batch[1])
                s.loss(loss)
                scaler.scale(loss).backward()
                s.gradients()                                        # before clipping
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
            optimizer.zero_grad()

    Args:
        model: the module that the loop calls; also compiled or wrapped for several ranks.
        optimizer: over the parameters of this model.
        loss_fn: `loss_fn(output, target)`, a module or a function.
        batch_loss: `batch_loss(model, batch)` for the batches that `watch.step(batch)` or `data` gives, instead of `loss_fn`.
        data: where the batches come from; without it, a sample of the batches that were seen stands for it.
        validation: like `data`, for the loss that is watched and never trained on.
        schedule: the learning-rate scheduler; without it, the learning rates that were seen are repeated.
        metric: `metric(output, target)`, a number that counts in the end.
        budget: what watching may cost, as a share of the training's own time.
        record: a folder to record into; it survives a crash and can be diagnosed by `gradoscope diagnose FOLDER`.
        target: how the training is made, for the recorded run: a catalogue name or "path/file.py:function".
        steps: how many steps are planned.
        name: what reports call it.
        noise: whether looks also tell the norm test and the signal-to-noise ratio of the gradient, from the gradients of single
            rows in the step's own backward pass (see `measure.step_noise`): half a step more for each look, within the budget.
        sinks: where records and the diagnosis go besides, e.g. `gradoscope.integrations.sinks.TensorBoard("runs/first")`.

    Raises:
        CannotRun: where the optimizer holds other parameters than the model's.
        CannotWrite: where `record` cannot be written.
        Usage: where both losses are given, the budget is negative, or a sink is none.

    Cost: one copy of the state; then at most `budget` times the training's own time. The first look may exceed it.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> criterion = torch.nn.MSELoss()
        >>> with watch(model, optimizer, criterion) as watched:
        ...     for _ in range(3):
        ...         optimizer.zero_grad()
        ...         criterion(model(torch.ones(4, 2)), torch.zeros(4, 1)).backward()
        ...         optimizer.step()
        >>> watched.steps, watched.records[0]["step"], len(watched.batches)
        (3, 0, 1)
    """
    if loss_fn is not None and batch_loss is not None:
        raise Usage("watch() takes `loss_fn(output, target)` or `batch_loss(model, batch)`, not both.")
    if not budget >= 0:
        raise Usage(f"`budget` is a share of the training's own time, such as 0.05; got {budget!r}.")
    outlets = Outlets(None, sinks)
    if record is not None:
        outlets.run = Run.create(record, target=target, name=name or "", steps=steps, settings={"budget": budget})
    recipe = {
        "data": data,
        "validation": validation,
        "metric": metric,
        "batch_loss": batch_loss,
        "name": name or "watched training",
        "noise": noise,
    }
    return Watch(model, optimizer, loss_fn, schedule=schedule, budget=Budget(budget), outlets=outlets, recipe=recipe)


class Watch:
    """What `gradoscope.watch` returns: it watches until `close()`, and can be asked for a diagnosis at any time.

    Attributes:
        steps: optimizer steps seen.
        records: what was recorded, one dict per recorded step (`step`, `loss`, `grad_norm`, `lr`, ...).
        snapshots: copies of the training's state: at the start and at later steps, few enough to fit.
        loss_fn: the loss to call in the loop: the module itself, or the function with an eye on its targets.
        skipped_updates: steps that a gradient scaler refused because of an overflow.
        run: the recorded run, where there is one.
        failure: why watching stopped early, else "".
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss_fn: Callable[..., Tensor] | None,
        *,
        schedule: Any,
        budget: Budget,
        outlets: Outlets,
        recipe: dict[str, Any],
    ) -> None:
        started = time.perf_counter()
        self.model, self.optimizer, self.schedule, self.budget, self.recipe = model, optimizer, schedule, budget, recipe
        self.outlets, self.run = outlets, outlets.run
        self.inner, self.criterion = unwrap(model), loss_fn
        check_parameters(self.inner, optimizer)
        self.loss_fn = loss_fn if loss_fn is None or isinstance(loss_fn, nn.Module) else SeenLoss(loss_fn, self)
        self.calls = Calls(loss_fn, Reservoir(count=64 if recipe["data"] is None else 4))
        self.steps, self.skipped_updates, self.failure = 0, 0, ""
        self.records: list[dict[str, Any]] = []
        self.snapshots = Snapshots(self.inner, optimizer, schedule, self.run)
        self.snapshots.keep(0)
        self.calls_per_step: list[int] = []
        self.first_epoch: int | None = getattr(schedule, "last_epoch", None)
        self.explicit = False  # the user marks steps and names their batches
        self.looking: Look | None = None
        self._handles: list[Any] = []
        self._rows: StepNoise | None = None
        self._wants_rows = bool(recipe.get("noise"))
        self._block: Step | None = None
        self._located = self._told_targets = False
        self._depth, self._nested = 0, nested_step(optimizer)
        self._named: tuple[int, list[tuple[str, Tensor]]] = (-1, [])
        self._always = [optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after)]
        budget.spend("checkpoint", time.perf_counter() - started)
        self._times = Timetable(budget)
        self.guarded(self._arm, "full")

    def __repr__(self) -> str:
        state = f"stopped: {self.failure}" if self.failure else "watching" if self._always else "closed"
        return f"Watch({self.steps} steps, {len(self.records)} recorded, overhead {self.overhead:.1%}, {state})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def overhead(self) -> float:
        """What watching took, as a share of the training's own time."""
        self._times.settle(self.steps)
        return self.budget.overhead

    @property
    def skipped(self) -> int:
        """Looks that were due and passed over to keep within the budget."""
        return self._times.skipped

    @property
    def batches(self) -> list[Any]:
        """The sample of the batches that were seen."""
        return self.calls.reservoir.batches()

    @property
    def blind(self) -> bool:
        """Whether nothing was seen, or given, that the loss could be computed on again."""
        return not len(self.calls.reservoir) and self.recipe["data"] is None

    def close(self) -> None:
        """Stop watching and remove every hook; what was recorded stays."""
        self._disarm()
        for handle in self._always:
            handle.remove()
        if self._always and self.run is not None:
            self.guarded(self.snapshots.last, self.steps)
            self.run.close()
        self._always = []

    def step(self, batch: Any = None, *, scaler: Any = None) -> Step:
        """Watch one optimizer step explicitly: `with watch.step(batch) as s:`.

        Args:
            batch: what the loss of this step is computed on; None takes what the model and the loss are called with.
            scaler: the gradient scaler, so that gradients are told unscaled.
        """
        return Step(self, batch, scaler)

    def mark(self) -> None:
        """Say that batches and losses are named from now on, so that model and loss get no hooks."""
        self.explicit = True
        self._unhook()

    def training(self) -> Training:
        """The training that was seen, from its start: copies of model and optimizer, the batches, the loss.

        Raises:
            CannotRun: where no step or no target was seen, or the model cannot be copied (`diagnose()` can all the same).
        """
        with self._lent() as (training, live):
            if live.model is self.inner:
                raise CannotRun(f"{type(self.inner).__name__} cannot be copied. Use watch.diagnose(), which lends it and puts it back.")
            return training

    def diagnose(self, **options: Any) -> "Diagnosis":
        """Diagnose the training from its start over the steps that were seen; the live training stays where it is.

        Args:
            options: what `gradoscope.diagnose` takes.

        Raises:
            CannotRun: where no loss can be rebuilt from what was seen; the message says what to pass.
        """
        from gradoscope.diagnose import diagnose

        with self._lent() as (training, _):
            found: Diagnosis = diagnose(training, **options)
        found = replace(found, notes=(*found.notes, *notes(self)), provenance=found.provenance | {"watch": summary(self)})
        self.outlets.diagnosis(found)
        return found

    @contextmanager
    def _lent(self) -> Iterator[tuple[Training, Live]]:
        """The rebuilt training, with no hook of ours on anything that it runs."""
        self._disarm()
        self._times.next = max(self._times.next, self.steps + 1)
        try:
            with rebuild(self) as lent:
                yield lent
        finally:
            self._times.restart(self.steps)  # a diagnosis is neither training time nor watching time

    # From here on: what runs inside the user's loop.

    def guarded(self, call: Callable[..., None], *arguments: Any) -> None:
        """Run a part of the watch and time it; a mistake of ours ends the watch, not the user's training."""
        if self.failure:
            return
        self._times.enter()
        try:
            call(*arguments)
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            self._disarm()
            tell(f"watching stopped at step {self.steps} ({self.failure}). The training goes on unchanged. Please report this message.")
        finally:
            self._times.leave()

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._nested:
            self._depth += 1
        if self.looking is not None:
            closure = (len(args) > 1 and args[1] is not None) or kwargs.get("closure") is not None
            self.calls.only_first = closure
            self.guarded(self.looking.before_step, closure)

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._nested:
            self._depth = max(self._depth - 1, 0)
            if self._depth:
                return
        if self.looking is not None:
            self.guarded(self.looking.after_step)
        if self._block is None:
            self._count()
        else:
            self._block.stepped(getattr(optimizer, "found_inf", None))

    def _count(self) -> None:
        """One optimizer step is over."""
        self.steps += 1
        if self.looking is not None:
            self.guarded(self._finish)
        elif self.steps >= self._times.next:
            self.guarded(self._due)

    def enter(self, block: Step) -> None:
        """A step that the user marks begins."""
        self._block = block
        if block.batches:
            self.mark()

    def leave(self, block: Step, *, failed: bool) -> None:
        """A step that the user marks is over."""
        self._block = None
        if not self._always:
            return  # closed
        if failed:  # half a step is no step: look at the next one instead
            if self.looking is not None:
                self.guarded(self._arm, self.looking.kind)
            return
        block.skipped = not block.fired or (self.looking is not None and block.overflowed())
        self.skipped_updates += block.skipped
        if self.looking is not None:
            self.guarded(self._keep_block, block)
        self._count()

    def _keep_block(self, block: Step) -> None:
        for batch in block.batches:
            self.calls.reservoir.add(self.steps, keep(batch))
        if block.batches:
            self.calls_per_step.append(len(block.batches))
        if block.skipped and self.looking is not None:
            self.looking.refused = True

    def _finish(self) -> None:
        """Write down what the look at this step found, and decide when to look again."""
        look = self.looking
        assert look is not None
        record = {"step": self.steps - 1, "time": time.perf_counter() - self._times.started} | look.record()
        if not self.explicit:
            calls = self.calls.end()
            self.calls.sample(self.steps - 1, calls)
            if calls:
                self.calls_per_step.append(1 if look.closure else len(calls))
            if not self._told_targets and self.blind:
                self._told_targets = True
                tell(f"the watch can record this training but not diagnose it: {NO_TARGETS}")
        if self._wants_rows and self._rows is None:
            self._rows = rows_of(self)
            self._wants_rows = self._rows is not None or self.calls.first() is None
        self._disarm()
        self.records.append(record)
        self.outlets.record(record)
        if look.kind == "checkpoint":
            self.snapshots.keep(self.steps)
        self._times.looked(self.steps, look.kind)
        if self._times.next <= self.steps:
            self._due()

    def _due(self) -> None:
        """A look is due: take it at the coming step, if it is affordable."""
        kind = self._times.choose(self.steps)
        if kind is not None:
            self._arm(kind)

    def _arm(self, kind: Kind) -> None:
        """Look at the coming step: only now do the modules get hooks, so that most steps run without any."""
        self._disarm()
        self.looking = Look(kind, self.optimizer, self._parameters(), self.calls.losses, self._locate, self._rows)
        self._handles = [] if self.explicit else listen(self, self.model, self.criterion)
        if self._rows is not None:
            self._handles += listen_to_rows(self, self._rows)

    def _unhook(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _disarm(self) -> None:
        self._unhook()
        self.looking = None
        self.calls.clear()

    def saw_loss(self, args: tuple[Any, ...], kwargs: dict[str, Any], loss: Any) -> None:
        """Take note of one call of the user's loss."""
        self.guarded(self.calls.loss, args, kwargs, loss)

    def _parameters(self) -> list[tuple[str, Tensor]]:
        """The (name, parameter) pairs that the optimizer holds; looked up anew when it is given more."""
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        if self._named[0] != len(held):
            self._named = (len(held), [(n, p) for n, p in self.inner.named_parameters() if id(p) in held])
        return self._named[1]

    def _locate(self) -> str | None:
        """The first layer whose output is not finite, by one more forward pass; only the first time that it is asked."""
        call = self.calls.first()
        batch = self._block.batches[0] if self._block is not None and self._block.batches else None
        if self._located or (call is None and batch is None):
            return None
        self._located = True
        if call is not None:
            return first_nonfinite_layer(self.inner, call.args, call.kwargs)
        return first_nonfinite_layer(self.inner, (batch,), {}, self.recipe["batch_loss"] or model_on_batch)
