"""Parities of random subsets: a function that the network can express and that no gradient can find (F1)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradoscope.errors import Usage
from gradoscope.problems import problem
from gradoscope.problems._data import generator
from gradoscope.training import Training

__all__ = ["hidden_subset", "hinge", "parity"]


def hidden_subset(d: int, seed: int) -> Tensor:
    """The bits whose parity is the target, each taken with probability 1/2; boolean, shape (d,).

    Empty subsets and single bits are drawn again, and for d >= 20 all of fewer than 8 bits: a small subset can be
    learnt (measured: up to 6 of 30 bits at a larger step size), and it is the large ones that carry the theorem.

    Example:
        >>> int(hidden_subset(30, seed=0).sum()) >= 8
        True
    """
    draw = generator(seed, 2, d)
    least = 8 if d >= 20 else 2
    while True:
        subset = torch.rand(d, generator=draw) < 0.5
        if int(subset.sum()) >= least:
            return subset


def hinge(score: Tensor, target: Tensor) -> Tensor:
    r"""The mean hinge loss $\frac1n\sum_i \max(0, 1-y_i s_i)$ of scores and targets in {-1, +1} of one shape."""
    return torch.relu(1 - target * score).mean()


def _accuracy(score: Tensor, target: Tensor) -> float:
    """The share of scores on the target's side of zero."""
    return float((score * target > 0).double().mean())


def _network(d: int, width: int) -> nn.Sequential:
    """One ReLU layer and a linear score; weights truncated normal with std 1/sqrt(fan in), no biases at the start."""
    layers = nn.Sequential(nn.Linear(d, width), nn.ReLU(), nn.Linear(width, 1))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            std = 1 / math.sqrt(layer.in_features)
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(layer.bias)
    return layers


def _sampler(subset: Tensor) -> Callable[[torch.Generator, int], tuple[Tensor, Tensor]]:
    index = subset.nonzero().squeeze(-1)

    def sample(random: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        x = torch.randint(0, 2, (n, len(subset)), generator=random).float() * 2 - 1
        return x, x[:, index].prod(dim=1, keepdim=True)

    return sample


@problem(
    "parity",
    obstacle="uninformative_gradient",
    says="The parity of about half of d random bits: the gradient is nearly the same whichever bits they are.",
    source="Shalev-Shwartz, Shamir and Shammah 2017, section 2.1 and figure 1",
)
def parity(*, seed: int = 0, d: int = 30, width_factor: int = 10, batch: int = 128, lr: float = 0.01, steps: int = 3000) -> Training:
    r"""Learn $y=\prod_{j\in S}x_j$, $x$ uniform on {-1,+1}^d, with one ReLU layer of width `width_factor * d`.

    Hinge loss, plain SGD, fresh samples at each step. The variance of the gradient over the targets is at most
    $G^2/2^d$ (theorem 1), so d = 5 is learnt and d = 30 stays at chance; the network itself can express every parity.
    The paper trains for 50,000 steps; at d = 30 the loss is as flat after 3,000.

    Args:
        seed: what the subset S is drawn from.
        d: input dimension.
        width_factor: hidden units per input.
        batch: fresh examples per step.
        lr: step size.
        steps: optimizer steps.

    Raises:
        Usage: where d is less than 2.
    """
    if d < 2:
        raise Usage(f"parity needs d of at least 2 bits, got d={d}.")
    sample = _sampler(hidden_subset(d, seed))
    return Training(
        name=f"parity:d={d}",
        model=lambda: _network(d, width_factor * d),
        optimizer=lambda params: torch.optim.SGD(params, lr=lr),
        loss_fn=hinge,
        data=sample,
        validation=sample,
        metric=_accuracy,
        batch_size=batch,
        steps=steps,
    )
