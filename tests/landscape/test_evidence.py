"""Evidence along a run: against closed forms on quadratics, and against plain loops on a small network."""

import math

import numpy as np
import torch
from torch import nn

from gradoscope.landscape.evidence import gradient_norms, terms, variation, window
from gradoscope.objective import Objective


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x = torch.randn(48, 3, dtype=torch.float64)
    y = torch.sin(x.sum(1, keepdim=True))
    return model, [(x[k * 8 : (k + 1) * 8], y[k * 8 : (k + 1) * 8]) for k in range(6)]


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def test_a_window_is_the_plain_loop():
    model, batches = network()
    objective = Objective(model, loss, batches)
    before = objective.theta()
    points, theta = [before], before.clone()
    for i in range(6):  # plain gradient steps, each on its own batch
        with objective.moved(theta):
            theta = theta - 0.3 * objective.batch_gradient(i)
        points.append(theta)
    seen = window(objective, torch.stack(points), lambda i: Objective(model, loss, [batches[i]]), first=0)
    assert torch.equal(objective.theta(), before)
    for i in range(6):
        a, b = points[i], points[i + 1]
        assert abs(seen.fixed[i] - float(objective.at(b).mean() - objective.at(a).mean())) < 1e-14
        assert abs(seen.own[i] - (objective.at(b)[i] - objective.at(a)[i])) < 1e-14
        nn.utils.vector_to_parameters(a, model.parameters())
        whole = (torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))
        shapes = [p.shape for p in model.parameters()]

        def at(v, shapes=shapes, whole=whole):
            parts = [p.reshape(s) for p, s in zip(torch.split(v, [s.numel() for s in shapes]), shapes, strict=True)]
            named = dict(zip([n for n, _ in model.named_parameters()], parts, strict=True))
            return (torch.func.functional_call(model, named, whole[0]) - whole[1]).square().mean()

        g, H = torch.func.grad(at)(a), torch.func.hessian(at)(a)
        s = b - a
        assert abs(seen.predicted[i].first - float(g @ s)) < 1e-12
        assert abs(seen.predicted[i].second - float(g @ s + 0.5 * s @ H @ s)) < 1e-12
        assert abs(seen.curvature[i] - float(g @ H @ g / (g @ g))) < 1e-10
        assert abs(seen.overshoot[i] - float(0.5 * s @ H @ s / abs(g @ s))) < 1e-9
        nn.utils.vector_to_parameters(before, model.parameters())
    assert seen.uphill_fixed.value == np.mean(seen.fixed > 0)
    assert seen.uphill_own is not None
    assert seen.uphill_own.value == np.mean(seen.own > 0)
    assert abs(seen.ratio - np.median(seen.curvature[1:] / seen.curvature[:-1])) < 1e-12
    assert seen.to_dict()["steps"] == list(range(6))


def test_on_a_quadratic_the_second_order_is_exact_and_the_overshoot_is_half_the_step():
    eigenvalues = torch.tensor([4.0, 1.0], dtype=torch.float64)
    model = nn.ParameterList([nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))])
    objective = Objective(model, lambda m, _: 0.5 * (eigenvalues * m[0] ** 2).sum(), [None])
    points = [torch.tensor([1.0, 1.0], dtype=torch.float64)]
    for _ in range(5):
        points.append(points[-1] - 0.6 * eigenvalues * points[-1])  # 0.6 * 4 > 2: the first coordinate diverges
    seen = window(objective, torch.stack(points))
    assert max(abs(p.rho) for p in seen.predicted) < 1e-12
    assert np.allclose(seen.overshoot, 0.6 * seen.curvature / 2)
    assert seen.uphill_own is None
    assert seen.uphill_fixed.details["interval"][1] == 1.0


def test_terms_of_a_step_are_those_of_plain_gradients():
    model, batches = network()
    objective = Objective(model, loss, batches)
    found = terms(objective, objective, objective.theta(), torch.full((objective.dim,), 0.1, dtype=torch.float64), batch=8, step=4)
    g = objective.batch_gradients()
    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    assert abs(found.change["D"].value - 0.1 * np.mean([float(g[i] @ g[j]) for i, j in pairs])) < 1e-12
    products = [objective.hvp(v) for v in g]
    assert abs(found.change["C"].value - 0.5 * 0.01 * np.mean([float(g[i] @ products[j]) for i, j in pairs])) < 1e-12
    total = 0.5 * 0.01 * np.mean([float(g[i] @ products[i]) for i in range(6)])
    assert abs(found.change["C"].value + found.change["M"].value - total) < 1e-12
    assert found.to_dict()["step"] == 4
    assert terms(objective, objective, objective.theta(), None, batch=8).change == {}


def test_running_and_snapshot_norms():
    model, batches = network()
    objective = Objective(model, loss, batches)
    points = torch.stack([objective.theta() * s for s in (1.0, 0.9, 0.8)])
    per_step = np.array([1.0, 2.0, 3.0, math.nan, 5.0])
    seen = gradient_norms(objective, points, np.array([0, 2, 5]), per_step)
    assert np.isnan(seen.running[0])
    assert seen.running[1:].tolist() == [1.5, 4.0]
    with objective.moved(points[1]):
        assert abs(seen.snapshot[1] - float(objective.gradient().norm())) < 1e-12
        assert abs(seen.loss[1] - objective.loss()) < 1e-12


def test_variation_against_its_definition():
    series = np.array([1.0, 4.0, 2.0, math.nan, 5.0])
    known = series[np.isfinite(series)]
    assert abs(variation(series).value - known.std(ddof=1) / known.mean()) < 1e-12
    assert math.isnan(variation(known[:2]).value)
    assert variation(np.ones(5)).value == 0
