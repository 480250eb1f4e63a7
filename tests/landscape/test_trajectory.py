"""Paths and random walks: against explicit vectors in float64, and in law against walks that are drawn in the whole space."""

import numpy as np
import pytest
import torch
from scipy import stats

from gradoscope.errors import Usage
from gradoscope.landscape import directions, trajectory
from gradoscope.landscape.trajectory import Path, cosines, path_of, principal, project, residual_view, semicircle
from gradoscope.landscape.walks import straightness, walks


def some_path(count=12, dim=40, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)).cumsum(0)


def explicit(count, dim, norms, rng):
    """A walk drawn in the whole space."""
    steps = rng.standard_normal((count, dim))
    return steps / np.linalg.norm(steps, axis=1, keepdims=True) * norms[:, None]


# ------------------------------------------------------------------ paths


def test_projection_is_that_of_explicit_vectors(monkeypatch):
    points = some_path()
    x = points.double().numpy() - points[0].double().numpy()
    u = x[-1] / np.linalg.norm(x[-1])
    alpha = x @ u
    beta = np.linalg.norm(x - alpha[:, None] * u, axis=1)
    for chunk in (7, trajectory.CHUNK):  # columns in parts, or at once
        monkeypatch.setattr(trajectory, "CHUNK", chunk)
        seen = project(path_of(points))
        assert np.allclose(seen.alpha * seen.length, alpha, atol=1e-10)
        assert np.allclose(seen.beta * seen.length, beta, atol=1e-6)
        assert abs(seen.length - np.linalg.norm(x[-1])) < 1e-10


def test_principal_components_are_the_singular_vectors():
    points = some_path()
    path, found = path_of(points), principal(path_of(points), 3)
    centred = points.double().numpy() - points.double().numpy().mean(0)
    _, s, vt = np.linalg.svd(centred, full_matrices=False)
    assert np.allclose(found.share, (s**2 / (s**2).sum())[:3])
    assert np.allclose(np.abs(found.scores), np.abs(centred @ vt[:3].T), atol=1e-8)
    rows = torch.as_tensor(found.weights) @ (points.double() - points[0].double())
    assert np.allclose(rows @ rows.T, np.eye(3), atol=1e-8)
    assert np.allclose(np.abs(np.diag(rows.numpy() @ vt[:3].T)), 1, atol=1e-8)
    assert np.allclose(found.share, directions.principal(points.double(), 3).shares)
    assert found.scores[-1].min() >= 0
    assert path.detour > 1


def test_cosines_and_detour_of_a_square():
    square = path_of(torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.0, 1.0], [0.0, 1.0]]))
    assert cosines(square, 3)[:2].tolist() == [0.0, -1.0]  # the last step does not move, and is left out
    assert abs(square.detour - 5.0) < 1e-12


def test_a_closed_path_has_no_line():
    closed = path_of(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]))
    assert closed.detour == float("inf")
    with pytest.raises(Usage, match="ends where it began"):
        project(closed)


@pytest.mark.parametrize("points", [torch.zeros(1, 3), torch.zeros(3), torch.tensor([[0.0], [float("nan")]])])
def test_what_is_no_path(points):
    with pytest.raises(Usage, match="path"):
        path_of(points)


# ------------------------------------------------------------------ random walks


def test_orthogonal_steps_lie_on_the_semicircle_whatever_their_lengths():
    for lengths in (np.ones(9), np.linspace(5, 0.1, 30), 0.7 ** np.arange(12)):
        seen = project(Path(np.diag(lengths**2), 99))
        assert np.allclose(seen.beta, semicircle(seen.alpha), atol=1e-12)


def test_walks_in_many_dimensions_are_near_the_semicircle_and_keep_their_steps():
    norms = np.linspace(3, 0.2, 60)
    for walk in walks(Path(np.diag(norms**2), 20_000), 5):
        seen = project(walk.path)
        assert np.abs(seen.beta**2 - seen.alpha * (1 - seen.alpha)).max() < 0.02
        assert np.allclose(walk.path.norms, norms)


@pytest.mark.parametrize("dim", [8, 24, 60])  # fewer, about as many, and more dimensions than steps
def test_walks_have_the_law_of_explicit_ones(dim):
    count, norms = 20, np.linspace(2, 1, 20)
    rng = np.random.default_rng(5)
    small = list(walks(Path(np.diag(norms**2), dim), 400, seed=3))
    large = [explicit(count, dim, norms, rng) for _ in range(400)]
    pairs = [
        ([project(w.path).beta.max() for w in small], [project(Path(s @ s.T, dim)).beta.max() for s in large]),
        ([w.path.distance for w in small], [np.linalg.norm(s.sum(0)) for s in large]),
        ([w.path.gram[3, 11] for w in small], [s[3] @ s[11] for s in large]),
        ([w.fixed_plane[-1, 0] for w in small], [s.sum(0)[0] for s in large]),
        ([w.fixed_plane[-1, 1] * w.path.distance for w in small], [s.sum(0)[1] * np.linalg.norm(s.sum(0)) for s in large]),
        ([principal(w.path).share[0] for w in small[:150]], [principal(Path(s @ s.T, dim)).share[0] for s in large[:150]]),
    ]
    assert min(stats.ks_2samp(a, b).pvalue for a, b in pairs) > 0.002


def test_own_plane_is_spanned_by_the_end_and_a_fixed_axis():
    walk = next(walks(Path(np.eye(15), 50), 1))
    places = np.vstack([np.zeros(walk.steps.shape[1]), np.cumsum(walk.steps, 0)])
    end = places[-1] / np.linalg.norm(places[-1])
    assert np.allclose(walk.own_plane[-1], [1, 0], atol=1e-12)
    assert np.allclose(walk.own_plane[:, 0], places @ end / np.linalg.norm(places[-1]))
    axis = np.eye(walk.steps.shape[1])[0] - end[0] * end
    assert np.allclose(walk.own_plane[:, 1], places @ axis / np.linalg.norm(axis) / np.linalg.norm(places[-1]))


@pytest.mark.parametrize("lags", [1, 4])
def test_matched_walks_have_the_autocorrelation_of_the_path(lags):
    count, kept = 80, 0.8  # steps with momentum
    noise = np.random.default_rng(2).standard_normal((count, 5000))
    steps = [noise[0]]
    for z in noise[1:]:
        steps.append(kept * steps[-1] + np.sqrt(1 - kept**2) * z)
    path = Path(np.array(steps) @ np.array(steps).T, 5000)
    wanted = cosines(path, lags) * (1 - np.arange(1, lags + 1) / count)
    got = np.mean([cosines(w.path, lags) for w in walks(path, 20, lags=lags)], axis=0)
    assert np.abs(got - wanted).max() < 0.02
    plain = np.mean([cosines(w.path, 1)[0] for w in walks(path, 20)])
    assert abs(plain) < 0.01


def test_identical_steps_can_be_matched():
    straight = Path(np.ones((30, 30)), 100)
    for walk in walks(straight, 3, lags=5):
        assert np.isfinite(walk.path.gram).all()


def test_a_random_walk_is_seldom_called_straight_or_a_detour():
    norms = np.ones(15)
    rng = np.random.default_rng(7)
    told = [straightness(Path(s @ s.T, 200), count=80).verdict for s in (explicit(15, 200, norms, rng) for _ in range(30))]
    assert told.count("straighter than chance") <= 4  # 2.5% of 30 is less than one
    assert told.count("a detour") <= 4


def test_straight_and_roundabout_paths_are_told():
    line = torch.linspace(0, 1, 30)[:, None] * torch.ones(1, 50)
    assert straightness(path_of(line), count=50).verdict == "straighter than chance"
    angle = torch.linspace(0, 1.5 * np.pi, 40)
    around = torch.zeros(40, 50)
    around[:, 0], around[:, 1] = angle.cos(), angle.sin()
    found = straightness(path_of(around), count=50)
    assert found.verdict == "a detour"
    assert found.residual > 0.5
    assert found.p_detour < 0.03
    with pytest.raises(Usage, match="three steps"):
        straightness(path_of(line[:3]))


def test_momentum_is_no_straightness():
    """A walk with momentum is straighter than plain walks, and no straighter than matched ones."""
    path = next(walks(Path(np.ones((60, 60)) * 0.85 ** np.abs(np.subtract.outer(range(60), range(60))), 3000), 1, lags=1)).path
    found = straightness(path, count=100)
    assert found.residual < np.quantile(found.plain, 0.025)
    assert found.verdict == "no straighter than chance"


def test_a_nearly_straight_path_has_walks_with_its_autocorrelation():
    """The steps of a short product of weights are so alike that rounding leaves their correlation a little below zero."""
    w = np.linspace(0.7, 0.95, 10)
    points = [w]
    for _ in range(500):
        w = w + 0.02 * 2 * (1 - w.prod()) * w.prod() / w
        points.append(w)
    path = path_of(torch.tensor(np.array(points[::16])))
    for walk in walks(path, 3, lags=10):
        assert np.allclose(walk.path.norms, path.norms)
        assert np.isfinite(walk.path.gram).all()


# ------------------------------------------------------------------ the view of the residual


def test_recorded_points_lie_on_the_view():
    points = some_path().double()
    seen = project(path_of(points))
    view = residual_view(seen, 9, 9)
    assert 0.0 in view.beta.round(12)
    line = points[-1] - points[0]
    for t in range(1, 11):
        aside = points[t] - points[0] - seen.alpha[t] * line
        again = points[0] + seen.alpha[t] * line + seen.beta[t] * aside / seen.beta[t]
        assert torch.allclose(again, points[t])
        assert abs(float(aside.norm()) - seen.beta[t] * seen.length) < 1e-6
        assert abs(float(aside @ line)) < 1e-6
    for a, t in zip(view.alpha, view.nearest, strict=True):
        others = [k for k in range(1, 11)]
        assert abs(seen.alpha[t] - a) == min(abs(seen.alpha[k] - a) for k in others)
    assert view.alpha[0] < seen.alpha.min()
    assert view.beta[-1] > seen.beta.max()


def test_a_straight_path_has_no_residual():
    with pytest.raises(Usage, match="straight line"):
        residual_view(project(path_of(torch.linspace(0, 1, 5)[:, None] * torch.ones(1, 3))))
