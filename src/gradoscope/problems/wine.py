"""Chemical analyses of wines: thirteen numbers in units of their own, as they were measured or standardised."""

import torch
from torch import Tensor, nn

from gradoscope.problems import problem
from gradoscope.problems._data import accuracy, generator
from gradoscope.training import Training

__all__ = ["raw", "standardised", "wines"]

SOURCE = "scikit-learn's bundled wines (Forina et al. 1991, UCI); standardising: Le Cun et al. 1998, Efficient BackProp, section 4.3"
Pair = tuple[Tensor, Tensor]


def wines(seed: int) -> tuple[Pair, Pair]:
    """The 178 wines in a random order, 130 to train on and 48 to validate: (n, 13) numbers in their own units, and (n,) classes.

    Example:
        >>> (x, y), _ = wines(0)
        >>> x.shape, float(x.max()) > 1000, float(x.min()) < 0.2
        (torch.Size([130, 13]), True, True)
    """
    from sklearn.datasets import load_wine

    bunch = load_wine()
    x, y = torch.from_numpy(bunch.data).float(), torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(x), generator=generator(seed, 1))
    x, y = x[order], y[order]
    return (x[:130], y[:130]), (x[130:], y[130:])


def _training(name: str, seed: int, width: int, lr: float, steps: int, standardise: bool) -> Training:
    (x, y), (x_validation, y_validation) = wines(seed)
    if standardise:
        mean, spread = x.mean(0), x.std(0)
        x, x_validation = (x - mean) / spread, (x_validation - mean) / spread
    return Training(
        name=name,
        model=lambda: nn.Sequential(nn.Linear(13, width), nn.Tanh(), nn.Linear(width, 3)),
        optimizer=lambda params: torch.optim.SGD(params, lr=lr),
        loss_fn=nn.functional.cross_entropy,
        data=(x, y),
        validation=(x_validation, y_validation),
        metric=accuracy,
        batch_size=26,
        steps=steps,
    )


@problem(
    "wine:raw",
    obstacle="unnormalised_inputs",
    says="Wines by thirteen analyses in their own units, from 0.1 to 1,700: the largest ones saturate every unit.",
    source=SOURCE,
)
def raw(*, seed: int = 0, width: int = 16, lr: float = 0.1, steps: int = 300) -> Training:
    """Layers 13-width-3 with tanh, cross-entropy, plain SGD on batches of 26 of 130 wines; the inputs as they were measured."""
    return _training("wine:raw", seed, width, lr, steps, standardise=False)


@problem(
    "wine:standardised",
    obstacle="healthy",
    says="The same training with every analysis at mean zero and unit variance: it learns.",
    source=SOURCE,
)
def standardised(*, seed: int = 0, width: int = 16, lr: float = 0.1, steps: int = 300) -> Training:
    """`wine:raw` with standardised inputs, and nothing else changed."""
    return _training("wine:standardised", seed, width, lr, steps, standardise=True)
