"""A cosine of a linear map: many targets, one for each direction, and nearly the same gradient for all of them (F2)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradoscope.errors import Usage
from gradoscope.problems import problem
from gradoscope.problems._data import generator
from gradoscope.training import Training

__all__ = ["CosineNeuron", "linear_periodic", "slow"]

SOURCE = "Shalev-Shwartz, Shamir and Shammah 2017, section 2.2 and theorem 2; slides, part 4; Shamir 2016"


class CosineNeuron(nn.Module):
    r"""$p_w(x)=\cos(w\cdot x)$, a network of the target's own form; w starts uniform on the sphere of radius r.

    Example:
        >>> CosineNeuron(3, 2.0)(torch.zeros(4, 3)).shape
        torch.Size([4, 1])
    """

    def __init__(self, d: int, r: float) -> None:
        super().__init__()
        w = torch.randn(d, 1)
        self.w = nn.Parameter(w / w.norm() * r)

    def forward(self, x: Tensor) -> Tensor:
        """x of shape (N, d); returns (N, 1)."""
        return torch.cos(x @ self.w)


def _network(d: int, width: int) -> nn.Sequential:
    """One ReLU layer and a linear score; weights truncated normal with std 1/sqrt(fan in), no biases at the start."""
    layers = nn.Sequential(nn.Linear(d, width), nn.ReLU(), nn.Linear(width, 1))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            std = 1 / math.sqrt(layer.in_features)
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(layer.bias)
    return layers


def _sampler(target: Tensor) -> Callable[[torch.Generator, int], tuple[Tensor, Tensor]]:
    def sample(random: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, len(target), generator=random)
        return x, torch.cos(x @ target)

    return sample


def _training(name: str, seed: int, d: int, r: float, width_factor: int, batch: int, lr: float, steps: int) -> Training:
    if d < 2 or r <= 0:
        raise Usage(f"linear-periodic needs d of at least 2 and a positive r, got d={d}, r={r}.")
    direction = torch.randn(d, 1, generator=generator(seed, 11, d))
    sample = _sampler(direction / direction.norm() * r)
    return Training(
        name=f"{name}:d={d},r={r:g}",
        model=lambda: _network(d, width_factor * d) if width_factor else CosineNeuron(d, r),
        optimizer=lambda params: torch.optim.SGD(params, lr=lr),
        loss_fn=nn.functional.mse_loss,
        data=sample,
        validation=sample,
        noise_free=True,  # a cosine of the inputs, and nothing else
        batch_size=batch,
        steps=steps,
    )


@problem(
    "linear-periodic",
    obstacle="uninformative_gradient",
    says="A fast cosine of a random direction: the gradient is nearly the same whichever direction it is.",
    source=SOURCE,
)
def linear_periodic(
    *, seed: int = 0, d: int = 10, r: float = 6.0, width_factor: int = 10, batch: int = 128, lr: float = 0.01, steps: int = 3000
) -> Training:
    r"""Learn $y=\cos(w^*\cdot x)$, $|w^*|=r$, $x\sim N(0,I)$, with one ReLU layer of width `width_factor * d`.

    Squared loss, plain SGD, fresh samples at each step. The variance of the gradient over the direction of w* is at most
    $O(e^{-\Omega(d)}+e^{-\Omega(r)})$ (theorem 2), for this network as for any other.

    Args:
        seed: what the direction of w* is drawn from.
        d: input dimension.
        r: the norm of w*: how many times the target swings within the spread of the inputs.
        width_factor: hidden units per input; 0 for a single cosine, the target's own form, which starts with |w| = r.
        batch: fresh examples per step.
        lr: step size.
        steps: optimizer steps.

    Raises:
        Usage: where d is less than 2 or r is not positive.
    """
    return _training("linear-periodic", seed, d, r, width_factor, batch, lr, steps)


@problem(
    "linear-periodic:slow",
    obstacle="healthy",
    says="The same with a target that swings slowly (r = 1), learnt by a single cosine: the gradient knows the direction.",
    source=SOURCE,
)
def slow(
    *, seed: int = 0, d: int = 5, r: float = 1.0, width_factor: int = 0, batch: int = 128, lr: float = 0.5, steps: int = 500
) -> Training:
    """`linear-periodic` at a norm at which theorem 2 says nothing: gradient descent finds w* or -w* from every start."""
    return _training("linear-periodic:slow", seed, d, r, width_factor, batch, lr, steps)
