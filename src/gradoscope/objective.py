"""A training's loss at one point, on fixed batches: loss, gradients, Hessian-vector products."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from gradoscope import tree
from gradoscope.errors import CannotRun, Usage
from gradoscope.graph import has_node, once_differentiable
from gradoscope.guard import derive_seed, second_order_kernels, untouched
from gradoscope.measurement import Cost

__all__ = ["Objective", "asymmetry_limit", "flat"]

REENTRANT = (
    "the model uses reentrant activation checkpointing, through which gradients cannot be measured without touching .grad. "
    "Use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
)
BatchLoss = Callable[[nn.Module, Any], Tensor]


def flat(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """One vector from a list of tensors; a gradient that is None counts as zero."""
    parts, device = [], like[0].device
    for t, p in zip(tensors, like, strict=True):
        dense = p.new_zeros(p.numel()) if t is None else t.to_dense() if t.is_sparse else t
        parts.append(dense.reshape(-1).to(device))
    return torch.cat(parts)


class Objective:
    r"""The mean loss $J(\theta)=\frac1K\sum_k J_k(\theta)$ of a model on K fixed batches.

    Masks are fixed: batch k is always run with the random streams seeded by (seed, k), so two passes agree even in
    training mode with dropout. Buffers, `.grad`, modes and random streams are left as they were.

    Args:
        model: the module; its parameters are read where they stand at the time of each call.
        loss: `loss(model, batch)`, a scalar tensor.
        batches: the fixed batches, each counted equally.
        parameters: (name, parameter) pairs to differentiate by; all that require a gradient by default.
        mode: "train" measures the loss that the optimizer sees, "eval" the one that users report.
        seed: what masks are drawn from.
        context: a function giving a context manager around each pass.

    Attributes:
        method: "autograd", or "finite differences" where second derivatives cannot be had or were found wrong; `why` says which.
        verified: whether the double backward was found symmetric, as second derivatives are.
        keep_graph: whether `hvp` keeps the gradient's graph; switched off where memory does not allow it.
        difference_error: an upper estimate of the relative error of the finite differences so far, NaN before the first one.
        cost: the passes spent so far.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x, y = torch.eye(2), torch.zeros(2, 1)
        >>> objective = Objective(model, lambda m, b: (m(b[0]) - b[1]).square().mean(), [(x, y)])
        >>> objective.hvp(torch.tensor([1.0, 0.0]))
        tensor([1., 0.])
    """

    def __init__(
        self,
        model: nn.Module,
        loss: BatchLoss,
        batches: Sequence[Any],
        *,
        parameters: Sequence[tuple[str, Tensor]] | None = None,
        mode: Literal["train", "eval"] = "train",
        seed: int = 0,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        model = getattr(model, "_orig_mod", model)  # compiled modules have no (or wrong) second derivatives
        self.model, self.batches, self.mode, self.seed = model, list(batches), mode, seed
        named = list(model.named_parameters()) if parameters is None else list(parameters)
        self.named: list[tuple[str, Tensor]] = [(n, p) for n, p in named if p.requires_grad]
        self.parameters = [p for _, p in self.named]
        self.dim = sum(p.numel() for p in self.parameters)
        if not self.parameters or not self.batches:
            what = "no parameter that requires a gradient" if not self.parameters else "no batch"
            raise CannotRun(f"there is {what} to measure the loss with: expected at least one.")
        if found := [name for name, p in self.named if p.is_complex()]:
            raise CannotRun(
                f"{found[0]} is complex, and derivatives by complex parameters are no gradients of a real vector. Make its real and "
                "imaginary parts parameters (torch.view_as_real) and join them in the forward pass (torch.view_as_complex)."
            )
        self.cost = Cost()
        self.method = "autograd"
        self.why = ""
        self.verified = False
        self.keep_graph = True
        self.difference_error = math.nan
        self._loss, self._context = loss, context
        self._sizes = [p.numel() for p in self.parameters]
        self._graphs: dict[int, tuple[Tensor | None, ...]] = {}
        self._stamp: tuple[Any, ...] = ()
        self._here: Tensor | None = None  # the gradient where the parameters stand, for finite differences
        self._relative_step: float | None = None
        self._no_grad = True

    @classmethod
    def of(cls, live: Any, batches: Sequence[Any], *, mode: Literal["train", "eval"] = "train", seed: int = 0) -> Self:
        """The objective of a live training at the point where it stands."""

        def context() -> AbstractContextManager[Any]:
            stack = ExitStack()
            for change in live.training.all_changes:
                stack.enter_context(change.forward_context())
            return stack

        on_device = [tree.to_device(b, live.device) for b in batches]
        return cls(live.model, live.training.loss, on_device, parameters=live.trainable(), mode=mode, seed=seed, context=context)

    def __repr__(self) -> str:
        return f"Objective({type(self.model).__name__}, dim={self.dim:,}, batches={len(self.batches)}, mode={self.mode!r})"

    def restricted(self, names: Sequence[str]) -> "Objective":
        """The same loss on the same batches as a function of some of the parameters only.

        Raises:
            Usage: where there is no such trainable parameter.
        """
        known = dict(self.named)
        if missing := [name for name in names if name not in known]:
            raise Usage(f"there is no trainable parameter {missing[0]!r}. There are {', '.join(known)}.")
        pairs = [(name, known[name]) for name in names]
        return Objective(self.model, self._loss, self.batches, parameters=pairs, mode=self.mode, seed=self.seed, context=self._context)

    def inside(self, k: int) -> ExitStack:
        """Everything that a pass over batch k must leave as it was, with the random streams seeded for it."""
        stack = ExitStack()
        stack.enter_context(untouched(self.model, seed=derive_seed(self.seed, k)))
        stack.enter_context(self._context())
        self.model.train(self.mode == "train")
        return stack

    def batch_loss(self, k: int) -> Tensor:
        """The loss of batch k as a tensor with its graph; call it within `inside(k)`."""
        return self._loss(self.model, self.batches[k]).reshape(())

    def spend(self, k: int, forward: int, backward: int) -> None:
        """Count passes over batch k."""
        self.cost = self.cost + Cost(forward, backward, tree.rows(self.batches[k]) or 1)

    def split(self, vector: Tensor) -> list[Tensor]:
        """A vector of shape (dim,) as tensors of the parameters' shapes, types and devices."""
        return [v.reshape(p.shape).to(p) for v, p in zip(torch.split(vector, self._sizes), self.parameters, strict=True)]

    def losses(self) -> np.ndarray:
        """The loss of each batch, shape (K,), float64. Cost: K forward passes."""
        values = []
        for k in range(len(self.batches)):
            if self._no_grad:
                try:
                    with self.inside(k), torch.no_grad():
                        values.append(float(self.batch_loss(k)))
                except RuntimeError as error:
                    if "require grad" not in str(error):
                        raise
                    self._no_grad = False  # a loss that differentiates inside, as physics-informed ones do
            if not self._no_grad:
                with self.inside(k), torch.enable_grad():
                    values.append(float(self.batch_loss(k).detach()))
            self.spend(k, 1, 0)
        return np.array(values)

    def loss(self) -> float:
        """The mean over the batches. Cost: K forward passes."""
        return float(self.losses().mean())

    def batch_gradient(self, k: int) -> Tensor:
        """The gradient of batch k, shape (dim,). Cost: one forward and one backward pass."""
        with self.inside(k), torch.enable_grad():
            grads = self._differentiate(self.batch_loss(k), create_graph=False)
        self.spend(k, 1, 1)
        return flat(grads, self.parameters)

    def _differentiate(self, loss: Tensor, *, create_graph: bool) -> tuple[Tensor | None, ...]:
        """The gradient of a loss, None for each parameter that it does not depend on."""
        if not loss.requires_grad:
            return (None,) * len(self.parameters)
        try:
            grads = torch.autograd.grad(loss, self.parameters, create_graph=create_graph, allow_unused=True)
        except RuntimeError as error:
            if "use_reentrant" in str(error):
                raise CannotRun(REENTRANT) from error
            raise
        if any(g is None for g in grads) and has_node(loss, "CheckpointFunctionBackward"):
            # Parameters inside are no part of its graph: their gradients would silently be zero.
            raise CannotRun(REENTRANT)
        return grads

    def batch_gradients(self) -> Tensor:
        """The gradients of all batches, shape (K, dim). Cost: K forward and K backward passes."""
        return torch.stack([self.batch_gradient(k) for k in range(len(self.batches))])

    def gradient(self) -> Tensor:
        """The gradient of J, shape (dim,). Cost: K forward and K backward passes."""
        total = self.batch_gradient(0)
        for k in range(1, len(self.batches)):
            total = total + self.batch_gradient(k)
        return total / len(self.batches)

    def release(self) -> None:
        """Free the kept graphs. They are also dropped by themselves once a parameter has changed."""
        self._graphs.clear()
        self._here, self._relative_step = None, None

    def point(self) -> tuple[Any, ...]:
        """A stamp of where the parameters stand, which changes whenever one of them is written to."""
        return (self.mode, *((p.data_ptr(), p._version) for p in self.model.parameters()))

    def _check_point(self) -> None:
        """Drop what was kept for other values of the parameters."""
        stamp = self.point()
        if stamp != self._stamp:
            self.release()
            self._stamp = stamp

    def differentiable_gradient(self, k: int) -> tuple[Tensor | None, ...]:
        """The gradient of batch k with its graph, kept for all products: 1.5 to 2 times as fast as a fresh one each."""
        self._check_point()
        if k in self._graphs:
            return self._graphs[k]
        with self.inside(k), second_order_kernels(self.model), torch.enable_grad():
            grads = self._differentiate(self.batch_loss(k), create_graph=True)
        self.spend(k, 1, 1)
        if self.keep_graph:
            self._graphs[k] = grads
        return grads

    def hvp(self, vector: Tensor, *, verify: bool = True) -> Tensor:
        r"""The Hessian-vector product $\nabla^2 J(\theta)\,v$, shape (dim,).

        The graph of the gradient is kept over calls until `release()` or until the parameters move. Where an operation
        has no double backward, the product falls back to central finite differences of gradients, and `method` says so.
        The same goes where the double backward lies, as that of `once_differentiable` functions does and that of
        torch's weight norm on the CPU: the first call tests $u^\top Hv=v^\top Hu$ with a random u, if `verify`.

        Cost: K double backward passes (the first call adds K forward and K backward passes, and one more product);
        by finite differences 2 K forward and backward passes (up to 12 K where kinks are near; the first call adds K).
        """
        return self._batch_products(vector, mean=True, verify=verify)

    def batch_hvps(self, vector: Tensor) -> Tensor:
        r"""The products $\nabla^2 J_k(\theta)\,v$ of the batches one by one, shape (K, dim). Cost: as `hvp`."""
        return self._batch_products(vector, mean=False, verify=True)

    def _batch_products(self, vector: Tensor, *, mean: bool, verify: bool) -> Tensor:
        while self.method == "autograd":
            try:
                products = self._gather(self._hvp_autograd, vector, mean=mean)
                if not verify or self.verified or self._symmetric(vector, products if mean else products.mean(0)):
                    return products
                break
            except (RuntimeError, NotImplementedError) as error:
                self._graphs.clear()
                if not _out_of_memory(error):
                    self.distrust(str(error).splitlines()[0])
                elif self.keep_graph:
                    self.keep_graph = False
                else:
                    self.distrust("not enough memory for second derivatives")
        self._check_point()
        if mean:
            if self._here is None:
                self._here = self.gradient()
            return self._difference(self.gradient, self._here, vector)
        return self._gather(lambda k, v: self._difference(lambda: self.batch_gradient(k), self.batch_gradient(k), v), vector, mean=False)

    def _symmetric(self, v: Tensor, hv: Tensor) -> bool:
        """Test u'Hv = v'Hu with a random u, relative to the size that such products have."""
        u = torch.randn(self.dim, generator=torch.Generator().manual_seed(derive_seed(self.seed, 201))).to(v)
        hu = self._gather(self._hvp_autograd, u, mean=True)
        u, hu, v, hv = u.double(), hu.double(), v.double(), hv.double()
        size = float(u.norm() * hv.norm() + v.norm() * hu.norm()) / math.sqrt(self.dim)
        error = abs(float(torch.dot(u, hv) - torch.dot(v, hu))) / size if size > 0 else 0.0
        self.verified = not error > asymmetry_limit(self)
        if not self.verified:
            self.distrust(self.lies(error))
        return self.verified

    def _gather(self, product: Callable[[int, Tensor], Tensor], vector: Tensor, *, mean: bool) -> Tensor:
        count = len(self.batches)
        if not mean:
            return torch.stack([product(k, vector) for k in range(count)])
        total = product(0, vector)
        for k in range(1, count):
            total = total + product(k, vector)
        return total / count

    def lies(self, asymmetry: float) -> str:
        """Why the double backward is distrusted, with the functions of the user's own that are marked once differentiable."""
        with self.inside(0), torch.enable_grad():
            found = once_differentiable(self.batch_loss(0))
        names = f"; {', '.join(found)}: only once differentiable" if found else ""
        return f"the double backward is not symmetric (by {asymmetry:.1%}), so it is wrong{names}"

    def distrust(self, why: str) -> None:
        """Take finite differences from now on, for the reason given."""
        self.method, self.why = "finite differences", why
        self._graphs.clear()

    def _hvp_autograd(self, k: int, vector: Tensor) -> Tensor:
        grads = self.differentiable_gradient(k)
        used = [(g, v) for g, v in zip(grads, self.split(vector), strict=True) if g is not None and g.requires_grad]
        if not used:
            return torch.zeros_like(vector)  # a loss that is linear in the parameters
        # Under the guard: activation checkpointing runs the forward pass again in here.
        with self.inside(k), second_order_kernels(self.model):
            product = torch.autograd.grad(
                [g for g, _ in used],
                self.parameters,
                [v.to_sparse() if g.is_sparse else v for g, v in used],
                retain_graph=self.keep_graph,
                allow_unused=True,
            )
        self.spend(k, 0, 2)
        return flat(product, self.parameters).to(vector.dtype)

    def _difference(self, gradient: Callable[[], Tensor], here: Tensor, vector: Tensor) -> Tensor:
        r"""Central difference $(g(\theta+hv)-g(\theta-hv))/2h$ at the first step h whose second difference is small.

        $|g(\theta+hv)-2g(\theta)+g(\theta-hv)|$ relative to the first difference is large where truncation, rounding or a
        kink (ReLU) between the two points spoils the result; other steps are tried then, and the best is taken.
        """
        norm = float(vector.norm())
        if norm == 0 or not math.isfinite(norm):
            return vector * 0
        theta = self.theta()
        root = torch.finfo(theta.dtype).eps ** (1 / 3)
        start = self._relative_step or 0.3 * root
        best: tuple[float, float, Tensor] | None = None
        for factor in (1, 1 / 4, 1 / 16, 1 / 64, 4, 16):
            h = start * factor * max(1.0, float(theta.norm())) / norm
            with self.moved(theta + h * vector):
                ahead = gradient()
            with self.moved(theta - h * vector):
                behind = gradient()
            first = ahead - behind
            size = float(first.norm())
            error = float((ahead - 2 * here + behind).norm()) / size if size > 0 else 0.0
            if best is None or not error >= best[0]:
                best = (error, start * factor, first / (2 * h))
            if not error > min(0.03, 30 * root):
                break
        assert best is not None
        previous = 0.0 if math.isnan(self.difference_error) else self.difference_error
        self.difference_error, self._relative_step = max(previous, best[0]), best[1]
        return best[2].to(vector.dtype)

    def _set(self, theta: Tensor) -> None:
        with torch.no_grad():
            for p, value in zip(self.parameters, self.split(theta), strict=True):
                p.copy_(value)

    @contextmanager
    def moved(self, theta: Tensor) -> Iterator[None]:
        """The parameters at `theta` inside, afterwards the same bits as before.

        As the bits are the same, so may be the version counters: graphs that were made before, the kept ones here and a
        user's own between forward and backward, stay valid.
        """
        kept = [p.detach().clone() for p in self.parameters]
        with ExitStack() as stack:
            for p in self.parameters:
                stack.enter_context(_unsafe_preserve_version_counter(p))
            try:
                self._set(theta)
                yield
            finally:
                with torch.no_grad():
                    for p, value in zip(self.parameters, kept, strict=True):
                        p.copy_(value)

    def at(self, theta: Tensor) -> np.ndarray:
        """The losses of all batches at the parameters `theta`, shape (K,); the model's own are put back. Cost: K forward passes."""
        with self.moved(theta):
            return self.losses()

    def theta(self) -> Tensor:
        """A copy of the parameters as one vector, shape (dim,)."""
        return flat([p.detach().clone() for p in self.parameters], self.parameters)


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error) or "out of memory" in str(error)


def asymmetry_limit(objective: Objective) -> float:
    """Some 30 times the asymmetry by rounding of deep networks (tensor cores round to 1e-3), far below what a wrong derivative does."""
    epsilon = max(torch.finfo(p.dtype).eps for p in objective.parameters)
    if epsilon > 1e-6:
        return 3e-2
    if epsilon > 1e-12:
        return 3e-5 if objective.parameters[0].device.type == "cpu" else 3e-3
    return 1e-8
