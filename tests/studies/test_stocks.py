"""The study of stocks: stacks against a plain loop, the exact loss, determinism, and every claim and figure on small runs."""

import math

import pytest
import torch

from gradoscope.problems.stocks import best_stock, start
from gradoscope.stacked import generator
from gradoscope.studies._stocks import BETAS, KEY, Stocks, days, landscape
from gradoscope.studies.stocks import STUDY
from gradoscope.study import Context, Results, Table

SMALL = {"d": 20, "k": 6, "batch": 5, "lr": 0.1, "eps": 1e-5, "bias": True, "steps": 60}


def plain(values, seed, steps):
    """One seed by autograd on one-hot states in float64, Adam written out in TensorFlow's form."""
    d, k = values["d"], values["k"]
    best = best_stock(d, k, generator(seed, KEY, 1, k))
    weights = start(d, k, generator(seed, KEY, 2, k)).double().requires_grad_()
    bias = torch.zeros(k, dtype=torch.float64, requires_grad=True)
    parameters = [weights, bias] if values["bias"] else [weights]
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    stream = days([seed], d, k, values["batch"], values["estimator"] == "end-to-end")
    for t in range(1, steps + 1):
        states, rose = next(stream)
        x = torch.nn.functional.one_hot(states[0], d).double()
        own = torch.nn.functional.one_hot(best[states[0]], k).double()
        z = torch.where(own == 1, 1.0, rose[0].double() * 2 - 1) if values["estimator"] == "end-to-end" else own
        loss = -(torch.softmax(x @ weights + bias, 1) * z).sum(1).mean()
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                m.mul_(BETAS[0]).add_(g * (1 - BETAS[0]))
                v.mul_(BETAS[1]).add_(g * g * (1 - BETAS[1]))
                rate = values["lr"] * math.sqrt(1 - BETAS[1] ** t) / (1 - BETAS[0] ** t)
                p -= rate * m / (v.sqrt() + values["eps"])
    return weights.detach(), bias.detach(), best


@pytest.mark.parametrize("estimator", ["end-to-end", "decomposed"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_stack_is_a_plain_loop_over_each_seed(estimator, bias):
    values = SMALL | {"estimator": estimator, "bias": bias}
    stack = Stocks(values, [3, 0, 5], torch.float64)
    for _ in range(60):
        stack.step()
    for i, seed in enumerate([3, 0, 5]):
        weights, shared, best = plain(values, seed, 60)
        torch.testing.assert_close(stack.logits()[i], weights + shared, rtol=1e-8, atol=1e-9)
        p = torch.softmax(weights + shared, 1)[torch.arange(20), best]
        assert stack.look()[i]["loss"] == pytest.approx(-float(p.mean()))


def test_the_first_steps_tell_tensorflows_epsilon_from_pytorchs():
    values = SMALL | {"estimator": "end-to-end", "eps": 1e-2}
    stack = Stocks(values, [0], torch.float64)
    stack.step()
    weights, shared, _ = plain(values, 0, 1)
    torch.testing.assert_close(stack.logits()[0], weights + shared, rtol=1e-10, atol=1e-12)
    moved = (stack.logits()[0] - start(20, 6, generator(0, KEY, 2, 6)).double()).abs().max()
    assert float(moved) < 0.1  # with epsilon added to the corrected root the first step would be about three times as long


def test_returns_are_fair_and_states_are_shared():
    whole, parts = days([0, 1], 50, 30, 40, True), days([1], 50, 30, 40, False)
    total = torch.zeros(2, 40, 30)
    for _ in range(200):
        states, rose = next(whole)
        alone, nothing = next(parts)
        assert torch.equal(states[1], alone[0])
        assert nothing.numel() == 0
        total += rose
    assert abs(float(total.mean()) / 200 - 0.5) < 5 * 0.5 / math.sqrt(200 * 2 * 40 * 30)


def test_landscape_against_dense_autograd():
    random = torch.Generator().manual_seed(0)
    weights = torch.randn(3, 4, generator=random, dtype=torch.float64) * 3
    bias, best = torch.randn(4, generator=random, dtype=torch.float64), torch.tensor([0, 3, 1])

    def loss(flat):
        p = torch.softmax(flat[:12].view(3, 4) + flat[12:], 1)
        return -p[torch.arange(3), best].mean()

    flat = torch.cat([weights.view(-1), bias])
    eigenvalues = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))
    gradient = torch.autograd.functional.jacobian(loss, flat)
    found = landscape(weights, bias, best)
    assert found["gradient"] == pytest.approx(float(gradient.norm()), rel=1e-10)
    assert found["largest"] == pytest.approx(float(eigenvalues[-1]), rel=1e-6)
    assert found["smallest"] == pytest.approx(float(eigenvalues[0]), rel=1e-6)
    hessian = torch.autograd.functional.hessian(loss, flat)
    own = [4 * i + int(y) for i, y in enumerate(best)]
    assert found["own_curvature"] == pytest.approx(min(float(hessian[j, j]) for j in own), rel=1e-9)
    behind = [j for j in own if gradient[j] != 0 and hessian[j, j] < 0]
    assert found["own_slope"] == pytest.approx(min(float(gradient[j]) for j in behind), rel=1e-9)
    assert found["ray_end"] == pytest.approx(-1.0)
    assert found["ray_rise"] <= 0


def small(setting):
    """What runs in place of a setting: tables of a few states and stocks."""
    tiny = dict(setting.values)
    if tiny["part"] == "train":
        return tiny | {"d": 12, "k": 5, "batch": 3, "steps": 1000, "every": 100}
    return tiny | {"d": 8, "k": min(tiny["k"], 40)}


@pytest.fixture(scope="module", params=["quick", "paper"])
def results(request):
    rows, curves = [], []
    for setting in STUDY.grid(request.param):
        result = STUDY.run(small(setting), (0, 1), Context())
        rows += [{**setting.values, **row} for row in result.rows]
        curves += [{**setting.values, **row} for row in result.curves]
    return request.param, Results(Table(rows), Table(curves))


def test_every_claim_can_be_measured(results):
    scale, found = results
    claims = STUDY.claims(scale)
    assert len({claim.id for claim in claims}) == len(claims)
    for claim in claims:
        judged = claim.judge(STUDY.name, found)
        assert judged.seeds >= 2
        assert not math.isnan(judged.measured), claim.id
        if claim.id in ("same-expectation", "way-down", "way-down-ends"):  # they hold at any size
            assert judged.holds, claim.id


def test_every_figure_draws(results):
    scale, found = results
    for figure in STUDY.figures(scale):
        assert figure.draw(found).axes


def test_a_unit_gives_the_same_bits_again_and_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    for part, estimator in (("train", "end-to-end"), ("train", "decomposed")):
        values = SMALL | {"part": part, "estimator": estimator, "every": 20, "surface": True}
        first, second = (STUDY.run(values, (0, 1), Context()) for _ in range(2))
        assert first.rows == second.rows
        assert first.curves == second.curves
    assert torch.equal(before, torch.get_rng_state())


def test_settings_are_distinct():
    for scale in ("quick", "paper"):
        keys = [unit.key for setting in STUDY.grid(scale) for unit in setting.units(STUDY, None)]
        assert len(set(keys)) == len(keys)
