"""What the loop calls in one step: the model's arguments, the targets and the loss; and a bounded sample of such batches."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradoscope import tree
from gradoscope.watching.replay import Pick, find_pick, own_loss

__all__ = ["Call", "Calls", "Reservoir", "WholeCall", "keep"]

MOST = 64  # forward passes that are kept of one step


@dataclass(eq=False)
class Call:
    """One forward pass that was seen: the model's arguments, and what the loss got besides the output."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = field(default=None, repr=False)
    targets: tuple[Any, ...] | None = None
    target_kwargs: dict[str, Any] = field(default_factory=dict)
    loss: Tensor | None = None


def keep(value: Any) -> Any:
    """A copy of a batch on the CPU that shares no memory with the user's."""
    return tree.map_tensors(lambda t: t.detach().to("cpu", copy=True), value)


class Reservoir:
    """A uniform sample of the batches that were seen, within a number and a size (algorithm R), in the order of the steps.

    Its random numbers are its own: the global streams do not move.
    """

    def __init__(self, count: int = 64, size: int = 256 << 20) -> None:
        self.count, self.size, self.seen = count, size, 0
        self._random = random.Random(0)
        self._kept: list[tuple[int, Any, int, Any]] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def batches(self) -> list[Any]:
        """The sample, first step first."""
        return [batch for _, batch, *_ in sorted(self._kept, key=lambda item: item[0])]

    def add(self, step: int, batch: Any) -> None:
        """Offer a batch that shares no memory with the user's; a batch equal to a kept one is passed over."""
        size = sum(t.numel() * t.element_size() for t in tree.leaves(batch))
        mark = fingerprint(batch)
        if any(m == mark and same(batch, kept) for _, kept, _, m in self._kept):
            return
        self.seen += 1
        if len(self._kept) < self.count and (self._bytes + size <= self.size or not self._kept):
            self._kept.append((step, batch, size, mark))
            self._bytes += size
            return
        place = self._random.randrange(self.seen)
        if place < len(self._kept) and self._bytes - self._kept[place][2] + size <= self.size:
            self._bytes += size - self._kept[place][2]
            self._kept[place] = (step, batch, size, mark)


def fingerprint(batch: Any) -> tuple[Any, ...]:
    """A few values of each tensor, equal for equal batches: comparing them first is cheap."""
    marks = []
    for t in tree.leaves(batch):
        values = t.detach().reshape(-1)
        few = values[:: max(1, values.numel() // 16)][:16].contiguous()
        marks.append((tuple(t.shape), few.view(torch.uint8).numpy().tobytes()))
    return tuple(marks)


def same(a: Any, b: Any) -> bool:
    """Whether two batches hold equal tensors."""
    first, second = list(tree.leaves(a)), list(tree.leaves(b))
    return len(first) == len(second) and all(
        x.shape == y.shape and x.dtype == y.dtype and torch.equal(x.detach().to(y.device), y) for x, y in zip(first, second, strict=True)
    )


class WholeCall(dict[str, Any]):
    """A batch that is no (x, y): everything that model and loss were called with."""


class Calls:
    """Collects the forward passes of the step that is looked at, and samples their batches.

    Args:
        criterion: the user's loss, or None.
        reservoir: where the batches go.
    """

    def __init__(self, criterion: Callable[..., Tensor] | None, reservoir: Reservoir) -> None:
        self.criterion, self.reservoir = criterion, reservoir
        self.pick: Pick | None = None
        self.own_loss: tuple[Any, ...] | None = None  # where the model's output holds its own loss
        self.unmatched = False  # the loss got something that is no known function of the model's output
        self.only_first = False  # a closure runs the same batch again and again
        self._open: list[Call] = []

    def clear(self) -> None:
        """Forget the calls of the last step: their outputs hold the graph."""
        self._open, self.only_first = [], False

    def inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The model is called. The arguments are copied now, as the model may write to them."""
        if len(self._open) < (1 if self.only_first else MOST):
            self._open.append(Call(keep(args), keep(kwargs)))

    def output(self, output: Any) -> None:
        """The model has answered."""
        if self._open and self._open[-1].output is None and self._open[-1].targets is None:
            self._open[-1].output = output

    def loss(self, args: tuple[Any, ...], kwargs: dict[str, Any], loss: Any) -> None:
        """The loss was called with `args`."""
        if not self._open or not args or self._open[-1].targets is not None:
            return
        call = self._open[-1]
        if self.pick is None:
            self.pick = find_pick(call.output, args[0])
            self.unmatched = self.pick is None
        call.targets, call.target_kwargs, call.output = keep(args[1:]), keep(kwargs), None
        call.loss = loss.detach() if isinstance(loss, Tensor) and loss.numel() == 1 else None

    def end(self) -> list[Call]:
        """The calls of this step that a loss belongs to; a model that returns its own loss is recognised here."""
        for call in self._open:
            if call.targets is None and call.output is not None and self.criterion is None:
                self.own_loss = own_loss(call.output)
                if self.own_loss is not None:
                    loss = call.output
                    for key in self.own_loss:
                        loss = loss[key]
                    call.targets, call.loss = (), loss.detach()
            call.output = None
        return [c for c in self._open if c.targets is not None]

    def losses(self) -> list[Tensor]:
        """The losses of this step's calls."""
        return [c.loss for c in self.end() if c.loss is not None]

    def first(self) -> Call | None:
        """The first call of this step."""
        return self._open[0] if self._open else None

    def sample(self, step: int, calls: list[Call]) -> None:
        """Offer the batches of this step to the reservoir."""
        for call in calls:
            if not call.kwargs and not call.target_kwargs and call.targets and len(call.targets) == 1 and call.args:
                self.reservoir.add(step, (*call.args, call.targets[0]))
            else:
                self.reservoir.add(
                    step, WholeCall(args=call.args, kwargs=call.kwargs, targets=call.targets, target_kwargs=call.target_kwargs)
                )
