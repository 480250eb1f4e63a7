"""Set splitting: an NP-complete problem as a training set for one shared ReLU filter, where every weight is a choice of sides."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from gradoscope.errors import Usage

__all__ = [
    "GAP",
    "Instance",
    "descend",
    "empirical_gradient",
    "empirical_loss",
    "gaussian_samples",
    "planted",
    "random_instance",
    "samples",
    "smoothness",
    "solvable",
    "splits",
    "unsplit",
]

GAP = 0.25
"""Where no splitting exists, every filter has a sum of squared errors of at least this: see `samples`."""


@dataclass(frozen=True)
class Instance:
    """Elements 0 .. d - 1 and 3-element sets of them, to be divided between two sides so that no set is on one side.

    Args:
        elements: d.
        sets: shape (C, 3), three different elements each.
        sides: a known solution of +1 and -1, shape (d,), where one was planted.
    """

    elements: int
    sets: Tensor
    sides: Tensor | None = None


def _triples(elements: int, count: int, allowed: Tensor, random: torch.Generator) -> Tensor:
    if elements < 3:
        raise Usage(f"sets of three need at least 3 elements, got {elements}.")
    if count > len(allowed):
        raise Usage(f"there are only {len(allowed)} such sets of three of {elements} elements, got {count}.")
    return allowed[torch.randperm(len(allowed), generator=random)[:count]]


def random_instance(elements: int, count: int, random: torch.Generator) -> Instance:
    """`count` different sets of three, uniform over all.

    Raises:
        Usage: where there are not so many.

    Example:
        >>> random_instance(9, 20, torch.Generator().manual_seed(0)).sets.shape
        torch.Size([20, 3])
    """
    every = torch.tensor(list(itertools.combinations(range(elements), 3)))
    return Instance(elements, _triples(elements, count, every, random))


def planted(elements: int, count: int, random: torch.Generator) -> Instance:
    """`count` different sets of three, uniform over those that a hidden division into two halves splits: a solvable instance.

    Raises:
        Usage: where there are not so many.

    Example:
        >>> instance = planted(24, 36, torch.Generator().manual_seed(0))
        >>> bool(splits(instance.sides, instance))
        True
    """
    sides = torch.ones(elements, dtype=torch.float64)
    sides[torch.randperm(elements, generator=random)[: elements // 2]] = -1
    every = torch.tensor(list(itertools.combinations(range(elements), 3)))
    mixed = every[sides[every].sum(1).abs() < 2]
    return Instance(elements, _triples(elements, count, mixed, random), sides)


def unsplit(sides: Tensor, instance: Instance) -> Tensor:
    """How many sets lie on one side, for sides of shape (..., d): only the signs count; shape (...)."""
    signs = torch.where(sides > 0, 1.0, -1.0)
    return (signs[..., instance.sets].sum(-1).abs() > 2).sum(-1)


def splits(sides: Tensor, instance: Instance) -> Tensor:
    """Whether every set is split, for sides of shape (..., d); shape (...)."""
    return unsplit(sides, instance) == 0


def solvable(instance: Instance) -> Tensor | None:
    r"""A solution found by trying all $2^{d-1}$ divisions at once, shape (d,), or None: for d up to about 20.

    Raises:
        Usage: for more than 24 elements.

    Cost: $2^{d-1}C$ sums.

    Example:
        >>> triples = torch.tensor(list(itertools.combinations(range(5), 3)))
        >>> solvable(Instance(5, triples)) is None  # one side has three of the five
        True
        >>> solvable(Instance(5, triples[:3])) is None
        False
    """
    d = instance.elements
    if d > 24:
        raise Usage(f"trying all divisions is for at most 24 elements, got {d}.")
    for start in range(0, 2 ** (d - 1), 2**16):
        codes = torch.arange(start, min(start + 2**16, 2 ** (d - 1)))
        sides = 1.0 - 2.0 * ((codes[:, None] >> torch.arange(d)) & 1)
        good = splits(sides, instance)
        if bool(good.any()):
            return sides[int(good.nonzero()[0])].double()
    return None


def samples(instance: Instance, k: int = 2, *, scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""The instance as a training set of k patches per input: zero error if and only if it is solvable.

    An element i gives the patches $(e_i,-e_i)$, a set {a, b, c} gives $(e_a+e_b+e_c,-(e_a+e_b+e_c))$, all with the label 1/2. As
    $\sigma(z)+\sigma(-z)=|z|$, an error of zero means $|w_i|=1$ for all elements and $|w_a+w_b+w_c|=1$ for all sets: signs that
    differ within every set. More than two patches are zero, and the labels shrink to 1/k.

    Where the signs of a filter leave a set {a, b, c} on one side, its four errors alone have a sum of squares of
    $\frac14\left[(|w_a|-1)^2+(|w_b|-1)^2+(|w_c|-1)^2+(|w_a|+|w_b|+|w_c|-1)^2\right]\ge\frac14$ (k = 2; the least is at 1/2 each).
    So an unsolvable instance keeps a sum of at least `GAP` for every filter, and a filter below it solves the instance by its signs.

    Args:
        instance: what is encoded.
        k: patches, at least 2.
        scales: positive factors on each input with its label, shape (d + C,), so that the labels differ; a filter with zero error
            stays one, as the network is homogeneous.

    Returns:
        Inputs, float64, shape (d + C, k, d), and labels, shape (d + C,).

    Raises:
        Usage: for k < 2.

    Example:
        >>> instance = planted(6, 5, torch.Generator().manual_seed(0))
        >>> x, y = samples(instance)
        >>> float(empirical_loss(instance.sides, x, y)), x.shape
        (0.0, torch.Size([11, 2, 6]))

    Source: derived here; Brutzkus & Globerson 2017 reduce from set splitting as well.
    """
    if k < 2:
        raise Usage(f"the reduction needs at least 2 patches, got k={k}.")
    eye = torch.eye(instance.elements, dtype=torch.float64)
    rows = torch.cat([eye, eye[instance.sets].sum(1)])
    x = torch.zeros(len(rows), k, instance.elements, dtype=torch.float64)
    x[:, 0], x[:, 1] = rows, -rows
    factors = torch.ones(len(rows), dtype=torch.float64) if scales is None else scales
    return x * factors[:, None, None], factors / k


def gaussian_samples(n: int, k: int, target: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same sizes with inputs that are standard normal, and labels of the filter w*: realisable as well.

    Returns:
        Inputs (n, k, m), and labels (n,).
    """
    x = torch.randn(n, k, len(target), generator=random, dtype=torch.float64)
    return x, torch.relu(x @ target).mean(1)


def empirical_loss(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    r"""$\frac1n\sum_a\left(\frac1k\sum_i\sigma(w\cdot x_a[i])-y_a\right)^2$ for filters of shape (..., m); shape (...)."""
    return (_outputs(w, x)[0] - y).square().mean(-1)


def _outputs(w: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    z = torch.relu(w @ x.flatten(0, 1).T)
    return z.reshape(*z.shape[:-1], *x.shape[:2]).mean(-1), z


def empirical_gradient(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Its derivative, of the shape of w; at z = 0 the slope of the ReLU is 0."""
    f, z = _outputs(w, x)
    n, k = x.shape[:2]
    back = (2 / (n * k)) * (f - y).repeat_interleave(k, dim=-1) * (z > 0)
    return back @ x.flatten(0, 1)


def smoothness(x: Tensor) -> float:
    r"""A bound on the curvature of `empirical_loss`: $\frac2{nk}\lambda_{max}\big(\sum_{a,i}x_a[i]x_a[i]^\top\big)$.

    Example:
        >>> round(smoothness(torch.eye(2, dtype=torch.float64)[:, None]), 6)
        1.0
    """
    flat = x.flatten(0, 1)
    return 2 / len(flat) * float(torch.linalg.eigvalsh(flat.T @ flat)[-1])


def descend(starts: Tensor, x: Tensor, y: Tensor, *, step: float, steps: int, tolerance: float = 1e-8, look: int = 50) -> Tensor:
    """Full-batch gradient descent from S starts at once; it stops where all of them are at `tolerance`.

    Args:
        starts: float64, shape (S, m).
        x: inputs, shape (n, k, m).
        y: labels, shape (n,).
        step: in units of 1 / `smoothness`.
        steps: at most so many.
        tolerance: the loss that counts as zero.
        look: how often that is asked.

    Returns:
        Where they end, shape (S, m).

    Cost: one gradient per step and start.

    Example:
        >>> random = torch.Generator().manual_seed(0)
        >>> x, y = gaussian_samples(200, 2, torch.ones(4, dtype=torch.float64), random)
        >>> float(empirical_loss(descend(torch.ones(1, 4, dtype=torch.float64) / 3, x, y, step=1.0, steps=2000), x, y)) <= 1e-8
        True
    """
    w, rate = starts.clone(), step / smoothness(x)
    for t in range(steps):
        if t % look == 0 and bool((empirical_loss(w, x, y) <= tolerance).all()):
            break
        w = w - rate * empirical_gradient(w, x, y)
    return w
