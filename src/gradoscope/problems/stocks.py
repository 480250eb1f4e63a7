"""Stocks: learn from the whole basket's return, or from that of the stock that one ought to have bought (F5)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradoscope.errors import Usage
from gradoscope.problems import problem
from gradoscope.problems._data import generator
from gradoscope.training import Training

__all__ = ["best_stock", "decomposed", "end_to_end", "returns", "start"]

SOURCE = "Shalev-Shwartz, Shamir and Shammah 2017, extended version (arXiv 1703.07950), section 3.2"


def best_stock(d: int, k: int, random: torch.Generator) -> Tensor:
    """Which of k stocks always rises, for each of d states of the market: independent and uniform; shape (d,).

    Example:
        >>> best_stock(5, 3, torch.Generator().manual_seed(0)).shape
        torch.Size([5])
    """
    return torch.randint(0, k, (d,), generator=random)


def returns(best: Tensor, k: int, random: torch.Generator) -> Tensor:
    """The day's returns in {-1, +1}: +1 for the best stock, either with probability 1/2 for the others; shape (n, k).

    Example:
        >>> returns(torch.tensor([1, 0]), 2, torch.Generator().manual_seed(0)).diagonal(offset=0).shape
        torch.Size([2])
        >>> z = returns(torch.tensor([2, 2]), 3, torch.Generator().manual_seed(0))
        >>> z[:, 2]
        tensor([1., 1.])
    """
    z = torch.randint(0, 2, (len(best), k), generator=random).float() * 2 - 1
    return z.scatter_(1, best[:, None], 1.0)


def start(d: int, k: int, random: torch.Generator) -> Tensor:
    r"""The start of the table of logits, shape (d, k): truncated normal of std $1/\sqrt d$, as for any layer with d inputs."""
    std = d**-0.5
    return nn.init.trunc_normal_(torch.empty(d, k), std=std, a=-2 * std, b=2 * std, generator=random)


def _loss(portfolio: Tensor, z: Tensor) -> Tensor:
    """Minus the mean return of portfolios (n, k) on days (n, k)."""
    return -(portfolio * z).sum(1).mean()


def _gain(portfolio: Tensor, z: Tensor) -> float:
    """The mean return."""
    return float(-_loss(portfolio, z))


def _model(d: int, k: int, seed: int) -> nn.Module:
    layer = nn.Linear(d, k)
    with torch.no_grad():
        layer.weight.copy_(start(d, k, generator(seed, 3, d, k)).T)
        layer.bias.zero_()
    return nn.Sequential(layer, nn.Softmax(dim=-1))


def _training(name: str, whole: bool, seed: int, d: int, k: int, batch: int, lr: float, eps: float, steps: int) -> Training:
    if d < 1 or k < 2:
        raise Usage(f"{name} needs d of at least 1 and k of at least 2, got d={d} and k={k}.")
    best = best_stock(d, k, generator(seed, 2, d, k))

    def sample(random: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        x = torch.randint(0, d, (n,), generator=random)
        seen = returns(best[x], k, random) if whole else nn.functional.one_hot(best[x], k).float()
        return nn.functional.one_hot(x, d).float(), seen

    def parts(model: nn.Module, rows: tuple[Tensor, Tensor]) -> Tensor:
        x = rows[0]
        own = best.to(x.device)[x.argmax(1)]
        share: Tensor = model(x)
        return -share.gather(1, own[:, None]).mean()

    makes: Callable[[], nn.Module] = lambda: _model(d, k, seed)  # noqa: E731
    return Training(
        name=f"{name},k={k}",
        model=makes,
        optimizer=lambda params: torch.optim.Adam(params, lr=lr, betas=(0.9, 0.99), eps=eps),
        loss_fn=_loss,
        data=sample,
        # every state once, with the expectation of its returns: the exact expected loss
        validation=(torch.eye(d), nn.functional.one_hot(best, k).float()),
        metric=_gain,
        intermediate=parts if whole else None,
        batch_size=batch,
        steps=steps,
    )


@problem(
    "stocks:end-to-end",
    obstacle="low_gradient_snr",
    says="A portfolio learns from its own return: k - 1 stocks that do not matter make the gradient noisy.",
    source=SOURCE,
)
def end_to_end(
    *, seed: int = 0, d: int = 200, k: int = 500, batch: int = 20, lr: float = 0.1, eps: float = 1e-4, steps: int = 1000
) -> Training:
    r"""Minimise $-\langle z,N_w(x)\rangle$, $N_w(x)=\mathrm{softmax}(Wx+b)$, x one of d one-hot states, fresh samples.

    Stock y(x) always rises ($z_{y(x)}=1$), the others go either way. The estimator's second moment is k times that of
    the gradient of $-N_w(x)_{y(x)}$, which has the same expectation. The paper has d = 1,000, batch 100 and 2,500 steps
    with k = 10, 1,000 and 2,000, and Adam's epsilon 1e-5, which is 1/(batch k) at k = 1,000: as large as the gradient of a
    state's logits. The default is a table a tenth of the size with epsilon in the same proportion, which the failure rests on.

    PyTorch's Adam adds epsilon to the corrected root of the second moment, TensorFlow's (the paper's) to the uncorrected
    one: after 100 steps they differ by a fifth of epsilon, after 500 by nothing that counts.

    Args:
        seed: what y and the start are drawn from.
        d: states.
        k: stocks.
        batch: fresh days per step.
        lr: Adam's step size.
        eps: Adam's epsilon.
        steps: optimizer steps.

    Raises:
        Usage: where d is less than 1 or k less than 2.
    """
    return _training("stocks:end-to-end", True, seed, d, k, batch, lr, eps, steps)


@problem(
    "stocks:decomposed",
    obstacle="healthy",
    says="The same portfolio learns from the return of the one stock that matters: the same expected gradient, 1/k of the second moment.",
    source=SOURCE,
)
def decomposed(
    *, seed: int = 0, d: int = 200, k: int = 500, batch: int = 20, lr: float = 0.1, eps: float = 1e-4, steps: int = 1000
) -> Training:
    """`stocks:end-to-end` with the loss $-N_w(x)_{y(x)}$."""
    return _training("stocks:decomposed", False, seed, d, k, batch, lr, eps, steps)
