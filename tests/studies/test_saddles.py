"""The study of saddle points, on small settings."""

import math

import pytest
import torch
from torch import nn

from gradoscope.report import plots
from gradoscope.stacked import generator
from gradoscope.studies._critical import network
from gradoscope.studies._saddles import KEY, START, SURFACES
from gradoscope.studies.saddles import KINDS, STUDY
from gradoscope.study import Context
from gradoscope.theory.saddles import second_order_step
from gradoscope.updates.newton import DampedNewton, Newton, SaddleFreeNewton
from tests.studies.information_results import results, same

SEEDS = (0, 1)
NOISE = {"part": "noise", "surface": "factored", "start": 0.1, "eta": 0.01, "runs": 20}
SMALL = [
    *(({"part": "surface", "surface": name, "steps": 60, "radius": 0.5, "eta": 0.05, "damping": 0.1}, ()) for name in SURFACES),
    ({"part": "network", "starts": 5, "steps": 80, "every": 5}, SEEDS),
    ({"part": "flow", "d": 6, "t": 6.0, "eta": 0.02}, SEEDS),
    ({"part": "halving", "t": 6.0}, ()),
    ({"part": "escape", "curvatures": (0.5, 2.0), "slopes": (1e-2, 1e-6), "rate": 1e-3}, ()),
    ({"part": "flatness", "eta": 0.05, "starts": (0.1, 0.03, 0.01)}, ()),
    ({"part": "diagnosed", "eta": 2.0, "steps": 200}, (0,)),
    ({"part": "no-minimum", "kind": "exp", "eta": 1.0, "steps": 3000}, ()),
    *(({"part": "no-minimum", "kind": kind, "eta": 1.0, "steps": 3000}, SEEDS) for kind in KINDS),
    *((NOISE | {"noise": s, "steps": 3000}, SEEDS) for s in (1e-6, 1e-4, 1e-2)),
    (NOISE | {"noise": 0.0, "steps": 1000}, ()),
    (NOISE | {"surface": "flat", "start": -5.0, "noise": 1e-2, "steps": 500}, SEEDS),
]


@pytest.fixture(scope="module")
def found():
    return results(STUDY, SMALL)


def test_every_claim_can_be_measured(found):
    judged = {c.id: c.judge(STUDY.name, found) for c in STUDY.claims("quick")}
    assert len(judged) == len(STUDY.claims("quick"))
    assert all(math.isfinite(j.measured) and j.seeds >= 1 for j in judged.values())
    assert [j.id for j in judged.values() if j.expected_to_fail] == ["logistic-slope"]
    # statistics over starts and late stages of descents need the study's own sizes
    open_ = {"network-newton", "network-loss", "diagnosed"} | {i for i in judged if i.startswith(("exp-", "logistic-", "softplus-"))}
    assert [j.id for j in judged.values() if j.id not in open_ and not j.as_expected] == []


def test_figures_draw(found):
    for figure in STUDY.figures("quick"):
        assert len(plots.render(figure.draw(found), "png", dpi=40)) > 1000
        assert len(figure.caption) > 80


@pytest.mark.parametrize("at", [0, 3, 4, 10, 12])
def test_a_unit_is_the_same_when_it_runs_again(at):
    values, seeds = SMALL[at]
    assert same(STUDY, values | ({"steps": 20} if values["part"] == "network" else {}), seeds)


@pytest.mark.parametrize("name", ["saddle", "monkey"])
def test_paths_are_those_of_the_optimizers(name):
    surface = SURFACES[name]
    paths = STUDY.run(SMALL[list(SURFACES).index(name)][0], (), Context()).arrays
    makers = {
        "gradient": lambda p: torch.optim.SGD([p], lr=0.05),
        "newton": lambda p: Newton([p], radius=0.5),
        "damped": lambda p: DampedNewton([p], damping=0.1, radius=0.5),
        "saddle-free": lambda p: SaddleFreeNewton([p], dampings=(0.0,), radius=0.5),
    }
    for rule, make in makers.items():
        p = nn.Parameter(torch.tensor(START, dtype=torch.float64))
        optimizer = make(p)
        for step in range(1, 16):
            if rule == "gradient":
                optimizer.zero_grad()
                surface.value(p).backward()
                optimizer.step()
            else:
                optimizer.step(lambda p=p: surface.value(p))
            assert torch.allclose(p.detach(), paths[rule][step], atol=1e-8), (rule, step)


def test_runs_of_a_network_side_by_side_are_single_runs():
    values = {"part": "network", "starts": 3, "steps": 10, "every": 10}
    rows = STUDY.run(values, (1,), Context()).rows
    net = network("random", 1, 1e-4, 3, 60, 3)
    starts = 0.1 * torch.randn(3, net.dim, generator=generator(1, KEY, 1), dtype=torch.float64)
    ends = []
    for p in starts:
        p = p[None]
        for _ in range(10):
            p = p + second_order_step(net.gradient(p), net.hessian(p), "saddle-free", radius=0.5)
        ends.append(float(net.loss(p)))
    assert next(r["loss"] for r in rows if r["rule"] == "saddle-free") == pytest.approx(sorted(ends)[1], rel=1e-9)


def test_separable_data_are_descended_as_autograd_does():
    values = {"part": "no-minimum", "kind": "softplus", "eta": 1.0, "steps": 20}
    last = STUDY.run(values, (3,), Context()).curves[-1]
    a = 0.5 + torch.rand(3, generator=generator(3, KEY, 5), dtype=torch.float64)
    theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for _ in range(20):
        (slope,) = torch.autograd.grad(nn.functional.softplus(-a * theta).mean(), theta)
        theta = (theta - slope / float(a.square().max())).detach().requires_grad_()
    loss = nn.functional.softplus(-a * theta).mean()
    (slope,) = torch.autograd.grad(loss, theta)
    bend = torch.autograd.functional.hessian(lambda t: nn.functional.softplus(-a * t).mean(), theta.detach())
    assert last["step"] == 20
    assert last["loss"] == pytest.approx(float(loss.detach()), rel=1e-10)
    assert last["gradient"] == pytest.approx(float(slope.norm()), rel=1e-10)
    assert last["curvature"] == pytest.approx(float(torch.linalg.eigvalsh(bend)[-1]), rel=1e-10)


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_the_grid(scale):
    grid = STUDY.grid(scale)
    assert all(s.seeds in (0, 5) for s in grid)
    assert len({repr(s.values) for s in grid}) == len(grid)
    assert {s.values["part"] for s in grid} == {v["part"] for v, _ in SMALL}
