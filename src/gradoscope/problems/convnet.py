"""One shared ReLU filter: inputs, starts and overlaps for which gradient descent succeeds, waits at a degenerate saddle, or fails."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradoscope.errors import Usage
from gradoscope.guard import private_random
from gradoscope.problems import problem
from gradoscope.problems._data import generator
from gradoscope.theory import convnet as theory
from gradoscope.theory import set_splitting
from gradoscope.theory.exact import differentiable
from gradoscope.theory.overlap import SharedFilter, descend, on_sphere
from gradoscope.training import Training

__all__ = ["ConvNet", "ExpectedLoss", "gaussian", "overlap", "restarted", "saddle", "splitting", "splitting_gaussian"]

SOURCE = "Brutzkus and Globerson 2017, Globally optimal gradient descent for a ConvNet with Gaussian inputs; Globerson's slides"
Pair = tuple[Tensor, Tensor]


class ConvNet(nn.Module):
    r"""$f(x)=\frac1k\sum_{i<k}\max(w\cdot x[i],0)$ with patches $x[i]$ of m numbers, `stride` apart; w starts uniform on a sphere.

    Args:
        m: size of the filter.
        k: patches.
        stride: from one patch to the next; 0 for m, patches that do not overlap.
        size: |w| at the start.

    Example:
        >>> ConvNet(4, 3)(torch.zeros(5, 12)).shape
        torch.Size([5, 1])
    """

    def __init__(self, m: int, k: int, stride: int = 0, size: float = 1.0) -> None:
        super().__init__()
        self.m, self.k, self.stride, self.size = m, k, stride or m, size
        self.w = nn.Parameter(torch.empty(m))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw another direction."""
        _redraw(self.w, self.size)

    def forward(self, x: Tensor) -> Tensor:
        """x of shape (N, m + (k - 1) stride); returns (N, 1)."""
        return torch.relu(x.unfold(1, self.m, self.stride)[:, : self.k] @ self.w).mean(1, keepdim=True)


class ExpectedLoss(nn.Module):
    """The filter of a `ConvNet` without overlap, which gives its expected loss over Gaussian inputs, in closed form.

    Autograd gets the closed form's own derivatives. On a sample it would see none of the curvature that the kinks of the ReLU
    make: piecewise linear in w, the network has a Hessian of $2E\\nabla f\\nabla f^\\top$ there, positive even at a saddle.

    Example:
        >>> net = ExpectedLoss(3, 5)
        >>> float(net(net.w.detach()[None]).detach()) < 1e-12
        True
    """

    def __init__(self, m: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.w = nn.Parameter(torch.empty(m, dtype=torch.float64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw another direction."""
        _redraw(self.w, 1.0)

    def forward(self, targets: Tensor) -> Tensor:
        """Teachers' filters, shape (N, m); returns the mean of the expected losses."""

        def mean(of: Callable[[Tensor, Tensor, int], Tensor]) -> Callable[[Tensor], Tensor]:
            return lambda w: of(w.expand_as(targets), targets, self.k).mean(0)

        return differentiable(mean(theory.loss), mean(theory.gradient), mean(theory.hessian))(self.w)


def _redraw(w: Tensor, size: float) -> None:
    with torch.no_grad():
        w.normal_()
        w.mul_(size / w.norm())


def _placed(make: Callable[[], nn.Module], w: Tensor) -> nn.Module:
    """A module that stands at w, and not a factory: whoever draws a new start for it gets a random one."""
    with private_random(0):
        net = make()
    with torch.no_grad():
        next(net.parameters()).copy_(w)
    return net


def _gaussian(target: Tensor, k: int, stride: int) -> Callable[[torch.Generator, int], Pair]:
    """Fresh standard normal inputs with the answers of the filter `target`."""
    m = len(target)

    def draw(random: torch.Generator, n: int) -> Pair:
        x = torch.randn(n, m + (k - 1) * stride, generator=random)
        return x, torch.relu(x.unfold(1, m, stride) @ target).mean(1, keepdim=True)

    return draw


def _training(
    name: str, net: nn.Module | Callable[[], nn.Module], data: object, validation: object, *, lr: float, batch: int, steps: int
) -> Training:
    return Training(
        name=name,
        model=net,
        optimizer=lambda params: torch.optim.SGD(params, lr=lr),
        loss_fn=nn.functional.mse_loss,
        data=data,
        validation=validation,
        batch_size=batch,
        steps=steps,
        noise_free=True,
    )


@problem(
    "convnet:gaussian",
    obstacle="healthy",
    says="A shared filter over patches that do not overlap, Gaussian inputs: gradient descent finds the teacher from every start.",
    source=SOURCE,
)
def gaussian(*, seed: int = 0, m: int = 8, k: int = 5, step: float = 0.5, batch: int = 256, steps: int = 150) -> Training:
    """Learn the shared filter of a teacher of length 1 from fresh Gaussian inputs, from a random start of length 1.

    The expected loss has the minimum w*, the degenerate saddle $-\\alpha w^*$ and the maximum 0, and no other critical point.

    Args:
        seed: what the teacher is drawn from.
        m: size of a patch.
        k: patches.
        step: step size in units of the limit $k^2/(2\\gamma)$ of the expected loss.
        batch: fresh inputs per step.
        steps: optimizer steps.
    """
    _check(m, k)
    target = on_sphere(1, m, generator(seed, 51, m))[0].float()
    draw = _gaussian(target, k, m)
    return _training("convnet:gaussian", lambda: ConvNet(m, k), draw, draw, lr=step * theory.step_limit(k), batch=batch, steps=steps)


def _beside_saddle(seed: int, m: int, k: int, angle: float) -> tuple[Tensor, Tensor]:
    """A teacher of length 1, and a start of length alpha whose angle to it is pi - `angle`."""
    _check(m, k)
    if k < 2 or m < 2 or not 0 < angle < math.pi:
        raise Usage(f"a start beside the saddle needs k >= 2, m >= 2 and an angle in (0, pi), got k={k}, m={m}, angle={angle}.")
    target, other = on_sphere(2, m, generator(seed, 52, m))
    across = nn.functional.normalize(other - (other @ target) * target, dim=0)
    return target, theory.constants(k)[0] * (math.sin(angle) * across - math.cos(angle) * target)


@problem(
    "convnet:saddle",
    obstacle="saddle_point",
    says="The same filter started beside -alpha w*: a degenerate saddle, where the way out takes a time of one over the distance.",
    source=SOURCE,
)
def saddle(*, seed: int = 0, m: int = 8, k: int = 5, angle: float = 0.05, step: float = 0.5, rows: int = 0, steps: int = 100) -> Training:
    r"""Gradient descent on the expected loss from $|w|=\alpha$, an angle of `angle` away from the saddle's direction.

    At the saddle all eigenvalues but one are 0. Beside it they are $-\frac{\varphi}{\pi k\alpha}$ and, towards w*, twice that; the
    gradient is $\varphi^2/(\pi k)$. The way to the other half-space takes $\pi k\alpha/(\lambda\varphi)$ steps: 160 here, and the
    training ends after 100.

    Args:
        seed: what the teacher and the side of the start are drawn from.
        m: size of a patch.
        k: patches.
        angle: $\varphi$.
        step: $\lambda$ in units of the limit $k^2/(2\gamma)$.
        rows: 0 for the expected loss, else so many fixed inputs, used whole at each step. A sample pushes sideways by some
            $1/\sqrt{rows}$, and its kinks hide all negative curvature from autograd.
        steps: optimizer steps.

    Raises:
        Usage: for k < 2, m < 2, or an angle outside (0, pi).
    """
    target, w = _beside_saddle(seed, m, k, angle)
    lr = step * theory.step_limit(k)
    if rows:
        draw = _gaussian(target.float(), k, m)
        data, validation = draw(generator(seed, 54), rows), draw(generator(seed, 55), rows)
        net = _placed(lambda: ConvNet(m, k), w)
        return _training("convnet:saddle", net, data, validation, lr=lr, batch=rows, steps=steps)
    return Training(
        name="convnet:saddle",
        model=_placed(lambda: ExpectedLoss(m, k), w),
        optimizer=lambda params: torch.optim.SGD(params, lr=lr),
        batch_loss=lambda model, batch: model(batch[0]),
        data=[(target[None],)],
        steps=steps,
        noise_free=True,
    )


def _overlapping(seed: int, m: int, k: int, stride: int) -> tuple[SharedFilter, Tensor, Callable[[torch.Generator, int], Pair]]:
    """The network, a teacher with bad minima, and data."""
    _check(m, k)
    if m < 2 or not 1 <= stride < m:
        raise Usage(f"filters overlap where 1 <= stride < m, got m={m}, stride={stride}.")
    target = torch.ones(m, dtype=torch.float64)
    target[::2] = -1
    target = target / target.norm()
    return SharedFilter(m, stride, k), target, _gaussian(target.float(), k, stride)


@problem(
    "convnet:overlap",
    obstacle="local_minimum",
    says="Patches that overlap: from this start gradient descent ends in a strict local minimum, from most others at the teacher.",
    source=SOURCE,
)
def overlap(*, seed: int = 0, m: int = 2, k: int = 2, stride: int = 1, step: float = 0.8, rows: int = 4000, steps: int = 200) -> Training:
    r"""Learn the filter $(-1,1)/\sqrt2$ (of m: alternating signs) from a start in the basin of a bad minimum.

    With m = 2, stride 1 and k = 2 that is $w=(0.3883,-0.3883)$ with the expected loss 0.19364 and the eigenvalues 0.3865 and
    0.5545. The start is the first of random ones from which descent on the expected loss ends above 0.

    Args:
        seed: what inputs and starts are drawn from.
        m: size of a patch.
        k: patches.
        stride: from one patch to the next, below m.
        step: step size in units of $k^2/(2\gamma)$.
        rows: inputs, all of them at each step.
        steps: optimizer steps.

    Raises:
        Usage: where the patches do not overlap, or none of 200 random starts ends badly.
    """
    net, target, draw = _overlapping(seed, m, k, stride)
    starts = on_sphere(200, m, generator(seed, 56, m))
    ends = descend(net, starts, target, step=step, steps=3000)
    bad = starts[(ends.losses > 1e-6) & (ends.gradients < 1e-9)]
    if not len(bad):
        raise Usage(f"of 200 random starts none ends in a bad minimum for m={m}, stride={stride}, k={k}.")
    data, validation = draw(generator(seed, 57), rows), draw(generator(seed, 58), rows)
    placed = _placed(lambda: ConvNet(m, k, stride), bad[0])
    return _training("convnet:overlap", placed, data, validation, lr=step * net.step_limit, batch=rows, steps=steps)


@problem(
    "convnet:overlap-restarted",
    obstacle="healthy",
    says="The same network, data and step size from the first random start that does not end badly.",
    source=SOURCE,
)
def restarted(*, seed: int = 0, m: int = 2, k: int = 2, stride: int = 1, step: float = 0.8, rows: int = 4000, steps: int = 200) -> Training:
    """`convnet:overlap` from a random start that lies in the basin of the teacher; the options are its."""
    net, target, draw = _overlapping(seed, m, k, stride)
    starts = on_sphere(200, m, generator(seed, 56, m))
    good = starts[descend(net, starts, target, step=step, steps=3000).losses <= 1e-6]
    data, validation = draw(generator(seed, 57), rows), draw(generator(seed, 58), rows)
    placed = _placed(lambda: ConvNet(m, k, stride), good[0])
    return _training("convnet:overlap-restarted", placed, data, validation, lr=step * net.step_limit, batch=rows, steps=steps)


def _splitting(seed: int, elements: int, sets: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs (n, 2, d), labels (n,) and the planted sides of a solvable instance; each input has a scale of its own."""
    random = generator(seed, 59, elements, sets)
    instance = set_splitting.planted(elements, sets, random)
    scales = 0.5 + torch.rand(elements + sets, generator=random, dtype=torch.float64)
    assert instance.sides is not None
    return *set_splitting.samples(instance, scales=scales), instance.sides


def _on_samples(name: str, x: Tensor, y: Tensor, step: float, steps: int) -> Training:
    n, k, m = x.shape
    lr = step / set_splitting.smoothness(x)
    data = x.flatten(1).float(), y[:, None].float()
    return _training(name, lambda: ConvNet(m, k, size=math.sqrt(m)), data, None, lr=lr, batch=n, steps=steps)


@problem(
    "convnet:set-splitting",
    obstacle="local_minimum",
    says="Inputs that encode set splitting: a filter without error exists, to find it is NP-hard, and descent ends in one of many minima.",
    source=f"{SOURCE}: hard for arbitrary inputs; the encoding is derived here",
)
def splitting(*, seed: int = 0, elements: int = 24, sets: int = 36, step: float = 1.0, steps: int = 1000) -> Training:
    r"""Full-batch descent of a filter on two patches, on a planted solvable instance (`theory.set_splitting.samples`).

    Every error of zero fixes the size of a weight, and the signs must split every set. The scale of each input with its label is
    drawn from (0.5, 1.5), which changes no solution.

    Args:
        seed: what the instance is drawn from.
        elements: m, the size of the filter.
        sets: sets of three; from 1 to 2 per element no random start succeeds.
        step: step size in units of one over the bound of the curvature.
        steps: optimizer steps.
    """
    x, y, _ = _splitting(seed, elements, sets)
    return _on_samples("convnet:set-splitting", x, y, step, steps)


@problem(
    "convnet:set-splitting-gaussian",
    obstacle="healthy",
    says="The same model, teacher and optimizer with Gaussian inputs: solved from every start.",
    source=SOURCE,
)
def splitting_gaussian(
    *, seed: int = 0, elements: int = 24, sets: int = 36, rows: int = 240, step: float = 1.0, steps: int = 1000
) -> Training:
    """The teacher of `convnet:set-splitting` on `rows` Gaussian inputs; a sample of two per weight has minima of its own.

    Args:
        seed: what instance and inputs are drawn from.
        elements: m, the size of the filter.
        sets: of the instance whose solution is the teacher.
        rows: inputs, all of them at each step.
        step: step size in units of one over the bound of the curvature.
        steps: optimizer steps.
    """
    _, _, sides = _splitting(seed, elements, sets)
    x, y = set_splitting.gaussian_samples(rows, 2, sides, generator(seed, 60))
    return _on_samples("convnet:set-splitting-gaussian", x, y, step, steps)


def _check(m: int, k: int) -> None:
    if m < 1 or k < 1:
        raise Usage(f"a shared filter needs m and k of at least 1, got m={m}, k={k}.")
