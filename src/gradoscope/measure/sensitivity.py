"""How much the loss of single examples feels each layer."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from gradoscope import tree
from gradoscope.guard import derive_seed, seed_all, untouched
from gradoscope.measure.gradient import layer_norms
from gradoscope.measurement import Cost, Measurement
from gradoscope.objective import Objective

__all__ = ["layer_sensitivity"]

CHUNK = 1 << 25  # entries of single-example gradients that are held at a time


def layer_sensitivity(objective: Objective, *, n: int = 32, seed: int = 0) -> Measurement:
    r"""How much the loss of single examples feels each layer, relative to the layer's own size.

    $$s_l=\|\theta_l\|\sqrt{\tfrac1n\sum_n\big\|\partial\ell_n/\partial\theta_l\big\|^2}$$
    Per example, and not of the mean gradient, which is small at a minimum as well. The ratio of the smallest to the
    largest $s_l$ tells a layer that training cannot reach. A layer is a module that owns trainable parameters, all of
    them together; in a user's own module with several matrices each matrix begins a layer of its own.

    Args:
        objective: the loss, of which the rows of the first batch are taken one by one.
        n: at most how many rows.
        seed: which rows, where there are more, and what masks are drawn from.

    Returns:
        Layer to $s_l$ in the loss's unit, with standard errors over the examples. `method` says how the gradients were
        taken: batch normalisation needs a batch, so its layers use the statistics of the whole batch, held fixed; a loss
        that cannot be run on single rows is taken by batches. `details`: "ratio" (min / max), "gradient" (RMS norm) and
        "weight" (norm) by layer, "per_example" norms of shape (n, layers).

    Cost: n forward and backward passes of single rows, together in chunks where the model allows it.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> with torch.no_grad():
        ...     _ = model.weight.fill_(2.0)
        >>> x = torch.tensor([[1.0], [-1.0]])
        >>> objective = Objective(model, lambda m, b: m(b[0]).square().mean(), [(x,)])
        >>> layer_sensitivity(objective).value
        {'Linear': 8.0}
    """
    layers = _layers(objective)
    batch = objective.batches[0]
    rows = tree.rows(batch)
    index: list[int] = []
    if rows is not None:
        generator = torch.Generator().manual_seed(derive_seed(seed, 1))
        index = sorted(torch.randperm(rows, generator=generator)[:n].tolist())
    squares, method = _per_example(objective, list(layers.values()), batch, index, seed)
    norms = list(layer_norms(objective.named, objective.theta()).values())
    weights = np.array([math.hypot(*(norms[i] for i in members)) for members in layers.values()])
    count = len(squares)
    mean = squares.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):  # a training that has broken has infinite weights
        values = weights * np.sqrt(mean)
        spread = squares.std(axis=0, ddof=1) / math.sqrt(count) if count > 1 else np.full_like(mean, math.nan)
        se = np.where(mean > 0, weights * spread / (2 * np.sqrt(mean)), 0.0 if count > 1 else math.nan)
    largest = float(values.max())
    details = {
        "ratio": float(values.min()) / largest if largest > 0 else math.nan,
        "gradient": dict(zip(layers, np.sqrt(mean).tolist(), strict=True)),
        "weight": dict(zip(layers, weights.tolist(), strict=True)),
        "per_example": np.sqrt(squares),
    }
    return Measurement(
        "layer_sensitivity",
        dict(zip(layers, values.tolist(), strict=True)),
        se=dict(zip(layers, se.tolist(), strict=True)),
        n=count,
        unit="loss",
        method=method,
        cost=Cost(count, count, count),
        details=details,
    )


def _layers(objective: Objective) -> dict[str, list[int]]:
    """Layer to the places of its parameters in `objective.named`."""
    modules = dict(objective.model.named_modules())
    owners = [name.split(".parametrizations.")[0] + "." if ".parametrizations." in name else name for name, _ in objective.named]
    owners = [name.rpartition(".")[0] for name in owners]
    matrices = {owner: sum(o == owner and p.dim() > 1 for o, (_, p) in zip(owners, objective.named, strict=True)) for owner in owners}
    layers: dict[str, list[int]] = {}
    current: dict[str, str] = {}
    for i, (owner, (name, p)) in enumerate(zip(owners, objective.named, strict=True)):
        key = owner or type(objective.model).__name__
        if matrices[owner] > 1 and not type(modules.get(owner)).__module__.startswith("torch.nn"):
            if p.dim() > 1 or owner not in current:
                current[owner] = name
            key = current[owner]
        layers.setdefault(key, []).append(i)
    return layers


def _per_example(objective: Objective, layers: list[list[int]], batch: Any, index: list[int], seed: int) -> tuple[np.ndarray, str]:
    """Squared gradient norms per example and layer, shape (n, L), and how they were had."""

    def reduced(grads: Sequence[Tensor]) -> Tensor:
        return torch.stack([torch.stack([grads[i].square().sum() for i in members]).sum() for members in layers])

    attempts: list[tuple[Callable[[], Tensor], str]] = []
    if index and _named_by_model(objective):
        rows = tree.take(batch, torch.tensor(index))
        attempts.append((lambda: _vectorised(objective, reduced, rows), "per-example gradients, vectorised"))
    if index:
        attempts.append((lambda: _one_by_one(objective, reduced, batch, index, seed), "per-example gradients, one by one"))
    for attempt, method in attempts:
        try:
            with _single_rows(objective, batch, seed) as note:
                return attempt().double().cpu().numpy(), method + note
        except Exception:  # whatever a user's model objects to: single rows, vmap, too little memory
            continue
    sizes = [p.numel() for p in objective.parameters]
    gradients = [objective.batch_gradient(k) for k in range(len(objective.batches))]
    squares = torch.stack([reduced(torch.split(g, sizes)) for g in gradients])
    return squares.double().cpu().numpy(), "gradients of whole batches: the loss cannot be run on single rows"


@contextmanager
def _single_rows(objective: Objective, batch: Any, seed: int) -> Iterator[str]:
    """The model as the objective runs it, but with batch normalisation by the statistics of this batch, held fixed."""
    model = objective.model
    with untouched(model, seed=derive_seed(seed, 0)), objective._context(), torch.enable_grad():
        model.train(objective.mode == "train")
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
        if norms:
            momenta = [m.momentum for m in norms]
            try:
                for m in norms:
                    m.momentum = 1.0  # the running statistics, which are lent copies here, become this batch's
                with torch.no_grad():
                    objective._loss(model, batch)
            finally:
                for m, momentum in zip(norms, momenta, strict=True):
                    m.momentum = momentum
            for m in norms:
                m.eval()
        yield "; batch normalisation by the whole batch's statistics, held fixed" if norms else ""


def _named_by_model(objective: Objective) -> bool:
    """Whether the objective's names are the model's own: only then can the parameters be replaced by name."""
    own = dict(objective.model.named_parameters(remove_duplicate=False))
    return all(own.get(name) is p for name, p in objective.named)


class _Loss(nn.Module):
    """The loss as a module, whose parameters `functional_call` can replace."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.model = objective.model
        self._loss = objective._loss

    def forward(self, batch: Any) -> Tensor:
        return self._loss(self.model, batch).reshape(())


def _vectorised(objective: Objective, reduced: Callable[[Sequence[Tensor]], Tensor], batch: Any) -> Tensor:
    """Reduced squares of all rows of `batch`, in chunks."""
    wrapper = _Loss(objective)
    names = [f"model.{name}" for name, _ in objective.named]

    def loss(parameters: tuple[Tensor, ...], row: tuple[Tensor, ...]) -> Tensor:
        tensors = iter(row)
        single = tree.map_tensors(lambda _: next(tensors).unsqueeze(0), batch)
        result: Tensor = functional_call(wrapper, dict(zip(names, parameters, strict=True)), (single,))
        return result

    def squares(parameters: tuple[Tensor, ...], row: tuple[Tensor, ...]) -> Tensor:
        return reduced(grad(loss)(parameters, row))

    chunk = max(1, CHUNK // max(1, objective.dim))
    parameters = tuple(p.detach() for p in objective.parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an operation without a batching rule is slow, and right
        result: Tensor = vmap(squares, in_dims=(None, 0), randomness="different", chunk_size=chunk)(parameters, tuple(tree.leaves(batch)))
    return result


def _one_by_one(objective: Objective, reduced: Callable[[Sequence[Tensor]], Tensor], batch: Any, index: list[int], seed: int) -> Tensor:
    rows = []
    for i in index:
        seed_all(derive_seed(seed, 2, i))
        loss = objective._loss(objective.model, tree.take(batch, slice(i, i + 1))).reshape(())
        found: Sequence[Tensor | None] = [None] * len(objective.parameters)
        if loss.requires_grad:
            found = torch.autograd.grad(loss, objective.parameters, allow_unused=True)
        grads = [torch.zeros_like(p) if g is None else g for g, p in zip(found, objective.parameters, strict=True)]
        rows.append(reduced(grads))
    return torch.stack(rows)
