"""Networks of every kind that points are evaluated on, in float64, each with batches of two sizes, and a plain loop over points."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradoscope.guard import derive_seed, private_random
from gradoscope.objective import Objective

WIDTH = 10


class Tied(nn.Module):
    """The first layer's weight is used again, so that its parameters must be set although its response is known."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.b(torch.tanh(self.a(x))))


class Twice(nn.Module):
    """One layer sees the data twice, and once what it made of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.a(x)) + self.a(x.flip(0)))


class Deep(nn.Module):
    """The same layer again on what it made: its input is not the data at its second call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(torch.tanh(self.a(x))))


class Detached(nn.Module):
    """A layer whose input is a function of the parameters that autograd does not see, and that jumps far away only."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x * (1 + (self.gate.detach() - 0.25).abs().lt(0.1).to(x)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 1, WIDTH)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).squeeze(1).mean(1))


class Counting(nn.Module):
    """Its answer depends on a buffer that every pass moves."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(WIDTH, 3)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.out(x) * self.passes


def cross_entropy(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def mlp(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 8), *middle, nn.Linear(8, 3))


def cnn(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *middle, nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(18, 3))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "relu": (lambda: mlp(nn.ReLU(inplace=True)), (WIDTH,)),
    "tanh": (lambda: mlp(nn.Tanh()), (WIDTH,)),
    "linear": (lambda: nn.Linear(WIDTH, 3), (WIDTH,)),
    "frozen": (lambda: mlp(nn.Tanh()), (WIDTH,)),
    "frozen_bias": (lambda: mlp(nn.Tanh()), (WIDTH,)),
    "tied": (Tied, (WIDTH,)),
    "twice": (Twice, (WIDTH,)),
    "deep": (Deep, (WIDTH,)),
    "detached": (Detached, (WIDTH,)),
    "dropout": (lambda: nn.Sequential(nn.Dropout(0.3), nn.Linear(WIDTH, 8), nn.Dropout(0.5), nn.Linear(8, 3)), (WIDTH,)),
    "batch_norm": (lambda: mlp(nn.BatchNorm1d(8), nn.Tanh()), (WIDTH,)),
    "cnn": (cnn, (1, 5, 5)),
    "cnn_batch_norm": (lambda: cnn(nn.BatchNorm2d(4)), (1, 5, 5)),
    "lstm": (Recurrent, (5, 3)),
    "attention": (Attention, (4, WIDTH)),
    "counting": (Counting, (WIDTH,)),
}


def objective(name: str, *, mode: Any = "eval", loss: Any = cross_entropy, dtype: torch.dtype = torch.float64) -> Objective:
    """The loss of a network on one batch of seven and one of five."""
    make, shape = NETS[name]
    with private_random(11):
        model = make().to(dtype)
        batches = [(torch.randn(n, *shape, dtype=dtype), torch.randint(0, 3, (n,))) for n in (7, 5)]
        with torch.no_grad():  # running statistics that are not those of a fresh layer
            model.train()
            for x, _ in batches:
                model(x)
    if name == "frozen":
        model[0].weight.requires_grad_(False)  # type: ignore[index]
    if name == "frozen_bias":
        model[0].bias.requires_grad_(False)  # type: ignore[index]
    return Objective(model, loss, batches, mode=mode, seed=3)


def plain(given: Objective, origin: Tensor, directions: Tensor, coordinates: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """What a user writes by hand, on a copy: parameters in, seeds set, forward, next point; the losses of each batch, shape (P, K)."""
    import copy

    losses = []
    for c in np.asarray(coordinates):
        row = []
        for k, batch in enumerate(given.batches):
            model = copy.deepcopy(given.model).train(given.mode == "train")
            theta = origin + sum(float(ci) * d for ci, d in zip(c, directions, strict=True))
            offset = 0
            with torch.no_grad(), private_random(derive_seed(given.seed, k)):
                for p in (p for p in model.parameters() if p.requires_grad):
                    p.copy_(theta[offset : offset + p.numel()].reshape(p.shape))
                    offset += p.numel()
                row.append(float(given._loss(model, batch)))
        losses.append(row)
    return np.array(losses)


def line_of(given: Objective, k: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The point where an objective stands, and k random directions of the size of its parameters."""
    generator = torch.Generator().manual_seed(seed)
    theta = given.theta()
    return theta, 0.3 * torch.randn(k, given.dim, generator=generator, dtype=torch.float64).to(theta)


def grid(n: int = 4) -> np.ndarray:
    """n x n points that do not lie symmetrically."""
    return np.stack(np.meshgrid(np.linspace(-1.2, 1, n), np.linspace(-0.7, 1.5, n)), -1).reshape(-1, 2)
