"""Directions: filter normalisation by hand, principal components against a decomposition, eigenvectors, the plane through three points."""

import numpy as np
import pytest
import torch
from torch import nn

from gradoscope.errors import Usage
from gradoscope.guard import capture_random, private_random
from gradoscope.landscape import directions
from gradoscope.objective import Objective
from tests.landscape.nets import objective, plain
from tests.reference.curvature import dense_hessian


def _conv() -> Objective:
    with private_random(1):
        model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))
    return Objective(model, lambda m, x: m(x).square().mean(), [torch.ones(2, 1, 3, 3)])


def _parts(loss: Objective, d: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(zip([n for n, _ in loss.named], loss.split(d), strict=True))


def test_filters_have_the_norms_of_the_parameters() -> None:
    loss = _conv()
    d = directions.random(loss, torch.Generator().manual_seed(0), k=3)
    assert d.shape == (3, loss.dim)
    for row in d:
        parts = _parts(loss, row)
        for name in ("0.weight", "3.weight"):
            for i, own in enumerate(dict(loss.named)[name]):
                assert float(parts[name][i].norm()) == pytest.approx(float(own.detach().norm()), rel=1e-5)
        for name in ("0.bias", "1.weight", "1.bias", "3.bias"):
            assert not parts[name].any()


def test_by_hand() -> None:
    loss = _conv()
    g = torch.Generator().manual_seed(4)
    raw = [torch.randn(p.shape, generator=g) for p in loss.parameters]
    d = _parts(loss, directions.random(loss, torch.Generator().manual_seed(4), k=1, keep_vectors=True)[0])
    weight = loss.parameters[0].detach()
    torch.testing.assert_close(d["0.weight"][1], raw[0][1] / raw[0][1].norm() * weight[1].norm())
    torch.testing.assert_close(d["0.bias"], raw[1] / raw[1].norm() * loss.parameters[1].detach().norm())
    assert not d["1.bias"].any()  # it is zero, and a direction of its size is too
    layer = _parts(loss, directions.random(loss, torch.Generator().manual_seed(4), k=1, normalise="layer")[0])
    torch.testing.assert_close(layer["0.weight"], raw[0] / raw[0].norm() * weight.norm())
    assert not layer["0.bias"].any()
    plain_one = directions.random(loss, torch.Generator().manual_seed(4), k=1, normalise="none")[0]
    torch.testing.assert_close(plain_one, torch.cat([r.flatten() for r in raw]))


def test_rescaled_networks_look_the_same() -> None:
    """ReLU layers scaled up and down compute the same, and so do they along filter-normalised directions without biases."""
    with private_random(2):
        model = nn.Sequential(nn.Linear(9, 6, bias=False), nn.ReLU(), nn.Linear(6, 2, bias=False)).double()
    x = torch.linspace(-1, 1, 45, dtype=torch.float64).reshape(5, 9)
    loss = Objective(model, lambda m, b: m(b).square().mean(), [x])
    c = np.linspace(-1, 1, 5)[:, None]

    def along() -> np.ndarray:
        return plain(loss, loss.theta(), directions.random(loss, torch.Generator().manual_seed(0), k=1), c)

    before = along()
    with torch.no_grad():
        model[0].weight.mul_(8.0)
        model[2].weight.div_(8.0)
    np.testing.assert_allclose(along(), before, rtol=1e-12)


def test_a_model_of_vectors_only_moves_all_the_same() -> None:
    loss = Objective(nn.ParameterList([torch.ones(3)]), lambda m, _: m[0].sum(), [None])
    d = directions.random(loss, torch.Generator().manual_seed(0), k=1)[0]
    assert float(d.norm()) == pytest.approx(3**0.5, rel=1e-6)


def test_no_global_randomness() -> None:
    before = repr(capture_random()), torch.get_rng_state()
    directions.random(_conv(), torch.Generator().manual_seed(0))
    directions.principal(torch.eye(3)[:2], k=2)
    assert repr(capture_random()) == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_principal_components_are_singular_vectors() -> None:
    path = torch.randn(7, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ torch.diag(
        torch.linspace(3, 0.1, 40).double()
    )
    found = directions.principal(path, k=3)
    _, s, vt = torch.linalg.svd(path - path.mean(0), full_matrices=False)
    np.testing.assert_allclose(found.shares, (s**2 / (s**2).sum())[:3].numpy(), rtol=1e-10)
    assert torch.allclose((found.directions @ vt[:3].T).abs(), torch.eye(3, dtype=torch.float64), atol=1e-8)
    rebuilt = found.centre + torch.as_tensor(found.coordinates) @ found.directions
    left = (path - rebuilt).square().sum() / (path - path.mean(0)).square().sum()
    assert float(left) == pytest.approx(1 - found.shares.sum(), abs=1e-12)
    end = directions.principal(path, k=2, centre="end")
    assert torch.equal(end.centre, path[-1])
    np.testing.assert_allclose(end.coordinates[-1], 0, atol=1e-12)


def test_a_straight_path_is_completed() -> None:
    found = directions.principal(torch.arange(4.0)[:, None] * torch.tensor([[3.0, 4.0, 0.0]]), k=2)
    np.testing.assert_allclose(found.shares, [1, 0], atol=1e-12)
    torch.testing.assert_close(found.directions @ found.directions.T, torch.eye(2))
    np.testing.assert_allclose(found.coordinates[:, 1], 0, atol=1e-6)
    still = directions.principal(torch.ones(3, 5), k=2)
    assert still.shares.tolist() == [0, 0]
    torch.testing.assert_close(still.directions @ still.directions.T, torch.eye(2))


def test_eigenvectors() -> None:
    loss = objective("tanh", mode="train")
    values, vectors = torch.linalg.eigh(dense_hessian(loss.model, loss._loss, loss.batches))
    for which, wanted in (("largest", [-1, -2]), ("smallest", [0, 1]), ("both", [-1, 0])):
        found = directions.hessian(loss, 2, which, tolerance=1e-8, max_products=200)  # type: ignore[arg-type]
        assert found.converged
        np.testing.assert_allclose(found.values, values[wanted].numpy(), atol=1e-7)
        assert (found.directions * vectors.T[wanted]).sum(1).abs().numpy() == pytest.approx(1, abs=1e-6)
    one = directions.hessian(loss, 1, "both")
    assert len(one.directions) == 1


def test_a_plane_goes_through_its_points() -> None:
    a, b, c = torch.randn(3, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = directions.plane(a, b, c)
    torch.testing.assert_close(found.directions @ found.directions.T, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(found.origin + torch.as_tensor(found.coordinates) @ found.directions, torch.stack([a, b, c]))
    assert found.coordinates[0].tolist() == [0, 0]
    assert found.coordinates[1, 1] == 0
    for third in (a, a + 0.3 * (b - a)):
        with pytest.raises(Usage, match="one line"):
            directions.plane(a, b, third)


def test_wrong_requests() -> None:
    loss = objective("tanh")
    for call in (
        lambda: directions.random(loss, torch.Generator(), normalise="row"),  # type: ignore[arg-type]
        lambda: directions.random(loss, torch.Generator(), k=0),
        lambda: directions.principal(torch.ones(1, 3)),
        lambda: directions.hessian(loss, 0),
        lambda: directions.hessian(loss, 2, "middle"),  # type: ignore[arg-type]
    ):
        with pytest.raises(Usage):
            call()
