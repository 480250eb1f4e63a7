"""Parities: the network that computes one, and the elimination over GF(2) that finds one."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Solution", "agreement", "full_rank_probability", "lemma3_network", "parity_solution"]

Coding = Literal["signs", "bits"]


def lemma3_network(subset: Tensor, *, corrected: bool = True, inputs: Coding = "bits") -> nn.Sequential:
    r"""One hidden ReLU layer whose score is the parity of a subset: $(-1)^{\langle x,v\rangle}$ for $x\in\{0,1\}^d$.

    Three units with incoming weights v, biases $\frac12-2i,\;-2i,\;-\frac12-2i$ and outgoing weights 1, -2, 1 make a tent of
    height 1/2 at $\langle x,v\rangle=2i$ and width 1; the score is four times the tents' sum, less one. The lemma's own text
    takes the tents $i=1,\dots,\lfloor d/2\rfloor$. Where $\langle x,v\rangle=0$ none of them stands, so that it answers -1 in place
    of +1 on the $2^{d-|v|}$ points without a bit of the subset. The tent at i = 0 mends that.

    Args:
        subset: v, boolean, shape (d,).
        corrected: with the tent at 0; False is the lemma as it is printed.
        inputs: "bits" for {0, 1}, "signs" for {-1, +1} with $x_j=-1$ for a bit that is set.

    Returns:
        A float64 `Sequential(Linear, ReLU, Linear)` with 3 (floor(d/2) + 1) hidden units, or 3 floor(d/2).

    Example:
        >>> subset = torch.tensor([True, True, False])
        >>> x = torch.cartesian_prod(*3 * [torch.tensor([0.0, 1.0], dtype=torch.float64)])
        >>> y = (-1) ** x[:, subset].sum(1)
        >>> [int((lemma3_network(subset, corrected=c)(x)[:, 0] * y < 0).sum()) for c in (False, True)]
        [2, 0]

    Source: Shalev-Shwartz, Shamir and Shammah 2017, lemma 3.
    """
    v = subset.to(torch.float64)
    heights = torch.arange(0 if corrected else 1, len(v) // 2 + 1, dtype=torch.float64)
    biases = (-2 * heights[:, None] + torch.tensor([0.5, 0.0, -0.5], dtype=torch.float64)).flatten()
    hidden, score = nn.Linear(len(v), len(biases), dtype=torch.float64), nn.Linear(len(biases), 1, dtype=torch.float64)
    with torch.no_grad():
        hidden.weight.copy_(v.expand_as(hidden.weight))
        hidden.bias.copy_(biases)
        if inputs == "signs":  # a bit is (1 - x) / 2
            hidden.weight.mul_(-0.5)
            hidden.bias.add_(v.sum() / 2)
        score.weight.copy_(4 * torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64).repeat(len(heights))[None])
        score.bias.fill_(-1.0)
    return nn.Sequential(hidden, nn.ReLU(), score)


def agreement(guess: Tensor | np.ndarray, subset: Tensor | np.ndarray) -> float:
    """The share of the cube on which two parities agree: 1 for equal subsets, exactly 1/2 for any others.

    Example:
        >>> agreement(np.array([1, 0, 1], bool), np.array([1, 0, 0], bool))
        0.5
    """
    return 1.0 if bool((np.asarray(guess) == np.asarray(subset)).all()) else 0.5


def full_rank_probability(samples: int, unknowns: int) -> float:
    r"""How often uniform random bits determine all unknowns: $\prod_{i=0}^{u-1}(1-2^{i-n})$ for n equations with u unknowns.

    Example:
        >>> round(full_rank_probability(40, 30), 5), full_rank_probability(29, 30)
        (0.99902, 0.0)
    """
    if samples < unknowns:
        return 0.0
    return float(np.prod(1 - 2.0 ** (np.arange(unknowns) - samples)))


@dataclass(frozen=True)
class Solution:
    """A parity, or the negation of one; call it on inputs, shape (n, d), for labels 0 or 1.

    Args:
        mask: which columns count, shape (d,), 0 or 1.
        constant: 1 for the negation.
        middle: what divides the two values of each column, shape (d,).
    """

    mask: np.ndarray
    constant: int
    middle: np.ndarray

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(((rows > self.middle).astype(np.uint8) @ self.mask + self.constant) % 2)


def parity_solution(x: np.ndarray, y: np.ndarray) -> Solution | None:
    """The parity (or its negation) that fits every example, found by Gaussian elimination over GF(2), or None.

    Args:
        x: (N, d) inputs whose columns take at most two values each; the larger is the bit that is set.
        y: (N,) labels 0 or 1.

    Returns:
        The solution, or None where the inputs are not binary or no parity fits. Bits that the examples do not determine are 0.

    Cost: O(N d^2) bit operations; about d + 10 examples determine the answer.

    Example:
        >>> x = np.random.default_rng(0).integers(0, 2, (30, 12))
        >>> np.flatnonzero(parity_solution(x, x[:, [0, 5, 7]].sum(1) % 2).mask).tolist()
        [0, 5, 7]
    """
    low, high = x.min(0), x.max(0)
    if x.shape[1] > 4096 or not np.all((x == low) | (x == high)):
        return None
    middle, n = (low + high) / 2, min(len(x), x.shape[1] + 64)
    system = np.hstack([x[:n] > middle, np.ones((n, 1), bool), y[:n, None] != 0]).astype(np.uint8)
    pivots: list[int] = []
    row = 0
    for column in range(system.shape[1] - 1):
        hits = np.flatnonzero(system[row:, column])
        if not len(hits):
            continue
        system[[row, row + hits[0]]] = system[[row + hits[0], row]]
        others = np.flatnonzero(system[:, column])
        system[others[others != row]] ^= system[row]
        pivots.append(column)
        row += 1
        if row == n:
            break
    if system[row:, -1].any():
        return None
    mask = np.zeros(system.shape[1] - 1, np.uint8)
    mask[pivots] = system[: len(pivots), -1]
    solution = Solution(mask[:-1], int(mask[-1]), middle)
    return solution if np.array_equal(solution(x), y) else None
