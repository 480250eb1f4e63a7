"""Stacked networks move as each would alone."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from gradoscope.errors import CannotRun
from gradoscope.guard import private_random, random_fingerprint
from gradoscope.stacked import bulk, fit, generator, hinge, stack, start_like_source, truncated_normal, unstack

SEEDS = (0, 1, 2)


def mlp(*sizes, activation=nn.ReLU, last=None, bias=True):
    layers = []
    for i, o in itertools.pairwise(sizes):
        layers += [nn.Linear(i, o, bias=bias), activation()]
    return nn.Sequential(*layers[:-1], *([last] if last else []))


SHAPES = {
    "one layer": lambda: mlp(6, 20, 1),
    "two layers": lambda: mlp(6, 12, 9, 1),
    "three layers": lambda: mlp(6, 8, 8, 8, 1),
    "linear": lambda: mlp(6, 1),
    "linear twice": lambda: mlp(6, 5, 1, activation=nn.Identity),
    "no bias": lambda: mlp(6, 20, 1, bias=False),
    "ReLU last": lambda: mlp(6, 10, 1, last=nn.ReLU()),
    "tanh": lambda: mlp(6, 20, 1, activation=nn.Tanh),
    "one unit inside": lambda: mlp(6, 1, 4, 1),
}


def started(make, seed):
    model = start_like_source(make(), generator(seed, 1))
    with torch.no_grad():  # biases too: zero ones hide mistakes
        for p in model.parameters():
            if p.dim() == 1:
                p.normal_(0, 0.1, generator=generator(seed, 2))
    return model


def draw64(random, n):
    x = torch.from_numpy(random.standard_normal((n, 16, 6)))
    return x, torch.sign(x[..., :1] * x[..., 1:2])


def draw(random, n):
    return tuple(t.float() for t in draw64(random, n))


def alone(make, seed, optimizer, steps, dtype):
    """The plain PyTorch loop of one seed."""
    model = started(make, seed).to(dtype)
    optim, batches, losses = optimizer(model.parameters()), bulk([seed], draw64 if dtype == torch.float64 else draw, 5), []
    for _ in range(steps):
        x, y = (t[0] for t in next(batches))
        loss = torch.relu(1 - y * model(x)).mean()
        optim.zero_grad()
        loss.backward()
        optim.step()
        losses.append(loss.item())
    return model, losses


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("known", [True, False], ids=["by hand", "autograd"])
@pytest.mark.parametrize("kind", ["SGD", "Adam", "SGD in float32"])
def test_a_stacked_run_equals_single_runs_to_rounding(shape, known, kind):
    # Adam in float64 alone: it divides by the gradient's size, so that a gradient that is zero up to rounding moves a weight
    make, steps = SHAPES[shape], 20
    dtype, tolerance = (
        (torch.float32, {"rtol": 2e-4, "atol": 2e-5}) if "float32" in kind else (torch.float64, {"rtol": 1e-8, "atol": 1e-10})
    )
    optimizer = (lambda p: torch.optim.Adam(p, lr=0.01)) if kind == "Adam" else (lambda p: torch.optim.SGD(p, lr=0.1))
    model = stack([started(make, seed).to(dtype) for seed in SEEDS])
    seen = []
    loss = hinge if known else lambda m, x, y: torch.relu(1 - y * m(x)).mean((1, 2))
    batches = bulk(SEEDS, draw64 if dtype == torch.float64 else draw, 5)
    fit(model, optimizer(model.parameters()), batches, loss, steps, look=lambda k, each: seen.append((k, each)), every=1)
    assert [k for k, _ in seen] == [*range(steps), steps]
    for index, seed in enumerate(SEEDS):
        single, losses = alone(make, seed, optimizer, steps, dtype)
        np.testing.assert_allclose([float(each[index]) for _, each in seen[:-1]], losses, **tolerance)
        for a, b in zip(unstack(model, index, make().to(dtype)).parameters(), single.parameters(), strict=True):
            torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@private_random(0)
def test_gradients_by_hand_are_those_of_autograd(shape):
    model = stack([started(SHAPES[shape], seed) for seed in SEEDS]).double()
    x, y = torch.randn(3, 16, 6).double(), torch.randn(3, 16, 1).sign().double()
    hinge(model, x, y).sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    fit(model, torch.optim.SGD(model.parameters(), lr=0.0), iter([(x, y)] * 2), hinge, 2)
    for p, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-12, atol=1e-14)


def test_frozen_parameters_stay():
    model = stack([mlp(6, 5, 1) for _ in SEEDS])
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    fit(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1), bulk(SEEDS, draw), hinge, 3)
    assert torch.equal(model[0].weight, before)


def test_inputs_that_all_share():
    models = [started(SHAPES["one layer"], seed) for seed in SEEDS]
    x, y = torch.randn(16, 6), torch.ones(3, 16, 1)
    model = stack(models)
    torch.testing.assert_close(model(x)[1], models[1](x))
    expected = hinge(model, x, y).detach()
    seen = []
    fit(model, torch.optim.SGD(model.parameters(), lr=0.1), iter([(x, y)]), hinge, 1, look=lambda _, each: seen.append(each))
    torch.testing.assert_close(seen[-1], expected)


def test_looks_come_before_the_step_and_go_on_from_where_they_were():
    model = stack([mlp(6, 4, 1) for _ in SEEDS])
    first, steps = model[0].weight.clone(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(
        model,
        optimizer,
        bulk(SEEDS, draw),
        hinge,
        5,
        look=lambda k, _: steps.append((k, torch.equal(model[0].weight, first))),
        every=2,
        start=4,
    )
    assert steps == [(4, True), (6, False), (8, False), (9, False)]


def test_only_layers_that_can_be_stacked():
    with pytest.raises(CannotRun, match="Conv2d"):
        stack([nn.Conv2d(1, 1, 3)])
    with pytest.raises(CannotRun, match="one structure"):
        stack([nn.Linear(1, 1), nn.ReLU()])
    with pytest.raises(CannotRun, match="numbers of layers"):
        stack([mlp(2, 2), mlp(2, 2, 2)])


def test_what_a_seed_gets_does_not_depend_on_its_company():
    one, other = (lambda r, n: (torch.from_numpy(r.random((n, 2))),)), (lambda r, n: (torch.from_numpy(-r.random((n, 2))),))
    together = bulk([3, 7], [one, other], 9, chunk=4)
    apart = bulk([3], one, 9, chunk=4), bulk([7], other, 9, chunk=4)
    for _ in range(9):
        x = next(together)[0]
        assert torch.equal(x[0], next(apart[0])[0][0])
        assert torch.equal(x[1], next(apart[1])[0][0])


def test_nothing_draws_from_the_global_streams():
    single = [SHAPES["one layer"]() for _ in SEEDS]
    before = random_fingerprint()
    model = stack([start_like_source(m, generator(seed)) for seed, m in enumerate(single)])
    fit(model, torch.optim.SGD(model.parameters(), lr=0.1), bulk(SEEDS, draw), hinge, 2)
    assert random_fingerprint() == before


def test_the_start_is_cut_at_two_standard_deviations():
    w = truncated_normal((400, 100), 0.1, generator(0)).double()
    assert float(w.abs().max()) <= 0.2
    assert float(w.std()) == pytest.approx(0.08796, rel=0.02)
