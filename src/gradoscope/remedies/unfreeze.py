"""Let every parameter train: those without gradient, left out of the optimizer, or at a learning rate of zero."""

from typing import Any

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
    return out


class Unfreeze(Remedy):
    """Train the frozen parameters too, with the settings of the optimizer's group of the largest rate."""

    name = "unfreeze"
    explanation = "Every parameter is trained, with the settings of the optimizer's group of the largest rate."
    from_checkpoint = False
    changes_capacity = True
    code = "model.requires_grad_(True)\noptimizer = type(optimizer)(model.parameters(), **optimizer.defaults)"

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
