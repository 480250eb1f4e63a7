"""A staircase on top of a linear map: its derivative is zero wherever it exists (F7), and four ways to learn it."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from gradoscope.errors import Usage
from gradoscope.problems import problem
from gradoscope.problems._data import accuracy, generator
from gradoscope.training import Training
from gradoscope.updates.forward_only import straight_through

__all__ = [
    *("ForwardOnly", "Ramp", "Smooth", "Staircase", "classifier", "direct", "end_to_end", "forward_only", "level_index", "multi_class"),
    *("relu_network", "round_down", "smooth", "thresholds"),
]


def thresholds(law: str = "text") -> Tensor:
    r"""The levels $z_1<z_2<\dots$ of the staircase, which are its thresholds as well; ascending.

    Args:
        law: "text": 55 levels, every 5 from -100 to 95 and every 0.5 from -4 to 3.5 (the text gives their number only).
            "code": the authors' 52, every 5 from -100 to 95 and ten more between -4 and 4, to which their code adds b*.

    Raises:
        Usage: for another law.

    Example:
        >>> thresholds().shape, float(thresholds()[0]), float(thresholds()[-1])
        (torch.Size([55]), -100.0, 95.0)
        >>> thresholds("code").shape
        torch.Size([52])
    """
    if law not in ("text", "code"):
        raise Usage(f'law must be "text" or "code", got {law!r}.')
    fine = [i / 2 for i in range(-8, 8)] if law == "text" else [-4, -3, -2, -1, -0.2, 0.1, 0.15, 0.175, 1, 2, 3, 4]
    return torch.tensor(sorted({*range(-100, 100, 5), *fine}), dtype=torch.float32)


def level_index(r: Tensor, law: str = "text", offset: Tensor | float = 0.0) -> Tensor:
    """The index of the highest level that is at or below each number; 0 below all of them. Same shape as r.

    Args:
        r: any shape.
        law: of `thresholds`.
        offset: what is added to every level; a number, or a tensor that broadcasts with r.

    Example:
        >>> level_index(torch.tensor([-0.1, 0.0, 99.0])).tolist()
        [27, 28, 54]
    """
    inner = thresholds(law)[1:].to(r)
    return torch.bucketize((r - offset).detach(), inner, right=True)


def round_down(r: Tensor, law: str = "text", offset: Tensor | float = 0.0) -> Tensor:
    """The level at or below each number, exactly; the arguments are those of `level_index`.

    Example:
        >>> round_down(torch.tensor([-0.1, 0.0, 0.7, 99.0]))
        tensor([-0.5000,  0.0000,  0.5000, 95.0000])
    """
    return thresholds(law).to(r)[level_index(r, law, offset)] + offset


class _Levels(nn.Module):
    """What the staircases share: their levels, the jumps between them, and the offset of all."""

    levels: Tensor
    jumps: Tensor
    offset: Tensor

    def __init__(self, law: str = "text", offset: Tensor | float = 0.0) -> None:
        super().__init__()
        levels = thresholds(law)
        self.law = law
        self.register_buffer("levels", levels)
        self.register_buffer("jumps", levels.diff())
        self.register_buffer("offset", torch.as_tensor(offset, dtype=levels.dtype))


class Staircase(_Levels):
    r"""Round down to one of the known levels: $u(r)=z_1+\sum_{i\ge 2}(z_i-z_{i-1})\,\mathbf 1[r\ge z_i]$.

    The indicator is built from `torch.sign`, so autograd gives its true derivative: exactly zero.

    Args:
        law: of `thresholds`.
        offset: what is added to every level; a tensor of shape (S, 1, 1) for a stack of S networks.

    Example:
        >>> Staircase()(torch.tensor([-0.1, 0.0, 0.7, 99.0]))
        tensor([-0.5000,  0.0000,  0.5000, 95.0000])
    """

    def forward(self, r: Tensor) -> Tensor:
        """The level at or below each entry of r; same shape."""
        # sign(0) is 0, and a threshold counts as reached: the inner half makes it 1.
        above = (r - self.offset).unsqueeze(-1) - self.levels[1:]
        reached = (torch.sign(torch.sign(above) + 0.5) + 1) / 2
        return self.levels[0] + reached @ self.jumps + self.offset


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
        return straight_through(super().forward(r.detach()), r)


class Smooth(_Levels):
    r"""The staircase with a sigmoid for each step: $\tilde u(r)=z_1+\sum_{i\ge 2}h_i\,\sigma(c_i(r-m_i))$, $h_i=z_i-z_{i-1}$.

    The code has $c_i=50/h_i$, so that every step takes the same part of its height, and ends each just before its threshold,
    $m_i=z_i-h_i/20$. The text has one $c_i=c$ for all and $m_i=z_i$.

    Args:
        law: of `thresholds`.
        offset: as in `Staircase`.
        sharpness: 0 for the code's sigmoids, or the text's c.

    Example:
        >>> Smooth("code")(torch.tensor([0.5, 2.5])).round(decimals=4)
        tensor([0.1750, 2.0000])
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, law: str = "code", offset: Tensor | float = 0.0, sharpness: float = 0.0) -> None:
        super().__init__(law, offset)
        text = sharpness > 0
        scale = torch.full_like(self.jumps, sharpness) if text else 50 / self.jumps
        centre = self.levels[1:] if text else self.levels[1:] - self.jumps / 20
        self.register_buffer("scale", scale)
        self.register_buffer("shift", scale * centre)

    def forward(self, r: Tensor) -> Tensor:
        """The smoothed level at each entry of r; same shape."""
        steps = torch.sigmoid((r - self.offset).unsqueeze(-1) * self.scale - self.shift)
        return self.levels[0] + steps @ self.jumps + self.offset


class Ramp(_Levels):
    r"""The staircase with a ramp for each step: L-Lipschitz, and as steep as that allows.

    The step to $z_i$ rises with slope L and ends at $z_i$: $u_L(r)=z_1+\sum_{i\ge 2}\min(\max(h_i+L(r-z_i),0),h_i)$. For L = 1
    it is the identity between the lowest and the highest level, and as L grows it becomes the staircase.

    Args:
        lipschitz: L, at least 1.
        law: of `thresholds`.
        offset: as in `Staircase`.

    Raises:
        Usage: where L is less than 1, with which it could not reach the levels.

    Example:
        >>> Ramp(4.0)(torch.tensor([1.25, 1.4375, 1.5]))
        tensor([1.0000, 1.2500, 1.5000])
    """

    def __init__(self, lipschitz: float, law: str = "text", offset: Tensor | float = 0.0) -> None:
        super().__init__(law, offset)
        if lipschitz < 1:
            raise Usage(f"the ramps need a Lipschitz constant of at least 1, got {lipschitz}.")
        self.lipschitz = lipschitz

    def forward(self, r: Tensor) -> Tensor:
        """The ramped level at each entry of r; same shape."""
        above = (r - self.offset).unsqueeze(-1) - self.levels[1:]
        risen = torch.minimum((self.jumps + self.lipschitz * above).clamp(min=0), self.jumps)
        return self.levels[0] + risen.sum(-1) + self.offset


def relu_network(d: int, width: int = 100) -> nn.Sequential:
    """Three ReLU layers and a linear output: d-100-100-100-1."""
    sizes = [d, width, width, width]
    hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, 1))


def classifier(d: int, classes: int, width: int = 100) -> nn.Sequential:
    """Two ReLU layers and one score per level: d-100-100-classes."""
    return nn.Sequential(nn.Linear(d, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))


Sampler = Callable[[torch.Generator, int], tuple[Tensor, Tensor]]


def _target(seed: int, d: int, gap: float) -> tuple[Tensor, Tensor]:
    """v* of shape (d, 1) and b* of shape (1,): minus the gap, by which a start at zero lies above it, or drawn for a gap of 0."""
    draw = generator(seed, 5, d)
    direction, offset = torch.randn(d, 1, generator=draw), torch.randn(1, generator=draw)
    return direction, offset if gap == 0 else torch.tensor([-gap])


def _sampler(seed: int, d: int, scale: float, law: str = "text", gap: float = 0.0, *, classes: bool = False) -> Sampler:
    direction, offset = _target(seed, d, gap)
    base = offset if law == "code" else 0.0

    def sample(random: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, d, generator=random) * scale
        r = x @ direction + offset
        return x, level_index(r, law, base).squeeze(-1) if classes else round_down(r, law, base)

    return sample


def _offset(seed: int, d: int, law: str, gap: float) -> Tensor | float:
    return _target(seed, d, gap)[1] if law == "code" else 0.0


def _linear(d: int) -> nn.Linear:
    """A linear map that starts at a bias of zero, so that its distance to b* is |b*|."""
    layer = nn.Linear(d, 1)
    nn.init.zeros_(layer.bias)
    return layer


def _training(name: str, model: Callable[[], nn.Module], sample: Sampler, batch: int, lr: float, steps: int, **more: object) -> Training:
    options: dict[str, object] = {"loss_fn": nn.functional.mse_loss, **more}
    return Training(
        name=name,
        model=model,
        optimizer=lambda params: torch.optim.Adam(params, lr=lr, betas=(0.9, 0.99), eps=1e-5),
        data=sample,
        validation=sample,
        batch_size=batch,
        steps=steps,
        **options,  # type: ignore[arg-type]
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
    return _training("steps:direct", lambda: nn.Sequential(nn.Linear(d, 1), Staircase()), _sampler(seed, d, scale), batch, lr, steps)


@problem(
    "steps:forward-only",
    obstacle="healthy",
    says="The same staircase with the identity in place of its derivative on the way back: it learns.",
    source=SOURCE,
)
def forward_only(*, seed: int = 0, d: int = 100, scale: float = 0.1, batch: int = 256, lr: float = 0.01, steps: int = 500) -> Training:
    """`steps:direct` with the update $E[(u(w^T x)-u(v^T x))x]$."""
    return _training(
        "steps:forward-only", lambda: nn.Sequential(nn.Linear(d, 1), ForwardOnly()), _sampler(seed, d, scale), batch, lr, steps
    )


@problem(
    "steps:smooth",
    obstacle="vanishing_gradient",
    says="Squared loss through sigmoids in place of the steps: between two steps the gradient is as good as zero.",
    source=SOURCE,
)
def smooth(
    *,
    seed: int = 0,
    d: int = 100,
    scale: float = 0.01,
    law: str = "code",
    gap: float = 0.5,
    sharpness: float = 0.0,
    batch: int = 256,
    lr: float = 0.01,
    steps: int = 1000,
) -> Training:
    r"""Learn the staircase by the squared loss through its smooth approximation $\tilde u$ (see `Smooth`).

    With inputs of standard deviation 0.01 the sum $\langle w,x\rangle$ has one of 0.1, while the steps beside most biases are 1
    apart: where the bias starts between two steps, nothing moves. Which runs fail depends on $b_0-b^*$, so it is an option
    here; the source draws b* from N(0, 1) (gap=0) and trains for 10,000 steps. With scale=1, the text read literally, the
    sums cross many steps and the training does not fail.

    Args:
        seed: what v* is drawn from, and b* with gap=0.
        d: input dimension.
        scale: standard deviation of each input.
        law: "code" or "text", for the levels.
        gap: $b_0-b^*$ with $b_0=0$; 0 draws b* from N(0, 1).
        sharpness: c of the text's sigmoids; 0 for the code's.
        batch: fresh examples per step.
        lr: step size.
        steps: optimizer steps.
    """
    sample, offset = _sampler(seed, d, scale, law, gap), _offset(seed, d, law, gap)
    return _training("steps:smooth", lambda: nn.Sequential(_linear(d), Smooth(law, offset, sharpness)), sample, batch, lr, steps)


@problem(
    "steps:end-to-end",
    obstacle="healthy",
    says="Three ReLU layers fit the staircase by the squared loss: slow to train, and the steps come out rounded.",
    source=SOURCE,
)
def end_to_end(
    *,
    seed: int = 0,
    d: int = 100,
    scale: float = 0.01,
    law: str = "code",
    gap: float = 0.0,
    width: int = 100,
    batch: int = 256,
    lr: float = 0.001,
    steps: int = 2000,
) -> Training:
    """Learn the staircase with a d-100-100-100-1 network that knows nothing of it; the source trains for 10,000 steps.

    Args: those of `smooth`, and `width`, units per hidden layer.
    """
    return _training("steps:end-to-end", lambda: relu_network(d, width), _sampler(seed, d, scale, law, gap), batch, lr, steps)


@problem(
    "steps:multi-class",
    obstacle="healthy",
    says="A network names the level that an input belongs to: right except beside the thresholds.",
    source=SOURCE,
)
def multi_class(
    *,
    seed: int = 0,
    d: int = 100,
    scale: float = 0.01,
    law: str = "code",
    gap: float = 0.0,
    width: int = 100,
    batch: int = 256,
    lr: float = 0.001,
    steps: int = 2000,
) -> Training:
    """Learn which level an input belongs to by cross-entropy, d-100-100-levels; the source trains for 10,000 steps.

    The text has one output per level, and so has this; the code has 100 outputs, of which all but 52 stay without examples.

    Args: those of `end_to_end`.
    """
    count = len(thresholds(law))
    return _training(
        "steps:multi-class",
        lambda: classifier(d, count, width),
        _sampler(seed, d, scale, law, gap, classes=True),
        batch,
        lr,
        steps,
        loss_fn=nn.functional.cross_entropy,
        metric=accuracy,
    )
