"""Scikit-learn's handwritten digits: a training that goes well, and the same one broken in five ways, one at a time."""

from collections.abc import Callable

import torch
from torch import nn

from gradoscope.problems import problem
from gradoscope.problems._data import accuracy, digits
from gradoscope.training import Training

__all__ = ["dead_relu", "deep_sigmoid", "healthy", "huge_step", "memorise", "tiny_step"]

SOURCE = "scikit-learn's bundled digits (Alpaydin and Kaynak 1998, UCI), 8x8 pixels"


def _mlp(width: int, depth: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    """64 inputs, `depth` hidden layers of `width` units, 10 scores; PyTorch's default start."""
    layers: list[nn.Module] = []
    fan_in = 64
    for _ in range(depth):
        layers += [nn.Linear(fan_in, width), activation()]
        fan_in = width
    return nn.Sequential(*layers, nn.Linear(fan_in, 10))


def _training(name: str, seed: int, lr: float, steps: int, model: Callable[[], nn.Module]) -> Training:
    train, validation = digits(seed)
    return Training(
        name=name,
        model=model,
        optimizer=lambda params: torch.optim.SGD(params, lr=lr),
        loss_fn=nn.functional.cross_entropy,
        data=train,
        validation=validation,
        metric=accuracy,
        batch_size=64,
        steps=steps,
    )


@problem(
    "digits:healthy",
    obstacle="healthy",
    says="A two-layer ReLU network on handwritten digits at a good step size: it learns.",
    source=SOURCE,
)
def healthy(*, seed: int = 0, width: int = 128, lr: float = 0.2, steps: int = 600) -> Training:
    """Layers 64-width-width-10 with ReLU, cross-entropy, plain SGD on batches of 64 of 1,347 images; 450 to validate."""
    return _training("digits:healthy", seed, lr, steps, lambda: _mlp(width, 2, nn.ReLU))


@problem(
    "digits:tiny-step",
    obstacle="step_too_small",
    says="The healthy training at 1e-4 times its step size: it hardly moves.",
    source=SOURCE,
)
def tiny_step(*, seed: int = 0, width: int = 128, lr: float = 2e-5, steps: int = 600) -> Training:
    """`digits:healthy` with the step size 1e-4 times as large."""
    return _training("digits:tiny-step", seed, lr, steps, lambda: _mlp(width, 2, nn.ReLU))


@problem(
    "digits:huge-step",
    obstacle="step_too_large",
    says="The healthy training at 100 times its step size: each step overshoots.",
    source=SOURCE,
)
def huge_step(*, seed: int = 0, width: int = 128, lr: float = 20.0, steps: int = 600) -> Training:
    """`digits:healthy` with the step size 100 times as large."""
    return _training("digits:huge-step", seed, lr, steps, lambda: _mlp(width, 2, nn.ReLU))


@problem(
    "digits:deep-sigmoid",
    obstacle="vanishing_gradient",
    says="Eight sigmoid layers with PyTorch's default start: each scales the gradient down, and the loss stays at ln 10.",
    source=SOURCE,
)
def deep_sigmoid(*, seed: int = 0, width: int = 64, depth: int = 8, lr: float = 0.2, steps: int = 600) -> Training:
    r"""`digits:healthy` with `depth` sigmoid layers: $\sigma' \le 1/4$ and small weights shrink the gradient per layer."""
    return _training("digits:deep-sigmoid", seed, lr, steps, lambda: _mlp(width, depth, nn.Sigmoid))


@problem(
    "digits:dead-relu",
    obstacle="vanishing_gradient",
    says="Every unit of the second hidden layer is off on all images: nothing at or below it receives a gradient.",
    source=SOURCE,
)
def dead_relu(*, seed: int = 0, width: int = 128, bias: float = -20.0, lr: float = 0.2, steps: int = 600) -> Training:
    """`digits:healthy` with every bias of the second hidden layer at `bias`, far below what its inputs can make up for."""

    def model() -> nn.Module:
        network = _mlp(width, 2, nn.ReLU)
        layer = network[2]
        assert isinstance(layer, nn.Linear)
        nn.init.constant_(layer.bias, bias)
        return network

    return _training("digits:dead-relu", seed, lr, steps, model)


@problem(
    "digits:memorise",
    obstacle="overfitting",
    says="Sixty clean images: the network fits them exactly, and validation gets no better, then worse.",
    source=SOURCE,
)
def memorise(*, seed: int = 0, images: int = 60, width: int = 64, depth: int = 4, lr: float = 3e-3, steps: int = 600) -> Training:
    """Adam on the first `images` of the training set of `digits:healthy`, in batches of 20; 450 images to validate.

    The network is deeper than the healthy one and Adam goes on long after the images are fitted, so that the scores
    grow and validation gets worse while the training loss falls to zero.
    """
    train, validation = digits(seed, train=images)
    return Training(
        name="digits:memorise",
        model=lambda: _mlp(width, depth, nn.ReLU),
        optimizer=lambda params: torch.optim.Adam(params, lr=lr),
        loss_fn=nn.functional.cross_entropy,
        data=train,
        validation=validation,
        metric=accuracy,
        batch_size=20,
        steps=steps,
    )
