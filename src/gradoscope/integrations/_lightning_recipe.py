"""What a LightningModule says about its training: its loss on a batch, its optimizer and schedule, its loaders."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gradoscope.errors import CannotRun

__all__ = ["Every", "StepLoss", "loaders", "optimizers"]


class StepLoss:
    """`training_step` as a loss of (module, batch), quiet and without a trainer.

    Args:
        transfer: whether the module's hooks around the transfer to the device (augmentation, say) are still to come.
    """

    def __init__(self, transfer: bool = False) -> None:
        self.transfer = transfer

    def __call__(self, module: nn.Module, batch: Any) -> Tensor:
        """The loss on one batch.

        Raises:
            CannotRun: where `training_step` returns none.
        """
        step: Any = module.training_step
        with _quiet(module):
            if self.transfer:
                for name in ("on_before_batch_transfer", "on_after_batch_transfer"):
                    batch = getattr(module, name)(batch, 0) if hasattr(module, name) else batch
            takes = [p for p in inspect.signature(step).parameters.values() if p.kind <= p.POSITIONAL_OR_KEYWORD]
            out = step(batch, *([0] * (len([p for p in takes if p.default is p.empty]) - 1)))
        loss = out.get("loss") if isinstance(out, Mapping) else out
        if not isinstance(loss, Tensor):
            raise CannotRun(f"training_step returned no loss but {type(out).__name__}: expected a scalar tensor, or a dict with 'loss'.")
        return loss


@contextmanager
def _quiet(module: nn.Module) -> Iterator[None]:
    """Let `self.log` do nothing: outside of a fit it warns or raises."""
    names = [n for n in ("log", "log_dict") if hasattr(module, n) and n not in vars(module)]
    for name in names:
        vars(module)[name] = _nothing
    try:
        yield
    finally:
        for name in names:
            vars(module).pop(name, None)


def _nothing(*_: Any, **__: Any) -> None:
    return None


class Every:
    """A schedule that takes one step of its own each `n` optimizer steps: once per epoch.

    Args:
        schedule: the schedule inside.
        n: optimizer steps per step of it.
    """

    def __init__(self, schedule: Any, n: int) -> None:
        self.schedule, self.n, self.done = schedule, n, 0
        self.optimizer = schedule.optimizer

    def step(self) -> None:
        """One optimizer step is over."""
        self.done += 1
        if self.done % self.n == 0:
            self.schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        return {"done": self.done, "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state_dict` was taken."""
        self.done = int(state["done"])
        self.schedule.load_state_dict(state["schedule"])


def optimizers(module: Any, loader: Any, accumulate: int, *, scheduled: bool = True) -> tuple[Optimizer, Any]:
    """The one optimizer of `configure_optimizers()`, and its schedule per optimizer step.

    Args:
        module: the module.
        loader: what an epoch is.
        accumulate: batches per optimizer step.
        scheduled: whether the schedule is wanted.

    Raises:
        CannotRun: where there is none, or several; where the schedule cannot be repeated.
    """
    made = module.configure_optimizers()
    config: Any = None
    if isinstance(made, (tuple, list)) and len(made) == 2 and all(isinstance(part, (tuple, list)) for part in made):
        made, configs = made
        config = configs[0] if configs else None
    if isinstance(made, (tuple, list)):
        if len(made) != 1:
            raise CannotRun(f"configure_optimizers() returns {len(made)} optimizers; a Training has one. Describe each as a Training.")
        made = made[0]
    if isinstance(made, Mapping):
        made, config = made["optimizer"], made.get("lr_scheduler")
    if not isinstance(made, Optimizer):
        raise CannotRun(f"configure_optimizers() returned {type(made).__name__}: expected one optimizer.")
    if config is None or not scheduled:
        return made, None
    config = dict(config) if isinstance(config, Mapping) else {"scheduler": config}
    return made, _per_step(config, loader, accumulate)


def _per_step(config: dict[str, Any], loader: Any, accumulate: int) -> Any:
    schedule, interval, frequency = config["scheduler"], config.get("interval", "epoch"), int(config.get("frequency") or 1)
    if "metrics" in inspect.signature(schedule.step).parameters:
        raise CannotRun(f"{type(schedule).__name__} waits for a metric that is logged: pass schedule=None, or a schedule of steps.")
    if interval == "epoch":
        try:
            frequency *= -(-len(loader) // accumulate)
        except TypeError as error:
            raise CannotRun(
                "the schedule steps once per epoch, and the loader has no length: pass schedule=None, or one of steps."
            ) from error
    return schedule if frequency == 1 else Every(schedule, frequency)


def loaders(module: Any, data: Any) -> tuple[Any, Any]:
    """What is trained on, and what is held out (or None).

    Raises:
        CannotRun: where there is nothing, or several loaders at once.
    """
    source = data if hasattr(data, "train_dataloader") and hasattr(data, "setup") else module if data is None else None
    if source is None:
        return data, None
    if source is data:
        data.prepare_data()
        data.setup("fit")
    train = source.train_dataloader() if _overrides(source, "train_dataloader") else None
    parts = list(train.values()) if isinstance(train, dict) else train
    if isinstance(parts, (list, tuple)) and any(hasattr(part, "dataset") for part in parts):
        raise CannotRun("train_dataloader() returns several loaders: pass data=..., one iterable of the batches that training_step gets.")
    if train is None:
        raise CannotRun("there is no train_dataloader(): pass data=..., a DataLoader or a LightningDataModule.")
    held_out = source.val_dataloader() if _overrides(source, "val_dataloader") else None
    return train, held_out if hasattr(held_out, "dataset") else None


def _overrides(source: Any, name: str) -> bool:
    """Whether a class of the user's defines `name`: Lightning's own raises."""
    return any(name in vars(c) and not c.__module__.startswith(("lightning.", "pytorch_lightning.")) for c in type(source).__mro__)
