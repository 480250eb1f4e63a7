"""The linear-periodic problems: their target, their networks, and that the slow one is learnt and the fast one is not."""

import math

import pytest
import torch

from gradoscope.errors import Usage
from gradoscope.problems import all_problems, find
from gradoscope.problems.linear_periodic import CosineNeuron
from gradoscope.theory.linear_periodic import loss


def test_the_target_is_a_cosine_of_norm_r():
    training = find("linear-periodic:d=4,r=2.5", seed=3)
    x, y = training.data(torch.Generator().manual_seed(0), 4000)
    # the target is the same for every draw, a function of a single direction: recover it by the closed form's landscape
    again = find("linear-periodic:d=4,r=2.5", seed=3).data(torch.Generator().manual_seed(0), 4000)[1]
    assert torch.equal(y, again)
    assert not torch.equal(y, find("linear-periodic:d=4,r=2.5", seed=4).data(torch.Generator().manual_seed(0), 4000)[1])
    assert abs(float(y.mean()) - math.exp(-(2.5**2) / 2)) < 4 * float(y.std()) / math.sqrt(4000)
    assert x.shape == (4000, 4)
    assert float(y.abs().max()) <= 1


def test_the_networks():
    assert isinstance(find("linear-periodic:slow").model(), CosineNeuron)
    assert isinstance(find("linear-periodic:width_factor=0").model(), CosineNeuron)
    assert math.isclose(float(CosineNeuron(6, 3.0).w.detach().norm()), 3.0, rel_tol=1e-6)
    relu = find("linear-periodic:d=7").model()
    assert relu[0].weight.shape == (70, 7)
    assert not relu[0].bias.any()


def test_the_slow_one_is_learnt_and_the_fast_one_is_not(train):
    slow = find("linear-periodic:slow", seed=1)
    assert train(slow, seed=1).on(slow.validation)[0] < 1e-3
    fast = find("linear-periodic:width_factor=0,steps=300,lr=0.5", seed=1)
    assert train(fast, seed=1).on(fast.validation)[0] > 0.9  # the plateau, loss 1


def test_the_plateau_is_that_of_the_closed_form():
    training = find("linear-periodic:width_factor=0,d=2,r=2", seed=0)
    x, y = training.data(torch.Generator().manual_seed(1), 100_000)
    model = CosineNeuron(2, 1.5)
    w = model.w.detach().double()[:, 0]
    # the target by least squares over angles: the best of a fine grid
    angles = torch.linspace(0, math.pi, 2000, dtype=torch.float64)
    candidates = 2 * torch.stack([angles.cos(), angles.sin()], dim=1)
    fits = (torch.cos(x[:500].double() @ candidates.T) - y[:500].double()).square().mean(0)
    target = candidates[int(fits.argmin())]
    assert float(fits.min()) < 1e-3
    each = (model(x) - y).square().double().detach()
    assert abs(float(each.mean()) - float(loss(w, target))) < 4 * float(each.std()) / math.sqrt(len(each)) + 1e-2


def test_bad_options_are_told():
    with pytest.raises(Usage, match="at least 2 and a positive r"):
        find("linear-periodic:d=1")
    with pytest.raises(Usage, match="positive r"):
        find("linear-periodic:r=-1")


def test_they_are_in_the_catalogue():
    assert all_problems()["linear-periodic"].obstacle == "uninformative_gradient"
    assert all_problems()["linear-periodic:slow"].obstacle == "healthy"
