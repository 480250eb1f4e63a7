"""The metric of an optimizer: the step it takes per unit of gradient, and the curvature at which it becomes unstable."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradoscope.measure._source import working_dtype
from gradoscope.measure.curvature import Spectrum, extreme_eigenvalues
from gradoscope.measurement import Measurement
from gradoscope.objective import Objective

__all__ = ["preconditioner", "relative_stability", "stability_limit"]

# A rule gives the scale of one parameter from its group, its state, and its gradient where the state is empty.
Rule = Callable[[dict[str, Any], dict[str, Any], Tensor | None, Tensor], Tensor | None]


def preconditioner(
    optimizer: Optimizer, named_parameters: Sequence[tuple[str, Tensor]], *, gradient: Tensor | None = None
) -> Tensor | None:
    r"""The diagonal metric s of an optimizer: without momentum its step is $-s\odot g$.

    SGD: s = lr (times 1 - dampening with momentum). Adam and its kin: $s=lr/(\sqrt{\hat v}+\epsilon)$ with the bias
    correction of the step where they stand. Momentum is left to `stability_limit`, weight decay is left out.

    Args:
        optimizer: SGD, ASGD, Adam, AdamW, NAdam, RAdam, Adamax, RMSprop, Adagrad or Adadelta.
        named_parameters: the (name, parameter) pairs in the order of the vector, as in `Objective.named`.
        gradient: g, shape (dim,). Where nothing has been averaged yet, the first step's rule is used with it.

    Returns:
        s >= 0, shape (dim,), at least float32; 0 for a parameter that the optimizer does not hold, or that it holds and
        never moved while it moved others. None for an optimizer that is not known (LBFGS, one with a step of its own, one
        that maximises), and before the first step where no gradient is given.

    Cost: none.

    Example:
        >>> p = torch.nn.Parameter(torch.zeros(2))
        >>> preconditioner(torch.optim.SGD([p], lr=0.5), [("p", p)])
        tensor([0.5000, 0.5000])

    Source: Cohen et al. 2022, Adaptive gradient methods at the edge of stability (the preconditioned Hessian).
    """
    rule = _RULES.get(_stepping_class(optimizer))
    if rule is None or any(group.get("maximize", False) for group in optimizer.param_groups):
        return None
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    moved = any(_moved(optimizer.state.get(p, {})) for _, p in named_parameters)
    sizes = [p.numel() for _, p in named_parameters]
    grads = [None] * len(sizes) if gradient is None else list(torch.split(gradient.detach(), sizes))
    parts = []
    for (_, p), g in zip(named_parameters, grads, strict=True):
        dtype = torch.promote_types(p.dtype, torch.float32)
        group = groups.get(id(p))
        state = optimizer.state.get(p, {})
        if group is None or (moved and not _moved(state) and g is None and rule is not _plain):
            parts.append(torch.zeros(p.numel(), dtype=dtype, device=p.device))
            continue
        scale = rule(group, state, None if g is None else g.reshape(p.shape).to(p.device, dtype), p.detach())
        if scale is None:
            return None
        parts.append(scale.detach().to(p.device, dtype).expand(p.shape).reshape(-1))
    device = parts[0].device
    return torch.cat([part.to(device) for part in parts])


def stability_limit(optimizer: Optimizer) -> float:
    r"""The value of $\lambda_{max}(S^{1/2}HS^{1/2})$ above which the optimizer diverges on a quadratic.

    With s from `preconditioner`, held fixed: plain steps 2; momentum $\beta$ as torch's SGD and RMSprop have it
    $2(1+\beta)$; Nesterov's $2(1+\beta)/(1+2\beta)$; the averaged momentum of Adam and its kin
    $2(1+\beta_1)/(1-\beta_1)$; NAdam $2/\big((1-\mu)+\mu\frac{1-\beta_1}{1+\beta_1}\big)$ with its $\mu\to\beta_1$.

    Args:
        optimizer: any optimizer; of several groups the one with the lowest limit counts.

    Returns:
        The limit, NaN for an optimizer that `preconditioner` does not know.

    Cost: none.

    Example:
        >>> p = torch.nn.Parameter(torch.zeros(2))
        >>> stability_limit(torch.optim.SGD([p], lr=0.1, momentum=0.9))
        3.8
        >>> round(stability_limit(torch.optim.AdamW([p])), 6)
        38.0

    Source: Cohen et al. 2021, Gradient descent on neural networks typically occurs at the edge of stability, appendix B;
    Cohen et al. 2022. Each follows from the root -1 of the characteristic polynomial on a quadratic.
    """
    kind = _stepping_class(optimizer)
    if kind not in _RULES:
        return math.nan
    return min(_group_limit(kind, group) for group in optimizer.param_groups)


def _group_limit(kind: type | None, group: dict[str, Any]) -> float:
    if "betas" in group:
        beta = float(group["betas"][0])
        if kind is torch.optim.NAdam:
            return 2 / ((1 - beta) + beta * (1 - beta) / (1 + beta))
        return 2 * (1 + beta) / (1 - beta) if beta < 1 else math.inf
    beta = float(group.get("momentum", 0.0))
    return 2 * (1 + beta) / (1 + 2 * beta) if group.get("nesterov", False) else 2 * (1 + beta)


def relative_stability(
    objective: Objective,
    optimizer: Optimizer,
    *,
    gradient: Tensor | None = None,
    max_products: int = 40,
    tolerance: float = 1e-2,
    seed: int = 0,
) -> Measurement | None:
    r"""The curvature in the optimizer's metric on a scale where 2 is the limit of stability: $2\lambda_{max}(S^{1/2}HS^{1/2})/$limit.

    Args:
        objective: the loss, over parameters that the optimizer holds.
        optimizer: the optimizer in its present state.
        gradient: as in `preconditioner`.
        max_products: the most products to spend.
        tolerance: the residual bound at which to stop.
        seed: what the start vector is drawn from.

    Returns:
        The value with its residual bound as `se`, and the `Spectrum` in details; None where the metric is not known.

    Cost: at most `max_products` Hessian-vector products.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(model, lambda m, b: m(b).square().sum(), [torch.ones(1, 1)])
        >>> round(relative_stability(objective, torch.optim.SGD(model.parameters(), lr=1.0)).value, 4)
        2.0
    """
    scale, limit = preconditioner(optimizer, objective.named, gradient=gradient), stability_limit(optimizer)
    if scale is None or not math.isfinite(limit):
        return None
    spectrum: Spectrum = extreme_eigenvalues(
        objective, max_products=max_products, tolerance=tolerance, seed=seed, scale=scale.to(working_dtype(objective))
    )
    return Measurement(
        "relative_stability",
        2 * spectrum.largest / limit,
        se=2 * float(spectrum.top_residuals[0]) / limit,
        method=spectrum.method,
        cost=spectrum.cost,
        details={"spectrum": spectrum, "limit": limit, "scale": scale},
    )


def _stepping_class(optimizer: Optimizer) -> type | None:
    """The class whose `step` the optimizer takes: a subclass with a step of its own is not what it derives from.

    AdamW derives from Adam in recent versions of torch, and counts as Adam then; for the metric they are the same.
    """
    return next((kind for kind in type(optimizer).__mro__ if "step" in vars(kind)), None)


def _moved(state: dict[str, Any]) -> bool:
    """Whether a step has been taken; Adagrad has a state before it."""
    return len(state) > 0 and float(state.get("step", 1)) > 0


def _lr(group: dict[str, Any]) -> float:
    return float(group["lr"])


def _plain(group: dict[str, Any], state: dict[str, Any], g: Tensor | None, p: Tensor) -> Tensor | None:
    dampening = float(group.get("dampening", 0.0)) if group.get("momentum", 0.0) else 0.0
    rate = float(state["eta"]) if "eta" in state else _lr(group)  # ASGD lowers its own rate
    return torch.as_tensor(rate * (1 - dampening), dtype=torch.promote_types(p.dtype, torch.float32))


def _adam(group: dict[str, Any], state: dict[str, Any], g: Tensor | None, p: Tensor) -> Tensor | None:
    if "exp_avg_sq" in state:
        square = state["max_exp_avg_sq"] if group.get("amsgrad", False) else state["exp_avg_sq"]
        square = square / (1 - float(group["betas"][1]) ** float(state["step"]))
    elif g is not None:
        square = g.square()
    else:
        return None
    return _lr(group) / (square.sqrt() + float(group["eps"]))  # type: ignore[no-any-return]


def _radam(group: dict[str, Any], state: dict[str, Any], g: Tensor | None, p: Tensor) -> Tensor | None:
    beta = float(group["betas"][1])
    step = float(state["step"]) if "step" in state else 1.0
    if "exp_avg_sq" not in state and g is None:
        return None
    correction = 1 - beta**step
    longest = 2 / (1 - beta) - 1
    length = longest - 2 * step * beta**step / correction
    if length <= 5:  # too few gradients to scale by
        return torch.as_tensor(_lr(group), dtype=torch.promote_types(p.dtype, torch.float32))
    rectified = math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
    square = state["exp_avg_sq"] if "exp_avg_sq" in state else (1 - beta) * g.square()  # type: ignore[union-attr]
    return _lr(group) * rectified * math.sqrt(correction) / (square.sqrt() + float(group["eps"]))


def _adamax(group: dict[str, Any], state: dict[str, Any], g: Tensor | None, p: Tensor) -> Tensor | None:
    if "exp_inf" in state:
        largest = state["exp_inf"]
    elif g is not None:
        largest = g.abs() + float(group["eps"])
    else:
        return None
    return _lr(group) / largest  # type: ignore[no-any-return]


def _rmsprop(group: dict[str, Any], state: dict[str, Any], g: Tensor | None, p: Tensor) -> Tensor | None:
    if "square_avg" in state:
        square = state["square_avg"]
        if group.get("centered", False):
            square = (square - state["grad_avg"].square()).clamp_min(0)
    elif g is not None:
        share = 1 - float(group["alpha"])
        square = share * g.square() * (1 - share if group.get("centered", False) else 1)
    else:
        return None
    return _lr(group) / (square.sqrt() + float(group["eps"]))  # type: ignore[no-any-return]


def _adagrad(group: dict[str, Any], state: dict[str, Any], g: Tensor | None, p: Tensor) -> Tensor | None:
    step = float(state.get("step", 0))
    total = state.get("sum")
    if step == 0:  # torch fills `sum` before the first step
        if g is None:
            return None
        total = g.square() + float(group.get("initial_accumulator_value", 0.0))
        step = 1.0
    assert total is not None
    return _lr(group) / (1 + (step - 1) * float(group["lr_decay"])) / (total.sqrt() + float(group["eps"]))  # type: ignore[no-any-return]


def _adadelta(group: dict[str, Any], state: dict[str, Any], g: Tensor | None, p: Tensor) -> Tensor | None:
    eps = float(group["eps"])
    if "square_avg" in state:
        square, change = state["square_avg"], state["acc_delta"]
    elif g is not None:
        square, change = (1 - float(group["rho"])) * g.square(), torch.zeros_like(g)
    else:
        return None
    return _lr(group) * (change + eps).sqrt() / (square + eps).sqrt()  # type: ignore[no-any-return]


_RULES: dict[type | None, Rule] = {
    torch.optim.SGD: _plain,
    torch.optim.ASGD: _plain,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
    torch.optim.NAdam: _adam,
    torch.optim.RAdam: _radam,
    torch.optim.Adamax: _adamax,
    torch.optim.RMSprop: _rmsprop,
    torch.optim.Adagrad: _adagrad,
    torch.optim.Adadelta: _adadelta,
}
