"""Attach to a live training loop, within a budget, without changing what it computes."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradoscope import tree
from gradoscope.budget import Budget, Kind
from gradoscope.errors import CannotRun, Usage
from gradoscope.looking import Look
from gradoscope.rebuild import rebuild
from gradoscope.replay import Call, Pick, Reservoir, find_pick, keep, own_loss
from gradoscope.state import State
from gradoscope.store import Run
from gradoscope.training import Live, Training, check_parameters

if TYPE_CHECKING:
    from gradoscope.diagnosis import Diagnosis

__all__ = ["Step", "Watch", "watch"]

DENSE = 1000  # every step up to here, then ever fewer: 1,000 per e-fold of steps
MOST_CALLS = 64  # forward passes kept of one step
MOST_STATES, STATE_BYTES = 6, 512 << 20


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

    Raises:
        CannotRun: where the optimizer holds other parameters than the model's.
        CannotWrite: where `record` cannot be written.
        Usage: where both losses are given, or the budget is negative.

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
    run = None
    if record is not None:
        run = Run.create(record, target=target, name=name or "", steps=steps, settings={"budget": budget})
    recipe = {"data": data, "validation": validation, "metric": metric, "batch_loss": batch_loss, "name": name or "watched training"}
    return Watch(model, optimizer, loss_fn, schedule=schedule, budget=Budget(budget), run=run, recipe=recipe)


class _Hook:
    """A hook that stays behind when the module is copied or saved: its copies do nothing."""

    def __init__(self, call: Callable[..., None] | None) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> None:
        # Inside a compiled graph there is nothing to see, and looking would break it.
        if self._call is not None and not torch.compiler.is_compiling():
            self._call(*arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Hook":
        return _Hook(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Hook, (None,))


class Watch:
    """What `gradoscope.watch` returns: it watches until `close()`, and can be asked for a diagnosis at any time.

    Attributes:
        steps: optimizer steps seen.
        records: what was recorded, one dict per recorded step (`step`, `loss`, `grad_norm`, `lr`, ...).
        states: copies of the training's state: at the start and at later steps, few enough to fit.
        skipped: steps that were due for a look and passed over to keep within the budget.
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
        run: Run | None,
        recipe: dict[str, Any],
    ) -> None:
        self.model, self.optimizer, self.schedule, self.budget, self.run, self.recipe = model, optimizer, schedule, budget, run, recipe
        self.inner = unwrap(model)
        check_parameters(self.inner, optimizer)
        self.criterion = loss_fn
        self.loss_fn: Callable[..., Tensor] | None = loss_fn
        if loss_fn is not None and not isinstance(loss_fn, nn.Module):
            self.loss_fn = _Seen(loss_fn, self)
        self.steps, self.skipped, self.skipped_updates, self.failure = 0, 0, 0, ""
        self.records: list[dict[str, Any]] = []
        self.states: list[State] = []
        self.reservoir = Reservoir(count=4 if recipe["data"] is not None else 64)
        self.pick: Pick | None = None
        self.own_loss: tuple[Any, ...] | None = None
        self.unmatched = False  # the loss got something that is no known function of the model's output
        self.calls_per_step: list[int] = []
        self.explicit = False
        self._look: Look | None = None
        self._calls: list[Call] = []
        self._next, self._next_full, self._next_checkpoint = 0, 0, 1
        self._handles: list[Any] = []
        self._block: Step | None = None
        self._told_targets = False
        self._depth, self._nested = 0, _nested(optimizer)
        started = time.perf_counter()
        self._own = 0.0  # own seconds since the mark
        self.states.append(State.capture(self._live()))
        self._checkpoint_on_disk(self.states[0])
        self._epoch = getattr(schedule, "last_epoch", None)
        self._always = [optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after)]
        self.started = self._mark = time.perf_counter()
        self._mark_step = 0
        budget.spend("checkpoint", self._mark - started)
        self._guard(self._arm, "full")

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
        return self.budget.overhead

    @property
    def batches(self) -> list[Any]:
        """The sample of the batches that were seen."""
        return self.reservoir.batches()

    def close(self) -> None:
        """Stop watching and remove every hook; what was recorded stays."""
        self._disarm()
        for handle in self._always:
            handle.remove()
        if self._always and self.run is not None:
            if self.steps > self.states[-1].step and not self.failure:
                self._checkpoint_on_disk(State.capture(self._live(), self.steps))
            self.run.close()
        self._always = []

    def step(self, batch: Any = None, *, scaler: Any = None) -> "Step":
        """Watch one optimizer step explicitly: `with watch.step(batch) as s:`.

        Args:
            batch: what the loss of this step is computed on; None takes what the model and the loss module are called with.
            scaler: the gradient scaler, so that gradients are told unscaled and refused steps counted.
        """
        return Step(self, batch, scaler)

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
            found = diagnose(training, **options)
        return replace(found, notes=(*found.notes, *self.notes()), provenance=found.provenance | {"watch": self.summary()})

    def summary(self) -> dict[str, Any]:
        """What was watched and what it cost, as plain values."""
        return {
            "steps": self.steps,
            "recorded": len(self.records),
            "skipped": self.skipped,
            "skipped_updates": self.skipped_updates,
            "overhead": self.overhead,
            "budget": self.budget.share,
            "batches": len(self.reservoir),
            "failure": self.failure,
        }

    def notes(self) -> list[str]:
        """What a reader of the diagnosis should know about what it rests on, in sentences."""
        from gradoscope.rebuild import notes

        return notes(self)

    @contextmanager
    def _lent(self) -> Iterator[tuple[Training, Live]]:
        """The rebuilt training, with no hook of ours on anything that it runs."""
        self._disarm()
        self._next = max(self._next, self.steps + 1)
        try:
            with rebuild(self) as lent:
                yield lent
        finally:
            # The diagnosis is no training time and no watching time.
            self._mark, self._mark_step, self._own = time.perf_counter(), self.steps, 0.0

    def _live(self) -> Live:
        view: Any = SimpleNamespace(model=self.inner, optimizer=self.optimizer, schedule=self.schedule)
        live: Live = view
        return live

    # What runs inside the user's loop. Every entry is guarded: a mistake of ours ends the watch, not the training.

    def _guard(self, call: Callable[..., None], *arguments: Any) -> None:
        if self.failure:
            return
        started = time.perf_counter()
        try:
            call(*arguments)
        except Exception as error:  # a mistake of ours must not end the user's training
            self.failure = f"{type(error).__name__}: {error}"
            self._disarm()
            warnings.warn(
                f"watching stopped after step {self.steps} ({self.failure}). The training goes on unchanged; "
                "what was recorded stays. Please report this with the line above.",
                RuntimeWarning,
                stacklevel=3,
            )
        finally:
            self._own += time.perf_counter() - started

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._nested:
            self._depth += 1
        if self._look is not None:
            closure = len(args) > 1 and args[1] is not None or bool(kwargs.get("closure"))
            self._guard(self._look.before_step, closure)

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._nested:
            self._depth = max(self._depth - 1, 0)
            if self._depth:
                return
        if self._block is not None:
            self._block.fired = True
            if self._look is not None:
                self._guard(self._look.after_step)
            return
        if self._look is not None:
            self._guard(self._look.after_step)
        self._count()

    def _count(self) -> None:
        """One optimizer step is over."""
        self.steps += 1
        if self._look is not None:
            self._guard(self._finish)
        elif self.steps >= self._next:
            self._guard(self._schedule)

    def _finish(self) -> None:
        """Write down what the look at this step found, and decide when to look again."""
        started = time.perf_counter()
        look, calls = self._look, self._calls
        assert look is not None
        self._disarm()
        self._keep_batches(calls)
        record = {"step": self.steps - 1, "time": started - self.started} | look.record()
        if look.calls:
            self.calls_per_step.append(look.calls)
        if self._block is not None and self._block.skipped:
            record["skipped"] = True
        self.records.append(record)
        if self.run is not None:
            self.run.append(record)
        if look.kind == "checkpoint":
            self._keep_state()
        own = self._own + time.perf_counter() - started
        self._tick(own)
        self.budget.spend(look.kind, own)
        self._own -= time.perf_counter() - started  # the guard adds it once more
        stride = max(1, self.steps // DENSE)
        self._next = self.steps - 1 + stride
        if self._next <= self.steps:
            self._schedule()

    def _tick(self, own: float) -> None:
        """Tell the budget how long the training itself took since the last time."""
        now = time.perf_counter()
        self.budget.trained(self.steps - self._mark_step, now - self._mark - own)
        self._mark, self._mark_step, self._own = now, self.steps, 0.0

    def _schedule(self) -> None:
        """A look is due: take it at the coming step, or wait until it is affordable."""
        started = time.perf_counter()
        if self.steps > self._mark_step:
            self._tick(self._own)
        kind: Kind = "light"
        if self.steps >= self._next_checkpoint and self.budget.affordable("checkpoint"):
            kind = "checkpoint"
        elif self.steps >= self._next_full and self.budget.affordable("full"):
            kind = "full"
        if self.budget.affordable(kind):
            self._arm(kind)
            return
        wait = self.budget.wait("light")
        self._next = self.steps + wait
        self.skipped += max(1, wait // max(1, self.steps // DENSE))
        self._own += 0 * started

    def _arm(self, kind: Kind) -> None:
        """Look at the coming step: only now do the modules get hooks, so that most steps run without any."""
        self._calls = []
        self._look = Look(self, kind)
        if kind != "light":
            self._next_full = max(self.steps + 1, int(self.steps * 1.3))
        if kind == "checkpoint":
            self._next_checkpoint = 2 * self.steps
        if not self.explicit:
            self._handles.append(self.model.register_forward_pre_hook(_Hook(self._saw_input), with_kwargs=True))
            self._handles.append(self.model.register_forward_hook(_Hook(self._saw_output), with_kwargs=True))
            if isinstance(self.criterion, nn.Module):
                self._handles.append(self.criterion.register_forward_hook(_Hook(self._saw_loss_module), with_kwargs=True))

    def _disarm(self) -> None:
        self._look, self._calls = None, []
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _saw_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled() and len(self._calls) < MOST_CALLS:
            self._guard(lambda: self._calls.append(Call(keep(args), keep(kwargs))))

    def _saw_output(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if torch.is_grad_enabled() and self._calls and self._calls[-1].output is None:
            self._calls[-1].output = output

    def _saw_loss_module(self, module: nn.Module, args: Any, kwargs: Any, loss: Any) -> None:
        self.saw_loss(args, kwargs, loss)

    def saw_loss(self, args: tuple[Any, ...], kwargs: dict[str, Any], loss: Any) -> None:
        """Take note of one call of the user's loss; called from its hook or by `loss_fn`."""
        if self._look is not None and self._calls and torch.is_grad_enabled():
            self._guard(self._note_loss, args, kwargs, loss)

    def _note_loss(self, args: tuple[Any, ...], kwargs: dict[str, Any], loss: Any) -> None:
        call = self._calls[-1]
        if call.targets is not None or not args:
            return
        if self.pick is None:
            self.pick = find_pick(call.output, args[0])
            self.unmatched = self.pick is None
        call.targets, call.target_kwargs = keep(args[1:]), keep(kwargs)
        call.loss = loss.detach() if isinstance(loss, Tensor) and loss.numel() == 1 else None
        call.output = None  # it holds the graph

    def end_calls(self) -> list[Call]:
        """The calls of this step that a loss belongs to; a model that returns its own loss is recognised here."""
        for call in self._calls:
            if call.targets is None and call.output is not None and self.criterion is None:
                self.own_loss = own_loss(call.output)
                if self.own_loss is not None:
                    loss = call.output
                    for key in self.own_loss:
                        loss = loss[key]
                    call.targets, call.loss = (), loss.detach()
            call.output = None
        return [c for c in self._calls if c.targets is not None]

    def _keep_batches(self, calls: list[Call]) -> None:
        if self._block is not None and self._block.batches:
            for batch in self._block.batches:
                self.reservoir.add(self.steps - 1, keep(batch))
            return
        for call in calls:
            if call.targets is None:
                continue
            if not call.kwargs and not call.target_kwargs and len(call.targets) == 1 and call.args:
                self.reservoir.add(self.steps - 1, (*call.args, call.targets[0]))
            else:
                whole = {"args": call.args, "kwargs": call.kwargs, "targets": call.targets, "target_kwargs": call.target_kwargs}
                self.reservoir.add(self.steps - 1, whole)
        if calls and not len(self.reservoir) and self.recipe["data"] is None and not self._told_targets and not self.explicit:
            self._told_targets = True
            warnings.warn(
                "the watch sees the model's inputs but no targets, so it could not diagnose this training. Before the loop, write "
                "`loss_fn = watch.loss_fn` and call that, pass the loss as a module, or pass data=... to watch().",
                RuntimeWarning,
                stacklevel=2,
            )

    def _keep_state(self) -> None:
        """Copy the state after this step; of the copies in between, the ones that crowd go first."""
        state = State.capture(self._live(), self.steps)
        self.states.append(state)
        self._checkpoint_on_disk(state)
        size = sum(t.numel() * t.element_size() for t in tree.leaves(state.parameters)) * 3
        most = max(2, min(MOST_STATES, STATE_BYTES // max(size, 1)))
        while len(self.states) > most:
            steps = [s.step + 1 for s in self.states]
            gaps = [steps[i + 1] / steps[i - 1] for i in range(1, len(steps) - 1)]
            del self.states[1 + gaps.index(min(gaps))]
        if self.run is not None:
            self.run.thin({s.step for s in self.states})

    def _checkpoint_on_disk(self, state: State) -> None:
        if self.run is not None:
            self.run.checkpoint(state)


class Step:
    """One optimizer step that the user marks: `with watch.step(batch) as s:`."""

    def __init__(self, watch: Watch, batch: Any, scaler: Any) -> None:
        self._watch, self.scaler = watch, scaler
        self.batches: list[Any] = [] if batch is None else [batch]
        self.fired = self.skipped = False

    def __enter__(self) -> Self:
        watch = self._watch
        watch._block = self
        if self.batches and not watch.explicit:
            watch.explicit = True
            look = watch._look
            watch._disarm()
            watch._look = look
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        watch = self._watch
        try:
            if kind is None:
                watch._guard(self._close)
                watch._count()
            elif watch._look is not None:
                watch._disarm()  # half a step is no step
                watch._next = watch.steps
        finally:
            watch._block = None

    def _close(self) -> None:
        found = getattr(self._watch.optimizer, "found_inf", None)
        self.skipped = not self.fired or (self._watch._look is not None and isinstance(found, Tensor) and bool(found.item()))
        if self.skipped:
            self._watch.skipped_updates += 1

    def batch(self, batch: Any) -> None:
        """Name one more batch that this step averages over."""
        self.batches.append(batch)

    def loss(self, loss: Tensor) -> None:
        """Give the loss of one batch of this step, as it is before any scaling or division for accumulation."""
        if self._watch._look is not None:
            self._watch._guard(self._watch._look.losses.append, loss.detach())

    def gradients(self) -> None:
        """Say that the gradients of this step are complete and not yet clipped."""
        if self._watch._look is not None:
            self._watch._guard(self._watch._look.unclipped, self.scaler)


class _Seen:
    """The user's loss function, which tells the watch about its calls while a look is on."""

    def __init__(self, function: Callable[..., Tensor], watch: Watch) -> None:
        self.function, self._watch = function, watch
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self.__doc__ = function.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = self.function(*args, **kwargs)
        if self._watch._look is not None:
            self._watch.saw_loss(args, kwargs, loss)
        return loss

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Tensor]:
        return self.function


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside a compiled one, or inside a wrapper for several ranks."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _nested(optimizer: Optimizer) -> bool:
    """Whether `step` calls another `step` that fires the hooks too: a subclass of an optimizer that is in use itself."""
    steps = [vars(c)["step"] for c in type(optimizer).__mro__ if "step" in vars(c)]
    return sum(bool(getattr(s, "hooked", False)) for s in steps) > 1
