"""Piecewise-linear curves: the inverse of a well-posed map whose curvature spans eight orders of magnitude (F6)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from gradoscope.errors import Usage
from gradoscope.problems import problem
from gradoscope.problems._curves import (
    Windows,
    autoencoder_network,
    draw_anywhere,
    draw_breakpoints,
    draw_patterns,
    draw_slopes,
    integrator,
    windows,
)
from gradoscope.problems._data import generator
from gradoscope.theory.whitening import whitening
from gradoscope.training import Training

__all__ = [
    "Windows",
    "autoencoder",
    "autoencoder_network",
    "convolution",
    "draw_anywhere",
    "draw_breakpoints",
    "draw_patterns",
    "draw_slopes",
    "half_squared_error",
    "integrator",
    "linear",
    "whitened",
    "windows",
]

SOURCE = "Shalev-Shwartz, Shamir and Shammah 2017, section 4; extended version, section 4 and theorem 3"


def half_squared_error(output: Tensor, target: Tensor) -> Tensor:
    r"""$\frac1N\sum_i \frac12\lVert u_i - p_i\rVert^2$, the convention with the half, for which 2 is the limit of stability."""
    return 0.5 * (output - target).square().sum(dim=1).mean()


def _curves(law: str, n: int, k: int, seed: int, count: int, validation: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(curves, changes of slope) to train on and to validate on."""
    w, random = integrator(n), generator(seed, 3, n, k)
    p, p_validation = draw_slopes(law, count, n, k, random), draw_slopes(law, validation, n, k, random)
    return (p @ w.T, p), (p_validation @ w.T, p_validation)


def _optimizer(name: str, rate: float) -> Callable[[Any], Optimizer]:
    kinds: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad}
    if name not in kinds:
        raise Usage(f"curves have optimizer=sgd, adam or adagrad, not {name!r}.")
    return partial(kinds[name], lr=rate)


def _zero(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    return model


@problem(
    "curves:linear",
    obstacle="ill_conditioning",
    says="Read breakpoints off curves with one linear map: the safe step is a hundred million times too short for most of it.",
    source=SOURCE,
)
def linear(
    *,
    seed: int = 0,
    n: int = 100,
    k: int = 3,
    curves: int = 1000,
    validation: int = 1000,
    steps: int = 500,
    law: str = "paper",
    lr: float = 0.0,
    optimizer: str = "sgd",
    batch: int = 0,
) -> Training:
    r"""Learn U with $Uf\approx p$ from curves $f=Wp$, from U = 0; by default by full-batch gradient descent at $1/\lambda_{\max}$.

    The loss is $\frac12\lVert Uf-p\rVert^2$, so the Hessian is $I\otimes\frac1N\sum_i f_if_i^\top$ and $\lambda_{\max}$ is the
    largest eigenvalue of the empirical second moment, computed in float64; the training is in float64 as well, as
    a condition number near 1e8 is all that float32 resolves. The source's own setting is
    `optimizer=adam,lr=0.0001,batch=100,curves=10000,steps=50000,law=code`, in float32.

    Args:
        seed: what the curves are drawn from.
        n: points per curve.
        k: breakpoints per curve.
        curves: curves to train on.
        validation: curves to validate on.
        steps: optimizer steps.
        law: "paper" or "code", see `draw_slopes`.
        lr: step size; 0 takes 1/lambda_max for sgd and the source's 1e-4 else.
        optimizer: "sgd", "adam" or "adagrad".
        batch: curves per step; 0 takes all of them.

    Raises:
        Usage: where there are more breakpoints than points, or law and optimizer are others.
    """
    if not 1 <= k <= n:
        raise Usage(f"curves:linear needs 1 <= k <= n, got k={k}, n={n}.")
    (f, p), on = _curves(law, n, k, seed, curves, validation)
    safe = 1 / float(torch.linalg.eigvalsh(f.T @ f / curves)[-1])
    return Training(
        name="curves:linear",
        model=lambda: _zero(nn.Linear(n, n, bias=False, dtype=torch.float64)),
        optimizer=_optimizer(optimizer, lr or (safe if optimizer == "sgd" else 1e-4)),
        loss_fn=half_squared_error,
        data=(f, p),
        validation=on,
        batch_size=batch or curves,
        steps=steps,
    )


@problem(
    "curves:convolution",
    obstacle="ill_conditioning",
    says="Read breakpoints off curves with a filter of three taps: three numbers to learn, whose curvatures differ a millionfold.",
    source=SOURCE,
)
def convolution(
    *,
    seed: int = 0,
    n: int = 100,
    k: int = 3,
    curves: int = 400,
    validation: int = 400,
    steps: int = 300,
    law: str = "paper",
    lr: float = 0.0,
    optimizer: str = "sgd",
    batch: int = 0,
) -> Training:
    r"""Learn the filter $[1,-2,1]$ of a convolution from curves, from 0; by default by gradient descent at $1/\lambda_{\max}$.

    The Hessian of the mean squared error is 2C, C the second moment of the windows $(f_{t-2},f_{t-1},f_t)$, whose condition
    number is $1.5\,n^3$. Curves are extended by zeros before their start, where f is 0, so that the filter is exact at every
    point; the authors' code leaves out the first two points. Float64. The source's own setting is
    `optimizer=adam,lr=0.05,batch=100,curves=10000,steps=50000,law=code`.

    Args:
        seed: what the curves are drawn from.
        n: points per curve.
        k: breakpoints per curve.
        curves: curves to train on.
        validation: curves to validate on.
        steps: optimizer steps.
        law: "paper" or "code", see `draw_slopes`.
        lr: step size; 0 takes 1/lambda_max for sgd and the source's 0.05 else.
        optimizer: "sgd", "adam" or "adagrad".
        batch: curves per step; 0 takes all of them.

    Raises:
        Usage: where law and optimizer are others, or do not fit n and k.
    """
    (f, p), on = _curves(law, n, k, seed, curves, validation)
    safe = 1 / float(2 * torch.linalg.eigvalsh(_window_moment(f))[-1])

    def model() -> nn.Module:
        filter = nn.Conv1d(1, 1, 3, bias=False, dtype=torch.float64)
        return _zero(nn.Sequential(nn.Unflatten(1, (1, n)), nn.ConstantPad1d((2, 0), 0.0), filter, nn.Flatten()))

    return Training(
        name="curves:convolution",
        model=model,
        optimizer=_optimizer(optimizer, lr or (safe if optimizer == "sgd" else 0.05)),
        loss_fn=F.mse_loss,
        data=(f, p),
        validation=on,
        batch_size=batch or curves,
        steps=steps,
    )


def _window_moment(f: Tensor) -> Tensor:
    """The second moment of the windows of curves, shape (3, 3)."""
    rows = windows(f).reshape(-1, 3)
    return rows.T @ rows / len(rows)


@problem(
    "curves:whitened",
    obstacle="healthy",
    says="The same filter on windows whitened by the inverse root of their 3x3 covariance: every direction is learnt alike.",
    source=SOURCE,
)
def whitened(
    *,
    seed: int = 0,
    n: int = 100,
    k: int = 3,
    curves: int = 400,
    validation: int = 400,
    steps: int = 300,
    law: str = "paper",
    lr: float = 0.99,
    optimizer: str = "adam",
    batch: int = 10,
) -> Training:
    r"""Learn w on windows $C^{-1/2}F_t$, C their second moment on the training curves; the filter is $C^{-1/2}w$.

    The source's own setting but for the number of curves, of which it has 10,000. Float64.

    Args:
        seed: what the curves are drawn from.
        n: points per curve.
        k: breakpoints per curve.
        curves: curves to train on, and to estimate C from.
        validation: curves to validate on.
        steps: optimizer steps.
        law: "paper" or "code", see `draw_slopes`.
        lr: step size.
        optimizer: "sgd", "adam" or "adagrad".
        batch: curves per step.

    Raises:
        Usage: where law and optimizer are others, or do not fit n and k.
    """
    (f, p), on = _curves(law, n, k, seed, curves, validation)
    root = whitening(_window_moment(f), scale="unit").matrix

    def model() -> nn.Module:
        return _zero(nn.Sequential(Windows(root), nn.Linear(3, 1, bias=False, dtype=torch.float64), nn.Flatten()))

    return Training(
        name="curves:whitened",
        model=model,
        optimizer=_optimizer(optimizer, lr),
        loss_fn=F.mse_loss,
        data=(f, p),
        validation=on,
        batch_size=batch or curves,
        steps=steps,
    )


@problem(
    "curves:autoencoder",
    obstacle="healthy",
    says="A deep autoencoder with two code units per breakpoint: its loss falls by 99.5%, and the kinks, which hardly count, are missed.",
    source=SOURCE,
)
def autoencoder(
    *,
    seed: int = 0,
    n: int = 100,
    k: int = 3,
    curves: int = 1000,
    validation: int = 1000,
    steps: int = 1000,
    law: str = "paper",
    lr: float = 0.001,
    width: float = 1.0,
    depth: int = 0,
    batch: int = 100,
) -> Training:
    """Encode curves in 2k numbers and decode them, mean squared error, Adam, float32.

    The source counts it among the failures, as breakpoints cannot be read off what it decodes (the study `curves` measures that). The
    loss that it is trained on does fall: a kink that is rounded off costs that loss next to nothing.

    The source trains on 10,000 curves with real breakpoints (`law=anywhere`) for 50,000 steps.

    Args:
        seed: what the curves are drawn from.
        n: points per curve.
        k: breakpoints per curve.
        curves: curves to train on.
        validation: curves to validate on.
        steps: optimizer steps.
        law: "paper", "code", or "anywhere", see `draw_slopes` and `draw_anywhere`.
        lr: Adam's step size.
        width: factor on the hidden widths.
        depth: further layers, see `autoencoder_network`.
        batch: curves per step.

    Raises:
        Usage: where the law is another, or does not fit n and k.
    """
    if law == "anywhere":
        random = generator(seed, 3, n, k)
        f, f_validation = draw_anywhere(curves, n, k, random).float(), draw_anywhere(validation, n, k, random).float()
    else:
        (f, _), (f_validation, _) = (tuple(t.float() for t in pair) for pair in _curves(law, n, k, seed, curves, validation))
    return Training(
        name="curves:autoencoder",
        model=lambda: autoencoder_network(n, k, width, depth),
        optimizer=lambda params: torch.optim.Adam(params, lr=lr),
        loss_fn=F.mse_loss,
        data=(f, f),
        validation=(f_validation, f_validation),
        batch_size=batch or curves,
        steps=steps,
    )
