"""Forward-only: an activation's values on the way forward, the identity on the way back."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gradoscope.errors import Usage
from gradoscope.updates._rule import Rule
from gradoscope.updates.lecture import SGD

__all__ = [
    "FLAT",
    "MONOTONE",
    "SATURATING",
    "ForwardOnly",
    "ForwardOnlyPass",
    "ForwardOnlySGD",
    "straight_through",
    "unwrap_activations",
    "wrap_activations",
]

FLAT = frozenset(
    {torch.sign, torch.sgn, torch.floor, torch.ceil, torch.round, torch.trunc, torch.fix}
    | {Tensor.sign, Tensor.sgn, Tensor.floor, Tensor.ceil, Tensor.round, Tensor.trunc, Tensor.fix}
)
SATURATING = frozenset(
    {torch.sigmoid, torch.tanh, Tensor.sigmoid, Tensor.tanh, F.sigmoid, F.tanh, F.hardtanh, F.hardsigmoid, F.softsign, F.relu6}
    | {torch.relu, F.relu, Tensor.relu, torch.clamp, Tensor.clamp}
)
MONOTONE: tuple[type[nn.Module], ...] = (
    *(nn.Sigmoid, nn.Tanh, nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid, nn.Softsign, nn.LogSigmoid, nn.Softplus),
    *(nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink),
)
"""PyTorch's activations that never fall; GELU, SiLU, Mish and Hardswish do, so the identity may point the wrong way for them."""

# Functions that write into their argument, by the ones that do not.
_IN_PLACE = {
    getattr(owner, name + "_"): getattr(owner, name)
    for owner in (torch, Tensor)
    for name in ("sign", "sgn", "floor", "ceil", "round", "trunc", "fix", "sigmoid", "tanh", "relu", "clamp")
    if hasattr(owner, name + "_")
}


def straight_through(out: Tensor, x: Tensor, slope: float = 1.0) -> Tensor:
    r"""The value of `out`, exactly, with `slope` times the gradient of x: $\partial\,\text{out}/\partial x := s$.

    Args:
        out: the value, of x's shape.
        x: what the gradient goes to.
        slope: the derivative to use; -1 for a function that falls.

    Cost: two passes over x.

    Example:
        >>> x = torch.tensor([0.7, -3.2], requires_grad=True)
        >>> y = straight_through(torch.floor(x), x)
        >>> y.tolist(), torch.autograd.grad(y.sum(), x)[0].tolist()
        ([0.0, -4.0], [1.0, 1.0])
    """
    zero = (x - x.detach()).nan_to_num()  # infinity minus infinity is no number
    return out.detach() + (zero if slope == 1.0 else slope * zero)


class ForwardOnly(nn.Module):
    r"""An activation whose derivative is replaced by the identity: $u(x)$ forward, $u'(x):=1$ backward.

    For a layer $u(w^\top x)$ with the squared loss this turns the gradient
    $E[(u(w^\top x)-y)\,u'(w^\top x)\,x]$ into the update $E[(u(w^\top x)-y)\,x]$. It moves w towards the target's weights for
    every u that never falls, flat ones included, because $(u(a)-u(b))(a-b)\ge 0$ (`theory.single_index` has the bound). For an
    activation between other layers there is no such theorem; it is then the straight-through estimator.

    Args:
        activation: a module or a function that acts on single numbers and never falls.
        slope: the derivative on the way back; -1 where the activation never rises.

    Raises:
        Usage: where the activation changes the shape.

    Cost: the activation's forward pass; nothing on the way back.

    Example:
        >>> x = torch.tensor([0.7], requires_grad=True)
        >>> ForwardOnly(torch.floor)(x).sum().backward()
        >>> x.grad
        tensor([1.])

    Source: Kalai and Sastry 2009; Kakade, Kalai, Kanade and Shamir 2011; Shalev-Shwartz, Shamir and Shammah 2017, section 5.
    """

    def __init__(self, activation: nn.Module | Callable[[Tensor], Tensor], slope: float = 1.0) -> None:
        super().__init__()
        self.activation = activation
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """The activation of x; same shape."""
        with torch.no_grad():
            value = self.activation(x.detach().clone() if getattr(self.activation, "inplace", False) else x.detach())
        if value.shape != x.shape:
            raise Usage(f"the activation must keep the shape, but {tuple(x.shape)} became {tuple(value.shape)}.")
        return straight_through(value, x, self.slope)

    def extra_repr(self) -> str:
        """What `repr` shows beside the activation, which it shows itself where that is a module."""
        return "" if isinstance(self.activation, nn.Module) else getattr(self.activation, "__name__", repr(self.activation))


class ForwardOnlyPass(TorchFunctionMode):
    """A context in which flat functions pass the gradient on unchanged, wherever a model calls them.

    Covers sign, floor, ceil, round and their kind; the values are those without it.

    Args:
        saturating: include sigmoid, tanh, ReLU, clamp and their kind.

    Cost: a few microseconds per function call inside.

    Example:
        >>> x = torch.tensor([0.7], requires_grad=True)
        >>> with ForwardOnlyPass():
        ...     y = torch.floor(x)
        >>> torch.autograd.grad(y.sum(), x)[0]
        tensor([1.])
    """

    def __init__(self, *, saturating: bool = False) -> None:
        super().__init__()
        self.functions = FLAT | SATURATING if saturating else FLAT

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        plain = _IN_PLACE.get(func, func)
        if plain not in self.functions or not args or not isinstance(args[0], Tensor) or not args[0].requires_grad:
            return func(*args, **kwargs)
        x, in_place = args[0], plain is not func or kwargs.get("inplace", False)
        if kwargs.get("inplace"):
            kwargs = {**kwargs, "inplace": False}
        out = plain(x, *args[1:], **kwargs)
        if out.shape != x.shape:
            return out
        return x.copy_(straight_through(out, x)) if in_place else straight_through(out, x)


def wrap_activations(model: nn.Module, kinds: tuple[type[nn.Module], ...] = MONOTONE) -> list[str]:
    """Wrap every activation module of a model into `ForwardOnly`, in place; parameters and state keep their names.

    Args:
        model: its submodules are replaced; activations that it calls as functions are not seen (use `ForwardOnlyPass`).
        kinds: the types that count; add your own staircase's.

    Returns:
        The names of what was wrapped, in the model's order.

    Raises:
        Usage: where the model itself is such an activation, which cannot be replaced inside itself.

    Cost: none.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1))
        >>> wrap_activations(model)
        ['1']
    """
    if isinstance(model, kinds):
        raise Usage(f"the model is itself a {type(model).__name__}: use ForwardOnly(model).")
    found = []
    for path, parent in list(model.named_modules()):
        if isinstance(parent, ForwardOnly):
            continue
        for name, child in list(parent._modules.items()):  # named_children leaves out a module that was seen before
            if isinstance(child, kinds):
                setattr(parent, name, ForwardOnly(child))
                found.append(f"{path}.{name}" if path else name)
    return found


def unwrap_activations(model: nn.Module) -> list[str]:
    """Undo `wrap_activations`, in place; returns the names of what was unwrapped.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid())
        >>> wrap_activations(model) == unwrap_activations(model), model[1]
        (True, Sigmoid())
    """
    found = []
    for path, parent in list(model.named_modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, ForwardOnly) and isinstance(child.activation, nn.Module):
                setattr(parent, name, child.activation)
                found.append(f"{path}.{name}" if path else name)
    return found


class ForwardOnlySGD(SGD):
    r"""Gradient descent along the forward-only update: the closure runs with flat functions passing gradients on unchanged.

    $\theta\leftarrow\theta-\eta\,\tilde g$, where $\tilde g$ is the gradient with $u'$ replaced by one (`ForwardOnlyPass`). For a layer
    $u(w^\top x)$ with the squared loss that is $E[(u(w^\top x)-y)\,x]$. PyTorch has no such rule: its gradient of a flat u is zero.

    Args:
        params: the parameters, or groups of them.
        lr: $\eta\ge0$.
        saturating: replace the derivatives of sigmoid, tanh, ReLU, clamp and their kind as well.
        max_norm: clip the update to this norm; None: never.

    Raises:
        ValueError: for a hyperparameter out of its range.

    Cost: as SGD.

    Example:
        >>> w = torch.tensor([2.0], requires_grad=True)
        >>> x, y = torch.tensor([1.0, -1.0]), torch.tensor([0.0, -1.0])
        >>> optimizer = ForwardOnlySGD([w], lr=0.5)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (torch.floor(w * x) - y).square().mean() / 2
        ...     loss.backward()
        ...     return loss
        >>> losses = [optimizer.step(closure).item() for _ in range(3)]
        >>> losses[0], losses[-1], w.item()
        (1.25, 0.0, 0.75)
    """

    def __init__(self, params: Any, lr: float, *, saturating: bool = False, max_norm: float | None = None) -> None:
        Rule.__init__(self, params, lr=lr, saturating=bool(saturating), max_norm=max_norm)

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """One step; the closure clears the gradients, computes the loss, calls backward and returns the loss."""
        with ForwardOnlyPass(saturating=any(group["saturating"] for group in self.param_groups)):
            return super().step(closure)
