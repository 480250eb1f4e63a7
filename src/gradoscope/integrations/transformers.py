"""Hugging Face Transformers: watch a `Trainer`, and a `Trainer` as a `Training`.

    watched = gradoscope.integrations.transformers.attach(trainer, record="runs/monday")
    trainer.train()
    print(watched.diagnose())

Losses are told as the loop takes them, and gradients before `max_grad_norm` clips them: neither is passed to a `TrainerCallback`, so
the trainer itself is listened to (`compute_loss` and its accelerator's `clip_grad_norm_`) while it trains.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradoscope.errors import CannotRun, Usage
from gradoscope.integrations._follow import Follower, safely
from gradoscope.integrations._need import need
from gradoscope.training import Training
from gradoscope.watching.attach import unwrap

if TYPE_CHECKING:
    from gradoscope.diagnosis import Diagnosis
    from gradoscope.watch import Watch

__all__ = ["Listener", "attach", "training"]


class Listener:
    """Follows a `Trainer`; made by `attach`, which puts `TrainerCallback` beneath it."""

    def __init__(self, trainer: Any, options: dict[str, Any]) -> None:
        self.trainer = trainer
        self.follower = Follower(options)
        self._undo: list[Callable[[], Any]] = []

    @property
    def watch(self) -> "Watch":
        """The watch.

        Raises:
            CannotRun: before the training.
        """
        return self.follower.seen()

    def diagnose(self, **options: Any) -> "Diagnosis":
        """Diagnose the training that was seen, as `Watch.diagnose`; the trainer's model stays where it is."""
        return self.follower.diagnose(**options)

    def close(self) -> None:
        """Stop watching and listening, where the training was interrupted; its own end does the same."""
        self._leave()
        self.follower.end(failed=True)

    # The trainer's events. `compute_loss` gives batches and losses, the accelerator's clipping the gradients before it.

    @safely
    def on_train_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Model and optimizer are ready, and nothing has stepped yet."""
        self._leave()
        if not state.is_world_process_zero:
            return  # what one rank sees is what all see: gradients are averaged by then
        model, optimizer = unwrap(objects["model"]), _bare(objects["optimizer"])
        self.follower.options = {"name": type(model).__name__} | self.follower.options
        # The schedule drives Accelerate's wrapper of the optimizer, which cannot be copied: the rates that are seen are repeated.
        self.follower.begin(model, optimizer, batch_loss=_Loss(self.trainer), steps=state.max_steps or None).mark()
        self._listen()

    @safely
    def on_step_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """An optimizer step is over."""
        self.follower.step()

    @safely
    def on_train_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """The training is over."""
        self._leave()
        self.follower.end()

    def _listen(self) -> None:
        """Put ears on the trainer; `_leave` takes them off."""
        trainer, accelerator, follower = self.trainer, self.trainer.accelerator, self.follower
        compute_loss, clip = trainer.compute_loss, accelerator.clip_grad_norm_

        def heard(model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled() or follower.failure:
                return compute_loss(model, inputs, *args, **kwargs)
            items = kwargs.get("num_items_in_batch")
            self._batch(dict(inputs), items)  # before the trainer takes the labels out of it
            found = compute_loss(model, inputs, *args, **kwargs)
            self._loss(found, items)
            return found

        def clipping(*args: Any, **kwargs: Any) -> Any:
            self._gradients()
            return clip(*args, **kwargs)

        vars(heard)["original"] = compute_loss
        ears: list[tuple[Any, str, Any]] = [(trainer, "compute_loss", heard), (accelerator, "clip_grad_norm_", clipping)]
        for owner, name, ear in ears:
            owner.__dict__[name] = ear
            self._undo.append(functools.partial(owner.__dict__.pop, name, None))

    def _leave(self) -> None:
        while self._undo:
            self._undo.pop()()

    @safely
    def _batch(self, inputs: dict[str, Any], items: Any) -> None:
        """A batch, with the number of tokens of the whole step, by which its loss is divided."""
        batch: dict[str, Any] = {"inputs": inputs}
        if self.follower.looking and items is not None:
            batch |= {"items": int(items), "parts": self._parts(items)}
        self.follower.batch(batch, self.trainer.accelerator.scaler)

    @safely
    def _loss(self, found: Any, items: Any) -> None:
        loss = found[0] if isinstance(found, tuple) else found
        if self.follower.looking and isinstance(loss, Tensor):
            self.follower.loss(loss.detach() * self._parts(items))

    @safely
    def _gradients(self) -> None:
        self.follower.gradients()

    def _parts(self, items: Any) -> int:
        """The number of parts of which a loss is one: all batches of the step, where it is divided by all their tokens."""
        if not _shared(self.trainer, items):
            return 1
        return int(getattr(self.trainer, "current_gradient_accumulation_steps", self.trainer.args.gradient_accumulation_steps))


def attach(trainer: Any, **options: Any) -> Any:
    """Watch a `transformers.Trainer` (or one of its subclasses); nothing that it computes changes.

    Args:
        trainer: the trainer, before `train()`.
        options: what `gradoscope.watch` takes besides model, optimizer and loss: `budget`, `record`, `target`, `validation`, `metric`,
            `data`, `name`, `sinks`.

    Returns:
        The callback that was added to the trainer, with `.watch` and `.diagnose()`.

    Raises:
        Usage: where Transformers is not installed, or an option is none.

    Cost: that of `watch`.
    """
    known = {"budget", "record", "target", "validation", "metric", "data", "name", "sinks", "steps"}
    if not known.issuperset(options):
        raise Usage(f"attach() has no option {sorted(set(options) - known)[0]!r}; it takes {', '.join(sorted(known))}.")
    base = need("transformers", "transformers").TrainerCallback
    made = type("Watched", (Listener, base), {"__module__": __name__})(trainer, options)
    trainer.add_callback(made)
    return made


def training(trainer: Any, *, steps: int | None = None, **changes: Any) -> Training:
    """A `Trainer` as a `Training`, for `gradoscope.diagnose`: its model, loss, optimizer, schedule, data, accumulation and clipping.

    The trainer is afterwards what it was. Losses are taken in the model's own precision, without autocast, each divided by the
    tokens of its own batch; a step averages over its batches.

    Args:
        trainer: the trainer; before `train()`, the training from its start.
        steps: the number of optimizer steps; by default the trainer's own.
        changes: what else `Training` takes, in place of what is found here, e.g. `validation=trainer.get_eval_dataloader()`.

    Raises:
        CannotRun: where the number of steps is not known.

    Example:
        `gradoscope.diagnose(training(trainer, steps=500))`
    """
    args = trainer.args
    loader = trainer.get_train_dataloader()
    if steps is None:
        steps = args.max_steps if args.max_steps > 0 else _steps(loader, args)
    with _kept(trainer):
        optimizer = _bare(trainer.create_optimizer())
    schedule = trainer.lr_scheduler
    if schedule is None or getattr(trainer, "_created_lr_scheduler", False):
        schedule = _Schedule(trainer, steps)
    model = unwrap(trainer.model)
    found: dict[str, Any] = {
        "model": model,
        "optimizer": optimizer,
        "schedule": schedule,
        "data": _Batches(loader),
        "batch_loss": _Loss(trainer),
        "accumulate": args.gradient_accumulation_steps,
        "clip_norm": args.max_grad_norm or None,
        "name": type(model).__name__,
    }
    return Training(steps=steps, **(found | changes))


@contextmanager
def _kept(trainer: Any) -> Iterator[None]:
    """Put the trainer's optimizer and schedule back as they were: it makes its own when it trains."""
    names = ("optimizer", "lr_scheduler", "_created_lr_scheduler")
    kept = {name: vars(trainer)[name] for name in names if name in vars(trainer)}
    try:
        yield
    finally:
        for name in names:
            vars(trainer).pop(name, None)
        vars(trainer).update(kept)


class _Schedule:
    """Makes the trainer's schedule over an optimizer."""

    def __init__(self, trainer: Any, steps: int) -> None:
        self.trainer, self.steps = trainer, steps

    def __call__(self, optimizer: Optimizer) -> Any:
        with _kept(self.trainer):
            self.trainer.lr_scheduler = None
            return self.trainer.create_scheduler(self.steps, optimizer)


class _Loss:
    """The trainer's `compute_loss` as a loss of (model, batch), also while the trainer is listened to.

    A batch is what the listener kept, {"inputs", "items", "parts"}, or what the loader gives: then its own tokens are counted.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._compute = getattr(trainer.compute_loss, "original", trainer.compute_loss)

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        kept = batch if set(batch) <= {"inputs", "items", "parts"} else self._counted(dict(batch))
        told = {"num_items_in_batch": kept["items"]} if kept.get("items") is not None else {}
        loss = self._compute(model, self.trainer._prepare_inputs(dict(kept["inputs"])), **told)
        assert isinstance(loss, Tensor)
        return loss * int(kept.get("parts", 1))

    def _counted(self, inputs: dict[str, Any]) -> dict[str, Any]:
        items = self.trainer.get_batch_samples(iter([inputs]), 1, self.trainer.args.device)[1]
        return {"inputs": inputs, "items": None if items is None else int(items)}


class _Batches:
    """A loader whose batches are plain dicts: tokenizers give mappings of their own."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return (dict(batch) if isinstance(batch, Mapping) else batch for batch in self.loader)


def _bare(optimizer: Any) -> Optimizer:
    """The optimizer inside of Accelerate's wrapper."""
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    assert isinstance(optimizer, Optimizer)
    return optimizer


def _shared(trainer: Any, items: Any) -> bool:
    """Whether a loss is divided by the tokens of the whole step, as `Trainer.training_step` decides it."""
    told = getattr(trainer, "loss_is_scaled_for_ga", None)
    if told is not None:
        return bool(told)
    by_model = bool(getattr(trainer, "model_accepts_loss_kwargs", False)) and items is not None
    return by_model or getattr(trainer, "compute_loss_func", None) is not None


def _steps(loader: Any, args: Any) -> int:
    try:
        return max(1, int(args.num_train_epochs * -(-len(loader) // args.gradient_accumulation_steps)))
    except TypeError as error:
        raise CannotRun("the trainer's data have no length: pass steps=...") from error
