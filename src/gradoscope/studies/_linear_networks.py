"""What the study of linear networks computes, stacked over seeds, in float64 and in the lecture's convention R = E|y - Ax|^2."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradoscope.stacked import generator
from gradoscope.study import Context, Result, Row
from gradoscope.theory import linear_networks as theory
from gradoscope.theory.convex import descend, flow
from gradoscope.theory.linear_minima import component, connecting_path

__all__ = ["DEPTHS", "FIXED", "PARTS", "train"]

KEY = 467  # of this study's random streams: 1 targets and inputs, 2 starts, 3 pairs of minima
M, N = 7, 10  # outputs and inputs of the two-layer networks
DEPTHS = (2, 3, 5, 10, 20, 50, 100)
FIXED = 0.5  # the weight from which every depth starts, in one of the comparisons
REACHED = 0.9  # of sigma
F64 = torch.float64


def _orthogonal(rows: int, columns: int, random: torch.Generator) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(rows, columns, generator=random, dtype=F64))
    unique: Tensor = q * r.diagonal().sign()
    return unique


def _data(seeds: Sequence[int], sigmas: Sequence[float], rows: int) -> tuple[Tensor, Tensor]:
    """Gamma (S, m, n) with these singular values, and inputs X (S, rows, n) with second moment exactly I."""
    gammas, xs = [], []
    for seed in seeds:
        random = generator(seed, KEY, 1)
        left, right = _orthogonal(M, len(sigmas), random), _orthogonal(N, len(sigmas), random)
        gammas.append(left * torch.tensor(sigmas, dtype=F64) @ right.T)
        xs.append(_orthogonal(rows, N, random) * rows**0.5)
    return torch.stack(gammas), torch.stack(xs)


def _start(seeds: Sequence[int], width: int, std: float) -> tuple[Tensor, Tensor]:
    """Normal Q (S, m, k) and W (S, k, n); the same draws at every scale."""
    randoms = [generator(seed, KEY, 2) for seed in seeds]
    q = torch.stack([torch.randn(M, width, generator=random, dtype=F64) for random in randoms])
    w = torch.stack([torch.randn(width, N, generator=random, dtype=F64) for random in randoms])
    return std * q, std * w


def train(
    q: Tensor,
    w: Tensor,
    gamma: Tensor,
    x: Tensor,
    lr: float,
    steps: int,
    look: Callable[[int, Tensor, Tensor], None],
    *,
    tanh: bool = False,
) -> None:
    """Full-batch gradient descent on the mean of |y - Q W x|^2 (or Q tanh(W x)), y = Gamma x, by its two derivatives.

    Args:
        q: shape (S, m, k).
        w: shape (S, k, n).
        gamma: shape (S, m, n).
        x: shape (S, rows, n).
        lr: step size.
        steps: how many.
        look: `look(step, q, w)` before each step and after the last.
        tanh: whether the hidden units are.
    """
    y = x @ gamma.mT
    for step in range(steps + 1):
        look(step, q, w)
        inner = x @ w.mT
        hidden = inner.tanh() if tanh else inner
        error = (hidden @ q.mT - y) * (2 / x.shape[1])
        back = error @ q
        q, w = q - lr * error.mT @ hidden, w - lr * (back * (1 - hidden.square()) if tanh else back).mT @ x


def taylor(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """4.1: derivatives of a product of five weights, and Taylor's orders of a joint step."""
    result = Result()
    for w in (0.1, 0.5, 1.5, 2.0):
        slope = float(theory.product_gradient(torch.full((5,), w, dtype=F64))[0])
        result.rows.append({"w": w, "slope": slope, "error": abs(slope - w**4)})
    weights = torch.full((5,), 1.5, dtype=F64)
    step = -0.05 * theory.product_gradient(weights)
    truth = float((weights + step).prod())
    for order, told in enumerate(theory.taylor_product(weights, step).tolist()):
        result.rows.append({"order": order, "told": told, "off": abs(told - truth), "truth": truth})
    return result


def factor(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """4.2: (sigma - ab)^2 from random starts, against the flow of u = ab; and from the stable manifold a = -b."""
    sigma, lr, steps, every = values["sigma"], values["lr"], values["steps"], values["every"]
    starts = []
    for seed in seeds:
        size = 0.2 + 1.0 * torch.rand(2, generator=generator(seed, KEY, 2), dtype=F64)
        size[1] *= -1 if seed % 2 else 1  # every second one starts with ab < 0
        starts.append(size)
    start = point = torch.stack(starts)
    looks = [point]
    for step in range(1, steps + 1):
        point = point - lr * theory.factor_gradient(point, sigma)
        if step % every == 0:
            looks.append(point)
            context.tick(step / steps)
    path, result = torch.stack(looks, 1), Result()
    times = [lr * every * i for i in range(len(looks))]
    for i, seed in enumerate(seeds):
        exact = theory.product_flow(times, sigma, *start[i].tolist())
        conserved = path[i, :, 0].square() - path[i, :, 1].square()
        row: Row = {"seed": seed, "negative": bool(start[i].prod() < 0), "drift": float((conserved - conserved[0]).abs().max())}
        row["error"] = float((path[i].prod(-1) - exact).abs().max()) / sigma
        on = descend(lambda p: theory.factor_gradient(p, sigma), torch.stack([start[i, 0], -start[i, 0]]), 0.01, 4000)
        row["manifold"] = float(on[-1].abs().max())
        solution = torch.stack([start[i, 0], sigma / start[i, 0]])
        there = torch.linalg.eigvalsh(theory.factor_hessian(solution, sigma))
        row["solution_off"] = max(abs(float(there[0])), abs(float(there[1] - 2 * solution.square().sum())))
        result.rows.append(row)
        result.arrays[f"path_{seed}"] = path[i]
    at_zero = torch.linalg.eigvalsh(theory.factor_hessian(torch.zeros(2, dtype=F64), sigma))
    for row in result.rows:
        row["origin_off"] = float((at_zero / sigma - torch.tensor([-2.0, 2.0])).abs().max())
    return result


def single(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """4.3: one layer, through its examples, against the closed form; and the lecture's transformed gradient."""
    gamma, x = _data(seeds, values["sigmas"], values["rows"])
    start, _ = _start(seeds, N, 1.0)
    a, y = start, x @ gamma.mT
    worst = torch.zeros(len(seeds), dtype=F64)
    for step in range(1, values["steps"] + 1):
        a = a - values["lr"] * 2 / x.shape[1] * (x @ a.mT - y).mT @ x
        worst = torch.maximum(worst, (a - theory.single_layer(start, gamma, values["lr"], step)).abs().amax((1, 2)))
    result = Result()
    for i, seed in enumerate(seeds):
        u, s, v = torch.linalg.svd(gamma[i])
        sigma = torch.zeros(M, N, dtype=F64)
        sigma.diagonal()[: len(s)] = s
        q, w = (t[i].requires_grad_() for t in _start(seeds, 4, 1.0))
        (by_q,) = torch.autograd.grad((gamma[i] - q @ w).square().sum(), q)
        turned, beside = (u.T @ q).detach().requires_grad_(), (w @ v.T).detach()
        (by_turned,) = torch.autograd.grad((turned @ beside - sigma).square().sum(), turned)
        ratio = float((by_turned * (u.T @ by_q)).sum() / (u.T @ by_q).square().sum())
        result.rows.append({"seed": seed, "error": float(worst[i]), "ratio": ratio})
    return result


def modes(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """4.4: a decoupled start, against the closed form of each mode."""
    sigmas, u0, lr = torch.tensor(values["sigmas"], dtype=F64), values["u0"], values["lr"]
    count, steps = len(sigmas), round(values["time"] / values["lr"])
    gamma, x = _data(seeds, values["sigmas"], values["rows"])
    starts = [
        theory.decoupled_start(gamma[i], torch.full((count,), u0, dtype=F64), _orthogonal(count, count, generator(seed, KEY, 2)))
        for i, seed in enumerate(seeds)
    ]
    found, off = _strengths(torch.stack([q for q, _ in starts]), torch.stack([w for _, w in starts]), gamma, x, lr, steps, count, context)
    times = lr * torch.arange(steps + 1, dtype=F64)
    exact = torch.stack([theory.mode(times, float(s), u0) for s in sigmas], 1)
    result = Result()
    for i, seed in enumerate(seeds):
        error = (found[i] - exact).abs().amax(0) / sigmas
        row: Row = {"seed": seed, "error": float(error.max()), "off": float(off[i].max())}
        growing = (found[i, :, 0] > 2 * u0) & (found[i, :, 0] < 0.02 * sigmas[0])
        early = found[i, growing, 0].log()
        row["growth"] = float((early[-1] - early[0]) / (times[growing][-1] - times[growing][0]) / sigmas[0])
        for r, s in enumerate(sigmas.tolist()):
            half = _half(found[i, :, r], s, lr)
            row |= {f"half_{r}": half, f"half_off_{r}": abs(half - theory.half_rise(s, u0))}
        result.rows.append(row)
    return result


def small(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """4.4: a small random start; only u_0 of each mode is taken from the run (its half-rise); linear, and tanh beside it."""
    sigmas, lr, steps, std = torch.tensor(values["sigmas"], dtype=F64), values["lr"], values["steps"], math.sqrt(values["variance"])
    gamma, x = _data(seeds, values["sigmas"], values["rows"])
    q, w = _start(seeds, values["width"], std)
    found, off = _strengths(q, w, gamma, x, lr, steps, len(sigmas), context)
    runs = {"linear": found}
    if values["tanh"]:
        runs["tanh"], _ = _strengths(q, w, gamma, x, lr, steps, len(sigmas), context, tanh=True)
    times = lr * torch.arange(steps + 1, dtype=F64)
    result = Result()
    for i, seed in enumerate(seeds):
        row: Row = {"seed": seed, "off": float(off[i].max() / sigmas[0])}
        fits = []
        for name, path in runs.items():
            halves = [_half(path[i, :, r], float(s), lr) for r, s in enumerate(sigmas)]
            row |= {f"{name}_{r}": half for r, half in enumerate(halves)} | {f"{name}_ordered": halves == sorted(halves)}
            if name == "linear":
                for s, half in zip(sigmas.tolist(), halves, strict=True):
                    fits.append(theory.mode(times, s, s / (1 + math.exp(min(4 * s * half, 700)))))
        exact = torch.stack(fits, 1)
        row["error"] = float(((found[i] - exact).abs().amax(0) / sigmas).max())
        if values["tanh"]:
            row["worst_ratio"] = max(abs(math.log(row[f"tanh_{r}"] / row[f"linear_{r}"])) for r in range(len(sigmas)))
        result.rows.append(row)
        for k in range(0, steps + 1, max(1, steps // 150)):
            for r, s in enumerate(sigmas.tolist()):
                point: Row = {"seed": seed, "mode": r, "time": float(times[k]), "exact": float(exact[k, r]) / s, "off": float(off[i, k])}
                result.curves.append(point | {name: float(path[i, k, r]) / s for name, path in runs.items()})
    return result


def _strengths(
    q: Tensor, w: Tensor, gamma: Tensor, x: Tensor, lr: float, steps: int, count: int, context: Context, *, tanh: bool = False
) -> tuple[Tensor, Tensor]:
    """The modes' strengths (S, steps + 1, count), and the largest entry off the diagonal of the modes, (S, steps + 1).

    Of a network that is not linear it is the best linear map of its inputs that is looked at, E f(x) x^T.
    """
    u, _, v = torch.linalg.svd(gamma)
    strengths, off = [], []

    def look(step: int, q: Tensor, w: Tensor) -> None:
        a = (((x @ w.mT).tanh() @ q.mT).mT @ x / x.shape[1]) if tanh else q @ w
        a = u.mT @ a @ v.mT
        own = a.diagonal(dim1=1, dim2=2)
        strengths.append(own[:, :count].clone())
        a = a.clone()
        a.diagonal(dim1=1, dim2=2).zero_()
        off.append(a.abs().amax((1, 2)))
        if step % 500 == 0:
            context.tick(step / steps)

    train(q, w, gamma, x, lr, steps, look, tanh=tanh)
    return torch.stack(strengths, 1), torch.stack(off, 1)


def _half(path: Tensor, sigma: float, lr: float) -> float:
    """When a mode passes half of sigma, interpolated; infinite where it does not."""
    above = (path > sigma / 2).nonzero()
    if len(above) == 0:
        return math.inf
    k = int(above[0, 0])
    before, after = float(path[k - 1]), float(path[k])
    return lr * (k - 1 + (sigma / 2 - before) / (after - before))


def critical(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """3.3: every critical point of two linear layers, its spectrum by automatic differentiation against the closed form."""
    sigmas, width = values["sigmas"], values["width"]
    target = torch.tensor(sigmas, dtype=F64).diag()
    size = len(sigmas) * width

    def loss(theta: Tensor) -> Tensor:
        q, w = theta[:size].reshape(len(sigmas), width), theta[size:].reshape(width, len(sigmas))
        return (q @ w - target).square().sum()

    result = Result()
    for point in theory.critical_points(sigmas, width):
        theta = torch.cat([point.q.flatten(), point.w.flatten()]).requires_grad_()
        (gradient,) = torch.autograd.grad(loss(theta), theta)
        hessian = torch.autograd.functional.hessian(loss, theta.detach())  # type: ignore[no-untyped-call]
        eigenvalues = torch.linalg.eigvalsh(hessian)
        off = float((eigenvalues - torch.from_numpy(point.eigenvalues)).abs().max())
        negative, zero = int((eigenvalues < -1e-9).sum()), int((eigenvalues.abs() <= 1e-9).sum())
        row: Row = {"modes": "".join(str(i + 1) for i in point.modes), "loss": float(loss(theta.detach())), "stated_loss": point.loss}
        row |= {"gradient": float(gradient.norm()), "negative": negative, "zero": zero, "smallest": float(eigenvalues[0]), "off": off}
        result.rows.append(row)
        result.curves += [{"modes": row["modes"], "eigenvalue": float(v)} for v in eigenvalues]
    return result


def minima(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Section 0: two random minima of one width, the explicit path between them, and the straight line."""
    sigmas, width = torch.tensor(values["sigmas"], dtype=F64), values["width"]
    rank, sigma = len(sigmas), torch.tensor(values["sigmas"], dtype=F64).diag()
    result = Result()
    for seed in seeds:
        random = generator(seed, KEY, 3)
        first, second = (_minimum(sigmas, width, random) for _ in range(2))
        if width == rank:  # odd seeds get a pair in two components
            same = component(*first, sigma) == component(*second, sigma)
            if same == bool(seed % 2):
                flip = torch.eye(width, dtype=F64)
                flip[0, 0] = -1
                second = second[0] @ flip, flip @ second[1]
        q, w = connecting_path(first, second, sigma, values["points"])
        t = torch.linspace(0, 1, len(q), dtype=F64)[:, None, None]
        straight = (torch.lerp(first[0], second[0], t) @ torch.lerp(first[1], second[1], t) - sigma).square().sum((1, 2))
        path = (q @ w - sigma).square().sum((1, 2))
        ends = max(float((a - b).abs().max()) for a, b in zip((q[0], w[0], q[-1], w[-1]), (*first, *second), strict=True))
        same = component(*first, sigma) == component(*second, sigma)
        row: Row = {"seed": seed, "same": same, "path": float(path.max()), "straight": float(straight.max()), "ends": ends}
        row["longest_step"] = float(((q[1:] - q[:-1]).square().sum((1, 2)) + (w[1:] - w[:-1]).square().sum((1, 2))).sqrt().max())
        result.rows.append(row)
        for k in range(len(q)):
            point: Row = {"seed": seed, "same": same, "share": float(t[k]), "path": float(path[k]), "straight": float(straight[k])}
            result.curves.append(point)
    return result


def _minimum(sigmas: Tensor, width: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random solution of Q W = diag(sigmas): for wide layers with a part of Q that W does not show."""
    rank, root = len(sigmas), sigmas.sqrt().diag()
    g = torch.randn(width, width, generator=random, dtype=F64) + 2 * _orthogonal(width, width, random)
    q = torch.cat([root, torch.randn(rank, width - rank, generator=random, dtype=F64)], 1)
    w = torch.cat([root, torch.zeros(width - rank, rank, dtype=F64)])
    return q @ torch.linalg.inv(g), g @ w


def depth(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """4.5: the time that equal weights of a deep product take, by quadrature and by integration; and in stable steps."""
    sigma, result = values["sigma"], Result()
    for layers in DEPTHS:
        sharpness = 2 * layers * sigma ** (2 - 2 / layers)  # the Hessian's largest eigenvalue at the solution
        for name, u0 in (("small", 1e-3), ("order one", 0.1), ("fixed weight", FIXED**layers)):
            time = theory.depth_time(layers, sigma, u0, REACHED * sigma)
            row: Row = {"depth": layers, "start": name, "u0": u0, "time": time, "steps": time * sharpness / 2}
            if name == "small":
                weight = torch.tensor([u0 ** (1 / layers)], dtype=F64)
                end = flow(lambda w: -2 * w ** (layers - 1) * (sigma - w**layers), weight, [time], rtol=1e-11)[-1]  # noqa: B023
                row["off"] = abs(float(end) ** layers / (REACHED * sigma) - 1)
            result.rows.append(row)
    return result


PARTS: dict[str, Callable[[Mapping[str, Any], Sequence[int], Context], Result]] = {
    "taylor": taylor,
    "factor": factor,
    "single": single,
    "modes": modes,
    "small": small,
    "critical": critical,
    "minima": minima,
    "depth": depth,
}
