"""Standardised inputs and targets: each feature gets mean zero and unit variance, and nothing else is changed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gradoscope import tree
from gradoscope.errors import GradoscopeError
from gradoscope.guard import untouched
from gradoscope.measure.scales import Scales, by_feature, scales
from gradoscope.remedies import Remedy
from gradoscope.training import Live, split

__all__ = ["Standardise", "input_scales", "target_scales"]

ROWS = 2048


class Standardise(Remedy):
    r"""Give the model $(x-\mu)/s$ in place of x; with `targets` let it answer in units of the targets, $\hat y=s_yf(x)+\mu_y$.

    Mean and spread are per feature (per channel for images), from the training's data. The start, the data's order and what is
    compared stay as they were. With targets the loss keeps its unit, so that the optimizer's step is divided by $s_y^2$, which
    is what dividing the targets does.

    Args:
        inputs: whether the inputs are standardised.
        targets: whether the targets are.
        step: a factor on every learning rate beside it: a step that was chosen for huge inputs is far too short for standardised ones.

    Cost: one forward pass over 2,048 examples, once.

    Source: Le Cun, Bottou, Orr and Mueller 1998, Efficient BackProp, section 4.3.
    """

    from_checkpoint = False

    def __init__(self, *, inputs: bool = True, targets: bool = False, step: float = 1.0) -> None:
        self.inputs, self.targets, self.step = inputs, targets, step
        what = " and ".join(name for name, on in (("inputs", inputs), ("targets", targets)) if on)
        options = [] if inputs and not targets else [what.replace(" and ", "+")]
        options += [f"step x{step:g}"] if step != 1 else []
        self.name = f"standardise({', '.join(options)})" if options else "standardise"
        self.explanation = f"Every feature of the {what} has mean zero and unit variance."
        self._unit = 1.0
        lines = (
            ["mean, spread = x_train.mean(0), x_train.std(0)  # per feature; per channel for images", "x = (x - mean) / spread"]
            if inputs
            else []
        )
        if targets:
            lines.append("y = (y - y_train.mean(0)) / y_train.std(0)  # and back again for what the model answers")
        if step != 1:
            self.explanation += f" The learning rate is multiplied by {step:g}, as the inputs' size no longer limits it."
            lines.append(f"for group in optimizer.param_groups:\n    group['lr'] *= {step:g}")
        self.code = "\n".join(lines)

    def prepare(self, live: Live) -> None:
        if self.inputs:
            known = {place: s for place, s in enumerate(input_scales(live)) if s is not None}
            if not known:
                raise GradoscopeError("the model is given no floating-point inputs that could be standardised")
            live.at_close(live.model.register_forward_pre_hook(_standardiser(live.model, known)).remove)
        if self.targets:
            found = target_scales(live)
            if found is None:
                raise GradoscopeError("the targets are no numbers of the shape of the model's output")
            self._unit = float(found.spread.square().mean().sqrt())
            mean = found.mean

            def answer(module: Any, inputs: Any, output: Tensor) -> Tensor:
                return output * self._unit + mean.to(output)

            live.at_close(live.model.register_forward_hook(answer).remove)

    def step_scale(self) -> float:
        return self.step / self._unit**2


def _standardiser(model: nn.Module, known: dict[int, Scales]) -> Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]:
    convolutions = _convolutions(model)

    def hook(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_shifted(x, known[i], _features(x, convolutions)) if i in known else x for i, x in enumerate(args))

    return hook


def _shifted(x: Tensor, s: Scales, dim: int) -> Tensor:
    if x.dim() < 2:
        return (x - s.mean.to(x)) / s.spread.to(x)
    return ((x.movedim(dim, -1) - s.mean.to(x)) / s.spread.to(x)).movedim(-1, dim)


def _convolutions(model: nn.Module) -> set[int]:
    """How many dimensions the inputs of its convolutions have."""
    kinds = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}
    return {dims for m in model.modules() for kind, dims in kinds.items() if isinstance(m, kind)}


def _features(x: Tensor, convolutions: set[int]) -> int:
    """Where an input has its features: first for convolutions and images; last for rows, sequences, and pairs of nodes (n, m, m, .)."""
    pairs = x.dim() == 4 and x.shape[1] == x.shape[2]
    return 1 if x.dim() in convolutions or (x.dim() >= 4 and not pairs) else -1


def input_scales(live: Live, rows: int = ROWS) -> list[Scales | None]:
    """Scales of each positional argument that a training's model is given; None for what is no floating-point tensor.

    Cost: one forward pass.
    """
    seen: list[list[Tensor | None]] = []
    convolutions = _convolutions(live.model)

    def hook(module: Any, args: tuple[Any, ...]) -> None:
        usable = [x if isinstance(x, Tensor) and x.is_floating_point() and x.dim() > 1 else None for x in args]
        seen.append([None if x is None else by_feature(x.detach(), _features(x, convolutions)) for x in usable])

    handle = live.model.register_forward_pre_hook(hook)
    try:
        with untouched(live.model, seed=0), torch.no_grad():
            for batch in live.batches.sample(rows, "fresh"):
                live.training.loss(live.model, tree.to_device(batch, live.device))
    finally:
        handle.remove()
    if not seen:
        return []
    out: list[Scales | None] = []
    for column in zip(*[call for call in seen if len(call) == len(seen[0])], strict=True):
        same = [x for x in column if x is not None and column[0] is not None and x.shape[1:] == column[0].shape[1:]]
        out.append(scales(torch.cat(same)) if same else None)
    return out


def target_scales(live: Live, rows: int = ROWS) -> Scales | None:
    """Scales of the targets of a regression; None where the targets are no numbers of the shape of the output.

    Numbers that are all 0 or 1 are classes, whatever their type.
    """
    if live.training.loss_fn is None:
        return None
    parts: list[Tensor] = []
    for batch in live.batches.sample(rows, "fresh"):
        inputs, target = split(tree.to_device(batch, live.device))
        if not isinstance(target, Tensor) or not target.is_floating_point():
            return None
        if not parts:
            with untouched(live.model, seed=0), torch.no_grad():
                output = live.model(*inputs)
            if not isinstance(output, Tensor) or output.shape != target.shape:
                return None
        parts.append(by_feature(target.detach()))
    y = torch.cat(parts)
    return None if bool(((y == 0) | (y == 1)).all()) else scales(y)
