"""The recipe of what is studied: model, loss, data, optimizer; and its live copy, on which everything is tried."""

import copy
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradoscope import tree
from gradoscope.batches import Batches, make_batches
from gradoscope.errors import CannotRun
from gradoscope.guard import derive_seed, private_random, untouched

__all__ = ["Change", "Live", "Training"]


class Change(Protocol):
    """What a remedy does to a training. Every method has a neutral default in `gradoscope.remedies.Remedy`."""

    def prepare(self, live: "Live") -> None:
        """Alter the live copy once, after its state was set."""

    def step_scale(self) -> float:
        """The factor on every learning rate."""

    def batches_per_step(self) -> int:
        """How many batches one optimizer step averages over."""

    def forward_context(self) -> Any:
        """A context manager around every forward and backward pass."""

    def before_step(self, live: "Live") -> None:
        """Alter gradients just before the optimizer's step."""

    def replace_step(self, live: "Live", step: int) -> float | None:
        """Do a whole step instead of the optimizer and return its loss, or None to leave it to the optimizer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """How to make a model, its optimizer and its batches, and what they minimise.

    Args:
        model: a module (a copy of it is trained), or a function without arguments that makes one.
        optimizer: an optimizer over the model's parameters, or a function that makes one from the list of parameters
            (`lambda params: torch.optim.SGD(params, lr=0.1)`) or from the model.
        data: tensors `(x, y)`, a dataset, a DataLoader, a list of batches, or a function of (generator, batch size)
            that samples afresh.
        loss_fn: `loss_fn(model(x), y)`, a scalar.
        batch_loss: `batch_loss(model, batch)`, a scalar, for batches of any kind; instead of `loss_fn`.
        validation: like `data`; the loss on it is watched and never trained on.
        steps: the number of optimizer steps of the whole training.
        batch_size: rows per batch where `data` does not say. None: tensors of up to 1,024 rows are used whole at
            each step, larger ones and functions in batches of 128.
        schedule: a learning-rate scheduler over the optimizer, or a function that makes one from it; stepped once
            per optimizer step.
        metric: `metric(output, target)`, a number that counts in the end, e.g. accuracy.
        metric_mode: whether a good metric is a large one.
        intermediate: `intermediate(model, batch)`, the loss of the parts on targets of their own, where there are any.
        noise_free: whether the inputs determine the targets: they were computed from them and not measured or judged. It is taken
            at its word, and tells noise from a function that nothing finds, which examples alone cannot.
        clip_norm: the total gradient norm above which gradients are scaled down.
        accumulate: batches that one optimizer step averages over.
        shuffle: whether tensors and datasets come in a new order each epoch.
        name: what reports call it.
        changes: what remedies have altered; not for users.
        built_in: changes that belong to the training from its start on: every live copy has them before any state is put into it.
    """

    model: nn.Module | Callable[[], nn.Module]
    optimizer: Optimizer | Callable[..., Optimizer]
    data: Any
    loss_fn: Callable[[Any, Any], Tensor] | None = None
    batch_loss: Callable[[nn.Module, Any], Tensor] | None = None
    validation: Any = None
    steps: int = 1000
    batch_size: int | None = None
    schedule: Any = None
    metric: Callable[[Any, Any], float] | None = None
    metric_mode: Literal["max", "min"] = "max"
    intermediate: Callable[[nn.Module, Any], Tensor] | None = None
    noise_free: bool = False
    clip_norm: float | None = None
    accumulate: int = 1
    shuffle: bool = True
    name: str = "training"
    changes: tuple[Change, ...] = field(default=(), repr=False)
    built_in: tuple[Change, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if (self.loss_fn is None) == (self.batch_loss is None):
            raise CannotRun(
                "a Training needs exactly one of `loss_fn(output, target)` and `batch_loss(model, batch)`; "
                f"it got {'neither' if self.loss_fn is None else 'both'}."
            )
        if not isinstance(self.steps, int) or self.steps < 1:
            raise CannotRun(f"`steps` must be a whole number of at least 1, got {self.steps!r}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise CannotRun(f"`batch_size` must be at least 1, got {self.batch_size!r}.")
        if self.accumulate < 1:
            raise CannotRun(f"`accumulate` must be at least 1, got {self.accumulate!r}.")
        if self.metric_mode not in ("max", "min"):
            raise CannotRun(f"`metric_mode` must be 'max' or 'min', got {self.metric_mode!r}.")
        if not callable(self.model):
            raise CannotRun(f"`model` must be a torch.nn.Module or a function that makes one, got {type(self.model).__name__}.")
        if not isinstance(self.optimizer, Optimizer) and not callable(self.optimizer):
            raise CannotRun(
                f"`optimizer` must be a torch.optim.Optimizer or a function that makes one, got {type(self.optimizer).__name__}."
            )

    def with_change(self, change: Change) -> Self:
        """This training under one more change."""
        return replace(self, changes=(*self.changes, change))

    def settled(self) -> Self:
        """This training with its changes built in: a training of its own, which can be changed, forked and diagnosed in turn."""
        return replace(self, changes=(), built_in=self.all_changes)

    @property
    def all_changes(self) -> tuple[Change, ...]:
        """What acts on every step: the changes built in, and those made since."""
        return (*self.built_in, *self.changes)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The scalar that this training minimises, on one batch; the batch stays as it is."""
        if self.batch_loss is not None:
            return self.batch_loss(model, tree.copied(batch))
        assert self.loss_fn is not None
        inputs, target = split(batch)
        return self.loss_fn(model(*inputs), target)


def split(batch: Any) -> tuple[tuple[Any, ...], Any]:
    """The inputs and the target of a batch `(x, y)` or `(x1, x2, ..., y)`; the inputs are copies.

    Models that write to their input (a first layer in place, a normalisation) would else change the data themselves.
    """
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        return tuple(tree.copied(part) for part in batch[:-1]), batch[-1]
    raise CannotRun(
        f"`loss_fn(output, target)` needs batches (x, y), but a batch is a {type(batch).__name__}"
        f"{f' of length {len(batch)}' if isinstance(batch, (tuple, list)) else ''}. "
        "Return pairs from the data, or use `batch_loss(model, batch)`."
    )


class Live:
    """A model, its optimizer and its schedule that belong together, with the batches they eat.

    Made by `Live.of(training)`: a copy of what was handed in, or the thing itself where it cannot be copied
    (then `close()` puts it back as it was).
    """

    def __init__(
        self,
        training: Training,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: Any,
        batches: Batches,
        device: torch.device,
        seed: int,
    ) -> None:
        self.training, self.model, self.optimizer, self.schedule = training, model, optimizer, schedule
        self.batches, self.device, self.seed = batches, device, seed
        self._on_close: list[Callable[[], object]] = []

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.model.parameters())
        return f"Live({self.training.name!r}, {count:,} parameters, {type(self.optimizer).__name__}, {self.device})"

    @classmethod
    def of(cls, training: Training, *, seed: int = 0, device: str | torch.device | None = None, batches: Batches | None = None) -> Self:
        """A live copy of `training` at its start; the original is left as it is.

        Raises:
            CannotRun: where model, optimizer or data do not fit together; the message says how to mend it.
        """
        from gradoscope.state import State

        with private_random(derive_seed(seed, 100)):
            if isinstance(training.model, nn.Module):
                model, optimizer, schedule, in_place = _copy(training)
            else:
                model, in_place = training.model(), False
                if not isinstance(model, nn.Module):
                    raise CannotRun(f"the model function returned a {type(model).__name__}; expected a torch.nn.Module.")
                optimizer, schedule = _build(training, model)
        if device is not None and not in_place:
            move(model, optimizer, torch.device(device))
        first = next(iter(model.parameters()), None)
        where = first.device if first is not None else torch.device("cpu")
        check_parameters(model, optimizer)
        if batches is None:
            batches = make_batches(
                training.data, training.batch_size, derive_seed(seed, 101), shuffle=training.shuffle, most=enough(training)
            )
        live = cls(training, model, optimizer, schedule, batches, where, seed)
        if not in_place and isinstance(training.model, nn.Module) and _trains_original(live):
            # The loss closes over the model that was handed in: only that very model can be trained.
            in_place = True
            live.model, live.optimizer, live.schedule, _ = _in_place(training)
        if in_place:
            kept = State.capture(live)
            grads = [(p, p.grad) for p in live.model.parameters()]

            def put_back() -> None:
                kept.restore(live)
                for p, grad in grads:
                    p.grad = grad

            live.at_close(put_back)
        for change in training.built_in:
            change.prepare(live)
        return live

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Put a model that could not be copied back as it was; a copy has only its hooks removed."""
        while self._on_close:
            self._on_close.pop()()

    def at_close(self, function: Callable[[], object]) -> None:
        """Have `function` called by `close`: what a change adds to a model that was handed in must go away again."""
        self._on_close.append(function)

    def loss(self, batch: Any) -> Tensor:
        """The training's loss on one batch, with every change's context around the forward pass.

        Raises:
            CannotRun: where it is no finite-sized scalar tensor.
        """
        return self.training.loss(self.model, tree.to_device(batch, self.device))

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters that the optimizer moves, by name, in the model's order."""
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad and id(p) in held]


def _is_scheduler(schedule: Any) -> bool:
    return hasattr(schedule, "step") and hasattr(schedule, "state_dict")


def _build(training: Training, model: nn.Module) -> tuple[Optimizer, Any]:
    if isinstance(training.optimizer, Optimizer):
        raise CannotRun(
            "`model` is a function, so the optimizer cannot hold its parameters. "
            "Pass the optimizer as a function too: optimizer=lambda params: torch.optim.SGD(params, lr=0.1)."
        )
    if next(model.parameters(), None) is None:
        raise CannotRun(f"the model {type(model).__name__} has no parameters: expected at least one that can be trained.")
    optimizer = make_optimizer(training.optimizer, model)
    schedule = training.schedule
    if schedule is not None:
        if _is_scheduler(schedule):
            raise CannotRun(
                "`schedule` is bound to another optimizer than the one that is made here. "
                "Pass it as a function: schedule=lambda optimizer: ...LR(optimizer, ...)."
            )
        schedule = schedule(optimizer)
    return optimizer, schedule


def make_optimizer(factory: Callable[..., Optimizer], model: nn.Module) -> Optimizer:
    """Call a user's factory with the list of parameters or, if that is what it takes, with the model."""
    parameters = [p for p in model.parameters() if p.requires_grad] or list(model.parameters())
    try:
        names = [p.name for p in inspect.signature(factory).parameters.values() if p.default is p.empty and p.kind <= 1]
    except (TypeError, ValueError):
        names = ["params"]
    attempts: list[tuple[Any, ...]] = [(parameters,), (model,)]
    if names and names[0] in ("model", "module", "net", "network", "m"):
        attempts.reverse()
    if not names:
        attempts = [()]
    failure: Exception | None = None
    for arguments in attempts:
        try:
            optimizer = factory(*arguments)
        except (TypeError, AttributeError) as error:
            failure = failure or error
            continue
        except ValueError as error:
            raise CannotRun(f"the optimizer could not be made: {error}.") from error
        if isinstance(optimizer, Optimizer):
            return optimizer
        failure = TypeError(f"it returned a {type(optimizer).__name__}")
    raise CannotRun(
        f"the optimizer function could not be used: {failure}. Expected a function of the parameters, "
        "such as lambda params: torch.optim.SGD(params, lr=0.1), or of the model."
    )


def _copy(training: Training) -> tuple[nn.Module, Optimizer, Any, bool]:
    """Copy model, optimizer and schedule together, so that they go on belonging together."""
    model = training.model
    assert isinstance(model, nn.Module)
    memo: dict[int, Any] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            twin = copy.deepcopy(model, memo)
    except Exception:  # whatever a user's module objects to: it is then trained in place and put back
        return _in_place(training)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        q.grad = None if p.grad is None else p.grad.detach().clone()
    optimizer, schedule = _optimizer_of(training, model, twin, memo)
    if not isinstance(training.optimizer, Optimizer):
        original = {id(p) for p in model.parameters()}
        if any(id(p) in original for group in optimizer.param_groups for p in group["params"]):
            return _in_place(training)  # a factory that closes over the model
    return twin, optimizer, schedule, False


def _in_place(training: Training) -> tuple[nn.Module, Optimizer, Any, bool]:
    """The model itself, with a copy of its optimizer and schedule, which so need not be put back."""
    model = training.model
    assert isinstance(model, nn.Module)
    memo: dict[int, Any] = {id(x): x for x in (*model.parameters(), *model.buffers(), *model.modules())}
    return (model, *_optimizer_of(training, model, model, memo), True)


def _optimizer_of(training: Training, model: nn.Module, twin: nn.Module, memo: dict[int, Any]) -> tuple[Optimizer, Any]:
    """The optimizer and schedule of `twin`: copies of the model's, or made anew by the user's functions."""
    if not isinstance(training.optimizer, Optimizer):
        return _build(training, twin)
    check_parameters(model, training.optimizer)
    optimizer = copy_optimizer(training.optimizer, memo)
    schedule = training.schedule
    if schedule is not None and not _is_scheduler(schedule):
        schedule = schedule(optimizer)
    elif schedule is not None:
        if getattr(schedule, "optimizer", training.optimizer) is not training.optimizer:
            raise CannotRun("`schedule` drives another optimizer than the one that was given. Pass the two that belong together.")
        schedule = copy.deepcopy(schedule, memo)
    return optimizer, schedule


def copy_optimizer(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    """Deep-copy an optimizer with everything a subclass keeps (`Optimizer.__getstate__` drops it), but no user hooks.

    A scheduler replaces `optimizer.step` by a wrapper that is bound to the original: the copy goes without it.
    """
    twin = type(optimizer).__new__(type(optimizer))
    memo[id(optimizer)] = twin
    kept = {k: v for k, v in optimizer.__dict__.items() if k != "step" and not k.startswith("_optimizer_")}
    twin.__dict__.update(copy.deepcopy(kept, memo))
    twin.__setstate__({})
    return twin


def move(model: nn.Module, optimizer: Optimizer, device: torch.device) -> None:
    """Move a model and its optimizer's state, keeping the identity of the parameters."""
    with torch.no_grad():
        for p in model.parameters():
            p.data = p.data.to(device)
            if p.grad is not None:
                p.grad = p.grad.to(device)
    model.to(device)
    for p_state in optimizer.state.values():
        for key, value in p_state.items():
            if isinstance(value, Tensor) and not (key == "step" and value.dim() == 0):
                p_state[key] = value.to(device)


def check_parameters(model: nn.Module, optimizer: Optimizer) -> None:
    """Raise CannotRun unless the optimizer holds trainable parameters of this model, and only of this model."""
    own = {id(p): name for name, p in model.named_parameters()}
    if not own:
        raise CannotRun(f"the model {type(model).__name__} has no parameters: expected at least one that can be trained.")
    held = [p for group in optimizer.param_groups for p in group["params"]]
    foreign = [tuple(p.shape) for p in held if id(p) not in own]
    if foreign:
        raise CannotRun(
            f"the optimizer holds {len(foreign)} of {len(held)} parameters that are not the model's (shapes {foreign[:3]}). "
            "Make the optimizer from model.parameters() of this very model, after any .to() or re-creation of it; "
            "a loss with parameters of its own belongs into the model."
        )
    if not any(p.requires_grad for p in held):
        raise CannotRun(
            "no trainable parameters: none of the parameters that the optimizer holds has requires_grad=True. "
            "Unfreeze some, e.g. model.requires_grad_(True)."
        )


def _trains_original(live: Live) -> bool:
    """Whether the loss closes over the model that was handed in: all of it, or a penalty on its parameters."""
    original = live.training.model
    assert isinstance(original, nn.Module)
    with untouched(live.model, seed=0), untouched(original, seed=0):
        try:
            loss = live.training.loss(live.model, tree.to_device(live.batches.batch(0), live.device))
            theirs = [p for p in original.parameters() if p.requires_grad]
            return any(g is not None for g in torch.autograd.grad(loss, theirs, allow_unused=True))
        except Exception:  # the first real step reports what is wrong with the loss, with advice
            return False


def enough(training: Training) -> int:
    """How many batches of a loader a diagnosis may want: all of the training's own, and as many again for measurements."""
    return max(64, 2 * training.steps * training.accumulate)
