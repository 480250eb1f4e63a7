"""Recurrent networks on the adding problem: the gradient has to come through T flat activations, or through a gate (F7)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradoscope.errors import Usage
from gradoscope.problems import problem
from gradoscope.problems._data import generator
from gradoscope.training import Training

__all__ = ["CHANCE", "Cell", "Recurrent", "adding", "marked"]

CHANCE = 1 / 6  # the variance of a sum of two uniform numbers: what always answering the mean loses
GATES = {"sigmoid": 1, "tanh": 1, "lstm": 4}
SOURCE = "Hochreiter and Schmidhuber 1997, the adding problem; flat activations: Shalev-Shwartz, Shamir and Shammah 2017, section 5"


def adding(random: torch.Generator, n: int, length: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    r"""Sequences of numbers with two of them marked, one in each half; the target is their sum.

    Numbers and target are centred, so that a network that knows nothing answers zero and loses `CHANCE`.

    Args:
        random: what they are drawn from.
        n: how many.
        length: T, at least 2.
        dtype: of both.

    Returns:
        Inputs of shape (n, T, 2), numbers and marks, and targets of shape (n, 1).

    Example:
        >>> x, y = adding(torch.Generator().manual_seed(0), 3, 10)
        >>> bool(torch.allclose((x[..., 0] * x[..., 1]).sum(1, keepdim=True), y)), x[..., 1].sum(1).tolist()
        (True, [2.0, 2.0, 2.0])
    """
    numbers = torch.rand(n, length, generator=random, dtype=dtype)
    first = torch.randint(0, length // 2, (n, 1), generator=random)
    second = torch.randint(length // 2, length, (n, 1), generator=random)
    return marked(numbers, torch.cat([first, second], 1))


def marked(numbers: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs (..., T, 2) and targets (..., 1) from numbers (..., T) in [0, 1) and the places (..., 2) of two marks."""
    centred = numbers - 0.5
    marks = torch.zeros_like(numbers).scatter_(-1, places, 1.0)
    return torch.stack([centred, marks], dim=-1), (centred * marks).sum(-1, keepdim=True)


class Cell(nn.Module):
    """One step of a recurrent layer; it holds no parameters, and so serves one network or many side by side.

    Args:
        kind: "sigmoid", "tanh" or "lstm".
        sharpness: of the gates.
    """

    def __init__(self, kind: str, sharpness: float) -> None:
        super().__init__()
        self.kind, self.sharpness = kind, sharpness

    def forward(self, drive: Tensor, recurrent: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """The next state; drive: what the input contributes, $Ax_t+b$, shape (..., n, gates * hidden)."""
        sums = torch.addmm if drive.dim() == 2 else torch.baddbmm
        a = sums(drive, state[0], recurrent)
        if self.kind == "sigmoid":
            return (torch.sigmoid(a),)
        if self.kind == "tanh":
            return (torch.tanh(a),)
        h = state[0].shape[-1]
        i, f, o = torch.sigmoid(a[..., : 3 * h] * self.sharpness).chunk(3, dim=-1)
        c = torch.addcmul(f * state[1], i, torch.tanh(a[..., 3 * h :]))
        return o * torch.tanh(c), c


class Recurrent(nn.Module):
    r"""A recurrent layer with a linear answer after the last step, for one network or for S side by side.

    "sigmoid" and "tanh": $h_t=\phi(Ax_t+Uh_{t-1}+b)$. "lstm": $c_t=f_t c_{t-1}+i_t g_t$, $h_t=o_t\tanh c_t$ with gates
    $i,f,o=\tilde u(a)=\sigma(\kappa a)$, which become the step function u as the sharpness $\kappa$ grows. U is orthogonal
    at the start (each gate's for the LSTM), so that no gradient is lost in it.

    Args:
        cell: "sigmoid", "tanh" or "lstm".
        hidden: units.
        randoms: a generator for the start of each network; one gives a network without the leading dimension.
        sharpness: $\kappa$ of the gates.
        forget: the forget gates' bias at the start.
    """

    input: Tensor
    recurrent: Tensor
    bias: Tensor
    answer: Tensor

    def __init__(
        self, cell: str, hidden: int, randoms: list[torch.Generator], *, sharpness: float = 1.0, forget: float = 1.0, inputs: int = 2
    ) -> None:
        super().__init__()
        if cell not in GATES:
            raise Usage(f"there is no cell {cell!r}; there are: {', '.join(GATES)}.")
        self.cell, self.hidden, self.sharpness, self.gates = cell, hidden, sharpness, GATES[cell]
        self.one_step = Cell(cell, sharpness)
        starts = [self._start(inputs, forget, random) for random in randoms]
        names = ("input", "recurrent", "bias", "answer")
        for name, column in zip(names, zip(*starts, strict=True), strict=True):
            value = torch.stack(column) if len(randoms) > 1 else column[0]
            self.register_parameter(name, nn.Parameter(value))

    def _start(self, inputs: int, forget: float, random: torch.Generator) -> tuple[Tensor, ...]:
        h, g = self.hidden, self.gates
        read = torch.randn(inputs, g * h, generator=random) / math.sqrt(inputs)
        square = [torch.linalg.qr(torch.randn(h, h, generator=random))[0] for _ in range(g)]
        bias = torch.zeros(1, g * h)
        if self.cell == "lstm":
            bias[:, h : 2 * h] = forget
        return read, torch.cat(square, dim=1), bias, torch.randn(h, 1, generator=random) / math.sqrt(h)

    def step(self, drive: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The next state; drive: what the input contributes, $Ax_t+b$, shape (..., n, gates * hidden)."""
        after: tuple[Tensor, ...] = self.one_step(drive, self.recurrent, *state)
        return after

    def drive(self, x: Tensor) -> Tensor:
        """What the inputs (..., n, T, inputs) contribute at each step; shape (T, ..., n, gates * hidden)."""
        return x.movedim(-2, 0) @ self.input + self.bias.unsqueeze(0)

    def begin(self, drive: Tensor) -> tuple[Tensor, ...]:
        """The state before the first step: zeros."""
        zeros = drive.new_zeros(*drive.shape[1:-1], self.hidden)
        return (zeros, zeros) if self.cell == "lstm" else (zeros,)

    def forward(self, x: Tensor) -> Tensor:
        """The answers (..., n, 1) to sequences (..., n, T, inputs)."""
        drive = self.drive(x)
        state = self.begin(drive)
        for current in drive.unbind(0):
            state = self.step(current, state)
        return state[0] @ self.answer


def _training(cell: str, T: int, seed: int, hidden: int, batch: int, lr: float, steps: int) -> Training:
    if T < 2:
        raise Usage(f"recurrent:{cell} needs sequences of at least T=2 steps, got T={T}.")

    def sample(random: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        return adding(random, n, T)

    make: Callable[[], nn.Module] = lambda: Recurrent(cell, hidden, [generator(seed, 7, hidden)])  # noqa: E731
    return Training(
        name=f"recurrent:{cell},T={T}",
        model=make,
        optimizer=lambda params: torch.optim.Adam(params, lr=lr),
        loss_fn=nn.functional.mse_loss,
        data=sample,
        validation=sample,
        batch_size=batch,
        steps=steps,
    )


@problem(
    "recurrent:sigmoid",
    obstacle="vanishing_gradient",
    says="A sigmoid network has to add two numbers far apart: each step takes three quarters of the gradient.",
    source=SOURCE,
)
def sigmoid(*, seed: int = 0, T: int = 100, hidden: int = 32, batch: int = 32, lr: float = 0.01, steps: int = 400) -> Training:
    r"""The adding problem with $h_t=\sigma(Ax_t+Uh_{t-1}+b)$, U orthogonal: $\|\partial h_T/\partial h_t\|\le4^{-(T-t)}$ at the start.

    Args:
        seed: what the start is drawn from.
        T: length of the sequences; a mark in each half.
        hidden: units.
        batch: fresh sequences per step.
        lr: Adam's step size.
        steps: optimizer steps.

    Raises:
        Usage: where T is less than 2.
    """
    return _training("sigmoid", T, seed, hidden, batch, lr, steps)


@problem(
    "recurrent:tanh",
    obstacle="vanishing_gradient",
    says="A tanh network has to add two numbers far apart: what its slopes take adds up over the steps.",
    source=SOURCE,
)
def tanh(*, seed: int = 0, T: int = 100, hidden: int = 32, batch: int = 32, lr: float = 0.001, steps: int = 400) -> Training:
    r"""`recurrent:sigmoid` with tanh, whose slope is up to 1; T = 50 is still learnt, given 1,000 steps."""
    return _training("tanh", T, seed, hidden, batch, lr, steps)


@problem(
    "recurrent:lstm",
    obstacle="healthy",
    says="An LSTM adds the two numbers: its state passes through gates, smooth steps that are open, and not through activations.",
    source=SOURCE,
)
def lstm(*, seed: int = 0, T: int = 50, hidden: int = 32, batch: int = 32, lr: float = 0.01, steps: int = 400) -> Training:
    """`recurrent:sigmoid` with an LSTM whose forget gates start with bias 1."""
    return _training("lstm", T, seed, hidden, batch, lr, steps)
