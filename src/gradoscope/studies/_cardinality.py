"""The parts of the study of cardinality that train nothing: the projections, their derivatives, the smooth step."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradoscope.stacked import generator
from gradoscope.structured.projections import (
    alternating,
    dykstra,
    free_coordinates,
    jacobian,
    project_simplex,
    project_sum,
    slope_in_sum,
    smooth_simplex,
)
from gradoscope.study import Context, Result

__all__ = ["KEY", "facts", "obstruction", "rounds", "smoothing"]

KEY = 941


def _problems(seed: int, part: int, rows: int, labels: int, spread: float, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Points to project, shape (rows, labels), normal with this spread, and sums between low and high; float64."""
    random = generator(seed, KEY, part)
    y = spread * torch.randn(rows, labels, generator=random, dtype=torch.float64)
    return y, low + (high - low) * torch.rand(rows, generator=random, dtype=torch.float64)


def rounds(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The largest distance of any entry from the projection after R rounds, with and without Dykstra's corrections: worst and median
    over the points."""
    found = Result()
    for seed in seeds:
        y, z = _problems(seed, 1, values["rows"], values["labels"], values["spread"], 1.0, values["most"])
        exact = project_sum(y, z)
        for r in values["rounds"]:
            iterated, plain = dykstra(y, z, r), alternating(y, z, r)
            found.rows.append(
                {
                    "seed": seed,
                    "rounds": r,
                    "error": float((iterated - exact).abs().max()),
                    "typical": float((iterated - exact).abs().amax(1).median()),
                    "plain": float((plain - exact).abs().max()),
                    "excess": float(iterated.max() - 1),
                    "sum_error": float((iterated.sum(1) - z).abs().max()),
                }
            )
        context.tick(1 / len(seeds))
    return found


def facts(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The exact projection against its variational inequality, and its derivatives against those of the iteration."""
    found = Result()
    for seed in seeds:
        y, z = _problems(seed, 2, values["rows"], values["labels"], 1.5, 0.2, values["labels"] - 0.2)
        u = project_sum(y, z)
        others = project_sum(3 * torch.randn(50, *y.shape, generator=generator(seed, KEY, 3), dtype=y.dtype), z.expand(50, -1))
        few, sums = _problems(seed, 4, 5, values["labels"], 1.5, 1.0, 10.0)
        by_y, by_z = _derivatives(few, sums, values["rounds"])
        at = project_sum(few, sums)
        found.rows.append(
            {
                "seed": seed,
                "inequality": float(((y - u) * (others - u)).sum(-1).max()),
                "outside": float(torch.maximum(-u, u - 1).max()),
                "jacobian": float((by_y - jacobian(at)).abs().max()),
                "slope": float((by_z - slope_in_sum(at)).abs().max()),
            }
        )
        context.tick(1 / len(seeds))
    return found


def _derivatives(y: Tensor, z: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Of Dykstra's iteration by autograd, entry by entry: shapes (rows, L, L) and (rows, L)."""
    y, z = y.clone().requires_grad_(), z.clone().requires_grad_()
    u = dykstra(y, z, rounds)
    pairs = [torch.autograd.grad(u[:, k].sum(), (y, z), retain_graph=True) for k in range(u.shape[1])]  # rows do not see each other
    return torch.stack([by_y for by_y, _ in pairs], 1), torch.stack([by_z for _, by_z in pairs], 1)


def smoothing(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """How far the smooth step is from the simplex projection, entry by entry and in the sum."""
    found = Result()
    for seed in seeds:
        y, z = _problems(seed, 5, values["rows"], values["labels"], values["spread"], 1.0, 3.0)
        exact = project_simplex(y, z)
        for kappa in values["sharpness"]:
            for inner in sorted({1.0, kappa}):
                u = smooth_simplex(y, z, kappa, inner)
                gap = float((u.sum(1) - z).abs().max())
                row = {"seed": seed, "sharpness": kappa, "both": inner == kappa, "bias": float((u - exact).abs().mean()), "gap": gap}
                found.rows.append(row)
        context.tick(1 / len(seeds))
    return found


def obstruction(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """What the sum z and the labels get as gradient when the points to project are far apart: free labels, slopes, rows with none."""
    found = Result()
    for seed in seeds:
        y = torch.randn(values["rows"], values["labels"], generator=generator(seed, KEY, 6), dtype=torch.float64)
        for spread in values["spreads"]:
            for total in values["sums"]:
                found.rows.append({"seed": seed, "spread": spread, "sum": total, **_slopes(spread * y, total)})
        context.tick(1 / len(seeds))
    return found


def _slopes(y: Tensor, total: float) -> dict[str, float]:
    """Slopes by autograd, along every label at once: each row has a z and a direction of its own."""
    z = torch.full((len(y),), total, dtype=y.dtype, requires_grad=True)
    u = project_sum(y, z)
    free = free_coordinates(u.detach()).sum(1)
    probe = torch.randn(u.shape, generator=generator(0, KEY, 7), dtype=u.dtype)
    by_sum = torch.autograd.grad((u * probe).sum(), z)[0]
    expected = (slope_in_sum(u.detach()) * probe).sum(1)
    soft = dykstra(y, z, 2, smooth=True)
    by_soft = torch.autograd.grad((soft * probe).sum(), z)[0]
    stuck = free == 0
    return {
        "free": float(free.double().mean()),
        "stuck": float(stuck.double().mean()),
        "stuck_slope": float(by_sum[stuck].abs().max()) if bool(stuck.any()) else 0.0,
        "error": float((by_sum - expected).abs().max()),
        "slope": float(by_sum.abs().mean()),
        "smooth_slope": float(by_soft.abs().mean()),
        "smooth_gap": float((soft.detach().sum(1) - total).abs().max()),
    }
