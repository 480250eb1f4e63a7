"""The study of recurrent networks: stacks against single trainings, flat shares, determinism, every claim and figure on small runs."""

import math

import numpy as np
import pytest
import torch

from gradoscope.problems.recurrent import CHANCE, Recurrent, adding
from gradoscope.stacked import bulk, generator
from gradoscope.studies._recurrent import KEY, _draw, flat_share, jacobian_norms, networks, plateau, single, train
from gradoscope.studies.recurrent import STUDY
from gradoscope.study import Context, Results, Table

SMALL = {"cell": "tanh", "T": 8, "lr": 0.02, "sharpness": 1.0, "steps": 25, "hidden": 5, "batch": 6}


@pytest.mark.parametrize("cell", ["sigmoid", "lstm"])
def test_a_stack_is_a_plain_loop_over_each_seed(cell):
    values = SMALL | {"cell": cell, "sharpness": 2.0}
    stack, curve, _ = train(values, [4, 1], lambda share: None)
    for i, seed in enumerate([4, 1]):
        net = Recurrent(cell, 5, [generator(seed, KEY, 1)], sharpness=2.0)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        batches = bulk([seed], _draw(8, 6), KEY, 2, chunk=20)
        for _ in range(25):
            x, y = next(batches)
            optimizer.zero_grad()
            (net(x[0]) - y[0]).square().mean().backward()
            optimizer.step()
        for mine, theirs in zip(single(stack, i).parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(mine.float(), theirs, rtol=1e-3, atol=1e-4)
        x, y = adding(generator(seed, KEY, 3), 1000, 8)
        with torch.no_grad():
            expected = float((net(x) - y).square().mean()) / CHANCE
        assert float(curve[-1][1][i]) == pytest.approx(expected, rel=1e-3)


def test_one_seed_alone_is_a_stack_too():
    stack, _, _ = train(SMALL, [1], lambda share: None)
    both, _, _ = train(SMALL, [4, 1], lambda share: None)
    for mine, theirs in zip(single(stack, 0).parameters(), single(both, 1).parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_bulk_sequences_are_adding_problems():
    x, y = next(bulk([0, 1], _draw(9, 5), KEY, 2, chunk=3))
    assert x.shape == (2, 5, 9, 2)
    torch.testing.assert_close((x[..., 0] * x[..., 1]).sum(2, keepdim=True), y)
    assert x[..., :4, 1].sum(2).eq(1).all()
    assert x[..., 4:, 1].sum(2).eq(1).all()


def test_sigmoid_bound_is_met_and_nearly_reached():
    values, singly = jacobian_norms(single(networks(SMALL | {"cell": "sigmoid", "hidden": 16}, [0, 1]), 0), 12, seed=0)
    ratio = singly * 4.0 ** np.arange(13)[:, None]
    assert ratio.max() <= 1 + 1e-5
    assert ratio[1].min() > 0.8  # units near zero have the full slope
    assert values[0] == pytest.approx(1.0)


def test_flat_share_counts_slopes():
    net = single(networks(SMALL, [0, 1]), 0)
    with torch.no_grad():
        net.bias += 50
    assert flat_share(net, 8, 0) == 1.0
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    assert flat_share(net, 8, 0) == 0.0
    gates = single(networks(SMALL | {"cell": "lstm"}, [0, 1]), 0)
    with torch.no_grad():
        for p in gates.parameters():
            p.zero_()
        gates.bias[0, 5:10] = 9.0  # the forget gates: one third of all
    assert flat_share(gates, 8, 0) == pytest.approx(1 / 3)


def test_plateau_against_the_dense_hessian():
    net = single(networks(SMALL | {"hidden": 3}, [0, 1]), 0)
    x, y = adding(generator(7, KEY, 3), 256, 8, torch.float64)
    shapes = [p.shape for p in net.parameters()]

    def loss(flat):
        parts = [part.view(shape) for part, shape in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
        named = dict(zip((n for n, _ in net.named_parameters()), parts, strict=True))
        return (torch.func.functional_call(net, named, (x,)) - y).square().mean()

    theta = torch.cat([p.detach().view(-1) for p in net.parameters()])
    eigenvalues = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, theta))
    found = plateau(net, 8, 7)
    assert found["largest"] == pytest.approx(float(eigenvalues[-1]), rel=1e-4)
    assert found["smallest"] == pytest.approx(float(eigenvalues[0]), abs=found["residual"] + 1e-6)
    assert found["escape"] >= 0 or abs(found["escape"]) < 1


@pytest.fixture(scope="module", params=["quick", "paper"])
def results(request):
    rows, curves = [], []
    for setting in STUDY.grid(request.param):
        tiny = {**setting.values, "steps": 3, "hidden": 4, "batch": 3, "T": min(setting.values["T"], 16)}
        result = STUDY.run(tiny, (0, 1), Context())
        rows += [{**setting.values, **row} for row in result.rows]
        curves += [{**setting.values, **row} for row in result.curves]
    return request.param, Results(Table(rows), Table(curves))


def test_every_claim_can_be_measured(results):
    scale, found = results
    claims = STUDY.claims(scale)
    assert len({claim.id for claim in claims}) == len(claims)
    for claim in claims:
        judged = claim.judge(STUDY.name, found)
        assert judged.seeds == 2
        assert not math.isnan(judged.measured), claim.id
        if claim.id == "sigmoid-bound":  # a theorem
            assert judged.holds


def test_every_figure_draws(results):
    scale, found = results
    for figure in STUDY.figures(scale):
        assert figure.draw(found).axes


def test_a_unit_gives_the_same_bits_again_and_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    first, second = (STUDY.run(SMALL, (0, 1), Context()) for _ in range(2))
    assert first.rows == second.rows
    assert first.curves == second.curves
    assert torch.equal(before, torch.get_rng_state())
