"""Many points in one pass: parameters with a leading dimension of points, through `torch.func.vmap`."""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from gradoscope import tree
from gradoscope.guard import derive_seed, seed_all
from gradoscope.landscape._factored import Responses
from gradoscope.landscape._passes import Passes, Refused, Run

__all__ = ["Plan", "Stacked", "plan"]

# Seconds, for one core of a current machine: what an operation costs beside its arithmetic, and a product, and a byte written.
PER_OPERATION, PER_FLOP, PER_BYTE = 1e-5, 2e-11, 1e-10
LARGE = 2e-3  # seconds of products, which leave no doubt
MEMORY = 1 << 24  # bytes that the activations and parameters of a chunk may take: what caches hold
MOST = 1024  # points in a chunk


class Plan:
    """Whether stacking pays, and how many points to stack; from counts, so that every run decides alike.

    Attributes:
        size: how many points fit a chunk.
        pays: whether a pass consists of overhead.
        reason: why it does not.
    """

    def __init__(self, size: int, pays: bool, reason: str) -> None:
        self.size, self.pays, self.reason = size, pays, reason


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch gives it no types
    """Counts operations, the bytes that they write, and convolutions."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations, self.bytes, self.convolutions = 0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        self.bytes += sum(t.numel() * t.element_size() for t in tree.leaves(result))
        self.convolutions += "convolution" in str(func)
        return result


def plan(passes: Passes, responses: Responses | None, point: np.ndarray) -> Plan:
    """Count a pass over the largest batch, and decide.

    Cost: one pass.
    """
    batches = passes.objective.batches
    k = max(range(len(batches)), key=lambda i: tree.rows(batches[i]) or 0)
    parameters = sum(g.here.numel() for g in passes.groups)
    if 2 * parameters * (tree.rows(batches[k]) or 1) * PER_FLOP > LARGE:  # what products with all of them take
        return Plan(1, False, "a pass is work, and not overhead")
    passes.move(point.tolist())
    if responses is not None:
        responses.move(point.tolist(), passes.fast)
        responses.begin(k)
    flops = FlopCounterMode(display=False)
    with flops, _Count() as count:
        passes.loss(k)
    memory = count.bytes + sum(g.here.numel() * g.here.element_size() for g in passes.groups)
    size = int(np.clip(MEMORY // max(1, memory), 1, MOST))
    work = flops.get_total_flops() * PER_FLOP + count.bytes * PER_BYTE
    if count.convolutions:
        return Plan(size, False, "convolutions with different weights at each point do not go faster together")
    if work > count.operations * PER_OPERATION:
        return Plan(size, False, "a pass is work, and not overhead")
    return Plan(size, size > 1, "memory")


class _Loss(nn.Module):
    """A loss of a model as a module, so that `functional_call` can give the model other parameters."""

    def __init__(self, passes: Passes) -> None:
        super().__init__()
        self.model = passes.model
        self._passes = (passes,)  # in a tuple: it is no part of the module

    def forward(self, k: int, outputs_only: bool) -> Any:
        passes = self._passes[0]
        if outputs_only:
            return (), passes.answer(k)
        passes.start()
        loss: Tensor = passes.objective._loss(passes.model, passes.objective.batches[k])
        return loss.reshape(()), () if passes.output is None else passes.output


class Stacked:
    """All points of a chunk at once; within a `Passes` context, and that of `Responses` where layers are factored.

    Raises:
        Refused: where a parameter is not the model's own.
    """

    def __init__(self, passes: Passes, responses: Responses | None, outputs_only: bool) -> None:
        self._passes, self._responses, self._outputs_only = passes, responses, outputs_only
        self._names = {id(p): "model." + name for name, p in passes.model.named_parameters()}
        if any(id(p) not in self._names for p in passes.objective.parameters):
            raise Refused("a parameter is not one of the model's own")
        self._loss = _Loss(passes)
        self._tried = False

    def chunk(self, points: np.ndarray) -> list[Run]:
        """What each batch gives at all of these points."""
        objective = self._passes.objective
        c = torch.as_tensor(points, dtype=torch.float64, device=objective.parameters[0].device)
        parameters = self._parameters(c)
        runs = []
        for k in range(len(objective.batches)):
            seed_all(derive_seed(objective.seed, k))
            with objective._context(), warnings.catch_warnings():
                if not self._tried:  # an operation that vmap loops over would be slower than our loop
                    warnings.filterwarnings("error", message=".*batching rule.*")
                losses, output = torch.vmap(self._one(k), randomness="same")(parameters, c)
            self._passes.mend()
            has = any(True for _ in tree.leaves(output))
            runs.append(Run(None if self._outputs_only else losses.detach(), output if has else None))
        self._tried = True
        return runs

    def _parameters(self, c: Tensor) -> dict[str, Tensor]:
        """The parameters at all points, by their names."""
        found: dict[str, Tensor] = {}
        for group in self._passes.groups:
            theta = torch.addmm(group.origin, c.to(group.origin), group.directions).to(group.here.dtype)
            offset = 0
            for i in group.members:
                p = self._passes.objective.parameters[i]
                found[self._names[id(p)]] = theta[:, offset : offset + p.numel()].reshape(len(c), *p.shape)
                offset += p.numel()
        return found

    def _one(self, k: int) -> Any:
        def one(parameters: dict[str, Tensor], c: Tensor) -> Any:
            if self._responses is not None:
                self._responses.begin(k, c)
            return functional_call(self._loss, parameters, (k, self._outputs_only))

        return one
