"""What several problems share: the bundled digits, and accuracy as a metric."""

from functools import lru_cache

import torch
from torch import Tensor

from gradoscope.guard import derive_seed

__all__ = ["accuracy", "digits", "generator"]

Pair = tuple[Tensor, Tensor]


def generator(*keys: int) -> torch.Generator:
    """A random stream of its own for (seed, purpose), so that no problem draws from the global one."""
    return torch.Generator().manual_seed(derive_seed(*keys))


@lru_cache(maxsize=1)
def _digits() -> Pair:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return torch.from_numpy(bunch.data / 16.0).float(), torch.from_numpy(bunch.target).long()


def digits(seed: int, train: int = 1347, validation: int = 450) -> tuple[Pair, Pair]:
    r"""Scikit-learn's 1,797 handwritten digits of 8x8 pixels, split at random into a training and a validation set.

    All pixels are shifted and scaled by one mean and one standard deviation, $x' = (x-\bar x)/s$, those of the whole
    training part, so that the inputs are normalised and no pixel that is always blank is blown up.

    Args:
        seed: what the split is drawn from.
        train: images to train on, taken from the first 1,347 of the shuffled order.
        validation: images to validate on, taken from the other 450.

    Returns:
        ((train, 64) inputs, (train,) labels), and the same for validation.

    Example:
        >>> (x, y), (x_validation, _) = digits(seed=0)
        >>> x.shape, y.shape, x_validation.shape
        (torch.Size([1347, 64]), torch.Size([1347]), torch.Size([450, 64]))
    """
    x, y = _digits()
    order = torch.randperm(len(x), generator=generator(seed, 1))
    first, rest = order[:1347], order[1347:]
    mean, std = x[first].mean(), x[first].std()
    x = (x - mean) / std
    return (x[first[:train]], y[first[:train]]), (x[rest[:validation]], y[rest[:validation]])


def accuracy(output: Tensor, target: Tensor) -> float:
    """The share of rows whose largest score is at the target class; output (n, classes), target (n,)."""
    return float((output.argmax(-1) == target).double().mean())
