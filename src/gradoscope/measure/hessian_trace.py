"""The trace of the Hessian: exact where the model is piecewise linear in each weight, else with a standard error that the caller sets."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gradoscope import tree
from gradoscope.errors import CannotRun, Usage
from gradoscope.guard import derive_seed
from gradoscope.measure._gauss_newton import gauss_newton_product
from gradoscope.measure._recording import couples
from gradoscope.measure._source import Source, working_dtype
from gradoscope.measure.per_sample import RowSlopes
from gradoscope.measurement import Cost, Measurement
from gradoscope.objective import Objective

__all__ = ["gauss_newton_trace", "hessian_trace", "why_not_linear"]

PILOT = 8  # probes before the first look at their spread
MOST_OUTPUTS = 64  # outputs of one row up to which the exact trace costs less than a good estimate

# Operations that are linear in each of their tensors, where at most one of these depends on the inputs, or piecewise linear in one.
LINEAR = {
    *(
        "AddmmBackward0",
        "MmBackward0",
        "BmmBackward0",
        "BaddbmmBackward0",
        "ConvolutionBackward0",
        "MkldnnConvolutionBackward0",
        "LinearBackward0",
    ),
    *("AddBackward0", "SubBackward0", "NegBackward0", "SumBackward0", "SumBackward1", "MeanBackward0", "MeanBackward1", "StackBackward0"),
    *(
        "TBackward0",
        "TransposeBackward0",
        "PermuteBackward0",
        "ViewBackward0",
        "UnsafeViewBackward0",
        "ReshapeAliasBackward0",
        "CloneBackward0",
    ),
    *(
        "UnsqueezeBackward0",
        "SqueezeBackward0",
        "SqueezeBackward1",
        "ExpandBackward0",
        "SelectBackward0",
        "SliceBackward0",
        "IndexBackward0",
    ),
    *("CatBackward0", "SplitBackward0", "ChunkBackward0", "UnbindBackward0", "AliasBackward0", "ToCopyBackward0", "ConstantPadNdBackward0"),
    *(
        "ReluBackward0",
        "LeakyReluBackward0",
        "PreluKernelBackward0",
        "HardtanhBackward0",
        "ThresholdBackward0",
        "AbsBackward0",
        "ClampBackward1",
    ),
    *(
        "MaxPool2DWithIndicesBackward0",
        "MaxPool3DWithIndicesBackward0",
        "AmaxBackward0",
        "MaxBackward0",
        "MaximumBackward0",
        "ClampMinBackward0",
    ),
    *(
        "AvgPool2DBackward0",
        "AvgPool3DBackward0",
        "AdaptiveAvgPool2DBackward0",
        "AdaptiveAvgPool3DBackward0",
        "MkldnnAdaptiveAvgPool2DBackward0",
    ),
    *("EmbeddingBackward0", "MulBackward0", "DivBackward0", "NativeDropoutBackward0", "PadBackward0", "ReflectionPad2DBackward0"),
    *("AccumulateGrad", "NativeBatchNormBackward0", "MkldnnMaxPool2DBackward0", "GatherBackward0"),
}
PRODUCTS = {"MulBackward0", "DivBackward0", "BmmBackward0", "BaddbmmBackward0"}  # only with one factor that depends on the parameters


@dataclass(frozen=True)
class _Estimate:
    value: float
    se: float
    probes: int


def why_not_linear(objective: Objective) -> str:
    r"""Why the trace of the Hessian may differ from that of the Gauss-Newton matrix; empty where they are proven to be equal.

    They are equal where the output is (piecewise) linear in each single weight, as $\sum_i\partial^2z/\partial\theta_i^2$ is then
    zero. This is read off the graph: every operation is piecewise linear, no parameter is used in two places, and the loss depends
    on the parameters through the output only.

    Cost: K forward passes.

    Example:
        >>> loss = lambda m, b: m(b).square().mean()
        >>> why_not_linear(Objective(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()), loss, [torch.ones(3, 2)]))
        ''
        >>> why_not_linear(Objective(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh()), loss, [torch.ones(3, 2)]))
        'Tanh is not piecewise linear'
    """
    return _look(objective)[0]


def _look(objective: Objective) -> tuple[str, int]:
    """Why the trace is not exact, and how many outputs a row has."""
    width = MOST_OUTPUTS + 1
    for k in range(len(objective.batches)):
        with objective.inside(k), torch.enable_grad():
            outputs, loss = _output(objective, k)
        if len(outputs) == 1 and outputs[0].dim():
            width = outputs[0][0].numel()
        if why := _graph_says(outputs, loss):
            return why, width
    return "", width


def _output(objective: Objective, k: int) -> tuple[list[Tensor], Tensor]:
    """What the model returns when the loss calls it, and the loss; call it within `inside(k)`."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        seen.extend(t for t in tree.leaves(output) if t.is_floating_point() and t.requires_grad)

    hook = objective.model.register_forward_hook(keep)
    try:
        loss = objective.batch_loss(k)
    finally:
        hook.remove()
    return seen, loss


def _graph_says(outputs: list[Tensor], loss: Tensor) -> str:
    if not outputs:
        return "the loss does not call the model itself"
    ends: set[Any] = {z.grad_fn for z in outputs}
    ahead: list[Any] = [loss.grad_fn]
    seen = set(ahead)
    while ahead:  # from the loss down to the outputs
        node = ahead.pop()
        if node is None or node in ends:
            continue
        if node.name() == "torch::autograd::AccumulateGrad":
            return "the loss depends on parameters past the model's output"
        for n, _ in node.next_functions:
            if n not in seen:
                seen.add(n)
                ahead.append(n)
    uses: dict[Any, int] = {}
    ahead, seen = list(ends), set(ends)
    while ahead:  # from the outputs down to the parameters
        node = ahead.pop()
        if node is None:
            continue
        name = node.name().rpartition("::")[2]
        following = [n for n, _ in node.next_functions if n is not None]
        if name not in LINEAR:
            return f"{name.partition('Backward')[0]} is not piecewise linear"
        if name in PRODUCTS and len(following) > 1:
            return f"{name.partition('Backward')[0]} of two tensors that depend on parameters is not linear"
        if name in ("NativeBatchNormBackward0", "BatchNormBackward0") and node._saved_training:
            return "batch normalisation in training mode is not linear"
        for n in following:
            uses[n] = uses.get(n, 0) + (n.name() == "torch::autograd::AccumulateGrad")
            if uses[n] > 1:
                return "a parameter is used in several places"
            if n not in seen:
                seen.add(n)
                ahead.append(n)
    return ""


def gauss_newton_trace(objective: Objective, *, relative_error: float | None = None, max_probes: int = 400, seed: int = 0) -> Measurement:
    r"""The trace of the Gauss-Newton matrix, exactly where the model has few outputs.

    With the Hessian $\sum_c\lambda_{nc}u_{nc}u_{nc}^\top$ of the loss in the output of row n,
    $$\mathrm{tr}\,G=\sum_n\sum_c\lambda_{nc}\,|J_n^\top u_{nc}|^2,$$
    whose norms come from hooks (see `per_sample`): one backward pass per output c. With more than 64 outputs per row it is estimated
    from random signs e in the output, $\mathrm{tr}\,G=\mathrm E\sum_n(J_n^\top e_n)^\top J_n^\top H_ne_n$.

    Args:
        objective: the loss, which sees the parameters through the model's output only.
        relative_error: the standard error to reach, relative to the trace, where it has to be estimated; 1% by default.
        max_probes: the most sign vectors.
        seed: what they are drawn from.

    Returns:
        The trace; `se` is None where it is exact.

    Raises:
        CannotRun: where the output cannot be told from the loss, the loss couples its rows, or hooks do not see all parameters.

    Cost: exact: one forward pass and one backward pass for each output of a row (not through the parameters); else one per probe.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, lambda m, b: m(b).square().mean(), [torch.eye(2)])
        >>> gauss_newton_trace(objective).value
        2.0

    Source: Schraudolph 2002 (the matrix); Dangel et al. 2020, BackPACK (exact diagonals by backpropagation).
    """
    if (relative_error is not None and relative_error <= 0) or max_probes < 2:
        raise Usage(f"`relative_error` must be positive and `max_probes` at least 2, got {relative_error} and {max_probes}.")
    before, parts = objective.cost, []
    for k in range(len(objective.batches)):
        generator = torch.Generator().manual_seed(derive_seed(seed, k))
        try:
            with objective.inside(k), torch.enable_grad():
                parts.append(_batch_trace(objective, k, relative_error or 0.01, max_probes, generator))
        except NotImplementedError as error:
            raise CannotRun(f"the loss has no second derivative in the model's output: {error}") from error
    count = len(parts)
    exact = all(p.probes == 0 for p in parts)
    se = None if exact else math.sqrt(sum(p.se**2 for p in parts)) / count
    probes = sum(p.probes for p in parts)
    method = "exact, from hooks" if exact else f"{probes} random sign vectors in the output, from hooks"
    value = sum(p.value for p in parts) / count
    return Measurement("gauss_newton_trace", value, se=se, n=probes or None, unit="loss", method=method, cost=_spent(objective, before))


def _batch_trace(objective: Objective, k: int, relative_error: float, max_probes: int, generator: torch.Generator) -> _Estimate:
    """The trace for one batch, inside `inside(k)`."""
    slopes = RowSlopes(objective, k)
    outputs, loss = slopes.outputs, slopes.loss
    if len(outputs) != 1 or outputs[0].dim() == 0:
        raise CannotRun("the exact Gauss-Newton trace needs a model with one output tensor, which the loss uses.")
    z, rows = outputs[0], slopes.count
    if z.shape[0] != rows:
        raise CannotRun("the rows of the batch are not the first axis of the model's output.")
    objective.spend(k, 1, 0)
    first = torch.autograd.grad(loss, z, create_graph=True)[0]
    if not first.requires_grad:
        return _Estimate(0.0, 0.0, 0)
    width = z[0].numel()
    if couples(first, z, rows // 2):
        raise CannotRun("the loss couples its rows, so that a row has no Hessian of its own.")

    def norms(cotangent: Tensor) -> Tensor:
        objective.spend(k, 0, 1)
        return slopes.squares(z, cotangent)

    if width > MOST_OUTPUTS:
        return _sampled(first, z, norms, relative_error, max_probes, generator)
    columns = []
    for c in range(width):
        column = torch.autograd.grad(first.reshape(rows, -1)[:, c].sum(), z, retain_graph=True)[0]
        columns.append(column.detach().reshape(rows, -1))
    curved = torch.stack(columns, 2).double()
    values, vectors = torch.linalg.eigh((curved + curved.transpose(1, 2)) / 2)
    keep = values.abs() > 1e-12 * values.abs().max().clamp_min(1e-300)
    total = 0.0
    for c in range(width):
        if bool(keep[:, c].any()):
            found = norms(vectors[:, :, c].to(z).reshape(z.shape))
            total += float((values[:, c] * found.to(values)).sum())
    return _Estimate(total, 0.0, 0)


def _sampled(
    first: Tensor, z: Tensor, norms: Callable[[Tensor], Tensor], relative_error: float, max_probes: int, generator: torch.Generator
) -> _Estimate:
    r"""Random signs e in the output of each row: $\mathrm{tr}(J^\top HJ)=\mathrm E\,(J^\top e)\cdot(J^\top He)$."""
    found: list[float] = []
    while len(found) < max_probes:
        e = (torch.randint(0, 2, z.shape, generator=generator) * 2 - 1).to(z)
        he = torch.autograd.grad(first, z, e, retain_graph=True)[0]
        # Norms give inner products: 4 a.b = |a + b|^2 - |a - b|^2, with He scaled to the length of e.
        size = float(he.norm() / e.norm())
        if size == 0:
            return _Estimate(0.0, 0.0, 0)
        b = he / size
        found.append(size * float((norms(e + b) - norms(e - b)).double().sum()) / 4)
        if len(found) >= PILOT and _se(found) <= relative_error * abs(float(np.mean(found))):
            break
    return _Estimate(float(np.mean(found)), _se(found), len(found))


def _se(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _spent(objective: Objective, before: Cost) -> Cost:
    return Cost(*(getattr(objective.cost, f) - getattr(before, f) for f in ("forward", "backward", "examples")))


def hessian_trace(
    objective: Objective,
    *,
    relative_error: float = 0.02,
    max_probes: int = 400,
    seed: int = 0,
    way: Literal["auto", "probes"] = "auto",
) -> Measurement:
    r"""The trace of the Hessian: exact, or with the standard error that was asked for.

    Where `why_not_linear` finds nothing, it is the trace of the Gauss-Newton matrix, which is exact. Elsewhere it is estimated from random
    sign vectors $z$, with the Gauss-Newton matrix as a control variate where its trace is exact:
    $$\mathrm{tr}\,H=\mathrm{tr}\,G+\mathrm E\,z^\top(H-G)z,$$
    if that varies so much less than $z^\top Hz$ in the first 8 probes that its third product is worth it. Those probes count all the same.

    Args:
        objective: the loss.
        relative_error: the standard error to reach, relative to the trace.
        max_probes: the most sign vectors; what they reached is said.
        seed: what they are drawn from.
        way: "probes" estimates in any case.

    Returns:
        The trace with its standard error (None where it is exact); `details`: "probes", "reached", "gauss_newton" (its trace, or None),
        "why" (why it is not exact).

    Cost: see `gauss_newton_trace`; a probe costs one Hessian-vector product, and with the control variate a Gauss-Newton product more.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)).double()
        >>> objective = Objective(model, lambda m, b: m(b).square().mean(), [torch.eye(2).double()])
        >>> exact, estimate = hessian_trace(objective), hessian_trace(objective, way="probes", relative_error=0.05)
        >>> exact.se, abs(estimate.value - exact.value) < 4 * estimate.se
        (None, True)

    Source: Hutchinson 1990, A stochastic estimator of the trace of the influence matrix.
    """
    if relative_error <= 0 or max_probes < 2:
        raise Usage(f"`relative_error` must be positive and `max_probes` at least 2, got {relative_error} and {max_probes}.")
    before = objective.cost
    inner: float | None = None
    why, width = _look(objective)
    try:
        if width <= MOST_OUTPUTS:
            exact = gauss_newton_trace(objective, seed=seed)
            inner = float(exact.value)
            if not why and way == "auto":
                details = {"probes": 0, "reached": True, "gauss_newton": inner, "why": ""}
                method = "exact: the model is piecewise linear in each weight, so the trace is that of the Gauss-Newton matrix"
                return replace(exact, name="hessian_trace", method=method, cost=_spent(objective, before), details=details)
    except CannotRun as error:
        why = why or str(error)
    why = why or ("probes were asked for" if way == "probes" else "the model has many outputs")
    found, controlled = _probe(objective, inner, relative_error, max_probes, seed)
    base = inner if controlled and inner is not None else 0.0
    value, se = base + float(np.mean(found)), _se(found)
    reached = se <= relative_error * abs(value)
    method = f"{len(found)} random sign vectors, {objective.method}" + ("; Gauss-Newton trace as control variate" if controlled else "")
    if not reached:
        method += f"; a standard error of {relative_error:.1%} was not reached"
    details = {"probes": len(found), "reached": reached, "gauss_newton": inner, "why": why}
    return Measurement(
        "hessian_trace", value, se=se, n=len(found), unit="loss", method=method, cost=_spent(objective, before), details=details
    )


def _probe(objective: Objective, inner: float | None, relative_error: float, max_probes: int, seed: int) -> tuple[list[float], bool]:
    """Quadratic forms of random sign vectors, of H or of H - G; and which of the two."""
    hessian = Source(objective, "hessian").matvec
    product = gauss_newton_product(objective) if inner is not None else None
    generator = torch.Generator().manual_seed(derive_seed(seed, 202))
    dtype, device = working_dtype(objective), objective.parameters[0].device
    plain: list[float] = []
    apart: list[float] = []
    while len(plain) < max_probes:
        z = (torch.randint(0, 2, (objective.dim,), generator=generator) * 2 - 1).to(device, dtype)
        value = float(torch.dot(z.double(), (objective.hvp(z) if not plain else hessian(z)).double()))
        plain.append(value)
        if product is not None:
            apart.append(value - float(torch.dot(z.double(), product(z).double())))
        if product is not None and len(plain) == PILOT and 3 * float(np.var(apart)) > float(np.var(plain)):
            product = None  # a Gauss-Newton product costs two Hessian products, which buy more probes
        found, base = (apart, inner or 0.0) if product is not None else (plain, 0.0)
        if len(plain) >= PILOT and _se(found) <= relative_error * abs(base + float(np.mean(found))):
            break
    return (apart, True) if product is not None else (plain, False)
