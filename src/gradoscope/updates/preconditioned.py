"""Preconditioned steps, and the preconditioner that stands for whitened inputs."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradoscope.guard import untouched
from gradoscope.theory.whitening import patches, whitening
from gradoscope.updates._rule import Range, check

__all__ = ["Preconditioned", "whitened_groups"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Preconditioned(Optimizer):
    r"""Gradient descent with a matrix in place of the rate: $W\leftarrow W-\eta\,\nabla_W P$.

    A group whose "preconditioner" is P, shape (m, m), moves its parameters together: each is flattened to rows, one per output, and these
    are laid side by side to m columns (a weight and its bias: inputs and a one). P must be positive definite for a descent. Groups
    without one take plain gradient steps. PyTorch has no such rule.

    Args:
        params: the parameters or groups, such as those of `whitened_groups`.
        lr: $\eta\ge0$.

    Raises:
        ValueError: for a rate out of its range, or a preconditioner that does not fit its parameters.

    Cost per step: m multiplications per number.

    Example:
        >>> w = torch.tensor([[1.0, 1.0]], requires_grad=True)
        >>> optimizer = Preconditioned([{"params": [w], "preconditioner": torch.diag(torch.tensor([1.0, 0.01]))}], lr=0.5)
        >>> (w * w * torch.tensor([1.0, 100.0])).sum().backward()
        >>> optimizer.step()
        >>> w.tolist()
        [[0.0, 0.0]]
    """

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr, "preconditioner": None})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as any optimizer does; its preconditioner is checked."""
        check("Preconditioned", {"lr": Range()}, {"lr": param_group.get("lr", self.defaults["lr"])})
        matrix = param_group.get("preconditioner")
        if matrix is not None:
            params = param_group["params"]
            param_group["params"] = params = [params] if isinstance(params, Tensor) else list(params)
            sizes = [tuple(p.shape) for p in params]
            if any(p.is_complex() or p.dim() == 0 for p in params) or len({p.shape[0] for p in params}) != 1:
                raise ValueError(f"Preconditioned: a group needs real parameters with the same number of rows, got shapes {sizes}.")
            m = sum(_rows(p).shape[1] for p in params)
            if tuple(matrix.shape) != (m, m):
                raise ValueError(
                    f"Preconditioned: parameters of shapes {sizes} need a matrix of shape {(m, m)}, got {tuple(matrix.shape)}."
                )
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; the closure, where there is one, computes the loss, calls backward and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            matrix, params = group["preconditioner"], group["params"]
            if matrix is None:
                for p in params:
                    if p.grad is not None:
                        p.sub_(_dense(p), alpha=group["lr"])
            elif any(p.grad is not None for p in params):
                rows = [torch.zeros_like(_rows(p)) if p.grad is None else _rows(_dense(p)) for p in params]
                step = torch.cat(rows, 1) @ matrix.to(params[0])
                for p, part in zip(params, torch.split(step, [r.shape[1] for r in rows], dim=1), strict=True):
                    if p.grad is not None:
                        p.sub_(part.reshape(p.shape), alpha=group["lr"])
        return loss


def whitened_groups(
    model: nn.Module,
    *inputs: Any,
    layers: Sequence[str] | None = None,
    scale: Literal["largest", "unit"] = "largest",
    floor: float = 1e-10,
) -> list[dict[str, Any]]:
    r"""Groups for `Preconditioned` whose steps are those of gradient descent on a network with whitened inputs.

    A layer $Wx+b=W'T(x-\mu)+b'$ with the whitening T of its inputs: a gradient step on $(W',b')$ is one on (W, b) with the
    preconditioner $A^\top A$, $A=\begin{pmatrix}T&-T\mu\\0&1\end{pmatrix}$; without a bias $P=T^\top T=s^2C^{-1}$. The whitened network
    need not be built, and the weights are plain ones throughout.

    Args:
        model: the module.
        inputs: what it is called with, some thousand examples of the training data.
        layers: names of linear or convolutional layers (of one group); None: those that are fed with data that no weights have touched.
            A deeper layer's preconditioner is that of its inputs now, and ages as the layers below it learn.
        scale: "largest" keeps the largest eigenvalue of the inputs' covariance, and so the step size that it allows; "unit" is $C^{-1}$.
        floor: directions with less than this share of the largest eigenvalue are left alone.

    Returns:
        A group per whitened layer, and one with all other trainable parameters where there are any.

    Raises:
        ValueError: where no layer can be whitened, or one that is named cannot.

    Cost: one forward pass, and m^3 multiplications per layer.

    Example:
        >>> x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 100.0])
        >>> model = nn.Linear(2, 1, bias=False)
        >>> group = whitened_groups(model, x, scale="unit")[0]
        >>> bool(torch.allclose(group["preconditioner"] @ (x.T @ x / 1000).double(), torch.eye(2).double(), atol=1e-4))
        True

    Source: Le Cun, Bottou, Orr and Mueller 1998, Efficient BackProp, section 4.3.
    """
    named = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) or (isinstance(m, CONVOLUTIONS) and m.groups == 1)}
    if layers is not None and (odd := set(layers) - set(named)):
        raise ValueError(f"no linear or convolutional layer called {sorted(odd)}; there are: {', '.join(named) or 'none'}.")
    seen: dict[str, Tensor] = {}
    handles = []
    for name, module in named.items():

        def hook(layer: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            if name not in seen and (name in layers if layers is not None else not args[0].requires_grad):
                seen[name] = patches(layer, args[0].detach()).double()

        handles.append(module.register_forward_pre_hook(hook))
    try:
        with untouched(model, seed=0), torch.enable_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise ValueError("no linear or convolutional layer sees the data before any other weights do: name the layers to whiten.")
    groups = [_group(named[name], rows, scale, floor) for name, rows in seen.items()]
    taken = {id(p) for group in groups for p in group["params"]}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    return groups + ([{"params": rest}] if rest else [])


def _group(layer: nn.Module, rows: Tensor, scale: Literal["largest", "unit"], floor: float) -> dict[str, Any]:
    moment = rows.T @ rows / len(rows)
    if not isinstance(layer.bias, Tensor):
        t = whitening(moment, scale=scale, floor=floor)
        return {"params": [layer.weight], "preconditioner": t.matrix.T @ t.matrix}
    t = whitening(moment, rows.mean(0), scale=scale, floor=floor)
    m = len(moment)
    a = torch.eye(m + 1, dtype=moment.dtype, device=moment.device)
    a[:m, :m], a[:m, m] = t.matrix, -(t.matrix @ t.mean)
    return {"params": [layer.weight, layer.bias], "preconditioner": a.T @ a}


def _rows(p: Tensor) -> Tensor:
    return p.reshape(p.shape[0], -1)


def _dense(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad.to_dense() if p.grad.is_sparse else p.grad
