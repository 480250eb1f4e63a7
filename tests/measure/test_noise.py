import math

import numpy as np
import pytest
import torch
from scipy import stats

from gradoscope.measure.noise import expected_step, gram, noise_statistics
from tests.reference import statistics as reference


def draw(rng, k, mean, root):
    """K gradients with the given mean and covariance root root'."""
    return torch.from_numpy(mean + rng.normal(size=(k, len(mean))) @ root.T)


@pytest.fixture(scope="module")
def population():
    rng = np.random.default_rng(0)
    return 0.3 * rng.normal(size=6), rng.normal(size=(6, 6))


def test_equals_the_obvious_formulas():
    g = np.random.default_rng(1).normal(size=(7, 5))
    s = noise_statistics(torch.from_numpy(g), batch=4)
    assert s.signal == pytest.approx(reference.signal(g), rel=1e-12)
    assert s.trace == pytest.approx(reference.trace(g), rel=1e-12)
    assert s.snr == pytest.approx(s.signal / s.trace)
    assert (s.batch, s.k) == (4, 7)


def test_unbiased_with_honest_standard_errors(population):
    mean, root = 20 * population[0], population[1]
    rng = np.random.default_rng(2)
    found = [noise_statistics(draw(rng, 8, mean, root), 16, flips=9) for _ in range(1500)]
    signals, traces = np.array([s.signal for s in found]), np.array([s.trace for s in found])
    for values, true in ((signals, mean @ mean), (traces, np.trace(root @ root.T))):
        assert abs(values.mean() - true) < 4 * values.std() / math.sqrt(len(values))
    assert math.sqrt(np.mean([s.signal_se**2 for s in found])) == pytest.approx(signals.std(), rel=0.1)


@pytest.mark.parametrize("k", [3, 8, 32])
def test_standard_error_without_signal_errs_on_the_wide_side(population, k):
    _, root = population
    rng = np.random.default_rng(3)
    found = [noise_statistics(draw(rng, k, np.zeros(6), root), 1, flips=9) for _ in range(400)]
    spread = np.std([s.signal for s in found])
    assert 0.9 * spread < math.sqrt(np.mean([s.signal_se**2 for s in found])) < (2.0 if k == 3 else 1.6) * spread


def test_sign_flips_are_exact_under_no_signal(population):
    _, root = population
    rng = np.random.default_rng(4)
    ps = [noise_statistics(draw(rng, 16, np.zeros(6), root), 1, flips=199, seed=i).p_value for i in range(300)]
    assert stats.kstest(ps, "uniform").pvalue > 1e-3
    assert np.mean(np.array(ps) <= 0.05) < 0.09


def test_sign_flips_agree_with_all_sign_vectors():
    g = np.random.default_rng(5).normal(0.6, 1, size=(8, 3))
    p = reference.sign_flip_exact(g)
    assert noise_statistics(torch.from_numpy(g), 1, flips=20000).p_value == pytest.approx(p, abs=4 * math.sqrt(p / 20000))


def test_a_clear_signal(population):
    mean, root = population
    s = noise_statistics(draw(np.random.default_rng(6), 32, 100 * mean, root), 10)
    assert s.p_value == 0.001
    assert s.batch_noise_scale == pytest.approx(10 / s.snr)
    measured = s.to_measurement(step=3)
    assert (measured.name, measured.step, measured.n, measured.p) == ("gradient_snr", 3, 32, 0.001)
    assert measured.details["trace"] == s.trace


def test_edges():
    rng = np.random.default_rng(7)
    noise = torch.from_numpy(rng.normal(size=(16, 4)))
    assert noise_statistics(noise - noise.mean(dim=0), 8).batch_noise_scale == math.inf  # U < 0: not bounded above
    assert noise_statistics(noise - noise.mean(dim=0), 8).signal < 0
    zero = noise_statistics(torch.zeros(5, 3), 8)
    assert (zero.signal, zero.trace, zero.p_value, zero.batch_noise_scale) == (0.0, 0.0, 1.0, math.inf)
    assert math.isnan(zero.snr)
    equal = noise_statistics(torch.full((8, 3), 0.1), 8)
    assert (equal.snr, equal.batch_noise_scale) == (math.inf, 0.0)
    broken = noise_statistics(torch.tensor([[1.0], [math.nan]]), 8)
    assert math.isnan(broken.p_value)
    assert math.isnan(noise_statistics(noise[:2], 8).signal_se)
    with pytest.raises(ValueError, match="at least 2"):
        noise_statistics(noise[:1], 8)


def test_inner_products_are_summed_in_float64_over_chunks(monkeypatch):
    monkeypatch.setattr("gradoscope.measure.noise.CHUNK", 7)
    g = torch.from_numpy(np.random.default_rng(8).normal(size=(3, 100))).float()
    assert gram(g) == pytest.approx((g.double() @ g.double().T).numpy(), rel=1e-13)


def test_the_seed_alone_decides_and_the_global_stream_stays(population):
    g = draw(np.random.default_rng(9), 12, *population)
    before = torch.get_rng_state()
    assert noise_statistics(g, 1, seed=5) == noise_statistics(g, 1, seed=5)
    assert torch.equal(before, torch.get_rng_state())


def test_split_of_the_expected_step_equals_loops_and_is_unbiased(population):
    mean, root = population
    rng = np.random.default_rng(10)
    hessian = rng.normal(size=(6, 6))
    hessian = hessian + hessian.T
    h, lr = torch.from_numpy(hessian), 0.3
    g = draw(rng, 5, mean, root)
    terms = expected_step(g, lambda v: h @ v, lr)
    assert {k: terms[k].value for k in "DCM"} == pytest.approx(reference.step_terms(g.numpy(), hessian, lr))
    assert terms["change"].value == pytest.approx(-terms["D"].value + terms["C"].value + terms["M"].value)
    for name, term in terms.items():
        without = [expected_step(g[[j for j in range(5) if j != i]], lambda v: h @ v, lr)[name].value for i in range(5)]
        assert term.details["jackknife"] == pytest.approx(without)
    true = {
        "D": lr * mean @ mean,
        "C": lr**2 / 2 * mean @ hessian @ mean,
        "M": lr**2 / 2 * np.trace(hessian @ root @ root.T),
    }
    repeats = [expected_step(draw(rng, 8, mean, root), lambda v: h @ v, lr) for _ in range(400)]
    for name, value in true.items():
        values = np.array([r[name].value for r in repeats])
        assert abs(values.mean() - value) < 4 * values.std() / math.sqrt(len(values))
        # The jackknife errs on the wide side, by up to a factor of sqrt 2 where there is no signal.
        assert 0.85 * values.std() < math.sqrt(np.mean([r[name].se ** 2 for r in repeats])) < 1.6 * values.std()
    with pytest.raises(ValueError, match="at least 3"):
        expected_step(g[:2], lambda v: v, lr)
