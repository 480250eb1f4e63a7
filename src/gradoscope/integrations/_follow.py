"""What the adapters share: one watch that is driven by the events of a framework."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gradoscope.errors import CannotRun, GradoscopeError
from gradoscope.training import Training
from gradoscope.watch import Step, Watch, watch
from gradoscope.watching.attach import tell

if TYPE_CHECKING:
    from gradoscope.diagnosis import Diagnosis

__all__ = ["Follower", "safely"]


def safely(method: Callable[..., None]) -> Callable[..., None]:
    """An event handler whose own mistakes end the following and not the user's training.

    What the user can mend (`GradoscopeError`: a folder that cannot be written) is raised: it comes before the first step.
    """

    @functools.wraps(method)
    def handler(self: Any, *args: Any, **kwargs: Any) -> None:
        follower: Follower = self if isinstance(self, Follower) else self.follower
        if follower.failure:
            return
        try:
            method(self, *args, **kwargs)
        except GradoscopeError:
            raise
        except Exception as error:
            follower.fail(error)

    return handler


class Follower:
    """A watch that starts when a framework says so, and marks one step after another.

    Args:
        options: what `gradoscope.watch` takes and the framework does not know: `budget`, `record`, `target`, `sinks`, `name`, ...

    Attributes:
        watch: the watch, from the start of the training on.
        failure: why following stopped early, else "".
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.watch: Watch | None = None
        self.failure = ""
        self.batches = 0  # of the step that is under way
        self._block: Step | None = None

    def begin(self, model: nn.Module, optimizer: Optimizer, **recipe: Any) -> Watch:
        """Start to watch; a training that starts again is watched anew."""
        self.end()
        self.failure = ""
        self.watch = watch(model, optimizer, **{k: v for k, v in recipe.items() if v is not None} | self.options)
        return self.watch

    def batch(self, batch: Any, scaler: Any = None) -> None:
        """A batch comes: the first one of a step, or one more of it; None where hooks see it."""
        if self.watch is None:
            return
        self.batches += 1
        if self._block is None:
            self._block = self.watch.step(batch, scaler=scaler)
            self._block.__enter__()
        elif batch is not None:
            self._block.batch(batch)

    @property
    def looking(self) -> bool:
        """Whether this step is looked at; nothing needs to be computed for one that is not."""
        return self.watch is not None and self.watch.looking is not None

    def loss(self, loss: Tensor) -> None:
        """The loss of one batch, unscaled."""
        if self._block is not None:
            self._block.loss(loss)

    def gradients(self) -> None:
        """The gradients of this step are complete and not clipped."""
        if self._block is not None:
            self._block.gradients()

    def step(self, failed: bool = False) -> None:
        """The step is over."""
        block, self._block, self.batches = self._block, None, 0
        if block is not None:
            block.__exit__(RuntimeError if failed else None)

    def end(self, failed: bool = False) -> None:
        """The training is over: remove every hook and close the run; half a step is no step."""
        self.step(failed=True)
        if self.watch is not None:
            self.watch.close()

    def fail(self, error: Exception) -> None:
        """Stop following because of a mistake of ours."""
        self.failure = f"{type(error).__name__}: {error}"
        self._block = None
        if self.watch is not None:
            self.watch.failure = self.watch.failure or self.failure
            self.watch.close()
        tell(f"watching stopped ({self.failure}). The training goes on unchanged. Please report this message.")

    def seen(self) -> Watch:
        """The watch.

        Raises:
            CannotRun: where the training has not started.
        """
        if self.watch is None:
            raise CannotRun("nothing was watched: the training has not started. Ask after, or during, the training.")
        return self.watch

    def training(self) -> Training:
        """The training that was seen, from its start (`Watch.training`)."""
        return self.seen().training()

    def diagnose(self, **options: Any) -> "Diagnosis":
        """Diagnose the training that was seen (`Watch.diagnose`); it stays where it is."""
        return self.seen().diagnose(**options)
