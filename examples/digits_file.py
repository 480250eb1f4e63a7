"""The catalogue's `digits:deep-sigmoid` built in a file of one's own, and the same network mended.

    gradoscope diagnose examples/digits_file.py:deep_sigmoid --report report.html
    gradoscope diagnose examples/digits_file.py:mended

Gradoscope does not know where a training comes from, so the verdict is that of the catalogue's problem.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from gradoscope import Training


def data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Scikit-learn's 1,797 handwritten digits, normalised; 1,347 to train on and 450 to validate."""
    bunch = load_digits()
    x, y = torch.tensor(bunch.data, dtype=torch.float32), torch.tensor(bunch.target)
    order = torch.randperm(len(x))
    train, rest = order[:1347], order[1347:]
    x = (x - x[train].mean()) / x[train].std()
    return (x[train], y[train]), (x[rest], y[rest])


def network(depth: int, activation: type[nn.Module], width: int = 64) -> nn.Module:
    layers: list[nn.Module] = []
    fan_in = 64
    for _ in range(depth):
        layers += [nn.Linear(fan_in, width), activation()]
        fan_in = width
    return nn.Sequential(*layers, nn.Linear(fan_in, 10))


def accuracy(output: Tensor, target: Tensor) -> float:
    return float((output.argmax(-1) == target).double().mean())


def training(name: str, depth: int, activation: type[nn.Module]) -> Training:
    train, validation = data()
    return Training(
        name=name,
        model=lambda: network(depth, activation),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.2),
        loss_fn=nn.functional.cross_entropy,
        data=train,
        validation=validation,
        metric=accuracy,
        batch_size=64,
        steps=600,
    )


def deep_sigmoid() -> Training:
    """Eight sigmoid layers with PyTorch's default start: the gradient hardly reaches the first of them."""
    return training("my deep network", 8, nn.Sigmoid)


def mended() -> Training:
    """Two ReLU layers instead."""
    return training("my network", 2, nn.ReLU)
