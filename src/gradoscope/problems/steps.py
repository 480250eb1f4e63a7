"""A hard staircase on top of a linear map: the derivative is zero wherever it exists (F7)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradoscope.problems import problem
from gradoscope.problems._data import generator
from gradoscope.training import Training

__all__ = ["ForwardOnly", "Staircase", "direct", "forward_only", "thresholds"]


def thresholds() -> Tensor:
    """The 55 levels: every 5 from -100 to 95, and every 0.5 from -4 to 3.5; ascending, shape (55,).

    Example:
        >>> thresholds().shape, float(thresholds()[0]), float(thresholds()[-1])
        (torch.Size([55]), -100.0, 95.0)
    """
    levels = {*range(-100, 100, 5), *(i / 2 for i in range(-8, 8))}
    return torch.tensor(sorted(levels), dtype=torch.float32)


class Staircase(nn.Module):
    r"""Round down to one of the known levels: $u(r)=z_1+\sum_{i\ge 2}(z_i-z_{i-1})\,\mathbf 1[r\ge z_i]$.

    The indicator is built from `torch.sign`, so autograd gives its true derivative: exactly zero.

    Example:
        >>> Staircase()(torch.tensor([-0.1, 0.0, 0.7, 99.0]))
        tensor([-0.5000,  0.0000,  0.5000, 95.0000])
    """

    levels: Tensor
    jumps: Tensor

    def __init__(self) -> None:
        super().__init__()
        levels = thresholds()
        self.register_buffer("levels", levels)
        self.register_buffer("jumps", levels.diff())

    def forward(self, r: Tensor) -> Tensor:
        """The level at or below each entry of r; same shape."""
        # sign(0) is 0, and a threshold counts as reached: the inner half makes it 1.
        reached = (torch.sign(torch.sign(r.unsqueeze(-1) - self.levels[1:]) + 0.5) + 1) / 2
        return self.levels[0] + reached @ self.jumps


class ForwardOnly(Staircase):
    """The staircase with the identity in place of its derivative on the way back.

    Example:
        >>> r = torch.tensor([0.7], requires_grad=True)
        >>> ForwardOnly()(r).sum().backward()
        >>> r.grad
        tensor([1.])
    """

    def forward(self, r: Tensor) -> Tensor:
        """The level at or below each entry of r; same shape."""
        # r - r is exactly zero, but its derivative is the one that counts.
        return super().forward(r.detach()) + (r - r.detach())


def _sampler(seed: int, d: int, scale: float) -> Callable[[torch.Generator, int], tuple[Tensor, Tensor]]:
    draw = generator(seed, 5, d)
    direction, offset = torch.randn(d, 1, generator=draw), torch.randn(1, generator=draw)
    step = Staircase()

    def sample(random: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, d, generator=random) * scale
        return x, step(x @ direction + offset)

    return sample


def _training(name: str, step: Callable[[], nn.Module], seed: int, d: int, scale: float, batch: int, lr: float, steps: int) -> Training:
    sample = _sampler(seed, d, scale)
    return Training(
        name=name,
        model=lambda: nn.Sequential(nn.Linear(d, 1), step()),
        optimizer=lambda params: torch.optim.Adam(params, lr=lr, betas=(0.9, 0.99), eps=1e-5),
        loss_fn=nn.functional.mse_loss,
        data=sample,
        validation=sample,
        batch_size=batch,
        steps=steps,
    )


SOURCE = "Shalev-Shwartz, Shamir and Shammah 2017, section 5; extended version, section 5"


@problem(
    "steps:direct",
    obstacle="vanishing_gradient",
    says="Squared loss through a hard staircase: the gradient is exactly zero, everywhere.",
    source=SOURCE,
)
def direct(*, seed: int = 0, d: int = 100, scale: float = 0.1, batch: int = 256, lr: float = 0.01, steps: int = 500) -> Training:
    r"""Learn $y=u(\langle v^*,x\rangle+b^*)$ with a model of the same form, u the hard staircase; Adam, fresh samples.

    The text has $x\sim N(0,I)/100$, whose sums cross hardly any threshold, or $N(0,I)$, read literally. The default scale
    of 0.1 spreads $\langle v^*,x\rangle$ over about a dozen levels. The paper's step size is 1e-3 over 5,000 steps; ten times
    that reaches as far in 500.

    Args:
        seed: what v* and b* are drawn from.
        d: input dimension.
        scale: standard deviation of each input.
        batch: fresh examples per step.
        lr: step size.
        steps: optimizer steps.
    """
    return _training("steps:direct", Staircase, seed, d, scale, batch, lr, steps)


@problem(
    "steps:forward-only",
    obstacle="healthy",
    says="The same staircase with the identity in place of its derivative on the way back: it learns.",
    source=SOURCE,
)
def forward_only(*, seed: int = 0, d: int = 100, scale: float = 0.1, batch: int = 256, lr: float = 0.01, steps: int = 500) -> Training:
    """`steps:direct` with the update $E[(u(w^T x)-u(v^T x))x]$."""
    return _training("steps:forward-only", ForwardOnly, seed, d, scale, batch, lr, steps)
