"""The minima of two linear layers: one connected set where the hidden layer is wider than the rank, two where it is as wide."""

from itertools import pairwise

import torch
from torch import Tensor

from gradoscope.errors import Usage

__all__ = ["component", "connecting_path"]

Pair = tuple[Tensor, Tensor]
TOLERANCE = 1e-8  # of the largest singular value: below it one counts as zero


def component(q: Tensor, w: Tensor, sigma: Tensor) -> int:
    r"""The connected component of $\{QW=\Sigma\}$ that a minimum lies in: 0 where there is one only, else -1 or +1.

    With the width k equal to r = rank $\Sigma$ every solution is $(LG^{-1},GR)$ for one invertible G and fixed $LR=\Sigma$, so the
    solutions are as connected as GL(k): not, as the sign of det G cannot change. With k > r there is room to turn around.

    Args:
        q: shape (m, k).
        w: shape (k, n).
        sigma: QW, shape (m, n).

    Raises:
        Usage: where QW is not sigma, or k < r.

    Example:
        >>> one = torch.ones(1, 1)
        >>> component(one, one, one), component(-one, -one, one), component(torch.ones(1, 2) / 2, torch.ones(2, 1), one)
        (1, -1, 0)

    Source: own remark on Goodfellow 2015, "all the minima form a connected manifold"; for k > r see Kawaguchi 2016 and Venturi,
        Bandeira and Bruna 2019.
    """
    _, right, rank = _factors(q, w, sigma)
    return 0 if q.shape[1] > rank else int(torch.linalg.det(w @ torch.linalg.pinv(right)).sign())


def connecting_path(first: Pair, second: Pair, sigma: Tensor, points: int = 20) -> Pair:
    r"""An explicit path between two minima of $|QW-\Sigma|_F^2$, along which the loss stays zero wherever that is possible.

    Where both lie in one component: what of Q the image of W does not see is faded out, then what of W the rows of Q do not see, and
    once more for Q, so that only r = rank $\Sigma$ dimensions are used, $(LY,XR)$ with $YX=I_r$; X and a basis of the kernel of Y make an
    invertible matrix, whose determinant can be chosen positive as k > r; two of these are joined by Givens rotations whose
    angles grow, times upper triangular matrices with a positive diagonal. Then all is undone at the other end.

    Where k = r and the signs differ, no path avoids a singular Q: the loss reaches $\sigma_r^2$ at least (Eckart and Young), and here
    no more, as the weakest mode is unlearnt and learnt again with the opposite sign.

    Args:
        first: (Q, W), shapes (m, k) and (k, n), float64.
        second: another solution of the same width.
        sigma: $\Sigma=QW$, shape (m, n).
        points: how many on each of the pieces; one more where the middle of a piece would be missed.

    Returns:
        Q and W along the path, shapes (T, m, k) and (T, k, n).

    Raises:
        Usage: where one of them is no minimum.

    Example:
        >>> sigma = torch.eye(1, dtype=torch.float64)
        >>> wide = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([[1.0], [0.0]], dtype=torch.float64)
        >>> q, w = connecting_path(wide, (-wide[0], -wide[1]), sigma)
        >>> bool((q @ w - sigma).abs().max() < 1e-12)
        True
    """
    left, right, rank = _factors(*first, sigma)
    _factors(*second, sigma)
    width = first[0].shape[1]
    down, up = _reduce(first, rank), _reduce(second, rank)
    corners = [_frame(pair[-1], left, right) for pair in (down, up)]
    pieces = [_straight(a, b, points) for a, b in pairwise(down)]
    if torch.linalg.det(corners[0]) * torch.linalg.det(corners[1]) > 0:
        pieces.append(_turn(corners[0], corners[1], left, right, points))
    else:
        flip = torch.ones(width, dtype=sigma.dtype)
        flip[-1] = torch.linalg.det(corners[0]).sign()
        pieces.append(_turn(corners[0], flip.diag(), left, right, points))
        pieces.append(_through_saddle(flip, left, right, points))
        flip[-1] = -flip[-1]
        pieces.append(_turn(flip.diag(), corners[1], left, right, points))
    pieces += [_straight(b, a, points) for a, b in reversed(list(pairwise(up)))]
    return torch.cat([q for q, _ in pieces]), torch.cat([w for _, w in pieces])


def _factors(q: Tensor, w: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, int]:
    """L (m, r), R (r, n) with LR = sigma, strongest mode first, and the rank r."""
    u, s, v = torch.linalg.svd(sigma, full_matrices=False)
    rank = int((s > TOLERANCE * s[0]).sum())
    worst = float((q @ w - sigma).abs().max())
    if worst > 1e-6 * float(s[0]) or rank < 1:
        raise Usage(f"expected minima, QW = sigma of rank 1 or more, got QW off by {worst:.2g} and rank {rank}.")
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank], rank


def _onto(vectors: Tensor, rank: int | None = None) -> Tensor:
    """The orthogonal projection on the span of the columns (on their `rank` leading directions)."""
    u, s, _ = torch.linalg.svd(vectors, full_matrices=False)
    u = u[:, : int((s > TOLERANCE * s[0]).sum()) if rank is None else rank]
    projection: Tensor = u @ u.T
    return projection


def _reduce(pair: Pair, rank: int) -> list[Pair]:
    """The corners of a path of straight lines to a solution that uses as many dimensions of the hidden layer as the rank."""
    q, w = pair
    q1 = q @ _onto(w)
    w1 = _onto(q1.T) @ w
    return [(q, w), (q1, w), (q1, w1), (q1 @ _onto(w1, rank), w1)]


def _frame(pair: Pair, left: Tensor, right: Tensor) -> Tensor:
    """The invertible G whose first columns are X and whose inverse's first rows are Y, of positive determinant where there is a choice."""
    y, x = torch.linalg.pinv(left) @ pair[0], pair[1] @ torch.linalg.pinv(right)
    rank = len(y)
    kernel = torch.linalg.svd(y)[2][rank:].T
    frame = torch.cat([x, kernel], 1)
    if kernel.shape[1] and torch.linalg.det(frame) < 0:
        frame[:, -1] = -frame[:, -1]
    return frame


def _straight(a: Pair, b: Pair, points: int) -> Pair:
    t = torch.linspace(0, 1, points, dtype=a[0].dtype)[:, None, None]
    return torch.lerp(a[0], b[0], t), torch.lerp(a[1], b[1], t)


def _turn(begin: Tensor, end: Tensor, left: Tensor, right: Tensor, points: int) -> Pair:
    """(L Y, X R) along a path of invertible matrices from `begin` to `end`, whose determinants have one sign."""
    target = torch.linalg.solve(begin, end)
    rank, size = left.shape[1], len(target)
    upper, rotations = target.clone(), []
    for j in range(size):
        for i in range(j + 1, size):
            angle = torch.atan2(upper[i, j], upper[j, j])
            rotations.append((j, i, angle))
            upper = _givens(size, j, i, -angle) @ upper
    qs, ws = [], []
    for t in torch.linspace(0, 1, points, dtype=target.dtype):
        part = torch.eye(size, dtype=target.dtype)
        for j, i, angle in rotations:
            part = part @ _givens(size, j, i, t * angle)
        g = begin @ part @ torch.lerp(torch.eye(size, dtype=target.dtype), upper, t)
        qs.append(left @ torch.linalg.inv(g)[:rank])
        ws.append(g[:, :rank] @ right)
    return torch.stack(qs), torch.stack(ws)


def _givens(size: int, j: int, i: int, angle: Tensor) -> Tensor:
    """The rotation by `angle` in the plane of the axes j and i."""
    matrix = torch.eye(size, dtype=angle.dtype)
    matrix[j, j] = matrix[i, i] = torch.cos(angle)
    matrix[i, j], matrix[j, i] = torch.sin(angle), -torch.sin(angle)
    return matrix


def _through_saddle(flip: Tensor, left: Tensor, right: Tensor, points: int) -> Pair:
    """The weakest mode shrinks to zero and grows with the opposite signs; an odd number of points has the saddle among them."""
    points += 1 - points % 2
    scale = flip.repeat(points, 1)
    scale[:, -1] = torch.linspace(float(flip[-1]), -float(flip[-1]), points, dtype=flip.dtype)
    return left * scale[:, None, :], scale[:, :, None] * right
