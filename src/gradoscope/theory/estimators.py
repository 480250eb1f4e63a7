r"""How much two unbiased gradient estimators vary: a weighted sum of all parts' gradients against that of the part that counts."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from gradoscope.errors import CannotRun

__all__ = ["EstimatorMoments", "model_moments", "moments", "softmax_moments"]


@dataclass(frozen=True)
class EstimatorMoments:
    r"""Moments of the end-to-end estimator $-\sum_j z_j\nabla N_j$ and of the decomposed one $-\nabla N_y$, over inputs and signs.

    Args:
        end_to_end: $\mathbb E\|\cdot\|^2$ of the first, $\mathbb E_x\sum_j\|\nabla N_j(x)\|^2$.
        decomposed: that of the second, $\mathbb E_x\|\nabla N_y(x)\|^2$.
        mean_square: $\|\mathbb E_x\nabla N_y(x)\|^2$: the squared norm of the expectation, which both share.
    """

    end_to_end: float
    decomposed: float
    mean_square: float

    @property
    def second_moment_ratio(self) -> float:
        """How many times as large the end-to-end estimator's second moment is."""
        return self.end_to_end / self.decomposed

    @property
    def variance_ratio(self) -> float:
        """How many times as large its variance is, that is what of the second moment is not the mean's."""
        return (self.end_to_end - self.mean_square) / (self.decomposed - self.mean_square)


def moments(jacobian: Tensor, target: Tensor) -> EstimatorMoments:
    r"""Both estimators' moments from the parts' gradients, exact over the signs.

    The signs have $z_y=1$ and the others independent and uniform on {-1,+1}, so $\mathbb E\,z_iz_j=\delta_{ij}$ and the cross terms
    of $\|\sum_jz_j\nabla N_j\|^2$ vanish in expectation.

    Args:
        jacobian: the gradients of the k outputs by the parameters, for n inputs; shape (n, k, parameters).
        target: which output counts for each input; shape (n,).

    Returns:
        The moments, averaged over the n inputs.

    Example:
        >>> both = moments(torch.eye(3).expand(2, 3, 3), torch.tensor([0, 1]))
        >>> both.end_to_end, both.decomposed, both.mean_square
        (3.0, 1.0, 0.5)
    """
    own = jacobian[torch.arange(len(jacobian)), target]
    return EstimatorMoments(
        float(jacobian.square().sum((1, 2)).mean()),
        float(own.square().sum(1).mean()),
        float(own.mean(0).square().sum()),
    )


def softmax_moments(logits: Tensor, target: Tensor, *, bias: bool = True) -> EstimatorMoments:
    r"""The same in closed form for a table of logits, one row per input, and a bias that all rows share.

    The gradient of a softmax output by its own row is $\nabla p_j=p_j(e_j-p)$, so
    $\|\nabla p_j\|^2=p_j^2(1-2p_j+\|p\|^2)$, and the bias has the same gradient once more.

    Args:
        logits: the scores of k outputs for each of n inputs, bias included; shape (n, k).
        target: which output counts; shape (n,).
        bias: whether there is a shared bias.

    Returns:
        The moments over a uniform choice of the input, in the logits' precision.

    Cost: O(n k), instead of O(n k parameters).

    Example:
        >>> both = softmax_moments(torch.zeros(5, 100, dtype=torch.float64), torch.arange(5))
        >>> round(both.second_moment_ratio, 9)
        100.0
    """
    p = torch.softmax(logits, 1)
    rows = torch.arange(len(p))
    squares = p.square() * (1 - 2 * p + p.square().sum(1, keepdim=True))
    own = p[rows, target]
    times = 2 if bias else 1
    mean = float(squares[rows, target].mean()) / len(p)  # rows are disjoint: the norms of their means add up
    if bias:
        total = -(own[:, None] * p).mean(0)
        total.index_add_(0, target, own / len(p))
        mean += float(total.square().sum())
    return EstimatorMoments(times * float(squares.sum(1).mean()), times * float(squares[rows, target].mean()), mean)


def model_moments(model: nn.Module, x: Tensor, target: Tensor, *, chunk: int = 16) -> EstimatorMoments:
    r"""Both estimators' moments for any model with k outputs, such as a user's own classifier before it is trained on rewards.

    Args:
        model: `model(x)` has shape (n, k); rows may not see each other (no batch normalisation in training mode).
        x: n inputs, first dimension.
        target: which output counts; shape (n,).
        chunk: inputs whose Jacobians are held at a time.

    Returns:
        The moments over the n inputs. To foresee what decomposing gains, look at `variance_ratio`: the batch of the
        end-to-end estimator has to be that many times as large for the same noise.

    Raises:
        CannotRun: where the output is not of shape (n, k), or the number of targets differs.

    Cost: one forward and k backward passes per input, k times the parameters in memory for each of a chunk.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Softmax(-1))
        >>> both = model_moments(model, torch.randn(8, 4), torch.zeros(8, dtype=torch.long))
        >>> both.end_to_end > both.decomposed > both.mean_square
        True
    """
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        shape = model(x[:1]).shape
    if len(shape) != 2 or len(target) != len(x):
        raise CannotRun(f"the model gives shape {tuple(shape)} for one row, and there are {len(target)} targets for {len(x)} rows.")

    def single(values: dict[str, Tensor], row: Tensor) -> Tensor:
        output: Tensor = functional_call(model, values, (row[None],))[0]
        return output

    jacobians = vmap(jacrev(single), in_dims=(None, 0), randomness="different")

    def parts() -> Iterator[tuple[Tensor, Tensor]]:
        for some, wanted in zip(torch.split(x, chunk), torch.split(target, chunk), strict=True):
            found = jacobians(parameters, some)
            yield torch.cat([j.flatten(2) for j in found.values()], dim=2), wanted

    whole, own, mean = 0.0, 0.0, torch.zeros(())
    for jacobian, wanted in parts():
        part = moments(jacobian, wanted)
        whole, own = whole + part.end_to_end * len(wanted), own + part.decomposed * len(wanted)
        mean = mean + jacobian[torch.arange(len(wanted)), wanted].sum(0)
    return EstimatorMoments(whole / len(x), own / len(x), float((mean / len(x)).square().sum()))
