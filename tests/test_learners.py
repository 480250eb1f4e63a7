"""Reference learners: they find what is there, and nothing where nothing is."""

import itertools

import numpy as np
import pytest
import torch

from gradoscope.guard import random_fingerprint
from gradoscope.learners import Score, as_examples, parity_solution, reference_scores


def rng(seed):
    return np.random.default_rng(seed)


def bits(n, d, seed=0, values=(0.0, 1.0)):
    low, high = values
    return low + (high - low) * rng(seed).integers(0, 2, (n, d)).astype(float)


def scores(x, y, seed=0):
    return {s.learner: s for s in reference_scores(torch.as_tensor(x), torch.as_tensor(y), seed=seed)}


PARITY = "parity (Gaussian elimination)"


@pytest.mark.parametrize("d", [1, 2, 5, 12])
@pytest.mark.parametrize("seed", range(4))
def test_every_parity_and_its_negation_is_found(d, seed):
    x = bits(3 * d + 40, d, seed, values=[(0, 1), (-1, 1), (2.5, 7), (-3, -1)][seed])
    subset = rng(seed).integers(0, 2, d)
    new = bits(200, d, seed + 100, values=(x.min(), x.max()))
    for flip in (0, 1):
        solution = parity_solution(x, ((x > x.min()) @ subset + flip) % 2)
        assert solution is not None
        assert np.array_equal(solution(new), ((new > x.min()) @ subset + flip) % 2)


def test_all_parities_of_three_bits():
    x = np.array(list(itertools.product((0.0, 1.0), repeat=3)))
    for subset in itertools.product((0, 1), repeat=3):
        y = x @ np.array(subset) % 2
        assert np.array_equal(parity_solution(x, y)(x), y)


def test_no_parity_where_there_is_none():
    assert parity_solution(rng(0).normal(size=(50, 4)), bits(50, 1)[:, 0]) is None  # inputs of many values
    x = bits(200, 6)
    assert parity_solution(x, (x[:, 0] * x[:, 1]).astype(int)) is None  # an AND
    y = x[:, 2].astype(int)
    y[-1] ^= 1  # one wrong label beyond those that are solved for
    assert parity_solution(x, y) is None
    found = sum(parity_solution(bits(60, 20, s), rng(s).integers(0, 2, 60)) is not None for s in range(100))
    assert found == 0


@pytest.mark.parametrize("kind", ["0/1", "-1/1", "bool", "column"])
def test_a_parity_is_learnt_by_elimination_alone(kind):
    d = 30
    x = bits(1000, d, 3, values=(-1.0, 1.0))
    y = ((x > 0)[:, : d // 2].sum(1) % 2).astype(np.int64)
    target = {"0/1": y, "-1/1": 2.0 * y - 1, "bool": y.astype(bool), "column": y[:, None]}[kind]
    found = scores(x.reshape(len(x), 5, 6), target)
    assert found[PARITY].better
    assert found[PARITY].skill == 1
    assert not any(s.better for name, s in found.items() if name != PARITY)


@pytest.mark.parametrize("kind", ["classes", "two classes", "real", "several"])
def test_nothing_is_found_in_random_targets(kind):
    better = 0
    for seed in range(24):
        x = rng(seed).normal(size=(120, 5)) if seed % 2 else bits(120, 5, seed)
        other = rng(1000 + seed)
        y = {
            "classes": other.integers(0, 4, 120),
            "two classes": other.integers(0, 2, 120),
            "real": other.normal(size=120),
            "several": other.normal(size=(120, 3)),
        }[kind]
        better += any(s.better for s in scores(x, y, seed).values())
    assert better <= 1  # three learners at three standard errors: some 0.4% each, less as a useless learner does worse


def test_each_learner_learns_its_own():
    x = rng(0).uniform(-1, 1, (800, 3))
    w = np.array([1.0, -2.0, 0.5])
    linear = scores(x, x @ w + 0.1 * rng(1).normal(size=800))
    assert linear["linear"].skill == pytest.approx(1 - 0.01 / (w @ w / 3 + 0.01), abs=0.005)
    wave = scores(x[:, :1], np.sign(np.sin(9 * x[:, 0])).astype(np.float32))
    assert wave["nearest neighbours"].skill > 0.9
    assert wave["trees"].skill > 0.9
    assert wave["linear"].skill < 0.5
    square = scores(x, (x[:, 0] * x[:, 1] > 0).astype(int))
    assert square["trees"].better
    assert not square["linear"].better
    several = scores(x, np.stack([x @ w, x[:, 0]], 1))
    assert several["linear"].skill > 0.99


def test_skill_is_the_share_of_the_constant_error_removed():
    # A third of the labels is wrong: the best that can be had of the constant answer's half.
    x = bits(4000, 1, 5)
    y = x[:, 0].astype(int) ^ (rng(6).random(4000) < 1 / 3)
    found = scores(x, y)["linear"]
    assert found.skill == pytest.approx(1 - (1 / 3) / 0.5, abs=3 * found.se)
    assert 0.01 < found.se < 0.05


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_the_rows_does_not_matter(order):
    x = np.sort(rng(2).uniform(-1, 1, (300, 1)), axis=0)[::order]
    y = np.digitize(x[:, 0], [-0.5, 0, 0.5])  # rows sorted by class, as many folders of images are
    assert scores(x.copy(), y)["trees"].skill > 0.9
    assert scores(x.copy(), x[:, 0].copy())["linear"].skill > 0.99


def test_constant_inputs_and_targets():
    x = np.hstack([rng(0).normal(size=(100, 2)), np.ones((100, 2))])
    assert scores(x, x[:, 0])["linear"].skill > 0.99
    for y in (np.zeros(100, int), np.zeros(100)):
        assert not any(s.better for s in scores(x, y).values())
    assert not any(s.better for s in scores(np.ones((100, 3)), rng(1).integers(0, 2, 100)).values())
    assert all(np.isfinite([s.skill, s.se]).all() for s in scores(np.ones((100, 3)), rng(1).integers(0, 2, 100)).values())


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.ones((19, 2)), np.arange(19)),
        (np.full((50, 2), np.nan), np.arange(50)),
        (np.ones((50, 2)), np.ones((50, 3), int)),
        (np.ones((50, 2)), np.ones((50, 3, 2))),
        (np.ones((50, 2)), np.full(50, np.nan)),
    ],
)
def test_what_cannot_be_learnt_here(x, y):
    assert scores(x, y) == {}


def test_types_of_tensors_and_the_users_streams():
    before = random_fingerprint()
    x, y = torch.as_tensor(bits(60, 3)), torch.as_tensor(bits(60, 3)[:, 0])
    for kind in (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8):
        assert {s.learner for s in reference_scores(x.to(kind), y.to(kind))} >= {"linear", "trees"}
    assert reference_scores(x, y.requires_grad_())[0].better
    assert random_fingerprint() == before
    assert reference_scores(x, y, seed=3) == reference_scores(x, y, seed=3)


def test_better_means_beyond_doubt():
    assert Score("a", 0.31, 0.1).better
    assert not Score("a", 0.29, 0.1).better
    assert not Score("a", 0.009, 0.0).better
    assert not Score("a", -1.0, 0.1).better


def test_examples_of_batches():
    a, b = torch.ones(2, 3), torch.zeros(4, 3)
    (x,), y = as_examples([(a, a[:, 0]), [b, b[:, 0]]])
    assert x.shape == (6, 3)
    assert y.shape == (6,)
    assert [len(p) for p in as_examples([(a, a, a)])[0]] == [len(a), len(a)]
    for other in ([a], [(a, a[:1], a)], [(a, "b")], [{"x": a}], [(a, a), (a[:, :2], a)]):
        assert as_examples(other) is None


def test_scores_of_several_labels_are_read_as_probabilities() -> None:
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, :3] > 0).float()
    scores = {s.learner: s.skill for s in reference_scores(x, y, output=20 * x[:, :3])}
    assert scores["this model"] > 0.9
    assert {s.learner: s.skill for s in reference_scores(x, y, output=y)}["this model"] == 1.0
