"""Piecewise-linear curves: the map from changes of slope to a curve, its inverse, and how ill-conditioned learning it is."""

import math
from fractions import Fraction
from typing import Literal

import numpy as np
from scipy.linalg import eig_banded
from scipy.optimize import brentq

__all__ = [
    "Edge",
    "Law",
    "Loss",
    "beam_root",
    "contraction",
    "descent_steps",
    "dictionary",
    "distance",
    "expected_iterate",
    "filter_condition",
    "filter_moment",
    "integrator",
    "integrator_condition",
    "integrator_limit",
    "jacobi_condition",
    "moment",
    "recursion",
    "second_difference",
    "spectral_condition",
]

Law = Literal["paper", "code"]
Edge = Literal["valid", "extended"]
Loss = Literal["half", "plain"]

# The slopes of a curve's three pieces in the authors' code, one pattern per row, drawn with equal chances.
PATTERNS = ((1, -1, 1), (1, -2, 1), (-2, 1, -1), (1, -1, 2))
MARGIN = 3  # points at either end where the code's law has no breakpoint


def integrator(n: int) -> np.ndarray:
    r"""The matrix $W_{ij}=[i-j+1]_+$ that turns changes of slope p into a curve $f=Wp$, shape (n, n).

    It sums twice: $W=S^2$ with S the lower triangle of ones. $(Wp)_i$ is $\sum_j p_j[x-j]_+$ at $x=i+1$, so that W is shifted by one
    against the curve as the sources write it; their own dictionary, `dictionary`, cannot be inverted.

    Example:
        >>> integrator(3).tolist()
        [[1.0, 0.0, 0.0], [2.0, 1.0, 0.0], [3.0, 2.0, 1.0]]

    Source: Shalev-Shwartz, Shamir and Shammah 2017, extended version, section 4.
    """
    i = np.arange(n)
    return np.asarray(np.maximum(i[:, None] - i[None, :] + 1, 0), dtype=float)


def second_difference(n: int) -> np.ndarray:
    """The inverse of `integrator`: 1 on the diagonal, -2 and 1 on the two below; shape (n, n).

    Example:
        >>> second_difference(3).tolist()
        [[1.0, 0.0, 0.0], [-2.0, 1.0, 0.0], [1.0, -2.0, 1.0]]

    Source: the same, lemma 1.
    """
    return np.eye(n) - 2 * np.eye(n, k=-1) + np.eye(n, k=-2)


def dictionary(n: int) -> np.ndarray:
    r"""$V_{x\theta}=[x-\theta]_+$, the curve $f(x)=\sum_r a_r[x-\theta_r]_+$ as written, x and theta in 0..n-1, shape (n, n).

    Its first row and last column are zero: a breakpoint at the last point leaves no trace, and the rank is n - 1.

    Example:
        >>> int(np.linalg.matrix_rank(dictionary(20)))
        19
    """
    i = np.arange(n)
    return np.asarray(np.maximum(i[:, None] - i[None, :], 0), dtype=float)


def beam_root() -> float:
    r"""The smallest positive root of $\cos\beta\cosh\beta=-1$, the first frequency of a clamped-free beam.

    Example:
        >>> round(beam_root(), 6)
        1.875104
    """
    return float(brentq(lambda b: math.cos(b) * math.cosh(b) + 1, 1.0, 3.0, xtol=1e-15))


def integrator_limit() -> float:
    r"""$\lim \kappa(W^\top W)/n^4=16/\beta^4$: $\sigma_{\max}\to n^2/\beta^2$ (W tends to a double integral), $\sigma_{\min}\to 1/4$.

    Example:
        >>> round(integrator_limit(), 4)
        1.2943
    """
    return 16 / beam_root() ** 4


def integrator_condition(n: int) -> float:
    r"""$\kappa(W^\top W)$ to float64's precision, in O(n) memory: both ends are largest eigenvalues, that of W's by double sums.

    The spectrum of the pentadiagonal $W^{-\top}W^{-1}$ has the smallest singular value at its well-conditioned end.

    Args:
        n: points per curve, at least 3.

    Example:
        >>> round(integrator_condition(100) / 100**4, 4)
        1.346
    """
    return _largest_square(n) * _largest_inverse_square(n)


def _largest_square(n: int) -> float:
    """The largest eigenvalue of W'W by power iteration; the next one is 39 times smaller."""
    v = np.linspace(1.0, 0.0, n, endpoint=False)
    value = 0.0
    for _ in range(40):
        v /= np.linalg.norm(v)
        f = np.cumsum(np.cumsum(v))
        value = float(f @ f)
        v = np.cumsum(np.cumsum(f[::-1]))[::-1].copy()
    return value


def _largest_inverse_square(n: int) -> float:
    """The largest eigenvalue of U'U for U the second difference, from its three bands."""
    bands = np.zeros((3, n))  # the lower form: row b holds the b-th diagonal below
    bands[0], bands[1, :-1], bands[2, :-2] = 6.0, -4.0, 1.0
    bands[0, -2:], bands[1, -2] = (5.0, 1.0), -2.0
    return float(eig_banded(bands, lower=True, eigvals_only=True, select="i", select_range=(n - 1, n - 1))[0])


def moment(n: int, law: Law = "paper", k: int = 3) -> np.ndarray:
    r"""$E\,pp^\top$ of the changes of slope, exactly, shape (n, n).

    "paper": k places without replacement, changes U[-1, 1]: $\frac{k}{3n}I$. "code": three sorted places out of n - 6 and one of four
    patterns of slopes, whose changes are correlated; the six points at the ends never have a breakpoint.

    Args:
        n: points per curve; for "code" at least 9.
        law: of the data.
        k: breakpoints per curve; "code" has three.

    Example:
        >>> p = moment(100, "code")
        >>> bool(p[:3].any()), round(float(np.trace(p)), 4)
        (False, 14.75)
    """
    if law == "paper":
        return np.eye(n) * (k / (3 * n))
    m = n - 2 * MARGIN
    changes = np.diff(np.array(PATTERNS, dtype=float), axis=1, prepend=0.0)
    between = changes.T @ changes / len(PATTERNS)
    i = np.arange(m)
    first, second = i[:, None], i[None, :]
    free = (m - 1 - second, first, second - first - 1)  # where the third breakpoint may be, by the two that are fixed
    above = sum(between[r, s] * ways for (r, s), ways in zip(((0, 1), (1, 2), (0, 2)), free, strict=True))
    above = np.where(second > first, above, 0.0)
    places = ((m - 1 - i) * (m - 2 - i) / 2, i * (m - 1 - i), i * (i - 1) / 2)
    own = sum(between[r, r] * ways for r, ways in enumerate(places))
    inner = (above + above.T + np.diag(own)) / math.comb(m, 3)
    return np.pad(inner, MARGIN)


def filter_moment(n: int, law: Law = "paper", edge: Edge = "valid", k: int = 3) -> np.ndarray:
    r"""$C=\operatorname{mean}_t E\,F_tF_t^\top$ with $F_t=(f_{t-2},f_{t-1},f_t)$, what a filter of three taps sees; shape (3, 3).

    Args:
        n: points per curve.
        law: of the data.
        edge: "valid" has t = 2..n-1 as in the authors' code, "extended" t = 0..n-1 with f = 0 before its start.
        k: breakpoints per curve.

    Example:
        >>> bool(np.all(np.linalg.eigvalsh(filter_moment(100)) > 0))
        True
    """
    w = integrator(n)
    curves = np.pad(w @ moment(n, law, k) @ w.T, ((2, 0), (2, 0)))
    start = 4 if edge == "valid" else 2
    return np.array([[np.trace(curves[start - a : n + 2 - a, start - b : n + 2 - b]) for b in (2, 1, 0)] for a in (2, 1, 0)]) / (
        n + 2 - start
    )


def filter_condition(n: int, law: Law = "paper", edge: Edge = "valid") -> float:
    r"""$\kappa(C)$ of `filter_moment`; it grows as $1.5\,n^3$ for the paper's law.

    For the paper's law C is a sum of whole numbers and is inverted as such, so that no digit is lost.

    Example:
        >>> round(filter_condition(100) / 100**3, 3)
        1.554
    """
    if law == "code":
        return spectral_condition(filter_moment(n, law, edge))
    start = 2 if edge == "valid" else 0
    whole = [[_products(n, start, a, b) for b in (2, 1, 0)] for a in (2, 1, 0)]
    return _exact_condition(whole)


def _products(n: int, start: int, a: int, b: int) -> int:
    r"""$\sum_{t\ge start}\sum_j W_{t-a,j}W_{t-b,j}$ as a whole number, with rows of zeros before the first."""
    total = 0
    for t in range(start, n):
        low = t - max(a, b) + 1  # columns in which both rows are positive: low pairs (i, i + |a-b|), i = 1..low
        if low > 0:
            total += low * (low + 1) * (2 * low + 1) // 6 + abs(a - b) * low * (low + 1) // 2
    return total


def _exact_condition(whole: list[list[int]]) -> float:
    """The condition number of a symmetric 3x3 matrix of whole numbers: the product of two largest eigenvalues."""
    m = [[Fraction(x) for x in row] for row in whole]

    def minor(i: int, j: int) -> Fraction:
        r, c = [x for x in range(3) if x != i], [x for x in range(3) if x != j]
        return m[r[0]][c[0]] * m[r[1]][c[1]] - m[r[0]][c[1]] * m[r[1]][c[0]]

    det = sum(((-1) ** j * m[0][j] * minor(0, j) for j in range(3)), Fraction(0))
    inverse = np.array([[float((-1) ** (i + j) * minor(j, i) / det) for j in range(3)] for i in range(3)])
    return float(np.linalg.eigvalsh(np.array(whole, dtype=float))[-1] * np.linalg.eigvalsh(inverse)[-1])


def spectral_condition(matrix: np.ndarray) -> float:
    """Largest over smallest eigenvalue of a symmetric positive definite matrix; inf where the smallest is not positive.

    Example:
        >>> spectral_condition(np.diag([4.0, 2.0]))
        2.0
    """
    values = np.linalg.eigvalsh(matrix)
    return float(values[-1] / values[0]) if values[0] > 0 else math.inf


def jacobi_condition(matrix: np.ndarray) -> float:
    r"""$\kappa(D^{-1/2}AD^{-1/2})$ with D the diagonal of A: what is left of ill-conditioning after a scaling per coordinate.

    By van der Sluis, no diagonal scaling of an m x m matrix does better than 1/m of this.

    Example:
        >>> round(jacobi_condition(np.diag([1.0, 1e6])), 12)
        1.0

    Source: van der Sluis 1969, Condition numbers and equilibration of matrices.
    """
    root = np.sqrt(np.diag(matrix))
    return spectral_condition(matrix / root[:, None] / root[None, :])


def descent_steps(matrix: np.ndarray, error: np.ndarray, *, tolerance: float, rate: float) -> int:
    r"""How many steps of gradient descent bring $\max_i|(w_t-w^*)_i|$ below `tolerance`, exactly, for a quadratic.

    $w_t-w^*=(I-\eta H)^t(w_0-w^*)$, evaluated in H's eigenvectors; the first t is bracketed by doubling and found by bisection, which
    supposes that the error falls steadily once the fast directions are done.

    Args:
        matrix: the Hessian H, shape (m, m).
        error: $w_0-w^*$, shape (m,).
        tolerance: the error to reach.
        rate: the step size $\eta$, below $2/\lambda_{\max}$.

    Raises:
        ValueError: where it is not reached within 2^60 steps.

    Example:
        >>> descent_steps(np.diag([1.0, 0.01]), np.ones(2), tolerance=0.01, rate=1.0)
        459
    """
    values, vectors = np.linalg.eigh(matrix)
    factors, parts = 1 - rate * values, vectors.T @ error

    def reached(t: int) -> bool:
        return float(np.abs(vectors @ (factors**t * parts)).max()) < tolerance

    high = 1
    while not reached(high):
        high *= 2
        if high > 2**60 or np.abs(factors).max() > 1:
            slowest = float(np.abs(factors).max())
            raise ValueError(f"gradient descent at rate {rate:g} does not reach {tolerance:g}: a factor per step is {slowest:g}.")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def _modes(n: int, scaled: float, loss: Loss) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(left vectors, singular values, right vectors as rows, what each step leaves of the error per mode) of W."""
    left, s, right = np.linalg.svd(integrator(n))
    step = scaled / s[0] ** 2 * (2.0 if loss == "plain" else 1.0)
    return left, s, right, 1 - step * s**2


def expected_iterate(n: int, t: int, scaled: float, loss: Loss = "half") -> np.ndarray:
    r"""$E\,U_t=\eta\lambda W^\top\sum_{i<t}(I-\eta\lambda WW^\top)^i=W^{-1}\bigl(I-(I-\eta\lambda WW^\top)^t\bigr)$, shape (n, n).

    The mean over the data of t steps of SGD on $\frac12\lVert Uf-p\rVert^2$ from U = 0, where $E\,pp^\top=\lambda I$.

    Args:
        n: points per curve.
        t: steps.
        scaled: $\eta\lambda\sigma_{\max}^2(W)$, the step size in units of the inverse of the largest curvature.
        loss: "half" for $\frac12\lVert Uf-p\rVert^2$ (the extended version), "plain" for $\lVert Uf-p\rVert^2$ (the slides), whose
            gradient is twice as large.

    Example:
        >>> float(np.abs(expected_iterate(5, 20_000, 1.0) - second_difference(5)).max()) < 1e-6
        True

    Source: Shalev-Shwartz, Shamir and Shammah 2017, extended version, lemma 2 and theorem 3.
    """
    left, s, right, factors = _modes(n, scaled, loss)
    return np.asarray((right.T * ((1 - factors**t) / s)) @ left.T)


def recursion(n: int, t: int, scaled: float, loss: Loss = "half") -> np.ndarray:
    """The same by t literal steps of the recursion for the mean, slow and obvious: U <- U - rate (U W - I) W'.

    Example:
        >>> bool(np.allclose(recursion(6, 50, 0.5), expected_iterate(6, 50, 0.5)))
        True
    """
    w = integrator(n)
    rate = scaled / _largest_square(n) * (2.0 if loss == "plain" else 1.0)
    u = np.zeros((n, n))
    for _ in range(t):
        u = u - rate * (u @ w - np.eye(n)) @ w.T
    return u


def distance(n: int, t: int, scaled: float, loss: Loss = "half") -> float:
    r"""$\lVert E\,U_t-U\rVert=\max_i|1-\eta\lambda\sigma_i^2|^t/\sigma_i$ in the spectral norm.

    The theorem says at least 1/2 for $t+1\le\sigma_{\max}^2/(2\sigma_{\min}^2)$; it is near $4e^{-\eta\lambda\sigma_{\max}^2/2}$ at the
    end of that time, as $\sigma_{\min}\to 1/4$.

    Args:
        n: points per curve.
        t: steps.
        scaled: $\eta\lambda\sigma_{\max}^2(W)$.
        loss: as in `expected_iterate`.

    Example:
        >>> distance(30, 0, 0.5) > 3.9
        True
    """
    _, s, _, factors = _modes(n, scaled, loss)
    with np.errstate(divide="ignore", over="ignore"):
        return float(np.exp((t * np.log(np.abs(factors)) if t else 0.0) - np.log(s)).max())


def contraction(n: int, scaled: float, loss: Loss = "half") -> float:
    r"""$\max_i|1-\eta\lambda\sigma_i^2|$, the factor per step in the end: below 1 the mean converges, above 1 it diverges.

    Example:
        >>> contraction(30, 1.99) < 1 < contraction(30, 2.01)
        True
    """
    return float(np.abs(_modes(n, scaled, loss)[3]).max())
