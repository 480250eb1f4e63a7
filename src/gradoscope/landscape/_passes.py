"""Many forward passes at many parameter points, with what a guard costs paid once and not at each pass."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from gradoscope.guard import derive_seed, random_fingerprint, seed_all, untouched
from gradoscope.objective import Objective

__all__ = ["Group", "Passes", "Refused", "Run", "batch_norms", "working"]


class Refused(Exception):
    """A fast method cannot be used here; the text says why."""


class _Stop(Exception):
    """Leaves the loss once the model has answered."""


class Run(NamedTuple):
    """What one batch gives at P points: the losses, shape (P,), and the model's outputs with P in front; None where they were not taken."""

    losses: Tensor | None
    outputs: Any


class Group(NamedTuple):
    """Parameters of one type on one device as one vector, with its origin and its directions."""

    members: list[int]
    origin: Tensor
    directions: Tensor
    here: Tensor
    scratch: Tensor


def working(dtype: torch.dtype) -> torch.dtype:
    """The type in which points are combined: half precision would lose small steps."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch normalisations that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]


class Passes:
    """A model whose parameters are lent other memory for a while, so that a point is set by one addition; use it as a context.

    The parameters' own memory is never written to. Inside, every pass has the random streams of its batch and finds the buffers as
    they were, as in `Objective.inside`.

    Args:
        objective: the model, its loss and its batches.
        origin: shape (dim,).
        directions: shape (k, dim).
        statistics: whose batches the statistics of batch normalisation are taken from, anew at each point; None keeps what is stored.
    """

    def __init__(
        self,
        objective: Objective,
        origin: Tensor,
        directions: Tensor,
        *,
        statistics: Objective | None = None,
    ) -> None:
        self.objective, self.model, self.statistics = objective, objective.model, statistics
        self._stop = False
        self._draws: bool | None = None  # whether passes draw random numbers; None as long as that is not known
        self.origin, self.directions = origin.detach(), directions.detach()
        self._output: Any = None
        self.calls = 0  # of the model in the last pass
        self._stack = ExitStack()
        self.groups: list[Group] = []
        self._bases: list[Tensor] = []
        self._slow: tuple[float, ...] | None = None
        self.fast = 0

    def __enter__(self) -> Self:
        with self._stack as stack:
            stack.enter_context(untouched(self.model))
            self.model.train(self.objective.mode == "train")
            self.lend()
            own = [(m._buffers, n, b) for m in self.model.modules() for n, b in m._buffers.items() if b is not None]
            self._buffers = [(owner, name, b, b._version, b.clone()) for owner, name, b in own]
            norms = batch_norms(self.model) if self.statistics is not None else []
            for norm in norms:
                stack.callback(setattr, norm, "momentum", norm.momentum)
                norm.momentum = None  # the plain average over the batches
            self._norms = norms
            stack.callback(self.model.register_forward_hook(self._keep).remove)
            if self.objective._no_grad:
                stack.enter_context(torch.no_grad())
            else:
                stack.enter_context(torch.enable_grad())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._output = output
        self.calls += 1
        if self._stop:
            raise _Stop

    def seeded(self, passes: Callable[[], list[Run]]) -> list[Run]:
        """Run some passes, which draw the numbers of their batches; where nothing draws any, none of them is seeded.

        Seeding takes as long as a small layer. So it is left out until a random stream is found to have moved; then those passes are
        run again.
        """
        if self._draws is not True:
            self._draws = False
            seed_all(self.objective.seed)
            before = random_fingerprint()
            try:
                runs = passes()
                if random_fingerprint() == before:
                    return runs
            except Refused:
                if random_fingerprint() == before:
                    raise
            self._draws = True
        return passes()

    def seed(self, k: int) -> None:
        """Set the random streams to those of batch k, unless nothing draws from them."""
        if self._draws is not False:
            seed_all(derive_seed(self.objective.seed, k))

    def start(self) -> None:
        """Forget the last pass."""
        self._output, self.calls = None, 0

    def lend(self, idle: Sequence[Tensor] = ()) -> None:
        """Give the parameters memory of ours; the idle ones, which nothing reads, are NaN, so that a reader would be found out."""
        without = {id(p) for p in idle}
        self.groups, self._slow = [], None
        kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for i, p in enumerate(self.objective.parameters):
            if id(p) in without:
                p.data = torch.full_like(p, float("nan"))
            else:
                kinds.setdefault((p.dtype, p.device), []).append(i)
        with torch.no_grad():
            for (dtype, device), index in kinds.items():
                origin = self.gather(self.origin, index).to(device, working(dtype))
                directions = torch.stack([self.gather(d, index) for d in self.directions]).to(device, working(dtype))
                here = origin.to(dtype, copy=True)
                scratch = here if here.dtype == origin.dtype else origin.clone()
                self.groups.append(Group(index, origin, directions, here, scratch))
                offset = 0
                for i in index:
                    p = self.objective.parameters[i]
                    p.data = here[offset : offset + p.numel()].view(p.shape)
                    offset += p.numel()

    def gather(self, vector: Tensor, index: Sequence[int]) -> Tensor:
        """The part of a vector (dim,) that belongs to some of the parameters."""
        parts = torch.split(vector, self.objective._sizes)
        return torch.cat([parts[i].reshape(-1) for i in index])

    def part(self, parameter: Tensor, i: int) -> Tensor | None:
        """What the origin (i = 0) or direction i - 1 has for one parameter; None where the objective does not move it."""
        found = [j for j, p in enumerate(self.objective.parameters) if p is parameter]
        if not found:
            return None
        vector = self.origin if i == 0 else self.directions[i - 1]
        return self.gather(vector, found).reshape(parameter.shape).to(parameter)

    def order(self, coordinates: np.ndarray) -> None:
        """Say which points come, so that the coordinate that changes most often is the one that costs least."""
        changes = (np.diff(coordinates, axis=0) != 0).sum(0)
        self.fast, self._slow = int(changes.argmax()), None

    def move(self, point: Sequence[float]) -> None:
        """Set the parameters to origin + point @ directions."""
        slow = (*point[: self.fast], *point[self.fast + 1 :])
        if slow != self._slow:
            self._slow = slow
            self._bases = [self.combine(g.origin, g.directions, point) for g in self.groups]
        for group, base in zip(self.groups, self._bases, strict=True):
            torch.add(base, group.directions[self.fast], alpha=point[self.fast], out=group.scratch)
            if group.here is not group.scratch:
                group.here.copy_(group.scratch)
        if self._norms:
            self._estimate()

    def combine(self, origin: Tensor, directions: Tensor, point: Sequence[float]) -> Tensor:
        """The origin moved along all directions but the fast one."""
        moved = origin
        for i, c in enumerate(point):
            if i != self.fast and c != 0:
                moved = torch.add(moved, directions[i], alpha=c)
        return moved

    def _estimate(self) -> None:
        """Take the statistics of batch normalisation anew, at the point where the parameters are, as averages over batches."""
        assert self.statistics is not None
        for norm in self._norms:
            norm.reset_running_stats()
            norm.train()
        for k, batch in enumerate(self.statistics.batches):
            seed_all(derive_seed(self.statistics.seed, k))
            with self.statistics._context():
                self.statistics._loss(self.model, batch)
        for norm in self._norms:
            norm.train(self.objective.mode == "train")

    def answer(self, k: int) -> Any:
        """The model's output on batch k; the loss is left before it is computed. No state is set."""
        self._stop = True
        try:
            with self.objective._context():
                self.objective._loss(self.model, self.objective.batches[k])
        except _Stop:
            pass
        finally:
            self._stop = False
        return self._output

    def pass_output(self, k: int) -> None:
        """One pass over batch k that ends with the model's output, which is kept in `output`."""
        self.start()
        self.seed(k)
        self.answer(k)
        if not self._norms:
            self.mend()

    def loss(self, k: int) -> Tensor:
        """One pass over batch k: its loss, a scalar tensor; the output is kept in `output`."""
        self.start()
        self.seed(k)
        with self.objective._context():
            loss = self.objective._loss(self.model, self.objective.batches[k]).reshape(()).detach()
        if not self._norms:
            self.mend()
        return loss

    @property
    def output(self) -> Any:
        """The model's output in the last pass; None where it was not called exactly once."""
        return self._output if self.calls == 1 else None

    def mend(self) -> None:
        """Give the buffers the values that they had."""
        for owner, name, buffer, version, kept in self._buffers:
            if owner[name] is not buffer:
                owner[name] = buffer
            if buffer._version != version:
                buffer.data.copy_(kept)
