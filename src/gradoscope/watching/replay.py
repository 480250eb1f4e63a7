"""From what was seen, the pieces of the training again: its loss as a function of the model, its learning rates, its clipping."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradoscope import tree
from gradoscope.errors import CannotRun
from gradoscope.guard import untouched

__all__ = [
    "Pick",
    "Rates",
    "call_loss",
    "clip_norm",
    "copy_loss",
    "find_pick",
    "first_nonfinite_layer",
    "model_on_batch",
    "own_loss",
    "pair_loss",
]


# How a user's loop gets from a model's output to what the loss eats. `shape` is the shape that the loss got.
FORMS: dict[str, Callable[[Tensor, torch.Size], Tensor]] = {
    "as it is": lambda t, shape: t,
    "flattened": lambda t, shape: t.reshape(-1, *shape[1:]),
    "squeezed": lambda t, shape: t.squeeze(-1),
    "squeezed everywhere": lambda t, shape: t.squeeze(),
    "channels second": lambda t, shape: t.movedim(-1, 1),
    "first two swapped": lambda t, shape: t.transpose(0, 1),
    "last position": lambda t, shape: t[:, -1],
    "first position": lambda t, shape: t[:, 0],
    "all but the last position": lambda t, shape: t[:, :-1],
    "all but the last position, flattened": lambda t, shape: t[:, :-1].reshape(-1, *shape[1:]),
    "log-softmax": lambda t, shape: t.log_softmax(-1),
    "sigmoid": lambda t, shape: t.sigmoid(),
    "softmax": lambda t, shape: t.softmax(-1),
}


@dataclass(frozen=True)
class Pick:
    """What the loss got, as a function of the model's output: one of its tensors (`path`), in one of the `FORMS`."""

    path: tuple[Any, ...]
    form: str
    shape: torch.Size
    dtype: torch.dtype

    def __call__(self, output: Any) -> Tensor:
        """Apply it to an output of the model."""
        for key in self.path:
            output = output[key]
        assert isinstance(output, Tensor)
        picked = FORMS[self.form](output, self.shape)
        return picked if picked.dtype == self.dtype or not self.dtype.is_floating_point else picked.to(self.dtype)

    @property
    def plain(self) -> bool:
        """Whether the loss got the output itself."""
        return self.path == () and self.form == "as it is"


def find_pick(output: Any, got: Any) -> Pick | None:
    """How `got`, the first argument of the loss, comes from the model's output; None where no known way gives it exactly."""
    if not isinstance(got, Tensor):
        return None
    with torch.no_grad():
        for path, leaf in _paths(output):
            for form in FORMS:
                pick = Pick(path, form, got.shape, got.dtype)
                try:
                    tried = pick(output)
                except (RuntimeError, IndexError):
                    continue
                if tried.shape == got.shape and torch.allclose(tried.detach(), got.detach(), rtol=1e-6, atol=0, equal_nan=True):
                    # Under autocast the loss may get bfloat16: that belongs to the precision, not to the loss.
                    return Pick(path, form, got.shape, leaf.dtype)
    return None


def _paths(output: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Tensor]]:
    if isinstance(output, Tensor):
        return [(path, output)]
    pairs: Sequence[tuple[Any, Any]] = []
    if isinstance(output, dict):
        pairs = list(output.items())
    elif isinstance(output, (tuple, list)):
        pairs = list(enumerate(output))
    return [found for key, value in pairs for found in _paths(value, (*path, key))]


def own_loss(output: Any) -> tuple[Any, ...] | None:
    """Where a model's output holds its loss: the output itself, or its entry "loss"; None where it does not."""
    for path, leaf in _paths(output):
        if leaf.numel() == 1 and leaf.is_floating_point() and path in ((), ("loss",)):
            return path
    return None


def pair_loss(loss_fn: Callable[[Any, Any], Tensor], pick: Pick | None) -> Callable[[Any, Any], Tensor]:
    """The loss as a function of (output, target)."""
    if pick is None or pick.plain:
        return loss_fn
    chosen = pick

    def loss(output: Any, target: Any) -> Tensor:
        return loss_fn(chosen(output), target)

    return loss


def call_loss(loss_fn: Callable[..., Tensor] | None, pick: Pick | None, path: tuple[Any, ...] | None) -> Callable[[nn.Module, Any], Tensor]:
    """The loss as a function of (model, batch), for batches that were kept as whole calls."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        output = model(*batch["args"], **batch["kwargs"])
        if loss_fn is not None and pick is not None:
            return loss_fn(pick(output), *batch["targets"], **batch["target_kwargs"])
        for key in path or ():
            output = output[key]
        assert isinstance(output, Tensor)
        return output.reshape(())

    return loss


class Rates:
    """A schedule that sets the learning rates that were seen, interpolated between the steps that were recorded.

    Args:
        optimizer: whose groups it drives.
        seen: (step, learning rate of each group) pairs, first step first.
    """

    def __init__(self, optimizer: Optimizer, seen: Sequence[tuple[int, Sequence[float]]]) -> None:
        self.optimizer, self.seen, self.last_epoch = optimizer, [(s, list(r)) for s, r in seen], 0
        self._set()

    def step(self) -> None:
        """Go on to the next step's learning rates."""
        self.last_epoch += 1
        self._set()

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state_dict` was taken; the groups' rates belong to the optimizer's own state."""
        self.last_epoch = int(state["last_epoch"])

    def _set(self) -> None:
        before = [item for item in self.seen if item[0] <= self.last_epoch] or self.seen[:1]
        after = [item for item in self.seen if item[0] > self.last_epoch] or self.seen[-1:]
        (s, low), (t, high) = before[-1], after[0]
        w = (self.last_epoch - s) / (t - s) if t > s else 0.0
        for group, a, b in zip(self.optimizer.param_groups, low, high, strict=False):
            group["lr"] = (1 - w) * a + w * b


def clip_norm(norms: Sequence[float]) -> float | None:
    """The bound that a clipped gradient norm stops at, or None: the largest norm, where a fifth of at least 5 steps has it."""
    finite = [n for n in norms if n < float("inf")]
    if len(finite) < 5:
        return None
    top = max(finite)
    at_top = sum(n > top * (1 - 1e-4) for n in finite)
    if at_top < max(3, 0.2 * len(finite)):
        return None
    # Equal norms at every step also come from one batch at a standing point, e.g. a learning rate of zero.
    return float(f"{top:.5g}") if at_top < len(finite) or _round(top) else None


def _round(value: float) -> bool:
    """Whether a number is what a person would type, e.g. 1.0 or 0.25 (clipping divides by norm + 1e-6)."""
    return value > 0 and abs(float(f"{value:.2g}") / value - 1) < 2e-5


def first_nonfinite_layer(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], run: Callable[..., Any] | None = None
) -> str | None:
    """The name of the first layer whose output is not finite in one forward pass, or None; nothing is left changed.

    Args:
        model: the module.
        args: what it is called with.
        kwargs: the same by name.
        run: `run(model, *args, **kwargs)` runs it, instead of a plain call.

    Cost: one forward pass.
    """
    found: list[str] = []
    names = {id(m): n for n, m in model.named_modules() if not list(m.children())}

    def look(module: nn.Module, _: Any, output: Any) -> None:
        if not found and any(t.is_floating_point() and not bool(t.isfinite().all()) for t in tree.leaves(output)):
            found.append(names[id(module)] or type(module).__name__)

    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    args, kwargs = tree.to_device(args, device), tree.to_device(kwargs, device)
    handles = [m.register_forward_hook(look) for m in model.modules() if id(m) in names]
    try:
        with untouched(model), torch.no_grad():
            model(*args, **kwargs) if run is None else run(model, *args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def model_on_batch(model: nn.Module, batch: Any) -> Any:
    """The model's output on a batch (x, y), or on a batch of arguments by name."""
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch[:-1]) if isinstance(batch, (tuple, list)) and len(batch) > 1 else model(batch)


def copy_loss(loss_fn: Callable[..., Tensor] | None) -> Callable[..., Tensor] | None:
    """A loss module of its own, so that trying things out leaves the user's alone; functions are shared."""
    if not isinstance(loss_fn, nn.Module):
        return loss_fn
    try:
        return copy.deepcopy(loss_fn)
    except Exception as error:  # whatever a user's module objects to
        name = type(loss_fn).__name__
        raise CannotRun(f"the loss module {name} cannot be copied ({error}). Pass a function, or `batch_loss`.") from error
