"""Bounds for separable data, dead ReLUs, linear baselines and Baum's algorithm, against slow references."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize

from gradoscope.errors import CannotRun, Usage
from gradoscope.theory import separable as theory
from gradoscope.theory.baum import learn, quadratic
from gradoscope.updates.single_examples import WideHinge

F64 = torch.float64


def data(seed, n, d, margin=0.15):
    random = torch.Generator().manual_seed(seed)
    w = torch.nn.functional.normalize(torch.randn(d, generator=random, dtype=F64), dim=0)
    x = torch.nn.functional.normalize(torch.randn(40 * n, d, generator=random, dtype=F64), dim=1)
    x = x[(x @ w).abs() > margin][:n]
    return x, torch.sign(x @ w), w


@pytest.mark.parametrize(("n", "d"), [(30, 5), (100, 20), (10, 30)])
def test_hard_margin_is_the_shortest_separator(n, d):
    x, y, _ = data(n, n, d)
    w = theory.hard_margin(x, y)
    rows = (x * y[:, None]).numpy()
    assert float((rows @ w.numpy()).min()) >= 1 - 1e-9
    solved = optimize.minimize(
        lambda v: v @ v / 2,
        w.numpy() + 0.1 * np.sin(np.arange(d)),
        jac=lambda v: v,
        constraints={"type": "ineq", "fun": lambda v: rows @ v - 1, "jac": lambda v: rows},
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-14},
    )
    assert float(w.norm()) == pytest.approx(float(np.linalg.norm(solved.x)), rel=1e-5)


def test_hard_margin_says_where_there_is_none():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=F64)
    with pytest.raises(CannotRun, match="no linear rule"):
        theory.hard_margin(x, torch.ones(2, dtype=F64))


def test_perceptron_is_the_plain_loop_and_keeps_its_bound():
    x, y, _ = data(2, 80, 6, margin=0.05)
    w, updates, done = theory.perceptron(x, y)
    slow, count = torch.zeros(6, dtype=F64), 0
    for _ in range(1000):
        before = count
        for a, b in zip(x, y, strict=True):
            if float(b * (a @ slow)) <= 0:
                slow, count = slow + b * a, count + 1
        if count == before:
            break
    torch.testing.assert_close(w, slow)
    assert (updates, done) == (count, True)
    assert updates <= float(theory.hard_margin(x, y).norm()) ** 2


@pytest.mark.parametrize(("slope", "eta", "v"), [(0.1, 0.1, 0.0), (0.5, 1.0, 0.0), (0.3, 0.05, 1.0)])
def test_updates_stay_below_the_bound_and_each_keeps_the_inequalities(slope, eta, v):
    x, y, _ = data(3, 60, 10)
    svm = theory.hard_margin(x, y)
    for k in (1, 30):
        size = v or 1 / math.sqrt(2 * k)
        w = torch.randn(2 * k, 10, generator=torch.Generator().manual_seed(k), dtype=F64)
        w = w / w.norm()
        along = theory.separator(svm, k)
        record = WideHinge(w, slope=slope, v=size).train(x, y, eta=eta, along=along)
        bound = theory.update_bound(float(svm.norm()), 1.0, slope=slope, eta=eta, k=k, v=size, start=1.0)
        assert 0 < len(record.updates) <= bound
        least, most = theory.step_bounds(1.0, slope=slope, eta=eta, k=k, v=size)
        progress = torch.tensor([float((w * along).sum()), *record.progress], dtype=F64)
        norms = torch.tensor([float(w.square().sum()), *record.norms], dtype=F64)
        assert float(progress.diff().min()) >= least * (1 - 1e-6)
        assert float(norms.diff().max()) <= most * (1 + 1e-6)


def test_the_two_forms_of_the_bound():
    """With v = 1/sqrt(2k) it is free of k; with v = 1 it is the other form of the derivation."""
    for k in (1, 7, 1000):
        one = theory.update_bound(5.5, 1.0, slope=0.1, eta=0.1, k=k, v=1 / math.sqrt(2 * k), start=1.0)
        assert one == pytest.approx(5.5**2 / 0.01 * (1 + 2 / 0.1) + 2 * 5.5 / 0.01)
        other = theory.update_bound(5.5, 1.0, slope=0.1, eta=0.1, k=k, v=1.0, start=1.0)
        assert other == pytest.approx(5.5**2 / 0.01 * (1 + 1 / (0.1 * k)) + 2 * 5.5 / (math.sqrt(2 * k) * 0.01))
    with pytest.raises(Usage, match="slope 0"):
        theory.update_bound(1.0, 1.0, slope=0.0, eta=1.0, k=1, v=1.0)


def test_the_orthonormal_instance():
    x, y = torch.eye(5, dtype=F64), torch.ones(5, dtype=F64)
    for eta, most in ((0.01, 185), (0.1, 19)):
        net = WideHinge(torch.zeros(8, 5, dtype=F64), slope=0.3, v=1 / math.sqrt(8))
        each = len(net.train(x, y, eta=eta).updates) / 5
        assert each == most
        assert 0 <= each - theory.orthonormal_updates(0.3, eta) < 3


def test_compression_bound():
    found = theory.compression_bound(10, 10_000, delta=0.1, outside=0.02)
    unit = 10 * math.log(1e5) / 1e4
    assert found.bound == pytest.approx(0.02 + math.sqrt(0.02 * 4 * unit) + 8 * unit)
    assert not found.vacuous
    assert theory.compression_bound(100, 1000).vacuous
    assert math.isinf(theory.compression_bound(600, 1000).bound)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_dead_minimum_is_flat(seed):
    x, y, w = data(seed, 50, 6)
    k, v = 3, 0.7
    weights = theory.dead_minimum(w / 0.15, k, v)
    random = torch.Generator().manual_seed(seed)
    reach = 0.99 * min(1, 1 / (2 * k * v))
    for _ in range(50):
        move = torch.nn.functional.normalize(torch.randn(weights.shape, generator=random, dtype=F64), dim=1) * reach
        net = WideHinge(weights + move, slope=0.0, v=v)
        losses = torch.relu(1 - y * net(x))
        assert torch.equal(losses, (y > 0).double())


@pytest.mark.parametrize(("slope", "k"), [(0.0, 1), (0.0, 3), (0.2, 1)])
def test_columns_side_by_side_are_networks(slope, k):
    d, v = 6, 1 / math.sqrt(2 * k)
    columns = torch.randn(20, d, 2 * k, generator=torch.Generator().manual_seed(k), dtype=F64)
    found = theory.lone_coordinates(columns, slope=slope, eta=0.5, v=v)
    x, y = torch.eye(d, dtype=F64), torch.ones(d, dtype=F64)
    for at in range(20):
        net = WideHinge(columns[at].T.contiguous(), slope=slope, v=v)
        net.train(x, y, eta=0.5, epochs=300)
        assert torch.equal(net(x) >= 1 - 1e-12, found[at])
    if slope == 0:
        assert torch.equal(found, (columns[..., :k] > 0).any(-1))  # the law: some positive unit sees it
    else:
        assert bool(found.all())


def test_relu_success_is_the_share_of_many():
    columns = torch.randn(4000, 8, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
    share = float(theory.lone_coordinates(columns, slope=0.0, eta=1.0, v=0.4).all(1).double().mean())
    exact = theory.relu_success(3, 8)
    assert abs(share - exact) < 4 * math.sqrt(exact * (1 - exact) / 4000)


def test_quadratic_features():
    x = torch.tensor([[2.0, 3.0, 5.0]])
    assert quadratic(x).tolist() == [[4.0, 6.0, 10.0, 9.0, 15.0, 25.0]]


@pytest.mark.parametrize("seed", range(3))
def test_baum_is_consistent_and_better_with_more(seed):
    random = torch.Generator().manual_seed(seed)
    planes = torch.randn(2, 4, generator=random, dtype=F64)
    x = torch.randn(8000, 4, generator=random, dtype=F64)
    positive = (x @ planes.T > 0).all(1)
    errors = []
    for n in (100, 1600):
        rule = learn(x[:n], positive[:n])
        assert bool((rule(x[:n]) == positive[:n]).all())
        assert float((x[:n][positive[:n]] @ rule.w).min()) >= 1 - 1e-6
        errors.append(float((rule(x[2000:]) != positive[2000:]).double().mean()))
    assert errors[1] < 0.02
    assert errors[1] < errors[0]


def test_baum_where_it_cannot_be():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=F64)
    with pytest.raises(CannotRun, match="no halfspace"):
        learn(x, torch.tensor([True, True, False]))
    with pytest.raises(CannotRun, match="no positive"):
        learn(x, torch.zeros(3, dtype=torch.bool))
    # one that no quadratic form can separate: the same point with both labels
    both = torch.tensor([[1.0, 1.0], [1.0, 1.0], [2.0, 1.0]], dtype=F64)
    rule = learn(both, torch.tensor([True, False, True]))
    assert not rule.consistent
    assert float((rule(both) == torch.tensor([True, False, True])).double().mean()) >= 2 / 3
