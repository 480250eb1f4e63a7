"""Theorem 3: what the gradient can say about a direction u when only products of k signs along u are seen."""

import math

__all__ = ["product_bound", "product_model_variance", "sign_direction_moment"]


def product_bound(d: int, k: int) -> float:
    r"""The bound of theorem 3 on Var / G^2 with its constant set to 1: $\left(\sqrt{k\ln d/d}\right)^k$.

    For targets $h_u(x_1..x_k)=\prod_l\mathrm{sign}(u\cdot x_l)$ with u on the unit sphere of R^d and standard normal inputs. The
    theorem's constant is not given; the paper's comment below it quotes the base as $k\ln d/\sqrt d$, which is another number
    (0.95 instead of 0.18 at k = 4, d = 784).

    Example:
        >>> round(product_bound(784, 4) ** 0.25, 2)
        0.18

    Source: Shalev-Shwartz, Shamir and Shammah 2017, theorem 3.
    """
    return math.sqrt(k * math.log(d) / d) ** k


def sign_direction_moment(d: int, m: int) -> float:
    r"""$E_u\langle u,w\rangle^{2m}$ for u uniform on the unit sphere of R^d and |w| = 1: $\prod_{i<m}(2i+1)/(d+2i)$.

    Example:
        >>> sign_direction_moment(10, 1)
        0.1
    """
    value = 1.0
    for i in range(m):
        value *= (2 * i + 1) / (d + 2 * i)
    return value


def product_model_variance(d: int, k: int) -> float:
    r"""Var / G^2 in closed form for the predictor $p_w=\prod_l w\cdot x_l$ at |w| = 1.

    $$E_x[h_ug]=k\,(2/\pi)^{k/2}\langle u,w\rangle^{k-1}u,\quad E\|g\|^2=kd+k(k-1)$$
    so that $E_u\|\cdot\|^2=k^2(2/\pi)^kE\langle u,w\rangle^{2(k-1)}$; its mean over u is zero for odd k and
    $k(2/\pi)^{k/2}E\langle u,w\rangle^{k}\,w$ for even k. It falls like $d^{-k}$, the square of what the theorem promises and more.

    Example:
        >>> product_model_variance(100, 1) == 2 / math.pi / 100
        True
    """
    second = k**2 * (2 / math.pi) ** k * sign_direction_moment(d, k - 1)
    mean = k * (2 / math.pi) ** (k / 2) * sign_direction_moment(d, k // 2) if k % 2 == 0 else 0.0
    return (second - mean**2) / (k * d + k * (k - 1))
