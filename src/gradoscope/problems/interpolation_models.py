"""The models whose paths the source draws and that are no classifiers: an LSTM, a generative model, the factored linear model."""

import numpy as np
import torch
from torch import Tensor, nn

from gradoscope.errors import Usage
from gradoscope.guard import derive_seed
from gradoscope.problems import problem
from gradoscope.problems._data import generator
from gradoscope.problems._grammar import Characters, sequences
from gradoscope.problems._mnist import images
from gradoscope.problems._mpdbm import MultiPrediction, prediction_losses
from gradoscope.problems.interpolation import BATCH, SOURCE
from gradoscope.training import Training

__all__ = ["factored", "lstm", "mp_dbm"]


def _per_character(scores: Tensor, y: Tensor) -> float:
    """The share of characters that are predicted; scores (n, characters, length), targets (n, length)."""
    return float((scores.argmax(1) == y).double().mean())


@problem(
    "interpolation:lstm",
    obstacle="healthy",
    says="An LSTM that predicts the next character of a text: a plateau, a fall, and a path that is not straight.",
    source=SOURCE,
)
def lstm(
    *,
    seed: int = 0,
    hidden: int = 48,
    length: int = 24,
    rows: int = 512,
    lr: float = 1.0,
    momentum: float = 0.9,
    clip: float = 0.25,
    batch: int = 32,
    steps: int = 400,
) -> Training:
    """SGD with momentum and clipped gradients on pieces of a text that a small grammar writes (`problems/_grammar.py`).

    Args:
        seed: what the text is drawn from.
        hidden: units.
        length: characters of a piece; the state starts at zero in each.
        rows: pieces; half as many validate.
        lr: step size.
        momentum: of SGD.
        clip: the largest norm of a gradient.
        batch: pieces per step.
        steps: optimizer steps.
    """
    train, validation = (
        sequences(np.random.default_rng(derive_seed(seed, 61, k)), count, length) for k, count in enumerate((rows, rows // 2))
    )
    return Training(
        name="interpolation:lstm",
        model=lambda: Characters(hidden),
        optimizer=lambda params: torch.optim.SGD(params, lr=lr, momentum=momentum),
        loss_fn=nn.functional.cross_entropy,
        data=train,
        validation=validation,
        metric=_per_character,
        clip_norm=clip,
        batch_size=batch,
        steps=steps,
    )


def _prediction_loss(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    """The mean over examples of what the hidden units' true values cost."""
    return prediction_losses(output, target).mean()


@problem(
    "interpolation:mp-dbm",
    obstacle="healthy",
    says="A deep Boltzmann machine that predicts hidden pixels and labels by mean field: a generative model, trained by backpropagation.",
    source=f"{SOURCE}; Goodfellow, Mirza, Courville and Bengio 2013, Multi-prediction deep Boltzmann machines",
)
def mp_dbm(
    *,
    seed: int = 0,
    data: str = "digits",
    train: int = 0,
    first: int = 60,
    second: int = 40,
    sweeps: int = 5,
    lr: float = 0.05,
    momentum: float = 0.9,
    batch: int = BATCH,
    steps: int = 400,
) -> Training:
    """Pixels, two hidden layers and a label; each example shows half of its units and asks for the others (`problems/_mpdbm.py`).

    Args:
        seed: what the split of the digits is drawn from.
        data: "digits", or "mnist" where the user has it.
        train: images to train on; 0 for all.
        first: units of the first hidden layer.
        second: units of the second one.
        sweeps: of mean field, which are differentiated through.
        lr: step size.
        momentum: of SGD.
        batch: images per step.
        steps: optimizer steps.
    """
    (x, y), (x_valid, y_valid) = images(data, seed, train)
    marginals = x.mean(0)
    return Training(
        name="interpolation:mp-dbm",
        model=lambda: MultiPrediction(x.shape[1], (first, second), sweeps=sweeps, marginals=marginals),
        optimizer=lambda params: torch.optim.SGD(params, lr=lr, momentum=momentum),
        loss_fn=_prediction_loss,
        data=(x, y, torch.column_stack([x, y])),
        validation=(x_valid, y_valid, torch.column_stack([x_valid, y_valid])),
        batch_size=batch,
        steps=steps,
    )


@problem(
    "interpolation:factored",
    obstacle="healthy",
    says="A product of weights that start unequal and small: a plateau, a fall, and a path that bends.",
    source=f"{SOURCE}: linear view of the difficulty, factored linear loss function",
)
def factored(
    *,
    seed: int = 0,
    layers: int = 5,
    low: float = 0.2,
    high: float = 0.8,
    across: float = 0.0,
    rows: int = 64,
    lr: float = 0.02,
    steps: int = 800,
) -> Training:
    r"""Learn $y=x$ with $w_1\cdots w_Lx$ from weights that start uniformly in [low, high], by full-batch gradient descent.

    All weights move by the same amount in their squares, as $w_i^2-w_j^2$ is conserved in small steps: from unequal weights the path
    bends a little. (From equal ones, as in `factored:plateau`, it is a straight line.) With `across` the first weight starts at minus so
    many times the smallest of the others, which is what every second random start is like: the product is negative. Then all weights
    shrink towards the saddle at the origin, until that one changes its sign, and grow: a detour.

    Args:
        seed: what the data are drawn from; the start is drawn as any other model's.
        layers: L.
        low: of the start.
        high: of the start.
        across: 0 for positive weights; else, below 1, how close the path comes to the saddle.
        rows: examples, all of them at each step.
        lr: step size.
        steps: optimizer steps.
    """
    if layers < 2 or not 0 < low < high or not 0 <= across < 1:
        said = f"got {layers}, {low}, {high} and {across}"
        raise Usage(f"a product needs at least 2 layers, 0 < low < high and 0 <= across < 1, {said}.")
    random = generator(seed, 62)
    pairs = []
    for _ in range(2):
        x = torch.randn(rows, 1, generator=random)
        x = x / x.square().mean().sqrt()
        pairs.append((x, x.clone()))

    def model() -> nn.Module:
        parts = [nn.Linear(1, 1, bias=False) for _ in range(layers)]
        for part in parts:
            nn.init.uniform_(part.weight, low, high)
        if across:
            nn.init.constant_(parts[0].weight, -across * min(part.weight.item() for part in parts[1:]))
        return nn.Sequential(*parts)

    return Training(
        name="interpolation:factored",
        model=model,
        optimizer=lambda params: torch.optim.SGD(params, lr=lr),
        loss_fn=nn.functional.mse_loss,
        data=pairs[0],
        validation=pairs[1],
        batch_size=rows,
        steps=steps,
        noise_free=True,
    )
