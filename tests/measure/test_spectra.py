"""Eigenvalues to an accuracy of their own, at one end, from a warm start, by block; finite differences widen what they claim."""

import numpy as np
import pytest
import torch
from torch import Tensor

from gradoscope.errors import Usage
from gradoscope.guard import private_random
from gradoscope.measure.curvature import block_spectra, extreme_eigenvalues
from gradoscope.objective import Objective
from tests.measure import nets


def diagonal(values: np.ndarray) -> tuple[Objective, np.ndarray]:
    """A quadratic loss with these eigenvalues in a random basis."""
    with private_random(8):
        q = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64))[0]
    matrix = q @ torch.diag(torch.as_tensor(values)) @ q.T
    model = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(len(values), dtype=torch.float64))])
    return Objective(model, lambda m, _: 0.5 * m[0] @ matrix @ m[0], [None]), np.sort(values)


def bulk(seed: int, size: int = 150) -> np.ndarray:
    """A few large eigenvalues, a negative edge, and a bulk, as losses have."""
    draw = np.random.default_rng(seed)
    return np.r_[4.9, 4.8, 4.7, 4.1, 3.9, draw.normal(0, 0.08, size), -0.25]


@pytest.mark.parametrize("ends", ["top", "bottom", "both"])
@pytest.mark.parametrize("k", [1, 3])
def test_values_are_as_accurate_as_asked(ends: str, k: int) -> None:
    wrong = 0
    for seed in range(6):
        objective, truth = diagonal(bulk(seed))
        found = extreme_eigenvalues(objective, k=k, tolerance=1e-3, max_products=150, seed=seed, ends=ends, accuracy="values")  # type: ignore[arg-type]  # a literal
        assert found.converged
        for end, own, errors, at in (
            ("top", found.top, found.top_errors, truth[::-1][:k]),
            ("bottom", found.bottom, found.bottom_errors, truth[:k]),
        ):
            if ends in (end, "both"):
                assert (errors <= 1e-3 * np.abs(own)).all()
                wrong += int((np.abs(own - at) > np.maximum(1e-3 * np.abs(at), 1e-12)).sum())
    assert wrong == 0


def test_one_end_needs_fewer_products_than_both() -> None:
    objective, truth = diagonal(bulk(1))
    top = extreme_eigenvalues(objective, tolerance=1e-3, ends="top", accuracy="values")
    assert top.products <= 14
    assert top.largest == pytest.approx(truth[-1], rel=1e-3)
    both = extreme_eigenvalues(objective, tolerance=1e-3, max_products=150, accuracy="values")
    assert top.products < 0.7 * both.products


def test_a_warm_start_needs_a_third_of_the_products() -> None:
    """The same matrix, moved by a symmetric 0.5% of its norm."""
    shares = []
    for seed in range(5):
        objective, _ = diagonal(bulk(seed))
        with private_random(seed):
            change = torch.randn(objective.dim, objective.dim, dtype=torch.float64)
        change = (change + change.T) / np.sqrt(8 * objective.dim) * 0.025
        moved = Objective(objective.model, lambda m, _, o=objective, c=change: o._loss(m, None) + 0.5 * m[0] @ c @ m[0], [None])
        options = {"tolerance": 1e-3, "ends": "top", "accuracy": "values", "seed": seed}
        before = extreme_eigenvalues(objective, **options)  # type: ignore[arg-type]  # options of several types
        cold = extreme_eigenvalues(moved, **options)  # type: ignore[arg-type]  # the same
        warm = extreme_eigenvalues(moved, start=before, **options)  # type: ignore[arg-type]  # the same
        matrix = np.stack([moved.hvp(row).numpy() for row in torch.eye(moved.dim, dtype=torch.float64)])
        assert warm.largest == pytest.approx(float(np.linalg.eigvalsh(matrix)[-1]), rel=1e-3)
        shares.append(warm.products / cold.products)
    assert np.mean(shares) < 1 / 2.5


def test_a_warm_start_sees_what_is_new() -> None:
    """An eigenvalue twice as large has appeared, with an eigenvector to which all the old ones are orthogonal."""
    values = bulk(3)
    objective, _ = diagonal(values)
    before = extreme_eigenvalues(objective, tolerance=1e-3, ends="top", accuracy="values")
    spectrum = extreme_eigenvalues(objective, k=5, tolerance=1e-6, max_products=200)
    new = torch.as_tensor(np.random.default_rng(0).normal(size=objective.dim))
    new = new - spectrum.top_vectors.T @ (spectrum.top_vectors @ new)
    new = new / new.norm()
    moved = Objective(objective.model, lambda m, _: objective._loss(m, None) + 0.5 * 9.8 * (m[0] @ new) ** 2, [None])
    for accuracy in ("values", "vectors"):
        found = extreme_eigenvalues(moved, tolerance=1e-3, start=before, accuracy=accuracy, ends="top", max_products=60)  # type: ignore[arg-type]  # a literal
        assert found.largest == pytest.approx(9.8, rel=0.02)


def test_a_start_that_belongs_elsewhere_and_other_mistakes() -> None:
    objective, _ = diagonal(bulk(0))
    other, _ = diagonal(np.arange(1.0, 5.0))
    with pytest.raises(Usage, match="other parameters"):
        extreme_eigenvalues(objective, start=extreme_eigenvalues(other))
    with pytest.raises(Usage, match="ends"):
        extreme_eigenvalues(objective, ends="middle")  # type: ignore[arg-type]  # a mistake
    with pytest.raises(Usage, match="no trainable parameter 'nose'"):
        block_spectra(objective, {"face": ["nose"]})


@pytest.mark.parametrize("operator", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("name", ["mlp", "attention", "lstm"])
def test_blocks_are_those_of_the_whole_matrix(name: str, operator: str) -> None:
    model, loss, batches = nets.make(name)
    objective = Objective(model, loss, batches, mode="eval")
    found = block_spectra(objective, operator=operator, tolerance=1e-8, max_products=objective.dim)
    from gradoscope.measure.curvature import gauss_newton_product

    product = gauss_newton_product(objective) if operator == "gauss_newton" else objective.hvp
    matrix = torch.stack([product(row) for row in torch.eye(objective.dim, dtype=torch.float64)])
    places, start = {}, 0
    for n, p in objective.named:
        places[n] = list(range(start, start + p.numel()))
        start += p.numel()
    assert len(found) == len({n.rpartition(".")[0] for n in places})
    for block, spectrum in found.items():
        index = [i for n in places if n.rpartition(".")[0] == block for i in places[n]]
        values = torch.linalg.eigvalsh(matrix[index][:, index])
        assert spectrum.largest == pytest.approx(float(values[-1]), abs=1e-7)
        assert spectrum.smallest == pytest.approx(float(values[0]), abs=1e-7)


class Kinked(torch.autograd.Function):
    """A square whose double backward is not there."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)  # type: ignore[attr-defined]  # autograd's context
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: object, slope: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * slope  # type: ignore[attr-defined]  # autograd's context


def test_finite_differences_widen_the_bounds() -> None:
    model, loss, batches = nets.make("mlp")
    sound = Objective(model, loss, batches)
    forced = Objective(model, loss, batches)
    forced.distrust("for the test")
    plain = extreme_eigenvalues(sound, tolerance=1e-6)
    wide = extreme_eigenvalues(forced, tolerance=1e-6)
    assert forced.difference_error > 0
    assert "finite differences" in wide.method
    assert wide.top_residuals[0] >= forced.difference_error * abs(wide.largest)
    assert abs(wide.largest - plain.largest) <= wide.top_residuals[0]
    assert abs(wide.smallest - plain.smallest) <= wide.bottom_residuals[0]
    assert (wide.top_errors == wide.top_residuals).all()
