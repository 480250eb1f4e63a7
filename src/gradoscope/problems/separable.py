"""Wide networks on linearly separable data: leaky ReLUs always succeed, ReLUs can be dead; two digits as real data."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradoscope.errors import Usage
from gradoscope.guard import private_random
from gradoscope.problems import problem
from gradoscope.problems._data import generator
from gradoscope.problems._mnist import has_mnist, images
from gradoscope.theory.separable import dead_minimum
from gradoscope.training import Training

__all__ = ["WideLeaky", "dead", "hinge", "leaky", "narrow", "real", "separated", "two_digits", "wide"]

SOURCE = "Brutzkus, Globerson, Malach and Shalev-Shwartz 2018, SGD learns over-parameterized networks on linearly separable data"
Pair = tuple[Tensor, Tensor]


class WideLeaky(nn.Module):
    r"""$f(x)=v(\sum_i\sigma(w_i\cdot x)-\sum_i\sigma(u_i\cdot x))$, $\sigma(z)=\max(z,az)$; only the first layer is trained.

    Args:
        d: inputs.
        k: units of each sign.
        slope: a; 0 for ReLUs.
        v: size of the output weights; 0 for $1/\sqrt{2k}$.
        size: Frobenius norm of the start.

    Example:
        >>> WideLeaky(3, 5, slope=0.1)(torch.zeros(4, 3)).shape
        torch.Size([4])
    """

    def __init__(self, d: int, k: int, *, slope: float, v: float = 0.0, size: float = 1.0) -> None:
        super().__init__()
        self.k, self.slope, self.v, self.size = k, slope, v or 1 / math.sqrt(2 * k), size
        self.weight = nn.Parameter(torch.empty(2 * k, d))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw another start: normal numbers, scaled to the norm."""
        with torch.no_grad():
            self.weight.normal_()
            self.weight.mul_(self.size / self.weight.norm())

    def forward(self, x: Tensor) -> Tensor:
        """x of shape (N, d); returns (N,)."""
        z = nn.functional.leaky_relu(x @ self.weight.T, self.slope)
        return self.v * (z[:, : self.k].sum(1) - z[:, self.k :].sum(1))


def hinge(output: Tensor, target: Tensor) -> Tensor:
    """The mean of max(0, 1 - y f)."""
    return torch.relu(1 - target * output).mean()


def _right(output: Tensor, target: Tensor) -> float:
    return float((output * target > 0).double().mean())


def separated(n: int, d: int, margin: float, w: Tensor, random: torch.Generator) -> Pair:
    r"""n examples uniform on the unit sphere, given $|w\cdot x|\ge$ margin, with labels sign(w.x); float64.

    Args:
        n: how many.
        d: dimension.
        margin: at least so far from the plane, below 1.
        w: the plane's unit normal, shape (d,).
        random: where they are drawn from.
    """
    x = torch.empty(0, d, dtype=torch.float64)
    while len(x) < n:
        more = nn.functional.normalize(torch.randn(4 * n, d, generator=random, dtype=torch.float64), dim=1)
        x = torch.cat([x, more[(more @ w).abs() >= margin]])
    return x[:n], torch.sign(x[:n] @ w)


def _training(
    name: str,
    net: nn.Module | Callable[[], nn.Module],
    train: Pair,
    validation: Pair | None,
    *,
    lr: float,
    batch: int,
    steps: int,
) -> Training:
    return Training(
        name=name,
        model=net,
        optimizer=lambda params: torch.optim.SGD(params, lr=lr),
        loss_fn=hinge,
        data=tuple(t.float() for t in train),
        validation=None if validation is None else tuple(t.float() for t in validation),
        metric=_right,
        batch_size=batch,
        steps=steps,
    )


def _sphere(seed: int, n: int, d: int, margin: float) -> tuple[Tensor, Pair, Pair]:
    """A plane's normal, examples to train on, and as many to validate."""
    if d < 2 or n < 2 or not 0 <= margin < 0.9:
        raise Usage(f"separable data need d >= 2, n >= 2 and a margin in [0, 0.9), got d={d}, n={n}, margin={margin}.")
    random = generator(seed, 61, d, n)
    w = nn.functional.normalize(torch.randn(d, generator=random, dtype=torch.float64), dim=0)
    return w, separated(n, d, margin, w, random), separated(n, d, margin, w, random)


@problem(
    "separable:leaky",
    obstacle="healthy",
    says="A wide leaky network on separable data, SGD on one example at a time: it converges after few updates, whatever its width.",
    source=SOURCE,
)
def leaky(
    *,
    seed: int = 0,
    k: int = 100,
    d: int = 20,
    n: int = 400,
    margin: float = 0.15,
    slope: float = 0.5,
    lr: float = 1.0,
    batch: int = 1,
    steps: int = 2000,
) -> Training:
    """Hinge loss, first layer only, output weights of 1 over the root of the width.

    Args:
        seed: what the data are drawn from.
        k: units of each sign.
        d: inputs, on the unit sphere.
        n: examples.
        margin: distance of all of them from the plane that tells their labels.
        slope: of the activation below 0.
        lr: step size.
        batch: examples per step.
        steps: optimizer steps.
    """
    _, train, validation = _sphere(seed, n, d, margin)
    return _training("separable:leaky", lambda: WideLeaky(d, k, slope=slope), train, validation, lr=lr, batch=batch, steps=steps)


@problem(
    "separable:relu-dead",
    obstacle="local_minimum",
    says="ReLUs started in the flat bad minimum that exists for any separable data: all are off on positive examples.",
    source=SOURCE,
)
def dead(
    *, seed: int = 0, k: int = 10, d: int = 20, n: int = 400, margin: float = 0.15, lr: float = 0.3, batch: int = 20, steps: int = 400
) -> Training:
    r"""The start is $w_i=-w$, $u_i=-cw$: the loss is the share of positive examples, and constant all around.

    Args:
        seed: what the data are drawn from.
        k: units of each sign.
        d: inputs.
        n: examples.
        margin: of the data.
        lr: step size.
        batch: examples per step.
        steps: optimizer steps.
    """
    w, train, validation = _sphere(seed, n, d, margin)
    net = _started(lambda: WideLeaky(d, k, slope=0.0), dead_minimum(w / margin, k, 1 / math.sqrt(2 * k)))
    return _training("separable:relu-dead", net, train, validation, lr=lr, batch=batch, steps=steps)


def _started(make: Callable[[], nn.Module], weights: Tensor) -> nn.Module:
    with private_random(0):
        net = make()
    with torch.no_grad():
        next(net.parameters()).copy_(weights)
    return net


def _axes(d: int) -> Pair:
    y = torch.ones(d, dtype=torch.float64)
    y[1::2] = -1  # by symmetry labels change nothing, but that no constant answers them all
    return torch.eye(d, dtype=torch.float64), y


@problem(
    "separable:relu-narrow",
    obstacle="vanishing_gradient",
    says="One pair of ReLUs and 64 orthogonal examples: half of them are seen by no unit that could help, and stay lost.",
    source=SOURCE,
)
def narrow(*, seed: int = 0, k: int = 1, d: int = 64, slope: float = 0.0, lr: float = 1.0, batch: int = 8, steps: int = 600) -> Training:
    r"""Examples $(e_j,\pm1)$; one with +1 is lost where all k entries $w_{ij}$ are negative, so $P(\text{success})=(1-2^{-k})^d$.

    Args:
        seed: not used: the data are fixed, the start is drawn by the training.
        k: units of each sign.
        d: inputs and examples.
        slope: 0 for ReLUs; anything above always succeeds.
        lr: step size.
        batch: examples per step.
        steps: optimizer steps.
    """
    del seed
    return _training("separable:relu-narrow", lambda: WideLeaky(d, k, slope=slope), _axes(d), None, lr=lr, batch=batch, steps=steps)


@problem(
    "separable:relu-wide",
    obstacle="healthy",
    says="The same examples and twenty pairs of ReLUs: every example has a unit that sees it.",
    source=SOURCE,
)
def wide(*, seed: int = 0, k: int = 20, d: int = 64, lr: float = 1.0, batch: int = 8, steps: int = 600) -> Training:
    """`separable:relu-narrow` with a width of log2(d / delta) and more."""
    del seed
    return _training("separable:relu-wide", lambda: WideLeaky(d, k, slope=0.0), _axes(d), None, lr=lr, batch=batch, steps=steps)


def two_digits(data: str, seed: int, train: int = 3000, test: int = 1000) -> tuple[Pair, Pair]:
    """Images of threes (+1) and fives (-1), pixels scaled so that the longest training vector has length 1; float64.

    Args:
        data: "mnist", or "digits" for scikit-learn's.
        seed: what the examples are drawn from.
        train: how many to train on; fewer where there are fewer.
        test: how many to test on.
    """
    if data == "mnist":
        x, y = images("mnist", seed)[0]
    else:
        (x, y), (x_more, y_more) = images("digits", seed)
        x, y = torch.cat([x, x_more]), torch.cat([y, y_more])
        train, test = min(train, 270), min(test, 90)
    chosen = ((y == 3) | (y == 5)).nonzero()[:, 0]
    chosen = chosen[torch.randperm(len(chosen), generator=generator(seed, 62))[: train + test]]
    x, signs = x[chosen].double(), torch.where(y[chosen] == 3, 1.0, -1.0).double()
    x = x / x[:train].norm(dim=1).max()
    return (x[:train], signs[:train]), (x[train:], signs[train:])


@problem(
    "separable:two-digits",
    obstacle="healthy",
    says="Threes against fives with a network that has more weights than there are images: no error on the images, and few on others.",
    source=f"{SOURCE}, section on experiments (binary MNIST, 4,000 images)",
)
def real(
    *,
    seed: int = 0,
    k: int = 50,
    slope: float = 0.2,
    train: int = 3000,
    lr: float = 10.0,
    batch: int = 1,
    steps: int = 6000,
    data: str = "",
) -> Training:
    """SGD on one image at a time, first layer only.

    Args:
        seed: what the images are drawn from.
        k: units of each sign.
        slope: of the activation below 0.
        train: images to train on, where there are so many.
        lr: step size.
        batch: images per step.
        steps: optimizer steps.
        data: "mnist" or "digits"; MNIST where it is there, by default.
    """
    first, other = two_digits(data or ("mnist" if has_mnist() else "digits"), seed, train)
    d = first[0].shape[1]
    return _training("separable:two-digits", lambda: WideLeaky(d, k, slope=slope), first, other, lr=lr, batch=batch, steps=steps)
