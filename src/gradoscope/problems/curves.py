"""Piecewise-linear curves: the inverse of a well-posed map whose curvature spans eight orders of magnitude (F6)."""

import torch
from torch import Tensor, nn

from gradoscope.errors import Usage
from gradoscope.problems import problem
from gradoscope.problems._data import generator
from gradoscope.training import Training

__all__ = ["draw_breakpoints", "half_squared_error", "integrator", "linear"]


def integrator(n: int) -> Tensor:
    r"""The matrix $W_{ij}=[i-j+1]_+$ that turns slopes' changes into a curve, shape (n, n), float64.

    Its inverse takes second differences; $\kappa(W^\top W)\approx 1.29\,n^4$.

    Example:
        >>> integrator(3).tolist()
        [[1.0, 0.0, 0.0], [2.0, 1.0, 0.0], [3.0, 2.0, 1.0]]
    """
    i = torch.arange(n, dtype=torch.float64)
    return (i[:, None] - i[None, :] + 1).clamp(min=0)


def draw_breakpoints(count: int, n: int, k: int, random: torch.Generator) -> Tensor:
    """The k changes of slope of each of `count` curves, shape (count, n), float64, zero elsewhere.

    Places are drawn uniformly without replacement, changes uniformly from [-1, 1].
    """
    places = torch.rand(count, n, generator=random).argsort(dim=1)[:, :k]
    changes = torch.rand(count, k, generator=random, dtype=torch.float64) * 2 - 1
    return torch.zeros(count, n, dtype=torch.float64).scatter_(1, places, changes)


def half_squared_error(output: Tensor, target: Tensor) -> Tensor:
    r"""$\frac1N\sum_i \frac12\lVert u_i - p_i\rVert^2$, the convention with the half, for which 2 is the limit of stability."""
    return 0.5 * (output - target).square().sum(dim=1).mean()


def _no_start(n: int) -> nn.Linear:
    model = nn.Linear(n, n, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    return model


@problem(
    "curves:linear",
    obstacle="ill_conditioning",
    says="Read breakpoints off curves with one linear map: the safe step is a hundred million times too short for most of it.",
    source="Shalev-Shwartz, Shamir and Shammah 2017, section 4; extended version, section 4 and theorem 3",
)
def linear(*, seed: int = 0, n: int = 100, k: int = 3, curves: int = 1000, validation: int = 1000, steps: int = 500) -> Training:
    r"""Learn U with $Uf\approx p$ from curves $f=Wp$ by full-batch gradient descent at $1/\lambda_{\max}$, from U = 0.

    The loss is $\frac12\lVert Uf-p\rVert^2$, so the Hessian is $I\otimes\frac1N\sum_i f_if_i^\top$ and $\lambda_{\max}$ is the
    largest eigenvalue of the empirical second moment, computed in float64; the training is in float64 as well, as
    a condition number near 1e8 is all that float32 resolves. The paper has 10,000 curves and batches of 100.

    Args:
        seed: what the curves are drawn from.
        n: points per curve.
        k: breakpoints per curve.
        curves: curves to train on, all of them at each step.
        validation: curves to validate on.
        steps: optimizer steps.

    Raises:
        Usage: where there are more breakpoints than points.
    """
    if not 1 <= k <= n:
        raise Usage(f"curves:linear needs 1 <= k <= n, got k={k}, n={n}.")
    w = integrator(n)
    random = generator(seed, 3, n, k)
    p, p_validation = draw_breakpoints(curves, n, k, random), draw_breakpoints(validation, n, k, random)
    f, f_validation = p @ w.T, p_validation @ w.T
    lr = 1 / float(torch.linalg.eigvalsh(f.T @ f / curves)[-1])
    return Training(
        name="curves:linear",
        model=lambda: _no_start(n),
        optimizer=lambda params: torch.optim.SGD(params, lr=lr),
        loss_fn=half_squared_error,
        data=(f, p),
        validation=(f_validation, p_validation),
        batch_size=curves,
        steps=steps,
    )
