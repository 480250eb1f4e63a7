"""The shared filter in the catalogue: what the constructions promise, by closed forms and by training."""

import math

import pytest
import torch

from gradoscope.errors import Usage
from gradoscope.loop import advance
from gradoscope.objective import Objective
from gradoscope.problems import find
from gradoscope.problems.convnet import ConvNet, ExpectedLoss, _beside_saddle, _splitting
from gradoscope.remedies.restart import Restart
from gradoscope.theory import convnet as theory
from gradoscope.theory import set_splitting
from gradoscope.theory.overlap import SharedFilter
from gradoscope.training import Live


def test_the_network_is_the_one_of_the_formula():
    net = ConvNet(3, 4, 2)
    x = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    slow = torch.stack([torch.relu(x[:, 2 * i : 2 * i + 3] @ net.w) for i in range(4)]).mean(0)
    assert torch.allclose(net(x)[:, 0], slow, atol=1e-6)
    assert float(net.w.detach().norm()) == pytest.approx(1, rel=1e-6)
    expected = ExpectedLoss(3, 4)
    targets = torch.eye(3, dtype=torch.float64)[:2]
    assert float(expected(targets).detach()) == pytest.approx(float(theory.loss(expected.w.detach(), targets, 4).mean()))


@pytest.mark.parametrize("seed", [0, 1])
def test_gaussian_inputs_are_learnt(train, seed):
    training = find("convnet:gaussian", seed=seed)
    assert train(training, seed=seed).on(training.validation)[0] < 1e-10


def test_the_saddle_is_where_theory_has_it():
    live = Live.of(find("convnet:saddle", seed=2))
    w = live.model.w.detach()
    target = live.training.data[0][0][0]
    alpha, phi = theory.constants(5)[0], 0.05
    assert float(w.norm()) == pytest.approx(alpha)
    assert math.acos(float(w @ target / w.norm())) == pytest.approx(math.pi - phi)
    objective = Objective.of(live, live.training.data)
    assert float(objective.gradient().norm()) == pytest.approx(phi**2 / (5 * math.pi), rel=0.01)
    hessian = torch.stack([objective.hvp(e) for e in torch.eye(8, dtype=torch.float64)])
    torch.testing.assert_close(hessian, theory.hessian(w, target, 5))
    small, large = -phi / (5 * math.pi * alpha), -2 * phi / (5 * math.pi * alpha)
    assert torch.linalg.eigvalsh(hessian)[:7].tolist() == pytest.approx([large] + [small] * 6, rel=0.02)


def test_the_saddle_holds_the_training_and_lets_it_go_in_time(train):
    training = find("convnet:saddle")
    saddle = theory.saddle_loss(5)
    assert train(training).losses[-1] > 0.98 * saddle
    assert train(training, steps=400).losses[-1] < 1e-6 * saddle


def test_on_a_sample_autograd_sees_no_negative_curvature():
    live = Live.of(find("convnet:saddle,rows=500,angle=0.3"))
    objective = Objective.of(live, [live.training.data])
    hessian = torch.stack([objective.hvp(e) for e in torch.eye(8)])
    assert float(torch.linalg.eigvalsh(hessian)[0]) > 0
    target, w = _beside_saddle(0, 8, 5, 0.3)
    assert torch.allclose(live.model.w.detach().double(), w, atol=1e-6)
    assert float(torch.linalg.eigvalsh(theory.hessian(w, target, 5))[0]) < -0.05


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_overlap_ends_in_the_bad_minimum_and_a_restart_may_not(train, seed):
    training = find("convnet:overlap", seed=seed)
    found = train(training, seed=seed)
    net = SharedFilter(2, 1, 2)
    target = torch.tensor([-1.0, 1.0], dtype=torch.float64) / math.sqrt(2)
    bad = net.best_length(-target, target) * -target
    w = found.live.model.w.detach().double()
    assert float((w - bad).norm()) < 0.1  # the sample's own minimum, beside the expected one
    assert found.losses[-1] == pytest.approx(0.1936, abs=0.03)
    ends = []
    for number in range(1, 9):
        live = Live.of(training, seed=seed)
        Restart(number).prepare(live)
        advance(live, 0, training.steps, [])
        ends.append(float(training.loss(live.model, training.validation).detach()))
    assert min(ends) < 1e-8


def test_overlap_restarted_learns(train):
    training = find("convnet:overlap-restarted,m=3,k=5,steps=400")
    assert train(training).on(training.validation)[0] < 1e-8


def test_set_splitting_is_realisable_and_not_found(train):
    training = find("convnet:set-splitting", seed=1)
    x, y = training.data
    found = train(training, seed=1)
    assert found.losses[-1] > 1e-3
    assert found.losses[-1] == pytest.approx(found.losses[-200], rel=1e-3)  # at rest
    sides = _splitting(1, 24, 36)[2]
    assert float(set_splitting.empirical_loss(sides, x.double().unflatten(1, (2, 24)), y[:, 0].double())) < 1e-12


def test_the_same_teacher_on_gaussian_inputs_is_found(train):
    assert train(find("convnet:set-splitting-gaussian", seed=1), seed=1).losses[-1] < 1e-8


def test_bad_options():
    with pytest.raises(Usage, match="angle"):
        find("convnet:saddle,angle=0")
    with pytest.raises(Usage, match="stride"):
        find("convnet:overlap,stride=2")
    with pytest.raises(Usage, match="none ends"):
        find("convnet:overlap,m=3,k=1")
    with pytest.raises(Usage, match="at least 1"):
        find("convnet:gaussian,k=0")
