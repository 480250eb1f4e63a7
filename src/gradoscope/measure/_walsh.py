"""The cube of all vectors of d bits, and the Walsh-Hadamard transform over it."""

from typing import Literal

import torch
from torch import Tensor

from gradoscope.errors import CannotRun

__all__ = ["Coding", "cube", "mask_sizes", "walsh_hadamard"]

Coding = Literal["signs", "bits"]


def cube(d: int, coding: Coding = "signs") -> Tensor:
    """All 2^d vectors of d bits as float64, shape (2^d, d): row i has bit j of i in column j, 1 for set, or -1 for set and +1 else.

    Example:
        >>> cube(2).tolist()
        [[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]
    """
    bits = (torch.arange(2**d)[:, None] >> torch.arange(d)) & 1
    return bits.double() if coding == "bits" else 1 - 2 * bits.double()


def mask_sizes(d: int) -> Tensor:
    """How many bits each index 0 ... 2^d - 1 has set, int64.

    Example:
        >>> mask_sizes(2).tolist()
        [0, 1, 1, 2]
    """
    return ((torch.arange(2**d)[:, None] >> torch.arange(d)) & 1).sum(1)


def walsh_hadamard(values: Tensor) -> Tensor:
    r"""$\sum_x(-1)^{\langle v,x\rangle}f(x)$ for every v, along the first dimension; its inverse is itself over $2^d$.

    Four bits at a time, as a product with the 16 x 16 matrix: a fourth of the passes over memory that butterflies take.

    Args:
        values: f at every x, shape (2^d, ...); the index is the number whose bits are x.

    Raises:
        CannotRun: where the first dimension is no power of two.

    Cost: O(d 2^d) per column.

    Example:
        >>> walsh_hadamard(torch.tensor([1.0, -1.0, 1.0, -1.0])).tolist()
        [0.0, 4.0, 0.0, 0.0]
    """
    n = len(values)
    d = n.bit_length() - 1
    if n != 1 << d:
        raise CannotRun(f"the Walsh-Hadamard transform needs a power of two of values, got {n}.")
    out, tail = values.reshape(n, -1), 1
    for start in range(0, d, 4):
        m = 2 ** min(4, d - start)
        out = torch.matmul(_hadamard(m, out), out.reshape(n // (m * tail), m, -1)).reshape(n, -1)
        tail *= m
    return out.reshape(values.shape)


def _hadamard(m: int, like: Tensor) -> Tensor:
    index = torch.arange(m, device=like.device)
    common = index[:, None] & index
    parity = sum((common >> j) & 1 for j in range(m.bit_length()))
    return (1 - 2 * (torch.as_tensor(parity) % 2)).to(like.dtype)
