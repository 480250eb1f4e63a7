"""Curves: the map and its inverse, the step size, and how slow plain gradient descent is."""

import numpy as np
import pytest
import torch

from gradoscope.errors import Usage
from gradoscope.problems import find
from gradoscope.problems._curves import draw_anywhere, draw_slopes
from gradoscope.problems.curves import draw_breakpoints, half_squared_error, integrator
from gradoscope.training import Live


def test_integrator_against_loops_and_its_inverse_takes_second_differences():
    n = 9
    slow = [[max(i - j + 1, 0) for j in range(n)] for i in range(n)]
    assert integrator(n).tolist() == slow
    second = np.eye(n) - 2 * np.eye(n, k=-1) + np.eye(n, k=-2)
    np.testing.assert_allclose(np.linalg.inv(integrator(n).numpy()), second, atol=1e-10)


def test_condition_number_grows_with_the_fourth_power():
    small, large = (np.linalg.cond(integrator(n).numpy()) ** 2 for n in (50, 100))
    assert np.log2(large / small) == pytest.approx(3.946, abs=0.01)  # the measured exponent from 50 to 100


def test_breakpoints_are_k_different_places_with_changes_in_range():
    p = draw_breakpoints(500, 20, 3, torch.Generator().manual_seed(1))
    assert ((p != 0).sum(1) == 3).all()
    assert float(p.abs().max()) <= 1
    assert ((p != 0).double().mean(0) - 3 / 20).abs().max() < 0.06


def test_step_size_is_one_over_the_largest_eigenvalue():
    training = find("curves:linear,n=20,curves=50", seed=2)
    f = training.data[0].numpy()
    slow = sum(np.outer(row, row) for row in f) / len(f)
    assert Live.of(training).optimizer.param_groups[0]["lr"] == pytest.approx(1 / np.linalg.eigvalsh(slow)[-1], rel=1e-9)


def test_the_optimum_is_exact_and_gradient_descent_stays_far_from_it(train):
    training = find("curves:linear")
    f, p = training.data
    exact = torch.linalg.inv(integrator(100))
    assert float(half_squared_error(f @ exact.T, p)) < 1e-15
    trained = train(training, steps=200)
    start, end = trained.losses[0], trained.on(training.data)[0]
    assert start == pytest.approx(float(0.5 * p.square().sum(1).mean()))  # U = 0 predicts nothing
    assert 0.9 * start < end < start
    assert all(b <= a for a, b in zip(trained.losses, trained.losses[1:], strict=False))  # the step is safe


def test_bad_options():
    with pytest.raises(Usage, match="1 <= k <= n"):
        find("curves:linear,n=5,k=6")


def test_the_codes_law_keeps_off_the_ends_and_has_four_patterns():
    p = draw_slopes("code", 4000, 30, 3, torch.Generator().manual_seed(2))
    assert not p[:, :3].any()
    assert not p[:, -3:].any()
    slopes = {tuple(np.cumsum(row[row != 0]).tolist()) for row in p.numpy()}
    assert slopes <= {(1, -1, 1), (1, -2, 1), (-2, 1, -1), (1, -1, 2)}
    assert len(slopes) == 4
    assert ((p != 0).sum(1) == 3).all()


def test_real_breakpoints_against_the_formula():
    f = draw_anywhere(5, 12, 2, torch.Generator().manual_seed(3))
    random = torch.Generator().manual_seed(3)
    places = torch.rand(5, 2, generator=random, dtype=torch.float64) * 12
    changes = torch.rand(5, 2, generator=random, dtype=torch.float64) * 2 - 1
    slow = [
        [sum(float(a) * max(x - float(t), 0) for a, t in zip(c, q, strict=True)) for x in range(12)]
        for c, q in zip(changes, places, strict=True)
    ]
    np.testing.assert_allclose(f.numpy(), slow, atol=1e-12)


@pytest.mark.parametrize("law", ["paper", "code"])
def test_the_filter_is_exact_at_every_point(law):
    training = find(f"curves:convolution,law={law},curves=50,validation=20")
    model = Live.of(training).model
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[[1.0, -2.0, 1.0]]]))
    f, p = training.data
    assert torch.allclose(model(f), p, atol=1e-9)
    rows = np.array([[f[i, t - 2] if t > 1 else 0, f[i, t - 1] if t > 0 else 0, f[i, t]] for i in range(50) for t in range(100)])
    rate = Live.of(training).optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(1 / np.linalg.eigvalsh(2 * rows.T @ rows / len(rows))[-1])


def test_whitening_is_what_makes_the_filter_learn(train):
    plain, whitened = (train(find(f"curves:{name},curves=200,validation=50"), steps=200) for name in ("convolution", "whitened"))
    assert plain.losses[-1] > 0.9 * plain.losses[0]
    assert whitened.losses[-1] < 1e-3 * whitened.losses[0]
    windows, last = whitened.live.model[0], whitened.live.model[1]
    learnt = windows.matrix @ last.weight[0].detach()
    assert learnt.tolist() == pytest.approx([1, -2, 1], abs=0.1)


def test_the_autoencoder_learns_its_loss_and_not_the_kinks(train):
    training = find("curves:autoencoder,curves=300,validation=100,n=50,steps=200")
    trained = train(training)
    assert trained.losses[-1] < 0.05 * trained.losses[0]
    f = training.validation[0].double()
    with torch.no_grad():
        decoded = trained.live.model(f.float()).double()
    second = torch.linalg.inv(integrator(50)).T
    assert float((decoded @ second - f @ second).square().sum() / (f @ second).square().sum()) > 1
    wide, deep = (find(f"curves:autoencoder,curves=10,validation=10,{o}").model() for o in ("width=4", "depth=2"))
    assert [m.out_features for m in wide if isinstance(m, torch.nn.Linear)] == [2000, 400, 6, 400, 400, 100]
    assert [m.out_features for m in deep if isinstance(m, torch.nn.Linear)] == [500, 100, 100, 6, 100, 100, 100, 100]


@pytest.mark.parametrize(
    "words", ["convolution,law=other", "convolution,law=code,k=2", "autoencoder,law=code,n=8", "linear,optimizer=lbfgs"]
)
def test_options_that_do_not_fit(words):
    with pytest.raises(Usage, match="curves"):
        find(f"curves:{words}")
