"""The study of critical points, on small settings."""

import math

import pytest
import torch
from scipy import optimize, stats
from torch.func import grad, hessian

from gradoscope.report import plots
from gradoscope.studies._critical import KEY, LIMIT, distinct, network, rank_correlation, search, starts_along
from gradoscope.studies.critical_points import STUDY
from tests.studies.information_results import results, same

SEEDS = (0, 1)
NET = {"part": "network", "data": "random", "hidden": 3, "inputs": 3, "rows": 60, "iterations": 150}
SMALL = [
    *(({"part": "coin", "n": n, "draws": 20_000}, SEEDS) for n in (2, 3, 4, 5)),
    ({"part": "sphere", "n": 24, "starts": 60, "steps": 100, "iterations": 80}, SEEDS),
    (NET | {"ridge": 1e-4, "starts": 40, "steps": 800}, SEEDS),
    (NET | {"ridge": 0.0, "starts": 15, "steps": 300}, (0,)),
    (NET | {"data": "digits", "hidden": 2, "inputs": 4, "ridge": 1e-3, "starts": 15, "steps": 300}, (0,)),
    *(({"part": "checkpoint", "problem": f"linear-network:{name}", "d": 3}, (0,)) for name in ("saddle", "healthy")),
]


@pytest.fixture(scope="module")
def found():
    return results(STUDY, SMALL)


def test_every_claim_can_be_measured(found):
    judged = {c.id: c.judge(STUDY.name, found) for c in STUDY.claims("quick")}
    assert all(math.isfinite(j.measured) and j.seeds >= 1 for j in judged.values())
    assert len(judged) == len(STUDY.claims("quick"))
    # what theory fixes must hold on any seeds; what is statistical needs the study's own sizes
    fixed = {"goe-closed-form", "goe-2", "goe-3", "independent-coins-2", "independent-coins-4", "sphere-semicircle", "sphere-rank"}
    fixed |= {"sphere-threshold", "no-filter", "ridge-mends", "checkpoint-saddle", "checkpoint-untouched", "checkpoint-minimum"}
    assert [i for i in fixed if not judged[i].as_expected] == []


def test_figures_draw(found):
    for figure in STUDY.figures("quick"):
        assert len(plots.render(figure.draw(found), "png", dpi=40)) > 1000
        assert len(figure.caption) > 80


@pytest.mark.parametrize("at", [0, 4, 6])
def test_a_unit_is_the_same_when_it_runs_again(at):
    assert same(STUDY, *SMALL[at])


@pytest.mark.parametrize(("kind", "hidden", "inputs"), [("random", 3, 3), ("digits", 2, 4)])
def test_closed_derivatives_are_those_of_autograd(kind, hidden, inputs):
    net = network(kind, 1, 1e-3, hidden, 40, inputs)
    p = torch.randn(3, net.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(one):
        w = one[: (inputs + 1) * hidden].view(hidden, inputs + 1)
        c, d = one[(inputs + 1) * hidden : -1], one[-1]
        return (torch.tanh(net.x @ w.T) @ c + d - net.y).square().mean() / 2 + 1e-3 / 2 * one.square().sum()

    for i, one in enumerate(p):
        assert abs(float(net.loss(p)[i] - loss(one))) < 1e-13
        assert torch.allclose(net.gradient(p)[i], grad(loss)(one), atol=1e-13, rtol=0)
        assert torch.allclose(net.hessian(p)[i], hessian(loss)(one), atol=1e-12, rtol=0)


def test_many_starts_at_once_are_single_ones():
    net = network("random", 0, 1e-4, 3, 60, 3)
    starts = starts_along(net, 6, 200, 0)
    together, alone = search(net, starts, 150), [search(net, s[None], 150) for s in starts]
    assert together.passed == pytest.approx(sum(a.passed for a in alone) / 6)
    losses = sorted({round(float(v), 8) for a in alone for v in a.losses})
    assert losses == pytest.approx(sorted({round(float(v), 8) for v in together.losses}), abs=1e-7)


def test_what_is_found_is_critical_and_scipy_stays_there():
    net = network("random", 1, 1e-4, 3, 60, 3)
    found = search(net, starts_along(net, 40, 800, 1), 200)
    assert len(found.losses) >= 3
    assert float(net.gradient(found.points).norm(dim=1).max()) < LIMIT
    for point in found.points[:3]:

        def slope(v):
            return net.gradient(torch.from_numpy(v)[None])[0].numpy()

        def bend(v):
            return net.hessian(torch.from_numpy(v)[None])[0].numpy()

        away = point + 1e-4 * torch.randn(net.dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        scipys = optimize.least_squares(slope, away.numpy(), jac=bend, method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15)
        assert abs(float(net.loss(torch.from_numpy(scipys.x)[None])) - float(net.loss(point[None]))) < 1e-10


def test_copies_of_a_point_count_once():
    net = network("random", 1, 1e-4, 3, 60, 3)
    p = torch.randn(1, net.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    units = p[0, :12].view(3, 4)
    swapped = torch.cat([units[[1, 0, 2]].flatten(), p[0, 12:15][[1, 0, 2]], p[0, 15:]])
    turned = torch.cat([(units * torch.tensor([[-1.0], [1.0], [1.0]])).flatten(), p[0, 12:15] * torch.tensor([-1.0, 1.0, 1.0]), p[0, 15:]])
    all_ = torch.stack([p[0], swapped, turned, p[0] + 0.1])
    first, copies = distinct(net.loss(all_), torch.linalg.eigvalsh(net.hessian(all_)))
    assert sorted(copies.tolist()) == [1, 3]
    assert len(first) == 2


def test_the_bootstrap_is_that_of_scipy():
    random = torch.Generator().manual_seed(2)
    a = torch.randn(30, generator=random, dtype=torch.float64)
    b = a + torch.randn(30, generator=random, dtype=torch.float64)
    rho, low, high = rank_correlation(a, b, 0, draws=4000)
    assert rho == pytest.approx(stats.spearmanr(a, b).statistic)
    theirs = stats.bootstrap(
        (a.numpy(), b.numpy()),
        lambda x, y: stats.spearmanr(x, y).statistic,
        paired=True,
        vectorized=False,
        n_resamples=1500,
        method="percentile",
        rng=1,
    ).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.04)
    assert rank_correlation(a, torch.ones(30, dtype=torch.float64), 0)[0] == 0.0


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_the_grid(scale):
    grid = STUDY.grid(scale)
    assert all(s.seeds == 5 for s in grid)
    assert len({repr(s.values) for s in grid}) == len(grid)
    starts = [s.values["starts"] for s in grid if s.values["part"] == "network" and s.values["data"] == "random"]
    assert (min(starts) >= 400) == (scale == "paper")
    assert KEY == 463
