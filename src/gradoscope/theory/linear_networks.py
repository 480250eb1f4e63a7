"""Linear networks: products of weights, the two-factor loss, the dynamics of modes, critical points, Baldi and Hornik's auto-encoder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from scipy.integrate import quad
from torch import Tensor

from gradoscope.errors import Usage
from gradoscope.theory.convex import flow

__all__ = [
    "CriticalPoint",
    "autoencoder_losses",
    "critical_points",
    "decoupled_start",
    "depth_time",
    "energy",
    "factor_gradient",
    "factor_hessian",
    "half_rise",
    "mode",
    "mode_speed",
    "product_flow",
    "product_gradient",
    "single_layer",
    "taylor_product",
]


def product_gradient(weights: Tensor) -> Tensor:
    r"""The gradient of $y=w_1w_2\cdots w_L$: $\partial y/\partial w_i=\prod_{j\ne i}w_j$, right where weights are zero too.

    Args:
        weights: shape (..., L).

    Example:
        >>> product_gradient(torch.full((5,), 0.1)).tolist()[0] < 1.01e-4, float(product_gradient(torch.full((5,), 2.0))[0])
        (True, 16.0)

    Source: Goodfellow 2015, "Linear view of the difficulty".
    """
    ones = torch.ones_like(weights[..., :1])
    before = torch.cat([ones, weights[..., :-1]], -1).cumprod(-1)
    after = torch.cat([ones, weights.flip(-1)[..., :-1]], -1).cumprod(-1).flip(-1)
    return before * after


def taylor_product(weights: Tensor, step: Tensor) -> Tensor:
    r"""Taylor's predictions of $\prod_i(w_i+s_i)$ to the orders 0, 1, ..., L; the last is exact.

    Order k adds $\sum_{|I|=k}\prod_{i\in I}s_i\prod_{i\notin I}w_i$, the elementary symmetric polynomials of a joint step: a step that is
    best for each weight alone says nothing of their product before order L.

    Args:
        weights: shape (L,).
        step: s, shape (L,).

    Returns:
        Shape (L + 1,).

    Example:
        >>> w = torch.full((5,), 1.5, dtype=torch.float64)
        >>> [round(v, 3) for v in taylor_product(w, -0.05 * product_gradient(w)).tolist()]
        [7.594, 1.187, 3.349, 2.984, 3.015, 3.014]

    Source: Goodfellow 2015: "It requires an n-th order method to see the real effect of an update".
    """
    parts = torch.zeros(len(weights) + 1, dtype=weights.dtype)
    parts[0] = 1
    for k, (w, s) in enumerate(zip(weights, step, strict=True)):
        grown = parts[: k + 2] * w
        grown[1:] += parts[: k + 1] * s
        parts[: k + 2] = grown
    return parts.cumsum(0)


def factor_gradient(point: Tensor, sigma: float) -> Tensor:
    r"""The gradient of $\ell(a,b)=(\sigma-ab)^2$, $-2(\sigma-ab)(b,a)$; points and gradients of shape (..., 2).

    The flow conserves $a^2-b^2$, and a = -b is the stable manifold of the saddle at 0.

    Example:
        >>> factor_gradient(torch.tensor([[1.0, 2.0], [2.0, 1.5]]), 3.0).tolist()
        [[-4.0, -2.0], [-0.0, -0.0]]

    Source: Perraudin and Hofmann 2018, "modes decouple"; Saxe, McClelland and Ganguli 2014.
    """
    return -2 * (sigma - point.prod(-1, keepdim=True)) * point.flip(-1)


def factor_hessian(point: Tensor, sigma: float) -> Tensor:
    r"""The Hessian of $(\sigma-ab)^2$, shape (..., 2, 2): eigenvalues $\pm2\sigma$ at 0, and 0 and $2(a^2+b^2)$ on $ab=\sigma$.

    Example:
        >>> torch.linalg.eigvalsh(factor_hessian(torch.tensor([[0.0, 0.0], [3.0, 1.0]]), 3.0)).round().abs().tolist()
        [[6.0, 6.0], [0.0, 20.0]]
    """
    mixed = 4 * point.prod(-1) - 2 * sigma
    a2, b2 = 2 * point[..., 1].square(), 2 * point[..., 0].square()
    return torch.stack([torch.stack([a2, mixed], -1), torch.stack([mixed, b2], -1)], -2)


def mode_speed(u: Tensor, sigma: float, conserved: float = 0.0) -> Tensor:
    r"""How fast $u=ab$ moves under the flow of $(\sigma-ab)^2$: $\dot u=2(\sigma-u)(a^2+b^2)=2(\sigma-u)\sqrt{c^2+4u^2}$, $c=a^2-b^2$.

    There is no 1/2 in the loss, so u grows as $e^{4\sigma t}$ while it is small, twice as fast as in the convention of Saxe et al.

    Example:
        >>> mode_speed(torch.tensor([0.5, 1.0]), 1.0).tolist()
        [1.0, 0.0]
    """
    return 2 * (sigma - u) * (conserved**2 + 4 * u.square()).sqrt()


def product_flow(times: Sequence[float], sigma: float, a: float, b: float) -> Tensor:
    """u(t) = a(t) b(t) under the flow of (sigma - ab)^2 from (a, b), by `mode_speed`, shape (len(times),), float64.

    Example:
        >>> u = product_flow([0.0, 5.0], 1.0, 0.3, -0.1)
        >>> [round(v, 6) for v in u.tolist()]
        [-0.03, 1.0]
    """
    start = torch.tensor([a * b], dtype=torch.float64)
    return flow(lambda u: -mode_speed(u, sigma, a * a - b * b), start, times)[:, 0]


def mode(times: Tensor, sigma: float, start: float) -> Tensor:
    r"""The strength of a mode with balanced weights (a = b): $u(t)=\sigma/(1+(\sigma/u_0-1)e^{-4\sigma t})$.

    Args:
        times: any shape.
        sigma: the mode's singular value.
        start: $u_0>0$.

    Example:
        >>> round(float(mode(torch.tensor(half_rise(3.0, 1e-3)), 3.0, 1e-3)), 4)
        1.5

    Source: Saxe, McClelland and Ganguli 2014, with time halved: the lecture's loss has no 1/2.
    """
    return sigma / (1 + (sigma / start - 1) * torch.exp(-4 * sigma * times))


def half_rise(sigma: float, start: float) -> float:
    r"""When a balanced mode reaches $\sigma/2$: $t=\ln(\sigma/u_0-1)/4\sigma$, the earlier the stronger it is.

    Example:
        >>> [round(half_rise(s, 1e-3), 3) for s in (3.0, 2.0, 1.2, 0.6)]
        [0.667, 0.95, 1.477, 2.665]
    """
    return math.log(sigma / start - 1) / (4 * sigma)


def single_layer(start: Tensor, gamma: Tensor, step: float, steps: int) -> Tensor:
    r"""Gradient descent on $E|y-Ax|^2$ with whitened x after `steps` steps: $A_t=\Gamma+(1-2\eta)^t(A_0-\Gamma)$, $\Gamma=E\,yx^\top$.

    Example:
        >>> single_layer(torch.zeros(1, 1), torch.ones(1, 1), 0.25, 2).item()
        0.75

    Source: Perraudin and Hofmann 2018, "Single Layer Linear Network": the gradient is $2(A-\Gamma)$.
    """
    return gamma + (1 - 2 * step) ** steps * (start - gamma)


def decoupled_start(gamma: Tensor, strengths: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
    r"""Two layers whose modes never meet: $Q=UDR^\top$, $W=RDV^\top$ with $\Gamma=USV^\top$ and $D^2=\mathrm{diag}(u_0)$.

    Args:
        gamma: shape (m, n).
        strengths: the modes' $u_0\ge0$, strongest mode first, shape (k,), k <= min(m, n).
        rotation: orthogonal R, shape (k, k).

    Returns:
        Q, shape (m, k), and W, shape (k, n).

    Example:
        >>> q, w = decoupled_start(torch.diag(torch.tensor([2.0, 1.0])), torch.tensor([0.1, 0.2]), torch.eye(2))
        >>> (q @ w).round(decimals=4).tolist()
        [[0.1..., 0.0], [0.0, 0.2...]]

    Source: Saxe, McClelland and Ganguli 2014, section 1.2.
    """
    u, _, v = torch.linalg.svd(gamma, full_matrices=False)
    k = len(strengths)
    d = strengths.sqrt()
    return u[:, :k] * d @ rotation.T, rotation * d @ v[:k]


def energy(q: Tensor, w: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    r"""The lecture's energy of two layers: cooperation $\sum_r(q_r\cdot w_r-\sigma_r)^2$ and competition $\sum_{r\ne s}(q_s\cdot w_r)^2$.

    In the coordinates of the modes: q_r is a row of $U^\top Q$, w_r a column of $WV$. The first part makes the vectors of one mode
    align, the second drives those of different modes apart.

    Args:
        q: $U^\top Q$, shape (..., m, k).
        w: $WV$, shape (..., k, n).
        sigmas: shape (min(m, n),).

    Returns:
        Cooperation and competition, shapes (...); they add up to $|QW-\Gamma|_F^2$.

    Example:
        >>> energy(torch.eye(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), torch.tensor([2.0, 1.0]))
        (tensor(1.), tensor(0.2500))

    Source: Perraudin and Hofmann 2018, "Equivalent energy function".
    """
    a = q @ w
    own = a.diagonal(dim1=-2, dim2=-1)
    return (own - sigmas).square().sum(-1), a.square().sum((-2, -1)) - own.square().sum(-1)


def depth_time(depth: int, sigma: float, start: float, end: float) -> float:
    r"""The time in which L equal weights take $u=w^L$ from `start` to `end`: $\int\frac{du}{2L\,u^{2-2/L}(\sigma-u)}$.

    Gradient flow of $(\sigma-w_1\cdots w_L)^2$ with equal weights is $\dot w=2w^{L-1}(\sigma-w^L)$.

    Args:
        depth: L >= 1.
        sigma: what is learnt.
        start: $u_0>0$.
        end: below sigma.

    Cost: none; quadrature in ln u.

    Example:
        >>> [round(depth_time(depth, 1.0, 1e-3, 0.9), 3) for depth in (2, 3, 5, 10)]
        [2.276, 4.981, 10.745, 15.915]

    Source: Saxe, McClelland and Ganguli 2014, section 2, with the lecture's factor 2.
    """
    if not 0 < start < end < sigma:
        raise Usage(f"expected 0 < start < end < sigma, got start={start}, end={end}, sigma={sigma}.")

    def inside(x: float) -> float:
        return math.exp(x * (2 / depth - 1)) / (2 * depth * (sigma - math.exp(x)))

    return float(quad(inside, math.log(start), math.log(end), epsabs=0, epsrel=1e-10, limit=200)[0])


@dataclass(frozen=True)
class CriticalPoint:
    r"""A critical point of $|QW-\Sigma|_F^2$ that has learnt some of the modes, with balanced factors.

    Attributes:
        modes: which ones, as places in `sigmas`.
        loss: $\sum_{j\notin S}\sigma_j^2$.
        eigenvalues: all of the Hessian's, ascending, shape (2 p k,).
        q: shape (p, k).
        w: shape (k, p).
    """

    modes: tuple[int, ...]
    loss: float
    eigenvalues: np.ndarray
    q: Tensor
    w: Tensor

    def index(self, tolerance: float = 1e-9) -> tuple[int, int, int]:
        """How many eigenvalues are negative, zero and positive."""
        size = tolerance * float(np.abs(self.eigenvalues).max())
        negative, positive = int((self.eigenvalues < -size).sum()), int((self.eigenvalues > size).sum())
        return negative, len(self.eigenvalues) - negative - positive, positive


def critical_points(sigmas: Sequence[float], width: int) -> list[CriticalPoint]:
    r"""One critical point of $|QW-\Sigma|_F^2$, $\Sigma=\mathrm{diag}(\sigma)$, for every set S of at most `width` modes, best first.

    Q and W are $\mathrm{diag}(\sqrt{\sigma_S})$ on the modes of S, and zero in the other hidden units. The Hessian falls into blocks of
    one or two weights, with the eigenvalues (i, i' in S, j not in S)

    - $0,\ 4\sigma_i$ for each i, and $0,\ 2(\sigma_i+\sigma_{i'})$ for each ordered pair: the zeros are the symmetry $QG, G^{-1}W$;
    - $2(\sigma_i\pm\sigma_j)$ for each i and j: negative where a stronger mode was left out;
    - $\pm2\sigma_j$ for each unused unit and each j, and $0, 0$ for each unused unit and each i.

    So only the strongest modes make a minimum, it is global, all others are strict saddles; with k modes learnt there are k^2 zeros.

    Args:
        sigmas: distinct and positive, shape (p,).
        width: k, the number of hidden units.

    Example:
        >>> for point in critical_points([3.0, 2.0, 1.0], 2)[:3]:
        ...     print([m + 1 for m in point.modes], point.loss, point.index(), point.eigenvalues[0])
        [1, 2] 1.0 (0, 4, 8) 0.0
        [1, 3] 4.0 (1, 4, 7) -2.0
        [1] 5.0 (2, 3, 7) -4.0

    Source: Baldi and Hornik 1989; Saxe, McClelland and Ganguli 2014; the spectrum at balanced points is worked out here.
    """
    found = []
    for count in range(min(width, len(sigmas)) + 1):
        for modes in combinations(range(len(sigmas)), count):
            left = [j for j in range(len(sigmas)) if j not in modes]
            own = [sigmas[i] for i in modes]
            values = [v for s in own for v in (0.0, 4 * s)]
            values += [v for i in modes for j in modes if i != j for v in (0.0, 2 * (sigmas[i] + sigmas[j]))]
            values += [2 * (s + sign * sigmas[j]) for s in own for j in left for sign in (-1, 1)]
            values += (width - count) * [sign * 2 * sigmas[j] for j in left for sign in (-1, 1)]
            values += (width - count) * count * [0.0, 0.0]
            q = torch.zeros(len(sigmas), width, dtype=torch.float64)
            for unit, i in enumerate(modes):
                q[i, unit] = math.sqrt(sigmas[i])
            loss = float(sum(sigmas[j] ** 2 for j in left))
            found.append(CriticalPoint(modes, loss, np.sort(values), q, q.T.clone()))
    return sorted(found, key=lambda point: (point.loss, point.modes))


def autoencoder_losses(eigenvalues: Sequence[float], width: int, among: int) -> list[tuple[tuple[int, ...], float]]:
    r"""The losses $E|x-QWx|^2$ at the critical points of a linear auto-encoder that use `width` principal components.

    They are $\sum_j\lambda_j-\sum_{i\in S}\lambda_i$ for sets S of eigenvectors of the covariance; only the leading set is a minimum.

    Args:
        eigenvalues: all of the covariance's, descending.
        width: k.
        among: only sets of the first so many eigenvectors.

    Returns:
        (S, loss) pairs, best first.

    Example:
        >>> autoencoder_losses([4.0, 2.0, 1.0, 0.5], 2, 3)
        [((0, 1), 1.5), ((0, 2), 2.5), ((1, 2), 4.5)]

    Source: Baldi and Hornik 1989, facts 4 and 5.
    """
    total = float(sum(eigenvalues))
    found = [(modes, total - float(sum(eigenvalues[i] for i in modes))) for modes in combinations(range(among), width)]
    return sorted(found, key=lambda pair: pair[1])
