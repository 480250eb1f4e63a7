r"""The update rules of a lecture, in its exact form, with its slips mended: what each says, and how PyTorch's differs.

$t$ counts the steps of a parameter from 1, $g(t)=\nabla R(\theta(t-1))$ is its gradient, and all states start at zero.

| rule | the lecture | PyTorch's equal |
|---|---|---|
| `GD`, `SGD` | $\theta-\eta g$ | `SGD(lr=eta)` |
| `Momentum` | an average of gradients, bias corrected | `SGD(momentum=alpha)` with a learning rate that changes, see there |
| `NesterovA` | Sutskever's reading | `SGD(momentum=alpha, nesterov=True)`, which keeps the look-ahead point |
| `NesterovB` | the literal reading | none |
| `AdaGrad` | divides by delta + gamma | `Adagrad(lr=eta, eps=delta)` |
| `RMSProp` | a sum, without (1 - rho) | `RMSprop(lr=eta sqrt(1-rho), alpha=rho, eps=delta sqrt(1-rho))` |
| `Adam` | the sign mended | `Adam(lr=eta, betas=..., eps=...)` |

Source: Perraudin and Hofmann, Deep Learning, lecture 6, ETH Zurich 2018, section 2.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from gradoscope.updates._rule import LookAheadRule, Range, Rule

__all__ = ["GD", "SGD", "AdaGrad", "Adam", "Momentum", "NesterovA", "NesterovB", "RMSProp"]

RATE = Range()
SHARE = Range(0.0, 1.0)
POSITIVE = Range(closed=False)


class GD(Rule):
    r"""Gradient descent: $\theta(t)=\theta(t-1)-\eta\,\nabla R(\theta(t-1))$.

    Equal to `torch.optim.SGD(lr=eta)`. Called `SGD` where the gradient is that of a batch: the rule is the same.

    Args:
        params: the parameters, or groups of them.
        lr: $\eta\ge0$.
        max_norm: clip the gradient to this norm; None: never.

    Raises:
        ValueError: for a hyperparameter out of its range.

    Cost: one pass over the parameters per step.

    Example:
        >>> x = torch.tensor([2.0], requires_grad=True)
        >>> optimizer = GD([x], lr=0.25)
        >>> x.square().sum().backward()
        >>> optimizer.step()
        >>> x
        tensor([1.], requires_grad=True)
    """

    def __init__(self, params: Any, lr: float, *, max_norm: float | None = None) -> None:
        super().__init__(params, lr=lr, max_norm=max_norm)

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        p.add_(g, alpha=-group["lr"])


class SGD(GD):
    r"""Stochastic gradient descent: $\theta(t+1)=\theta(t)-\eta(t)\,\nabla R(t)$ with the gradient of a random batch; see `GD`.

    Example:
        >>> x = torch.tensor([1.0], requires_grad=True)
        >>> x.grad = torch.tensor([2.0])
        >>> SGD([x], lr=0.5).step()
        >>> x.item()
        0.0
    """


class Momentum(Rule):
    r"""Momentum as an average of gradients, with bias correction.

    $$m(t)=\alpha m(t-1)-(1-\alpha)g(t),\quad\hat m(t)=\frac{m(t)}{1-\alpha^t},\quad\theta(t)=\theta(t-1)+\eta\,\hat m(t)$$

    `torch.optim.SGD(momentum=alpha, dampening=0)` sums the gradients instead, $b(t)=\alpha b(t-1)+g(t)$. The two agree when its learning
    rate is $\eta(1-\alpha)/(1-\alpha^t)$; with a constant $\eta(1-\alpha)$ they agree only for large t, and its first step is
    $1-\alpha$ times as long. The first step here is that of plain SGD.

    Args:
        params: the parameters, or groups of them.
        lr: $\eta\ge0$.
        alpha: $0\le\alpha<1$.
        max_norm: clip the gradient to this norm; None: never.

    Raises:
        ValueError: for a hyperparameter out of its range.

    Cost: two passes over the parameters per step; one number kept per parameter.

    Example:
        >>> x = torch.tensor([1.0], requires_grad=True)
        >>> x.grad = torch.tensor([2.0])
        >>> Momentum([x], lr=0.25).step()
        >>> x.item()
        0.5
    """

    ranges: ClassVar[dict[str, Range]] = {"lr": RATE, "alpha": SHARE}

    def __init__(self, params: Any, lr: float, alpha: float = 0.9, *, max_norm: float | None = None) -> None:
        super().__init__(params, lr=lr, alpha=alpha, max_norm=max_norm)

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        m, alpha = _average(p, g, state, group["alpha"], -1.0), group["alpha"]
        p.add_(m, alpha=group["lr"] / (1 - alpha ** state["t"]))


class NesterovA(LookAheadRule):
    r"""Nesterov's momentum as Sutskever wrote it, one of two readings of the lecture's formula.

    $$v(t)=\alpha v(t-1)-\epsilon\,\nabla R(\theta(t-1)+\alpha v(t-1)),\quad\theta(t)=\theta(t-1)+v(t)$$

    The lecture writes v with a step $\epsilon$, the look ahead with $\eta\alpha\hat m$, and no update of $\theta$; this reading takes v
    for both. `torch.optim.SGD(lr=epsilon, momentum=alpha, nesterov=True)` makes the same steps but holds the point of the look ahead:
    its parameters after t steps are $\theta(t)+\alpha v(t)$, so that the loss logged there is the one at that point.

    Args:
        params: the parameters, or groups of them.
        lr: $\epsilon\ge0$; a step is up to $1/(1-\alpha)$ times as long as that of SGD at the same rate.
        alpha: $0\le\alpha<1$.
        max_norm: clip the gradient to this norm; None: never.

    Raises:
        ValueError: for a hyperparameter out of its range.

    Cost: four passes over the parameters per step; one number kept per parameter.

    Example:
        >>> x = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = NesterovA([x], lr=0.25, alpha=0.5)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = x.square().sum()
        ...     loss.backward()
        ...     return loss
        >>> [(optimizer.step(closure).item(), x.item()) for _ in range(2)]
        [(1.0, 0.5), (0.0625, 0.125)]

    Source: Sutskever, Martens, Dahl and Hinton 2013, On the importance of initialization and momentum in deep learning.
    """

    ranges: ClassVar[dict[str, Range]] = {"lr": RATE, "alpha": SHARE}

    def __init__(self, params: Any, lr: float, alpha: float = 0.9, *, max_norm: float | None = None) -> None:
        super().__init__(params, lr=lr, alpha=alpha, max_norm=max_norm)

    def shift(self, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        v: Tensor = state["v"]
        return v * float(group["alpha"])

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        v = _kept(state, "v", p)
        v.mul_(group["alpha"]).sub_(g, alpha=group["lr"])
        p.add_(v)


class NesterovB(LookAheadRule):
    r"""Nesterov's momentum in the literal reading of the lecture: its own momentum, with the gradient taken ahead.

    $$m(t)=\alpha m(t-1)-(1-\alpha)\nabla R(\theta(t-1)+\eta\alpha\hat m(t-1)),\quad\hat m(t)=\frac{m(t)}{1-\alpha^t},
    \quad\theta(t)=\theta(t-1)+\eta\,\hat m(t)$$
    with $\hat m(0)=0$. PyTorch has no such rule; it differs from `NesterovA` through the bias correction, and tends to it with
    $\epsilon=\eta(1-\alpha)$ as t grows.

    Args:
        params: the parameters, or groups of them.
        lr: $\eta\ge0$.
        alpha: $0\le\alpha<1$.
        max_norm: clip the gradient to this norm; None: never.

    Raises:
        ValueError: for a hyperparameter out of its range.

    Cost: four passes over the parameters per step; one number kept per parameter.

    Example:
        >>> x = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = NesterovB([x], lr=0.25, alpha=0.5)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = x.square().sum()
        ...     loss.backward()
        ...     return loss
        >>> [(optimizer.step(closure).item(), x.item()) for _ in range(2)]
        [(1.0, 0.5), (0.0625, 0.25)]
    """

    ranges: ClassVar[dict[str, Range]] = {"lr": RATE, "alpha": SHARE}

    def __init__(self, params: Any, lr: float, alpha: float = 0.9, *, max_norm: float | None = None) -> None:
        super().__init__(params, lr=lr, alpha=alpha, max_norm=max_norm)

    def shift(self, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        m: Tensor = state["m"]
        return m * float(group["lr"] * group["alpha"] / (1 - group["alpha"] ** state["t"]))

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        m, alpha = _average(p, g, state, group["alpha"], -1.0), group["alpha"]
        p.add_(m, alpha=group["lr"] / (1 - alpha ** state["t"]))


class AdaGrad(Rule):
    r"""Each parameter's own rate, from all its gradients so far.

    $$\gamma_i^2(t)=\sum_{s\le t}g_{is}^2,\quad\theta_i(t)=\theta_i(t-1)-\frac{\eta}{\delta+\gamma_i(t)}\,g_{it}$$

    The lecture divides by $\gamma_i$, the root of the sum, though it is easily read without it. Equal to
    `torch.optim.Adagrad(lr=eta, lr_decay=0, initial_accumulator_value=0, eps=delta)`.

    Args:
        params: the parameters, or groups of them.
        lr: $\eta\ge0$.
        delta: $\delta>0$.
        max_norm: clip the gradient to this norm; None: never.

    Raises:
        ValueError: for a hyperparameter out of its range.

    Cost: three passes over the parameters per step; one number kept per parameter.

    Example:
        >>> x = torch.tensor([1.0, 1.0], requires_grad=True)
        >>> x.grad = torch.tensor([100.0, 0.01])
        >>> AdaGrad([x], lr=0.5, delta=1e-12).step()
        >>> x.tolist()
        [0.5, 0.5]

    Source: Duchi, Hazan and Singer 2011, Adaptive subgradient methods for online learning and stochastic optimization.
    """

    ranges: ClassVar[dict[str, Range]] = {"lr": RATE, "delta": POSITIVE}

    def __init__(self, params: Any, lr: float, delta: float = 1e-10, *, max_norm: float | None = None) -> None:
        super().__init__(params, lr=lr, delta=delta, max_norm=max_norm)

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        total = _kept(state, "squares", p)
        total.addcmul_(g, g)
        p.addcdiv_(g, total.sqrt().add_(group["delta"]), value=-group["lr"])


class RMSProp(Rule):
    r"""AdaGrad that forgets.

    $$\gamma_i^2(t)=\sum_{s\le t}\rho^{t-s}g_{is}^2,\quad\theta_i(t)=\theta_i(t-1)-\frac{\eta}{\delta+\gamma_i(t)}\,g_{it}$$

    The lecture's sum has no factor $1-\rho$, so that $\gamma$ is $1/\sqrt{1-\rho}$ times what `torch.optim.RMSprop` divides by: this is
    `torch.optim.RMSprop(lr=eta*sqrt(1-rho), alpha=rho, eps=delta*sqrt(1-rho), momentum=0, centered=False)`. The same learning rate
    passed there directly makes steps that are $1/\sqrt{1-\rho}$ times as long.

    Args:
        params: the parameters, or groups of them.
        lr: $\eta\ge0$.
        rho: $0\le\rho<1$.
        delta: $\delta>0$.
        max_norm: clip the gradient to this norm; None: never.

    Raises:
        ValueError: for a hyperparameter out of its range.

    Cost: three passes over the parameters per step; one number kept per parameter.

    Example:
        >>> x = torch.tensor([1.0], requires_grad=True)
        >>> x.grad = torch.tensor([4.0])
        >>> RMSProp([x], lr=0.5, rho=0.9).step()
        >>> round(x.item(), 6)
        0.5
    """

    ranges: ClassVar[dict[str, Range]] = {"lr": RATE, "rho": SHARE, "delta": POSITIVE}

    def __init__(self, params: Any, lr: float, rho: float = 0.9, delta: float = 1e-8, *, max_norm: float | None = None) -> None:
        super().__init__(params, lr=lr, rho=rho, delta=delta, max_norm=max_norm)

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        total = _kept(state, "squares", p)
        total.mul_(group["rho"]).addcmul_(g, g)
        p.addcdiv_(g, total.sqrt().add_(group["delta"]), value=-group["lr"])


class Adam(Rule):
    r"""Adam, with the sign of the last line mended.

    $$m=\beta_1m+(1-\beta_1)g,\quad v=\beta_2v+(1-\beta_2)g^2,\quad
    \theta\leftarrow\theta\mathbf{-}\eta\,\frac{m/(1-\beta_1^t)}{\sqrt{v/(1-\beta_2^t)}+\epsilon}$$

    The lecture adds the step, though its m averages +g and not -g as in its momentum: so written it climbs. With minus it is
    `torch.optim.Adam(lr=eta, betas=(beta1, beta2), eps=epsilon)`.

    Args:
        params: the parameters, or groups of them.
        lr: $\eta\ge0$.
        beta1: $0\le\beta_1<1$.
        beta2: $0\le\beta_2<1$.
        eps: $\epsilon>0$.
        max_norm: clip the gradient to this norm; None: never.

    Raises:
        ValueError: for a hyperparameter out of its range.

    Cost: five passes over the parameters per step; two numbers kept per parameter.

    Example:
        >>> x = torch.tensor([1.0], requires_grad=True)
        >>> x.grad = torch.tensor([4.0])
        >>> Adam([x], lr=0.5).step()
        >>> round(x.item(), 6)
        0.5

    Source: Kingma and Ba 2014, Adam: a method for stochastic optimization.
    """

    ranges: ClassVar[dict[str, Range]] = {"lr": RATE, "beta1": SHARE, "beta2": SHARE, "eps": POSITIVE}

    def __init__(
        self, params: Any, lr: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, *, max_norm: float | None = None
    ) -> None:
        super().__init__(params, lr=lr, beta1=beta1, beta2=beta2, eps=eps, max_norm=max_norm)

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta1, beta2 = group["beta1"], group["beta2"]
        m = _average(p, g, state, beta1, 1.0)
        v = _kept(state, "v", p)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        root = (v / (1 - beta2 ** state["t"])).sqrt_().add_(group["eps"])
        p.addcdiv_(m, root, value=-group["lr"] / (1 - beta1 ** state["t"]))


def _average(p: Tensor, g: Tensor, state: dict[str, Any], share: float, sign: float) -> Tensor:
    """The moving average of `sign` times the gradient, one step on, and the count of its steps."""
    state["t"] = state.get("t", 0) + 1
    return _kept(state, "m", p).mul_(share).add_(g, alpha=sign * (1 - share))


def _kept(state: dict[str, Any], name: str, p: Tensor) -> Tensor:
    """A number per parameter that the rule keeps, zero at first."""
    if name not in state:
        state[name] = torch.zeros_like(p)
    kept: Tensor = state[name]
    return kept
