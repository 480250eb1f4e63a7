"""One loss over several processes: each rank holds a part of the batches, all measure the mean over all of them."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradoscope.errors import CannotRun
from gradoscope.objective import BatchLoss, Objective

__all__ = ["ParallelObjective"]


class ParallelObjective(Objective):
    r"""The mean $J=\frac1{WK}\sum_r\sum_kJ_{rk}$ over the K batches of each of W ranks: an `Objective` for any measurement.

    Every rank makes one with its own batches and calls the same measurements in the same order, as with any collective. Gradients
    and Hessian-vector products are averaged, losses and the batches' gradients collected. So all ranks have the same numbers, those
    of one process with all batches in the order of the ranks: masks are seeded by the place in that order. Where one rank cannot
    differentiate twice, all take finite differences.

    Args:
        model: the module, the same on each rank; of a `DistributedDataParallel` the module inside, so that nothing is synchronised
            behind the back of a measurement.
        loss: `loss(model, batch)`, a scalar tensor.
        batches: those of this rank, as many as on each other one.
        group: the process group; the default one if None.
        options: as for `Objective`.

    Raises:
        CannotRun: where there is no process group, the ranks hold different numbers of batches or other parameters, or parameters
            are sharded over ranks.

    Cost: that of `Objective`, and one all-reduce of the parameters' size for each gradient and product.
    """

    def __init__(self, model: nn.Module, loss: BatchLoss, batches: Any, *, group: Any = None, **options: Any) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise CannotRun("there is no process group: call torch.distributed.init_process_group first, or use Objective.")
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        super().__init__(inner, loss, batches, **options)
        for name, p in self.named:
            if hasattr(p, "device_mesh"):
                raise CannotRun(f"{name} is sharded over the ranks, so that no rank holds a whole gradient. Measure the unsharded model.")
        self.group, self.rank, self.world = group, dist.get_rank(group), dist.get_world_size(group)
        mine = [len(self.batches), self.dim, float(self.theta().double().sum())]
        counts = self._collect(torch.tensor(mine, dtype=torch.float64))
        if not bool((counts[:, :2] == counts[0, :2]).all()):
            raise CannotRun(f"the ranks hold different numbers of batches or parameters: {counts[:, :2].int().tolist()}.")
        if not bool((counts[:, 2] == counts[0, 2]).all()):
            raise CannotRun("the ranks hold different parameters: load the same state on each of them.")

    def restricted(self, names: Any) -> "ParallelObjective":
        known = super().restricted(names).named
        options: dict[str, Any] = {"mode": self.mode, "seed": self.seed, "context": self._context, "group": self.group}
        return ParallelObjective(self.model, self._loss, self.batches, parameters=known, **options)

    def inside(self, k: int) -> ExitStack:
        stack, own = ExitStack(), self.seed_of(k)
        stack.enter_context(super().inside(own))
        return stack

    def seed_of(self, k: int) -> int:
        """The place of batch k of this rank among all batches."""
        return self.rank * len(self.batches) + k

    def losses(self) -> np.ndarray:
        """The losses of all ranks' batches, shape (W K,)."""
        return self._collect(torch.as_tensor(super().losses())).reshape(-1).numpy()

    def gradient(self) -> Tensor:
        """The gradient of J, shape (dim,), the same on all ranks."""
        return self._mean(super().gradient())

    def batch_gradients(self) -> Tensor:
        """The gradients of all ranks' batches, shape (W K, dim)."""
        return self._collect(super().batch_gradients()).flatten(0, 1)

    def _gather(self, product: Callable[[int, Tensor], Tensor], vector: Tensor, *, mean: bool) -> Tensor:
        failure: Exception | None = None
        found = torch.zeros(0)
        try:
            found = super()._gather(product, vector, mean=mean)
        except (RuntimeError, NotImplementedError) as error:
            failure = error
        # A rank that failed alone would leave the others waiting for its part.
        failed = torch.tensor(float(failure is not None))
        dist.all_reduce(failed, op=dist.ReduceOp.MAX, group=self.group)
        if failed > 0:
            raise failure if failure is not None else RuntimeError("another rank cannot differentiate twice")
        return self._mean(found) if mean else self._collect(found).flatten(0, 1)

    def _mean(self, value: Tensor) -> Tensor:
        total = value.detach().clone()
        dist.all_reduce(total, group=self.group)
        return total / self.world

    def _collect(self, value: Tensor) -> Tensor:
        """The values of all ranks, stacked in their order."""
        parts = [torch.empty_like(value) for _ in range(self.world)]
        dist.all_gather(parts, value.detach().contiguous(), group=self.group)
        return torch.stack(parts)
