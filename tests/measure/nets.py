"""Tiny networks of every kind that curvature must be right on, in float64, with a loss and two batches."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradoscope.guard import private_random

Case = tuple[nn.Module, Callable[[Any, Any], Tensor], list[Any]]


def cross_entropy(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def batches(generator: torch.Generator, *shape: int, classes: int = 3) -> list[Any]:
    return [
        (
            torch.randn(*shape, generator=generator, dtype=torch.float64),
            torch.randint(0, classes, (shape[0],), generator=generator),
        )
        for _ in range(2)
    ]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 1, 4)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).flatten(1, 1).squeeze(1).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.spare = nn.Linear(4, 3), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.net(x))


def mlp(*middle: nn.Module, width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), *middle, nn.Linear(width, 3))


def make(name: str) -> Case:
    generator = torch.Generator().manual_seed(5)
    with private_random(11):
        model: nn.Module = {
            "mlp": lambda: mlp(nn.Tanh()),
            "relu": lambda: mlp(nn.ReLU()),
            "batch_norm": lambda: mlp(nn.BatchNorm1d(6), nn.Tanh()),
            "dropout": lambda: mlp(nn.Tanh(), nn.Dropout(0.5)),
            "lstm": Recurrent,
            "attention": Attention,
            "tied": Tied,
            "frozen": lambda: mlp(nn.Tanh()),
            "unused": Unused,
        }[name]()
    model = model.double()
    if name == "frozen":
        model[0].weight.requires_grad_(False)  # type: ignore[index]
    shape = (7, 5, 3) if name == "lstm" else (7, 5, 4) if name == "attention" else (7, 4)
    return model, cross_entropy, batches(generator, *shape)


NAMES = ["mlp", "relu", "batch_norm", "dropout", "lstm", "attention", "tied", "frozen", "unused"]
