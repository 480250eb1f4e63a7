"""Learning from statistical queries: an oracle that tells no more than it must, and what gradient descent learns from it."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gradoscope.errors import Usage

__all__ = ["Oracle", "descend", "least_queries", "tell_apart"]


class Oracle:
    r"""It answers $E_x[q(x,h(x))]$ to a tolerance, with the mean over all targets whenever it may.

    A query is any function of an example and its label with values in [-1, 1]; as labels are -1 or +1 it is
    $q(x,y)=c(x)+y\,s(x)$. The answer is $\bar q=E_{h'}E_x[q(x,h'(x))]$, which knows nothing of the target h, where
    $|E_x[q(x,h(x))]-\bar q|\le\tau$, else the truth. Whoever learns from the answers cannot tell targets apart that allow the same ones.

    Args:
        targets: every target at every point, -1 or +1, shape (T, N); the points are equally likely.
        true: the row of the hidden one.
        tolerance: tau, at least 0.

    Attributes:
        queries: how many have been asked.
        told: how many of them were answered with the truth, as they had to be.
        alive: which targets would have allowed all answers so far, boolean, shape (T,).

    Example:
        >>> parities = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
        >>> oracle = Oracle(parities, true=2, tolerance=0.5)
        >>> round(float(oracle.ask(torch.zeros(1, 4), parities[1:2])), 3), round(float(oracle.ask(torch.zeros(1, 4), parities[2:3])), 3)
        (0.25, 1.0)
        >>> oracle.alive.tolist(), oracle.told
        ([False, False, True, False], 1)

    Source: Kearns 1998; Blum et al. 1994; Feldman, Guzman and Vempala 2015 for gradients as queries.
    """

    def __init__(self, targets: Tensor, true: int, tolerance: float) -> None:
        if targets.dim() != 2 or not 0 <= true < len(targets) or tolerance < 0:
            raise Usage(
                f"an oracle needs targets (T, N), one of them, and a tolerance of at least 0; got {targets.shape}, {true}, {tolerance}."
            )
        self.targets, self.true, self.tolerance = targets.double(), true, tolerance
        self.queries = self.told = 0
        self.alive = torch.ones(len(targets), dtype=torch.bool)
        self._mean = self.targets.mean(0)

    def ask(self, common: Tensor, signal: Tensor, *, track: bool = True) -> Tensor:
        """The answers to Q queries $c(x)+y\\,s(x)$.

        Args:
            common: c at every point, shape (Q, N).
            signal: s, shape (Q, N), with |c| + |s| at most 1.
            track: whether to keep `alive` up to date, which costs a product with all targets.

        Returns:
            Shape (Q,), float64.

        Raises:
            Usage: where a query leaves [-1, 1].
        """
        c, s = common.double(), signal.double()
        if float((c.abs() + s.abs()).max()) > 1 + 1e-9:
            raise Usage("a statistical query has values in [-1, 1]: divide it by its largest value.")
        points = self.targets.shape[1]
        base = c.mean(1)
        mean, truth = base + s @ self._mean / points, base + s @ self.targets[self.true] / points
        must = (truth - mean).abs() > self.tolerance
        answers = torch.where(must, truth, mean)
        self.queries += len(answers)
        self.told += int(must.sum())
        if track:
            every = base[:, None] + s @ self.targets.T / points
            # A target allows an answer where its own oracle gives it: the mean where that is near enough, else its truth.
            own = torch.where((every - mean[:, None]).abs() > self.tolerance, every, mean[:, None])
            self.alive &= ((own - answers[:, None]).abs() <= 1e-12).all(0)
        return answers


def least_queries(targets: int, tolerance: float) -> float:
    r"""No learner can do with fewer queries than about $T\tau^2$ for T orthogonal targets, as each rules out at most $1/\tau^2$ of them.

    By Bessel's inequality $\sum_h E_x[s\,h]^2\le E_x[s^2]\le1$.

    Example:
        >>> least_queries(2**10, 0.25)
        64.0
    """
    return targets * tolerance**2


def tell_apart(oracle: Oracle, queries: Iterator[tuple[Tensor, Tensor]], most: int) -> int:
    """Ask until one target is left: the number of queries, or -1 where `most` did not suffice.

    Args:
        oracle: a fresh one.
        queries: gives (common, signal), each of shape (1, N).
        most: queries to ask at most.

    Example:
        >>> parities = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
        >>> one_by_one = ((torch.zeros(1, 4), row[None]) for row in parities)
        >>> tell_apart(Oracle(parities, true=1, tolerance=0.5), one_by_one, 4)
        2
    """
    for count, (common, signal) in enumerate(queries, 1):
        oracle.ask(common, signal)
        if int(oracle.alive.sum()) == 1:
            return count
        if count >= most:
            break
    return -1


def descend(
    oracle: Oracle, parameters: Tensor, gradients: Callable[[Tensor], tuple[Tensor, Tensor]], lr: float, steps: int, *, track: int = 0
) -> tuple[Tensor, int]:
    r"""Gradient descent in which each partial derivative at each step is a statistical query, scaled to [-1, 1].

    Args:
        oracle: answers.
        parameters: the start, shape (P,).
        gradients: from parameters, (c, s) of shape (P, N) such that $c+ys$ is the gradient of the loss at each point with label y.
        lr: the step size.
        steps: how many.
        track: during how many first steps the oracle keeps its `alive` up to date.

    Returns:
        The last parameters, and the first step at which an answer had to differ from the mean over all targets, or -1: until then
        the path is the same for every target.

    Cost: one call of `gradients` per step.

    Example:
        >>> parities = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
        >>> feature = lambda w: (torch.zeros(1, 4), -parities[1:2])  # the loss -w y x_1
        >>> w, first = descend(Oracle(parities, true=1, tolerance=0.1), torch.zeros(1), feature, lr=1.0, steps=3)
        >>> w.tolist(), first
        ([3.0], 0)
        >>> descend(Oracle(parities, true=1, tolerance=0.8), torch.zeros(1), feature, lr=1.0, steps=3)[1]
        -1
    """
    w, first = parameters, -1
    for step in range(steps):
        common, signal = gradients(w)
        size = (common.abs() + signal.abs()).amax(1).clamp(min=1e-30)
        told = oracle.told
        answers = oracle.ask(common / size[:, None], signal / size[:, None], track=step < track)
        if first < 0 and oracle.told > told:
            first = step
        w = w - lr * (answers * size).to(w)
    return w, first
