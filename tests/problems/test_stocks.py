"""Stocks: returns as they should be, losses that agree in expectation."""

import pytest
import torch

from gradoscope.errors import Usage
from gradoscope.problems import find
from gradoscope.problems.stocks import best_stock, returns, start
from gradoscope.training import Live


def test_returns_are_one_for_the_best_stock_and_fair_for_the_others():
    best = torch.randint(0, 7, (20_000,), generator=torch.Generator().manual_seed(1))
    z = returns(best, 7, torch.Generator().manual_seed(2))
    assert set(z.unique().tolist()) == {-1.0, 1.0}
    assert bool((z.gather(1, best[:, None]) == 1).all())
    others = torch.ones_like(z).scatter_(1, best[:, None], 0.0)
    assert abs(float((z * others).sum() / others.sum())) < 5 / (6 * 20_000) ** 0.5


def test_start_and_best_stock():
    table = start(400, 50, torch.Generator().manual_seed(0))
    assert float(table.abs().max()) <= 2 / 20
    assert float(table.std()) == pytest.approx(0.8796 / 20, rel=0.03)
    assert set(best_stock(1000, 5, torch.Generator().manual_seed(0)).tolist()) == set(range(5))


def test_both_variants_have_one_expected_gradient():
    whole, parts = find("stocks:end-to-end,d=6,k=4"), find("stocks:decomposed,d=6,k=4")
    x, z = whole.data(torch.Generator().manual_seed(0), 60_000)
    same_x, own = parts.data(torch.Generator().manual_seed(0), 10)
    assert same_x.shape == (10, 6)
    assert own.sum(1).tolist() == [1.0] * 10
    with Live.of(whole) as live:
        model = live.model
        sampled = torch.autograd.grad(whole.loss(model, (x, z)), list(model.parameters()))
        exact = torch.autograd.grad(whole.loss(model, whole.validation), list(model.parameters()))
        spread = (4 * 0.25**2 / 6 / 60_000) ** 0.5  # a rough bound of one entry's standard error
        assert max(float((a - b).abs().max()) for a, b in zip(sampled, exact, strict=True)) < 6 * spread
        # the intermediate loss is the decomposed one, on the same states
        own = torch.nn.functional.one_hot((whole.validation[1][x[:50].argmax(1)]).argmax(1), 4).float()
        assert whole.intermediate(model, (x[:50], z[:50])).item() == pytest.approx(parts.loss(model, (x[:50], own)).item(), rel=1e-5)


def test_decomposed_learns_and_end_to_end_does_not(train):
    options = "d=100,k=200,batch=10,eps=5e-4,steps=800"
    ends = {}
    for variant in ("end-to-end", "decomposed"):
        training = find(f"stocks:{variant},{options}")
        ends[variant] = train(training).on(training.validation)[0]
    assert ends["decomposed"] < -0.9
    assert ends["end-to-end"] > ends["decomposed"] + 0.2


def test_bad_options():
    with pytest.raises(Usage, match="k of at least 2"):
        find("stocks:end-to-end,k=1")
