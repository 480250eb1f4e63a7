"""Let every parameter train: those without gradient, left out of the optimizer, or at a learning rate of zero."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from gradoscope import tree
from gradoscope.guard import untouched
from gradoscope.remedies import Remedy
from gradoscope.training import Live

__all__ = ["Unfreeze", "frozen"]

RATES = ("lr", "initial_lr", "max_lr", "min_lr")  # what optimizers and schedules keep of a rate in a group


def frozen(live: Live) -> dict[str, str]:
    """The parameters that no step moves, by name, and why."""
    rate = {id(p): float(g.get("lr", 1.0)) for g in live.optimizer.param_groups for p in g["params"]}
    out = {}
    for name, p in live.model.named_parameters():
        if not p.requires_grad:
            out[name] = "requires_grad=False"
        elif id(p) not in rate:
            out[name] = "not in the optimizer"
        elif rate[id(p)] == 0 and max(rate.values()) > 0:
            out[name] = "learning rate 0"
    for name in cut_off(live):
        out.setdefault(name, "cut off by detach or no_grad")
    return out


def cut_off(live: Live) -> list[str]:
    """The parameters that one backward pass gives no gradient, though it does where nothing is detached."""
    batch = tree.to_device(live.batches.sample(32, "fresh")[0], live.device)
    named = [(n, p) for n, p in live.model.named_parameters() if p.requires_grad]

    def reached(context: AbstractContextManager[Any]) -> set[str]:
        with untouched(live.model, seed=0), torch.enable_grad():
            live.model.train()
            with context:
                loss = live.training.loss(live.model, batch)
            if not loss.requires_grad:
                return set()
            grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
        return {n for (n, _), g in zip(named, grads, strict=True) if g is not None}

    now = reached(nullcontext())
    if len(now) == len(named):
        return []
    return sorted(reached(_Reattach()) - now)


class _Reattach(TorchFunctionMode):
    """Lets the graph pass through `detach` and `no_grad`."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is torch._C._set_grad_enabled and args and args[0] is False:
            return None
        if func in (torch.Tensor.detach, torch.detach):
            return args[0]
        return func(*args, **(kwargs or {}))


class Unfreeze(Remedy):
    """Train the frozen parameters too, with the settings of the optimizer's group of the largest rate.

    With `reattach`, those behind a `detach` or `no_grad` of the forward pass as well.
    """

    name = "unfreeze"
    explanation = "Every parameter is trained, with the settings of the optimizer's group of the largest rate."
    from_checkpoint = False
    changes_capacity = True
    reattach = False
    code = "model.requires_grad_(True)\noptimizer = type(optimizer)(model.parameters(), **optimizer.defaults)"

    def __init__(self, *, reattach: bool = False) -> None:
        if reattach:
            self.reattach, self.name = True, "unfreeze(reattach)"
            self.explanation = "Every parameter is trained; detach and no_grad in the forward pass are ignored."
            self.code = "# remove the .detach() or torch.no_grad() between these parameters and the loss"

    def forward_context(self) -> AbstractContextManager[Any]:
        return _Reattach() if self.reattach else nullcontext()

    def prepare(self, live: Live) -> None:
        groups = live.optimizer.param_groups
        held = {id(p) for g in groups for p in g["params"]}
        first = max(range(len(groups)), key=lambda i: float(groups[i].get("lr", 1.0)))
        moving = groups[first]
        for i, group in enumerate(groups):
            if "lr" in group and float(group["lr"]) == 0 and i != first:
                group.update({key: moving[key] for key in RATES if key in moving})
                _follow(live.schedule, i, first)
        for p in live.model.parameters():
            p.requires_grad_(True)
        # Into the group itself, and not a new one, which no schedule would know.
        moving["params"].extend(p for p in live.model.parameters() if id(p) not in held)
        if hasattr(live.optimizer, "_numel_cache"):
            live.optimizer._numel_cache = None  # LBFGS counts its parameters once


def _follow(schedule: Any, i: int, j: int) -> None:
    """Let a schedule treat group i as group j."""
    for name in ("base_lrs", "lr_lambdas", "max_lrs", "min_lrs"):
        values = getattr(schedule, name, None)
        if isinstance(values, list) and len(values) > max(i, j):
            values[i] = values[j]
    for part in getattr(schedule, "_schedulers", ()):
        _follow(part, i, j)
