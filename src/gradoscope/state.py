"""Where a training stands: the only place that copies, restores, saves and loads it."""

import copy
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from gradoscope.errors import CannotRun
from gradoscope.guard import RandomState, capture_random, restore_random

if TYPE_CHECKING:
    from gradoscope.training import Live

__all__ = ["State"]


@dataclass(eq=False)
class State:
    """Parameters, buffers, optimizer, schedule and random streams of a training after `step` steps.

    Tensors are kept on the CPU, so that many states fit beside a model on a GPU. Of an optimizer, what a subclass keeps in
    attributes of its own (counters, averages) is kept as well, as far as it is numbers, text and tensors.
    """

    step: int
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    optimizer: Any
    schedule: dict[str, Any] | None
    requires_grad: dict[str, bool]
    modes: dict[str, bool]
    random: RandomState | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        count = sum(t.numel() for t in self.parameters.values())
        return f"State(step={self.step}, {count:,} parameters in {len(self.parameters)} tensors)"

    @classmethod
    def capture(cls, live: "Live", step: int = 0, *, random: bool = False) -> Self:
        """Copy everything that the next steps of `live` depend on.

        Args:
            live: the model, optimizer and schedule to copy from.
            step: how many steps were done.
            random: whether to keep the global random streams too; forks seed their own.
        """
        model, optimizer = live.model, live.optimizer
        order = {id(p): i for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
        return cls(
            step=step,
            parameters={n: _keep(p) for n, p in model.named_parameters()},
            buffers={n: _keep(b) for n, b in model.named_buffers()},
            optimizer={
                "state": {
                    order[id(p)] if isinstance(p, Tensor) else p: _copy_tree(s, torch.device("cpu"))
                    for p, s in optimizer.state.items()
                    if id(p) in order or not isinstance(p, Tensor)
                },
                "groups": [
                    {k: _copy_tree(v) for k, v in group.items() if k != "params"} | {"count": len(group["params"])}
                    for group in optimizer.param_groups
                ],
                "attributes": {k: _copy_tree(v, torch.device("cpu")) for k, v in vars(optimizer).items() if _own(k, v)},
            },
            schedule=None if live.schedule is None else copy.deepcopy(live.schedule.state_dict()),
            requires_grad={n: p.requires_grad for n, p in model.named_parameters()},
            modes={n: m.training for n, m in model.named_modules()},
            random=capture_random() if random else None,
        )

    def restore(self, live: "Live") -> None:
        """Put `live` where this state stands, in place: parameters keep their identity.

        Raises:
            CannotRun: where the model or optimizer has another shape than the one that was captured.
        """
        model, optimizer = live.model, live.optimizer
        named = dict(model.named_parameters())
        if set(named) != set(self.parameters):
            odd = sorted(set(named) ^ set(self.parameters))
            raise CannotRun(f"the saved state belongs to another model: parameters {odd[:3]} are only in one of the two.")
        counts = [g["count"] for g in self.optimizer["groups"]]
        here = [len(g["params"]) for g in optimizer.param_groups]
        if len(here) < len(counts) or any(n < count for n, count in zip(here, counts, strict=False)):
            raise CannotRun(f"the saved state has {counts} optimized parameters by group, this optimizer has {here}.")
        with torch.no_grad():
            for name, p in named.items():
                if p.shape != self.parameters[name].shape:
                    raise CannotRun(
                        f"the saved parameter {name} has shape {tuple(self.parameters[name].shape)}, the model's has {tuple(p.shape)}."
                    )
                p.copy_(self.parameters[name])
                if p.is_leaf:
                    p.requires_grad_(self.requires_grad[name])
            for name, buffer in model.named_buffers():
                if name in self.buffers:
                    buffer.copy_(self.buffers[name])
        for name, module in model.named_modules():
            if name in self.modes:
                module.training = self.modes[name]
        # Groups and parameters that were added since (a remedy that unfreezes) go away again.
        del optimizer.param_groups[len(counts) :]
        for group, saved in zip(optimizer.param_groups, self.optimizer["groups"], strict=True):
            del group["params"][saved["count"] :]
            group.update({k: _copy_tree(v) for k, v in saved.items() if k != "count"})
        self._restore_optimizer(optimizer)
        if live.schedule is not None and self.schedule is not None:
            live.schedule.load_state_dict(copy.deepcopy(self.schedule))
        if self.random is not None:
            restore_random(self.random)

    def _restore_optimizer(self, optimizer: Any) -> None:
        groups = [(p, group) for group in optimizer.param_groups for p in group["params"]]
        optimizer.state.clear()
        for key, s in self.optimizer["state"].items():
            if not isinstance(key, int):
                optimizer.state[key] = _copy_tree(s)
                continue
            p, group = groups[key]
            optimizer.state[p] = _copy_tree(s, p.device)
            if isinstance(s, dict) and isinstance(s.get("step"), Tensor) and (group.get("capturable") or group.get("fused")):
                optimizer.state[p]["step"] = s["step"].detach().clone().to(p.device)  # their kernels read it there
        device = groups[0][0].device if groups else None
        for key, value in self.optimizer.get("attributes", {}).items():
            setattr(optimizer, key, _copy_tree(value, device))

    def save(self, path: Path | str) -> None:
        """Write `path` (safetensors, with the rest as JSON in its header); a crash leaves the old file or the new one."""
        from safetensors.torch import save_file

        path = Path(path)
        tensors: dict[str, Tensor] = {}
        document = {
            "step": self.step,
            "parameters": _flatten(self.parameters, "parameters", tensors),
            "buffers": _flatten(self.buffers, "buffers", tensors),
            "optimizer": _flatten(self.optimizer, "optimizer", tensors),
            "schedule": _flatten(self.schedule, "schedule", tensors),
            "requires_grad": self.requires_grad,
            "modes": self.modes,
        }
        temporary = path.with_name(path.name + ".part")
        save_file({k: t.contiguous() for k, t in tensors.items()}, temporary, metadata={"gradoscope": json.dumps(document)})
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote.

        Raises:
            CannotRun: where the file is missing or is no state.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                document = json.loads((file.metadata() or {})["gradoscope"])
                tensors = {key: file.get_tensor(key) for key in list(file.keys())}
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise CannotRun(f"{path} is not a checkpoint that can be read ({error}). Record the run anew, or name another one.") from error
        read = {k: _unflatten(document[k], tensors) for k in ("parameters", "buffers", "optimizer", "schedule")}
        return cls(step=document["step"], requires_grad=document["requires_grad"], modes=document["modes"], **read)


def _keep(t: Tensor) -> Tensor:
    return t.detach().to("cpu", copy=True)


def _own(name: str, value: Any) -> bool:
    """Whether an attribute of an optimizer is the kind of thing that steps change and that can be kept."""
    if name in ("state", "param_groups", "defaults") or name.startswith("_optimizer_"):
        return False
    if isinstance(value, dict):
        return all(_own("", v) for v in value.values()) and all(isinstance(k, (str, int)) for k in value)
    if isinstance(value, (list, tuple)):
        return all(_own("", v) for v in value)
    if isinstance(value, Tensor):
        return not isinstance(value, torch.nn.Parameter)  # LBFGS, for one, lists the parameters themselves
    return value is None or isinstance(value, (bool, int, float, str))


def _copy_tree(tree: Any, device: torch.device | None = None) -> Any:
    """Copy a tree of tensors and plain values; `device` moves tensors with at least one dimension."""
    if isinstance(tree, Tensor):
        kept = tree.detach().clone()
        return kept if device is None or kept.dim() == 0 else kept.to(device)
    if isinstance(tree, dict):
        return {k: _copy_tree(v, device) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_copy_tree(v, device) for v in tree)
    return copy.deepcopy(tree)


def _flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Replace tensors by references, and mark what JSON cannot tell apart (tuples, number keys)."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().clone()
        return {"$tensor": path}
    if isinstance(value, dict):
        return {"$items": [[k, _flatten(v, f"{path}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "$tuple" if isinstance(value, tuple) else "$list"
        return {kind: [_flatten(v, f"{path}.{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "item"):
        return value.item()
    return None  # functions and the like: a schedule's lambdas live in the recipe


def _unflatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "$tensor" in value:
            return tensors[value["$tensor"]]
        if "$items" in value:
            return {k: _unflatten(v, tensors) for k, v in value["$items"]}
        if "$tuple" in value:
            return tuple(_unflatten(v, tensors) for v in value["$tuple"])
        return [_unflatten(v, tensors) for v in value["$list"]]
    return value
