"""Let every parameter train: those without gradient, left out of the optimizer, or at a learning rate of zero."""

from gradoscope.remedies import Remedy
from gradoscope.training import Live

__all__ = ["Unfreeze", "frozen"]


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
    """Train the frozen parameters too, with the settings of the optimizer's first moving group."""

    name = "unfreeze"
    explanation = "Every parameter is trained, with the settings of the optimizer's first group that moves."
    from_checkpoint = False
    code = "model.requires_grad_(True)\noptimizer = type(optimizer)(model.parameters(), **optimizer.defaults)"

    def prepare(self, live: Live) -> None:
        held = {id(p) for g in live.optimizer.param_groups for p in g["params"]}
        moving = max(live.optimizer.param_groups, key=lambda g: float(g.get("lr", 1.0)))
        for group in live.optimizer.param_groups:
            if "lr" in group and float(group["lr"]) == 0:
                group["lr"] = moving["lr"]
        for p in live.model.parameters():
            p.requires_grad_(True)
        missing = [p for p in live.model.parameters() if id(p) not in held]
        if missing:
            live.optimizer.add_param_group({**{k: v for k, v in moving.items() if k != "params"}, "params": missing})
            rates = getattr(live.schedule, "base_lrs", None)
            if rates is not None:
                rates.append(rates[0])
