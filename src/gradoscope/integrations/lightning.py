"""PyTorch Lightning: a callback that watches a fit, and a module with its data as a `Training`.

    trainer = L.Trainer(callbacks=[watched := gradoscope.integrations.lightning.callback(record="runs/monday")])
    trainer.fit(module, loader)
    print(watched.diagnose())

Both packages of Lightning (`lightning` and `pytorch_lightning`) are served.
"""

import functools
import sys
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gradoscope.errors import CannotRun, Usage
from gradoscope.integrations._follow import Follower, safely
from gradoscope.integrations._lightning_recipe import StepLoss, loaders, optimizers
from gradoscope.integrations._need import need
from gradoscope.training import Training

if TYPE_CHECKING:
    from gradoscope.diagnosis import Diagnosis
    from gradoscope.watch import Watch

__all__ = ["Callback", "callback", "training"]

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


class Callback:
    """Watches a fit from Lightning's events; made by `callback`, which puts Lightning's own base class beneath it.

    Gradients are read complete, unscaled and before clipping. With manual optimization each optimizer has a watch of its own.

    Attributes:
        followers: what follows each optimizer of the fit.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.follower = Follower(options)
        self.followers = [self.follower]
        self._complete = False  # the gradients of a step were said to be complete

    def __reduce__(self) -> tuple[Any, ...]:
        return (_again, (self.options,))  # a copy, or the callback in another process, starts anew

    @property
    def watch(self) -> "Watch":
        """The watch of the (first) optimizer.

        Raises:
            CannotRun: before the fit.
        """
        return self.follower.seen()

    def diagnose(self, **options: Any) -> "Diagnosis":
        """Diagnose the fit that was seen, as `Watch.diagnose`; the module stays where it is.

        Raises:
            CannotRun: before the fit, or where one loss does not tell what is trained (manual optimization).
        """
        if len(self.followers) > 1 or not getattr(self.watch.inner, "automatic_optimization", True):
            raise CannotRun(
                "the module optimizes by hand, so no single loss tells what is trained; its steps are recorded all the same. "
                "Diagnose one of its optimizers as a `gradoscope.Training(model=..., batch_loss=...)` of its own."
            )
        return self.follower.diagnose(**options)

    # Lightning's events.

    @safely
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """The optimizers are there, and nothing has stepped yet."""
        for follower in self.followers:
            follower.end()
        self.follower = Follower(self.options)
        self.followers = [self.follower]
        if not trainer.is_global_zero or not trainer.optimizers:
            return  # what one rank sees is what all see: gradients are averaged by then
        several = len(trainer.optimizers) > 1
        recipe: dict[str, Any] = {"batch_loss": StepLoss(), "steps": trainer.max_steps if trainer.max_steps > 0 else None}
        schedules = trainer.lr_scheduler_configs
        if len(schedules) == 1 and (schedules[0].interval, schedules[0].frequency) == ("step", 1) and not several:
            recipe["schedule"] = schedules[0].scheduler  # of others, the rates that are seen are repeated
        for i, optimizer in enumerate(trainer.optimizers):
            options = dict(self.options)
            if several and options.get("record") is not None:
                options["record"] = f"{options['record']}/optimizer-{i}"
            if i > 0:
                self.followers.append(Follower(options))
            self.followers[i].options = {"name": type(pl_module).__name__} | options
            self.followers[i].begin(pl_module, optimizer, **recipe).mark()

    @safely
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A batch comes, on its device and as `training_step` will get it."""
        if pl_module.automatic_optimization:
            self.follower.batch(batch, _scaler(trainer))

    @safely
    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """The loss is there: divided for accumulation, and scaled."""
        scaler = _scaler(trainer)
        for follower in self.followers:
            if not follower.looking:
                continue
            plain = loss.detach() if scaler is None else loss.detach() / scaler.get_scale()
            if pl_module.automatic_optimization:
                follower.loss(plain * trainer.accumulate_grad_batches)
            else:
                assert follower.watch is not None
                assert follower.watch.looking is not None
                follower.watch.looking.losses = [plain]  # the last one before a step is the one it is about

    @safely
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """The gradients are complete and not yet clipped."""
        if pl_module.automatic_optimization:
            self.follower.gradients()
            self._complete = True

    @safely
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A batch is over, and a step with it unless more batches belong to it."""
        if pl_module.automatic_optimization and self._complete:
            self._complete = False
            self.follower.step()

    @safely
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """The fit is over."""
        for follower in self.followers:
            follower.end()

    @safely
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """The fit was interrupted, or failed."""
        for follower in self.followers:
            follower.end(failed=True)


def callback(**options: Any) -> Any:
    """A Lightning callback that watches a fit; nothing that the fit computes changes.

    Args:
        options: what `gradoscope.watch` takes besides model, optimizer and loss: `budget`, `record`, `target`, `validation`, `metric`,
            `data`, `name`, `sinks`.

    Returns:
        A callback with `.watch` and `.diagnose()`, of the Lightning package that is in use.

    Raises:
        Usage: where Lightning is not installed, or an option is none.

    Cost: that of `watch`.
    """
    known = {"budget", "record", "target", "validation", "metric", "data", "name", "sinks", "steps"}
    if not known.issuperset(options):
        raise Usage(f"callback() has no option {sorted(set(options) - known)[0]!r}; it takes {', '.join(sorted(known))}.")
    return _class(_packages())(options)


def _again(options: dict[str, Any]) -> Any:
    return callback(**options)


@functools.cache
def _class(packages: tuple[str, ...]) -> type:
    bases = [need(package, "lightning").Callback for package in packages]
    return type("Watched", (Callback, *bases), {"__module__": __name__})


def _packages() -> tuple[str, ...]:
    """The Lightning that the user has imported (or both), else the first one that is installed."""
    there = tuple(p for p in PACKAGES if p in sys.modules)
    if there:
        return there
    try:
        need(PACKAGES[0], "lightning")
    except Usage:
        need(PACKAGES[1], "lightning")
        return PACKAGES[1:]
    return PACKAGES[:1]


def _scaler(trainer: Any) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def training(module: nn.Module, data: Any = None, *, steps: int, validation: Any = None, trainer: Any = None, **changes: Any) -> Training:
    """A LightningModule with its data as a `Training`, for `gradoscope.diagnose`; it is not trained, a copy of it is.

    The loss is that of `training_step`, without a trainer: what it logs goes nowhere.

    Args:
        module: with `training_step` and `configure_optimizers`.
        data: a LightningDataModule, a DataLoader, or whatever `Training` takes as batches; None takes the module's own
            `train_dataloader()`.
        steps: the number of optimizer steps.
        validation: like `data`; a data module's own by default. Its loss is taken by `training_step` as well.
        trainer: where accumulation and clipping are set; it does not run.
        changes: what else `Training` takes, in place of what is found here, e.g. `schedule=None`, `metric=...`, `name=...`.

    Raises:
        CannotRun: where the module optimizes by hand, has several optimizers, or a schedule that waits for a logged metric.

    Example:
        `gradoscope.diagnose(training(module, datamodule, steps=500))`, or as the function that `gradoscope diagnose file.py:make` calls.
    """
    if not getattr(module, "automatic_optimization", True):
        raise CannotRun(
            "the module optimizes by hand (automatic_optimization = False), so no single loss tells what is trained. "
            "Describe one of its optimizers as a `gradoscope.Training(model=..., batch_loss=...)`."
        )
    train, held_out = loaders(module, data)
    accumulate = int(getattr(trainer, "accumulate_grad_batches", 1) or 1)
    clip = getattr(trainer, "gradient_clip_val", None)
    if clip and str(getattr(trainer, "gradient_clip_algorithm", None) or "norm").split(".")[-1].lower() != "norm":
        raise CannotRun("the trainer clips gradients by value, which cannot be repeated: pass trainer=None, or clip by norm.")
    optimizer, schedule = optimizers(module, train, accumulate, scheduled="schedule" not in changes)
    assert isinstance(optimizer, Optimizer)
    found: dict[str, Any] = {
        "model": module,
        "optimizer": optimizer,
        "schedule": schedule,
        "data": train,
        "validation": held_out if validation is None else validation,
        "batch_loss": StepLoss(transfer=True),
        "accumulate": accumulate,
        "clip_norm": float(clip) if clip else None,
        "name": type(module).__name__,
    }
    return Training(steps=steps, **(found | changes))
