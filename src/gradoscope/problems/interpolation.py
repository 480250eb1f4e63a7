"""The classifiers whose paths the source draws: maxout, ReLU, tanh and sigmoid units, adversarial maxout, convolutions."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradoscope.problems import problem
from gradoscope.problems._data import accuracy
from gradoscope.problems._maxout import Adversarial, BoundedSGD, both, growing_momentum, network
from gradoscope.problems._mnist import images
from gradoscope.training import Training

__all__ = ["BATCH", "SOURCE", "adversarial", "convnet", "maxout", "relu", "sigmoid", "tanh"]

SOURCE = "Goodfellow, Vinyals and Saxe 2015, Qualitatively characterizing neural network optimization problems; Goodfellow 2015, slides"
BATCH = 100  # of the maxout recipe


def _steps(steps: int, epochs: float, rows: int, batch: int) -> int:
    """So many steps, or so many passes over the data where `epochs` says so."""
    return max(1, round(epochs * (rows // batch))) if epochs else steps


@problem(
    "interpolation:maxout",
    obstacle="healthy",
    says="Two maxout layers on handwritten digits: the loss falls all along the straight line from the start to the solution.",
    source=f"{SOURCE}; Goodfellow et al. 2013, Maxout networks, the recipe for permutation-invariant MNIST",
)
def maxout(
    *,
    seed: int = 0,
    data: str = "digits",
    train: int = 0,
    units: int = 60,
    pieces: int = 4,
    layers: int = 2,
    lr: float = 0.1,
    momentum: float = 0.9,
    momentum_start: float = 0.9,
    momentum_steps: int = 125_000,
    decay: float = 1.0,
    bound: float = 1.9365,
    width: float = 0.0,
    dropout: float = 0.0,
    hidden_dropout: float = 0.0,
    batch: int = BATCH,
    steps: int = 500,
    epochs: float = 0.0,
) -> Training:
    """Maxout layers by SGD on batches of 100, each column of weights bounded to a norm of 1.9365.

    The source's size: data=mnist,units=240,pieces=5,width=0.005,momentum_start=0.5,momentum=0.7,decay=1.000004,dropout=0.2,
    hidden_dropout=0.5,epochs=250.

    Args:
        seed: what the split of the digits is drawn from.
        data: "digits", or "mnist" where the user has it.
        train: images to train on; 0 for all.
        units: of each hidden layer.
        pieces: of each unit.
        layers: hidden ones.
        lr: step size at the start.
        momentum: at the end.
        momentum_start: at the start.
        momentum_steps: in which it grows linearly from the one to the other.
        decay: what the step size is divided by at each step.
        bound: the largest norm of a column.
        width: of the uniform start of the weights; 0 for PyTorch's own.
        dropout: the share of pixels that is left out in training.
        hidden_dropout: the share of hidden units that is left out in training.
        batch: images per step.
        steps: optimizer steps.
        epochs: passes over the data, instead of steps; 0 for `steps`.
    """
    pairs = images(data, seed, train)
    inputs = pairs[0][0].shape[1]
    return Training(
        name="interpolation:maxout",
        model=lambda: network(inputs, units, pieces, layers=layers, width=width or None, dropout=dropout, hidden_dropout=hidden_dropout),
        optimizer=lambda params: BoundedSGD(params, lr=lr, momentum=momentum_start, bound=bound),
        schedule=growing_momentum(momentum_start, momentum, momentum_steps, decay),
        loss_fn=nn.functional.cross_entropy,
        data=pairs[0],
        validation=pairs[1],
        metric=accuracy,
        batch_size=batch,
        steps=_steps(steps, epochs, len(pairs[0][0]), batch),
    )


def _two_scores(output: Tensor, y: Tensor) -> float:
    """The share of images and of adversarial examples that are classified correctly, half of each."""
    return float((output.argmax(1) == y[:, None]).double().mean())


@problem(
    "interpolation:adversarial",
    obstacle="healthy",
    says="The maxout network trained on images and on adversarial examples of them, which move with the parameters.",
    source=f"{SOURCE}; Goodfellow, Shlens and Szegedy 2015",
)
def adversarial(
    *,
    seed: int = 0,
    data: str = "digits",
    train: int = 0,
    epsilon: float = 0.1,
    units: int = 60,
    pieces: int = 4,
    layers: int = 2,
    lr: float = 0.1,
    momentum: float = 0.9,
    bound: float = 1.9365,
    width: float = 0.0,
    batch: int = BATCH,
    steps: int = 500,
    epochs: float = 0.0,
) -> Training:
    r"""$\frac12J(x)+\frac12J(x+\epsilon\,\mathrm{sign}\nabla_xJ)$, with the adversarial examples as data: no gradient goes through them.

    Args:
        seed: as in `interpolation:maxout`, and the rest likewise.
        epsilon: of the adversarial examples, in units of the pixels' range.
        data: "digits", or "mnist" where the user has it.
        train: images to train on; 0 for all.
        units: of each hidden layer.
        pieces: of each unit.
        layers: hidden ones.
        lr: step size.
        momentum: of SGD.
        bound: the largest norm of a column.
        width: of the uniform start of the weights; 0 for PyTorch's own.
        batch: images per step.
        steps: optimizer steps.
        epochs: passes over the data, instead of steps; 0 for `steps`.
    """
    (x, y), (x_valid, y_valid) = images(data, seed, train)
    return Training(
        name="interpolation:adversarial",
        model=lambda: Adversarial(network(x.shape[1], units, pieces, layers=layers, width=width or None), epsilon),
        optimizer=lambda params: BoundedSGD(params, lr=lr, momentum=momentum, bound=bound),
        loss_fn=both,
        data=(x, y, y),
        validation=(x_valid, y_valid, y_valid),
        metric=_two_scores,
        batch_size=batch,
        steps=_steps(steps, epochs, len(x), batch),
    )


def _dense(
    name: str,
    unit: Callable[[], nn.Module],
    seed: int,
    data: str,
    train: int,
    width: int,
    layers: int,
    lr: float,
    momentum: float,
    batch: int,
    steps: int,
) -> Training:
    """Hidden layers of one kind of unit, with PyTorch's start."""
    pairs = images(data, seed, train)

    def model() -> nn.Module:
        parts: list[nn.Module] = []
        inputs = pairs[0][0].shape[1]
        for _ in range(layers):
            parts += [nn.Linear(inputs, width), unit()]
            inputs = width
        return nn.Sequential(*parts, nn.Linear(inputs, 10))

    return Training(
        name=name,
        model=model,
        optimizer=lambda params: torch.optim.SGD(params, lr=lr, momentum=momentum),
        loss_fn=nn.functional.cross_entropy,
        data=pairs[0],
        validation=pairs[1],
        metric=accuracy,
        batch_size=batch,
        steps=steps,
    )


@problem(
    "interpolation:relu",
    obstacle="healthy",
    says="Two layers of rectified units on handwritten digits: the loss falls all along the straight line to the solution.",
    source=SOURCE,
)
def relu(
    *,
    seed: int = 0,
    data: str = "digits",
    train: int = 0,
    width: int = 80,
    layers: int = 2,
    lr: float = 0.1,
    momentum: float = 0.9,
    batch: int = BATCH,
    steps: int = 500,
) -> Training:
    """Layers pixels-width-width-10 with ReLU, cross-entropy, SGD with momentum; data=mnist,width=1200 is of the source's size."""
    return _dense("interpolation:relu", nn.ReLU, seed, data, train, width, layers, lr, momentum, batch, steps)


@problem(
    "interpolation:tanh",
    obstacle="healthy",
    says="Two layers of tanh units on handwritten digits: the loss falls all along the straight line to the solution.",
    source=SOURCE,
)
def tanh(
    *,
    seed: int = 0,
    data: str = "digits",
    train: int = 0,
    width: int = 80,
    layers: int = 2,
    lr: float = 0.1,
    momentum: float = 0.9,
    batch: int = BATCH,
    steps: int = 500,
) -> Training:
    """`interpolation:relu` with tanh."""
    return _dense("interpolation:tanh", nn.Tanh, seed, data, train, width, layers, lr, momentum, batch, steps)


@problem(
    "interpolation:sigmoid",
    obstacle="healthy",
    says="Two layers of sigmoid units on handwritten digits: the straight line to the solution begins with a small rise.",
    source=SOURCE,
)
def sigmoid(
    *,
    seed: int = 0,
    data: str = "digits",
    train: int = 0,
    width: int = 80,
    layers: int = 2,
    lr: float = 0.3,
    momentum: float = 0.9,
    batch: int = 32,
    steps: int = 1000,
) -> Training:
    """`interpolation:relu` with sigmoid units, whose small slopes ask for a larger step size and more steps."""
    return _dense("interpolation:sigmoid", nn.Sigmoid, seed, data, train, width, layers, lr, momentum, batch, steps)


@problem(
    "interpolation:convnet",
    obstacle="healthy",
    says="Two convolutions with pooling on handwritten digits: the loss falls all along the straight line to the solution.",
    source=SOURCE,
)
def convnet(
    *,
    seed: int = 0,
    data: str = "digits",
    train: int = 0,
    first: int = 12,
    second: int = 24,
    lr: float = 0.1,
    momentum: float = 0.9,
    batch: int = BATCH,
    steps: int = 400,
) -> Training:
    """Two 3x3 convolutions with `first` and `second` channels, each with ReLU and 2x2 pooling, and ten scores.

    The source's network was one of maxout units on CIFAR-10.
    """
    (x, y), (x_valid, y_valid) = images(data, seed, train)
    side = round(x.shape[1] ** 0.5)

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, first, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(second * (side // 4) ** 2, 10),
        )

    return Training(
        name="interpolation:convnet",
        model=model,
        optimizer=lambda params: torch.optim.SGD(params, lr=lr, momentum=momentum),
        loss_fn=nn.functional.cross_entropy,
        data=(x.view(-1, 1, side, side), y),
        validation=(x_valid.view(-1, 1, side, side), y_valid),
        metric=accuracy,
        batch_size=batch,
        steps=steps,
    )
