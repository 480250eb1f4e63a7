"""The networks, data and independent truths on which `benchmarks/measurements.py` compares."""

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn import functional as F

from gradoscope.guard import private_random
from gradoscope.objective import Objective

STEPS = 50  # of Adam, so that the point is not the start


def mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(sizes):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Block(nn.Module):
    """Two convolutions with a sum around them."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(inside, width, 3, stride, 1, bias=False), nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm_one, self.norm_two = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.first, self.last = nn.ReLU(), nn.ReLU()
        same = stride == 1 and inside == width
        self.past: nn.Module = nn.Identity() if same else nn.Conv2d(inside, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm_two(self.two(self.first(self.norm_one(self.one(x))))) + self.past(x))


def resnet(width: int = 8, blocks: int = 3) -> nn.Module:
    """The topology of ResNet-20."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inside = width
    for stage, out in enumerate((width, 2 * width, 4 * width)):
        for b in range(blocks):
            layers.append(Block(inside, out, 2 if stage and not b else 1))
            inside = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 10))


class Attention(nn.Module):
    """Causal, with the softmax written out, so that every peer can differentiate it twice."""

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads
        self.register_buffer("mask", torch.triu(torch.full((length, length), -1e9), 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + self.mask).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.norm_one, self.norm_two, self.attention = nn.LayerNorm(width), nn.LayerNorm(width), Attention(width, heads, length)
        self.wide = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_one(x))
        return x + self.wide(self.norm_two(x))


class GPT(nn.Module):
    """Two layers of width 128 over 64 tokens of a vocabulary of 256."""

    def __init__(self, width: int = 128, layers: int = 2, heads: int = 4, length: int = 64, words: int = 256) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(words, width), nn.Embedding(length, width)
        self.register_buffer("places", torch.arange(length))
        self.layers = nn.Sequential(*(Layer(width, heads, length) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.token(x) + self.place(self.places)))).transpose(1, 2)


def vectors(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(1000, 784, generator=generator)
    truth = torch.randn(784, 10, generator=generator)
    return x, (x @ truth + 5 * torch.randn(1000, 10, generator=generator)).argmax(1)


def images(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    centres, y = torch.randn(10, 3, 8, 8, generator=generator), torch.randint(0, 10, (256,), generator=generator)
    x = F.interpolate(centres[y], scale_factor=4) + 1.5 * torch.randn(256, 3, 32, 32, generator=generator)
    return x, y


def texts(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The next word follows from the last one in 7 cases of 10."""
    following, words = torch.randperm(256, generator=generator), [torch.randint(0, 256, (64,), generator=generator)]
    for _ in range(64):
        noise, keep = torch.randint(0, 256, (64,), generator=generator), torch.rand(64, generator=generator) < 0.7
        words.append(torch.where(keep, following[words[-1]], noise))
    text = torch.stack(words, 1)
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


MAKE: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.Generator], tuple[Tensor, Tensor]], int, float]] = {
    "mlp": (lambda: mlp(784, 512, 512, 10), vectors, 1000, 1e-4),
    "gpt16": (GPT, texts, 16, 1e-3),
    "resnet64": (resnet, images, 64, 1e-3),
}


@dataclass
class Work:
    """A network after some steps of training, and the rows that its loss is measured on."""

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    rate: float
    loss: nn.Module = field(default_factory=nn.CrossEntropyLoss)

    @classmethod
    def make(cls, name: str) -> "Work":
        build, data, rows, rate = MAKE[name]
        with private_random(0):
            model = build()
        x, y = data(torch.Generator().manual_seed(1234))
        work = cls(name, model, x[:rows], y[:rows], rate)
        work.train(STEPS, x, y)
        model.eval()
        return work

    def train(self, steps: int, x: Tensor, y: Tensor) -> None:
        optimizer = torch.optim.Adam(self.model.parameters(), lr=self.rate)
        for _ in range(steps):
            optimizer.zero_grad()
            self.loss(self.model(x), y).backward()
            optimizer.step()
        optimizer.zero_grad()

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def objective(self) -> Objective:
        return Objective(self.model, lambda m, b: self.loss(m(b[0]), b[1]), [(self.x, self.y)], mode="eval")

    def pass_(self) -> tuple[Tensor, ...]:
        """One plain forward and backward pass."""
        return torch.autograd.grad(self.loss(self.model(self.x), self.y), self.parameters)

    def ends(self, *, low: bool) -> tuple[np.ndarray, np.ndarray]:
        """The five largest eigenvalues, and if asked for the smallest, by ARPACK on plain double backward passes in float64."""
        model = copy.deepcopy(self.model).double()
        own = list(model.parameters())
        x = self.x.double() if self.x.is_floating_point() else self.x
        slope = torch.cat([g.reshape(-1) for g in torch.autograd.grad(self.loss(model(x), self.y), own, create_graph=True)])

        def product(v: np.ndarray) -> np.ndarray:
            found = torch.autograd.grad(slope, own, torch.as_tensor(v.reshape(-1).copy()), retain_graph=True)
            return torch.cat([f.reshape(-1) for f in found]).numpy()

        matrix = LinearOperator((len(slope), len(slope)), matvec=product, dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(len(slope))
        top = eigsh(matrix, k=5, which="LA", tol=1e-5, v0=start)[0]
        bottom = eigsh(matrix, k=1, which="SA", tol=1e-4, v0=start, ncv=60)[0] if low else np.full(1, np.nan)
        return np.sort(top)[::-1], bottom

    def row_norms(self, rows: int = 8) -> np.ndarray:
        """Of the first rows, one plain backward pass each."""
        found = []
        for i in range(rows):
            grads = torch.autograd.grad(self.loss(self.model(self.x[i : i + 1]), self.y[i : i + 1]), self.parameters)
            found.append(float(torch.cat([g.reshape(-1) for g in grads]).double().norm()))
        return np.array(found)


def scaled(size: int) -> tuple[Any, Tensor, Tensor]:
    """A network of about `size` parameters and 16 rows for it."""
    width = max(8, round((math.sqrt(100 + 4 * 3 * size) - 10) / 6))  # three square matrices
    with private_random(0):
        model = mlp(width, width, width, width)
        return model, torch.randn(16, width), torch.randint(0, width, (16,))
