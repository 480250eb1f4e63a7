"""Piecewise-linear curves as data: the laws that they are drawn by, what a filter sees of them, and the sources' autoencoder."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradoscope.errors import Usage
from gradoscope.theory import curves as theory

__all__ = ["Windows", "autoencoder_network", "draw_anywhere", "draw_breakpoints", "draw_patterns", "draw_slopes", "integrator", "windows"]


def integrator(n: int) -> Tensor:
    r"""The matrix $W_{ij}=[i-j+1]_+$ that turns slopes' changes into a curve, shape (n, n), float64.

    Its inverse takes second differences; $\kappa(W^\top W)\approx 1.29\,n^4$.

    Example:
        >>> integrator(3).tolist()
        [[1.0, 0.0, 0.0], [2.0, 1.0, 0.0], [3.0, 2.0, 1.0]]
    """
    return torch.from_numpy(theory.integrator(n))


def draw_breakpoints(count: int, n: int, k: int, random: torch.Generator) -> Tensor:
    """The k changes of slope of each of `count` curves, shape (count, n), float64, zero elsewhere: the paper's law.

    Places are drawn uniformly without replacement, changes uniformly from [-1, 1].
    """
    places = torch.rand(count, n, generator=random).argsort(dim=1)[:, :k]
    changes = torch.rand(count, k, generator=random, dtype=torch.float64) * 2 - 1
    return torch.zeros(count, n, dtype=torch.float64).scatter_(1, places, changes)


def draw_patterns(count: int, n: int, random: torch.Generator) -> Tensor:
    """The same by the law of the authors' code: three sorted places away from the ends, and one of four patterns of slopes.

    The first three and the last three points never have a breakpoint: what becomes of them cannot be learnt from such data.
    """
    inner = n - 2 * theory.MARGIN
    places = torch.rand(count, inner, generator=random).argsort(dim=1)[:, :3].sort(dim=1).values + theory.MARGIN
    slopes = torch.tensor(theory.PATTERNS, dtype=torch.float64)[torch.randint(len(theory.PATTERNS), (count,), generator=random)]
    changes = slopes.diff(dim=1, prepend=torch.zeros(count, 1, dtype=torch.float64))
    return torch.zeros(count, n, dtype=torch.float64).scatter_(1, places, changes)


def draw_anywhere(count: int, n: int, k: int, random: torch.Generator) -> Tensor:
    r"""Curves $f(x)=\sum_r a_r[x-\theta_r]_+$ with real $\theta_r\sim U[0,n]$, $a_r\sim U[-1,1]$: the code's law for the autoencoder.

    Returns:
        Shape (count, n), float64, at x = 0..n-1.
    """
    places = torch.rand(count, k, generator=random, dtype=torch.float64) * n
    changes = torch.rand(count, k, generator=random, dtype=torch.float64) * 2 - 1
    x = torch.arange(n, dtype=torch.float64)
    f = torch.zeros(count, n, dtype=torch.float64)
    for r in range(k):  # one breakpoint at a time needs k times less memory
        f += (x - places[:, r, None]).clamp(min=0) * changes[:, r, None]
    return f


def draw_slopes(law: str, count: int, n: int, k: int, random: torch.Generator) -> Tensor:
    """The changes of slope by the "paper"'s law or that of the "code".

    Raises:
        Usage: where the law is another, or does not fit n and k.
    """
    if law == "paper" and 1 <= k <= n:
        return draw_breakpoints(count, n, k, random)
    if law == "code" and k == 3 and n >= 2 * theory.MARGIN + 3:
        return draw_patterns(count, n, random)
    raise Usage(f"curves need law=paper with 1 <= k <= n, or law=code with k = 3 and n >= 9; got law={law}, n={n}, k={k}.")


def windows(f: Tensor) -> Tensor:
    """What a filter of three taps sees at each point: (f[t-2], f[t-1], f[t]), zeros before the start; (N, n) -> (N, n, 3).

    Example:
        >>> windows(torch.tensor([[1.0, 2.0]])).tolist()
        [[[0.0, 0.0, 1.0], [0.0, 1.0, 2.0]]]
    """
    return F.pad(f, (2, 0)).unfold(1, 3, 1)


class Windows(nn.Module):
    """The windows of a curve under a fixed linear map: (N, n) -> (N, n, 3).

    Args:
        matrix: multiplies each window from the right, shape (3, 3).
    """

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)

    def forward(self, f: Tensor) -> Tensor:
        return windows(f) @ self.matrix


def autoencoder_network(n: int, k: int, width: float = 1.0, depth: int = 0) -> nn.Sequential:
    """The sources' autoencoder n-500-100-2k-100-100-n, ReLU after every layer but the last; weights of std 1/sqrt(fan in).

    Args:
        n: points per curve.
        k: breakpoints per curve.
        width: factor on the hidden widths.
        depth: further layers of 100 units, by turns in the encoder and the decoder.
    """
    inner = max(1, round(100 * width))
    encoder = [n, max(1, round(500 * width)), *[inner] * (1 + (depth + 1) // 2)]
    sizes = [*encoder, 2 * k, *[inner] * (2 + depth // 2), n]
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layer = nn.Linear(a, b)
        nn.init.trunc_normal_(layer.weight, std=a**-0.5, a=-2 * a**-0.5, b=2 * a**-0.5)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()] if i < len(sizes) - 2 else [layer]
    return nn.Sequential(*layers)
