"""Curvature against whole Hessians in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

from gradoscope.errors import CannotRun, Usage
from gradoscope.guard import private_random
from gradoscope.measure import _source
from gradoscope.measure.curvature import (
    curvature_along,
    density,
    extreme_eigenvalues,
    gauss_newton_product,
    krylov_newton,
    lanczos,
    newton_direction,
    top_eigenvalues,
)
from gradoscope.objective import Objective
from tests.measure import nets
from tests.reference import curvature as reference


def symmetric(eigenvalues, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=g, dtype=torch.float64))
    return (q @ torch.diag(values) @ q.T).to(dtype)


def quadratic(matrix, start=None):
    """J = x'Ax/2."""
    x = nn.Parameter(torch.ones(len(matrix), dtype=matrix.dtype) if start is None else start)
    return Objective(nn.ParameterList([x]), lambda m, _: 0.5 * m[0] @ matrix @ m[0], [None])


def run(matrix, steps, seed=0, **kwargs):
    g = torch.Generator().manual_seed(seed)
    return lanczos(lambda v: matrix @ v, len(matrix), steps=steps, generator=g, dtype=matrix.dtype, device="cpu", **kwargs)


@pytest.mark.parametrize("name", nets.NAMES)
def test_both_ends_equal_those_of_the_whole_hessian(name):
    model, loss, batches = nets.make(name)
    dense = reference.dense_hessian(model, loss, batches).numpy()
    objective = Objective(model, loss, batches)
    spectrum = extreme_eigenvalues(objective, k=3, tolerance=1e-8, max_products=len(dense))
    truth = np.linalg.eigvalsh(dense)
    np.testing.assert_allclose(spectrum.top, truth[::-1][:3], atol=1e-8 * abs(truth).max())
    np.testing.assert_allclose(spectrum.bottom, truth[:3], atol=1e-8 * abs(truth).max())
    assert objective.method == "autograd"
    assert spectrum.symmetric_error < 1e-10
    for value, vector, bound in zip(spectrum.top, spectrum.top_vectors.numpy(), spectrum.top_residuals, strict=True):
        assert np.linalg.norm(dense @ vector - value * vector) <= bound + 1e-12
        assert np.linalg.norm(vector) == pytest.approx(1)


def test_agrees_with_eigsh_and_needs_few_products():
    matrix = symmetric(np.r_[10.0, 7.0, np.linspace(-1, 1, 298)])
    spectrum = extreme_eigenvalues(quadratic(matrix), k=1, tolerance=1e-2)
    truth = eigsh(LinearOperator(matrix.shape, matvec=lambda v: matrix.numpy() @ v), k=1, which="LA")[0][0]
    assert spectrum.converged
    assert spectrum.products <= 20
    assert spectrum.largest == pytest.approx(truth, rel=1e-3)


def test_float32_is_as_good_as_its_rounding():
    model, loss, batches = nets.make("mlp")
    truth = np.linalg.eigvalsh(reference.dense_hessian(model, loss, batches).numpy())
    objective = Objective(model.float(), loss, [(x.float(), y) for x, y in batches])
    spectrum = extreme_eigenvalues(objective, k=1, tolerance=1e-4)
    assert spectrum.largest == pytest.approx(truth[-1], rel=1e-5)
    assert spectrum.smallest == pytest.approx(truth[0], abs=1e-4 * truth[-1])
    assert objective.method == "autograd"


def test_saddle_has_signed_ends():
    spectrum = extreme_eigenvalues(quadratic(symmetric([3.0, 1.0, 0.0, -2.0, -8.0])), k=2)
    np.testing.assert_allclose(spectrum.top, [3.0, 1.0], atol=1e-9)
    np.testing.assert_allclose(spectrum.bottom, [-8.0, -2.0], atol=1e-9)
    assert spectrum.largest_magnitude == pytest.approx(8.0)
    measured = spectrum.to_measurement(step=7)
    assert measured.step == 7
    assert measured.value["smallest"] == pytest.approx(-8.0)
    assert measured.se["largest_magnitude"] == spectrum.bottom_residuals[0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 25), st.floats(-8, 8), st.sampled_from([torch.float32, torch.float64]))
def test_residual_bounds_hold(seed, steps, power, dtype):
    g = torch.Generator().manual_seed(seed)
    matrix = symmetric(torch.randn(30, generator=g) * 10.0**power, seed, dtype)
    space = run(matrix, steps, seed)
    values, coefficients = space.ritz()
    vectors = space.vectors(coefficients)
    true = (matrix.double() @ vectors.double().T - vectors.double().T * torch.as_tensor(values)).norm(dim=0).numpy()
    slack = 30 * torch.finfo(dtype).eps * 10.0**power
    assert (true <= space.residuals(coefficients) * (1 + 1e-6) + slack).all()
    eigenvalues = np.linalg.eigvalsh(matrix.double().numpy())
    distance = abs(values[:, None] - eigenvalues).min(axis=1)
    assert (distance <= space.residuals(coefficients) * (1 + 1e-6) + slack).all()
    gram = (space.basis @ space.basis.T - torch.eye(space.size, dtype=dtype)).abs().max()
    assert gram < 100 * torch.finfo(dtype).eps


def test_residual_bounds_hold_for_an_operator_that_is_not_symmetric():
    g = torch.Generator().manual_seed(0)
    matrix = symmetric(np.linspace(-1, 5, 20))
    matrix = matrix + 0.2 * torch.randn(20, 20, generator=g, dtype=torch.float64)
    space = run(matrix, 12)
    values, coefficients = space.ritz()
    vectors = space.vectors(coefficients)
    true = (matrix @ vectors.T - vectors.T * torch.as_tensor(values)).norm(dim=0).numpy()
    assert (true <= space.residuals(coefficients) + 1e-12).all()
    assert space.asymmetry > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_ghost_copies(dtype):
    # Lanczos without re-orthogonalisation finds the outlier again and again within 60 steps.
    matrix = symmetric(np.r_[100.0, np.linspace(0, 1, 119)], dtype=dtype)
    values, _ = run(matrix, 80).ritz()
    assert (values > 50).sum() == 1
    spectrum = extreme_eigenvalues(quadratic(matrix), k=2, tolerance=1e-6, max_products=80)
    assert spectrum.top[1] == pytest.approx(1.0, abs=1e-3)


def test_multiple_eigenvalues_are_found_after_breakdown():
    spectrum = extreme_eigenvalues(quadratic(symmetric([5.0, 5.0, 5.0] + [1.0] * 40)), k=3, tolerance=1e-6)
    np.testing.assert_allclose(spectrum.top, [5.0] * 3, atol=1e-9)
    np.testing.assert_allclose(spectrum.bottom, [1.0] * 3, atol=1e-9)
    assert spectrum.products <= 10
    assert spectrum.weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("values", [[0.0] * 30, [2.0] * 30, [3.0], [-1.0, 4.0]])
def test_degenerate_operators(values):
    spectrum = extreme_eigenvalues(quadratic(symmetric(values)), k=2)
    assert spectrum.largest == pytest.approx(max(values))
    assert spectrum.smallest == pytest.approx(min(values))
    assert spectrum.converged
    assert spectrum.products <= 2
    x, p = density(spectrum)
    assert p.sum() * (x[1] - x[0]) == pytest.approx(1, abs=1e-3)


def test_quadrature_has_the_moments_of_the_start_vector():
    matrix = symmetric(np.linspace(-2, 3, 50))
    g = torch.Generator().manual_seed(3)
    start = torch.randn(50, generator=g, dtype=torch.float64)
    space = run(matrix, 6, start=start)
    nodes, coefficients = space.ritz()
    weights = coefficients[0] ** 2
    assert weights.sum() == pytest.approx(1)
    q, power = start / start.norm(), torch.eye(50, dtype=torch.float64)
    for moment in range(12):  # exact up to degree 2 m - 1 = 11
        assert weights @ nodes**moment == pytest.approx(float(q @ power @ q), rel=1e-9, abs=1e-9)
        power = power @ matrix


def test_density_is_that_of_the_eigenvalues():
    eigenvalues = np.linspace(-1, 1, 400)
    matrix = symmetric(eigenvalues)
    means = []
    for seed in range(8):
        spectrum = extreme_eigenvalues(quadratic(matrix), tolerance=1e-12, max_products=30, seed=seed)
        grid, p = density(spectrum, np.linspace(-1.5, 1.5, 301), width=0.1)
        means.append(p)
    z = (grid[:, None] - eigenvalues) / 0.1
    truth = np.exp(-0.5 * z**2).mean(axis=1) / (0.1 * np.sqrt(2 * np.pi))
    assert abs(np.mean(means, axis=0) - truth).max() < 0.08


def test_scaled_operator_is_the_preconditioned_hessian():
    matrix = symmetric([9.0, 4.0, 1.0, -3.0, 0.5, 2.0])
    g = torch.Generator().manual_seed(1)
    s = torch.rand(6, generator=g, dtype=torch.float64)
    root = torch.diag(s.sqrt())
    truth = torch.linalg.eigvalsh(root @ matrix @ root)
    spectrum = extreme_eigenvalues(quadratic(matrix), scale=s, tolerance=1e-9)
    assert spectrum.largest == pytest.approx(float(truth[-1]))
    assert spectrum.smallest == pytest.approx(float(truth[0]))


class OnceReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp_min(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return slope * (x > 0)


class Lying(nn.Module):
    def forward(self, x):
        return OnceReLU.apply(x)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-6), (torch.float32, 5e-3)])
@pytest.mark.parametrize("operator", ["hessian", "gauss_newton"])
def test_double_backward_that_lies_is_found_out(operator, dtype, error):
    model, loss, batches = nets.make("relu")
    batches = [(x.to(dtype), y) for x, y in batches]
    honest = Objective(model.to(dtype), loss, batches)
    truth = extreme_eigenvalues(honest, tolerance=1e-6, max_products=60, operator=operator)
    lying = Objective(nn.Sequential(model[0], Lying(), model[2]), loss, batches)
    v = truth.top_vectors[0]
    if operator == "hessian":
        assert (lying.hvp(v, verify=False) - honest.hvp(v)).norm() > 0.01 * truth.largest
    spectrum = extreme_eigenvalues(lying, tolerance=1e-4, max_products=60, operator=operator)
    assert spectrum.largest == pytest.approx(truth.largest, rel=error)
    assert spectrum.symmetric_error > 1e-3
    assert "finite differences" in spectrum.method
    if operator == "hessian":
        assert "not symmetric" in lying.why
        again = Objective(lying.model, loss, batches)
        assert float((again.hvp(v) - honest.hvp(v)).norm()) < error * truth.largest  # a product alone is tested too
        assert again.method == "finite differences"


def test_embedding_bag_falls_back_to_finite_differences():
    with private_random(0):
        bag, out = nn.EmbeddingBag(6, 3, mode="mean").double(), nn.Linear(3, 3).double()
    index = torch.tensor([[0, 1, 2], [3, 4, 5], [0, 3, 5]])
    target = torch.tensor([0, 1, 2])

    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag, self.out = bag, out

        def forward(self, i):
            return self.out(torch.tanh(bag.weight[i].mean(1)))

    dense = reference.dense_hessian(nn.Sequential(bag, nn.Tanh(), out), lambda m, b: F.cross_entropy(plain(m, b), target), [index])
    objective = Objective(nn.Sequential(bag, nn.Tanh(), out), lambda m, b: F.cross_entropy(m(b), target), [index])
    spectrum = extreme_eigenvalues(objective, k=2, tolerance=1e-6)
    truth = torch.linalg.eigvalsh(dense).numpy()
    np.testing.assert_allclose(spectrum.top, truth[::-1][:2], rtol=1e-6)
    np.testing.assert_allclose(spectrum.bottom, truth[:2], atol=1e-7)
    assert objective.method == "finite differences"
    assert objective.why


def plain(proxy, index):
    """The same network by operations that can be differentiated twice."""
    values = proxy.values
    return torch.tanh(values["0.weight"][index].mean(1)) @ values["2.weight"].T + values["2.bias"]


def test_ctc_falls_back_to_finite_differences():
    with private_random(0):
        model = nn.Linear(3, 4).double()
    x = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets, lengths, sizes = torch.tensor([[1, 2], [3, 1]]), torch.tensor([6, 6]), torch.tensor([2, 2])
    objective = Objective(model, lambda m, b: F.ctc_loss(m(b).log_softmax(-1), targets, lengths, sizes), [x])
    spectrum = extreme_eigenvalues(objective, tolerance=1e-6)
    assert objective.method == "finite differences"
    rows = []
    theta = objective.theta()
    for i in range(objective.dim):  # a second look with other steps
        e = torch.zeros(objective.dim, dtype=torch.float64)
        e[i] = 1e-5
        with objective.moved(theta + e):
            ahead = objective.gradient()
        with objective.moved(theta - e):
            rows.append((ahead - objective.gradient()) / 2e-5)
    truth = torch.linalg.eigvalsh((torch.stack(rows) + torch.stack(rows).T) / 2)
    assert spectrum.largest == pytest.approx(float(truth[-1]), rel=1e-5)


@pytest.mark.parametrize("name", ["mlp", "lstm", "attention", "frozen", "unused"])
@pytest.mark.parametrize("closures", [False, True])
def test_gauss_newton_equals_the_dense_matrix(name, closures):
    model, loss, batches = nets.make(name)
    model.eval()

    def forward(m, b):
        return m(b[0])

    def of_output(z, b):
        return F.cross_entropy(z, b[1])

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        dense = sum(reference.dense_gauss_newton(model, forward, of_output, b) for b in batches) / 2
    objective = Objective(model, loss, batches, mode="eval")
    product = gauss_newton_product(objective, **({"forward": forward, "loss_of_output": of_output} if closures else {}))
    v = torch.randn(objective.dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(product(v), dense @ v, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(product(2 * v), dense @ (2 * v), rtol=1e-9, atol=1e-11)
    product.distrust()
    torch.testing.assert_close(product(v), dense @ v, rtol=1e-5, atol=1e-8)
    spectrum = extreme_eigenvalues(objective, operator="gauss_newton", tolerance=1e-6)
    assert spectrum.largest == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-6)
    assert spectrum.smallest > -1e-9
    assert not model._forward_hooks


def test_gauss_newton_follows_the_parameters():
    model, loss, batches = nets.make("mlp")
    objective = Objective(model, loss, batches)
    product, v = gauss_newton_product(objective), torch.ones(objective.dim, dtype=torch.float64)
    first = product(v)
    objective._set(objective.theta() * 1.5)
    torch.testing.assert_close(product(v), gauss_newton_product(objective)(v))
    assert not torch.allclose(first, product(v))


def test_gauss_newton_refuses_what_it_cannot_split():
    class OwnLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return (self.w * x).square().sum()

    with pytest.raises(CannotRun, match="its own loss"):
        gauss_newton_product(Objective(OwnLoss(), lambda m, b: m(b), [torch.ones(2)]))(torch.ones(2))
    objective = Objective(nn.Linear(1, 1), lambda m, b: m.weight.square().sum(), [None])
    with pytest.raises(CannotRun, match="does not call the model"):
        gauss_newton_product(objective)(torch.ones(2))
    with pytest.raises(CannotRun, match="belong together"):
        gauss_newton_product(objective, forward=lambda m, b: m(b))


def test_newton_directions_solve_where_curvature_is_positive():
    matrix = symmetric([100.0, 10.0, 1.0, 0.1, 3.0])
    objective = quadratic(matrix)
    gradient = objective.gradient()
    truth = -torch.linalg.solve(matrix, gradient)
    direction, info = newton_direction(objective, gradient)
    torch.testing.assert_close(direction, truth, rtol=1e-6, atol=1e-8)
    assert not info["negative_curvature"]
    assert info["residual"] < 1e-8
    torch.testing.assert_close(krylov_newton(objective, gradient), truth, rtol=1e-8, atol=1e-10)
    damped, _ = newton_direction(objective, gradient, damping=2.0)
    shifted = -torch.linalg.solve(matrix + 2 * torch.eye(5, dtype=torch.float64), gradient)
    torch.testing.assert_close(damped, shifted, rtol=1e-6, atol=1e-8)


def test_newton_leaves_negative_curvature_alone():
    matrix = symmetric([8.0, 2.0, 0.5, -1.0, -6.0])
    objective = quadratic(matrix)
    gradient = objective.gradient()
    values, vectors = torch.linalg.eigh(matrix)
    keep = values > 0
    truth = -vectors[:, keep] @ (vectors[:, keep].T @ gradient / values[keep])
    torch.testing.assert_close(krylov_newton(objective, gradient), truth, rtol=1e-8, atol=1e-10)
    direction, info = newton_direction(objective, gradient)
    assert info["negative_curvature"]
    assert float(direction @ gradient) <= 0
    down = quadratic(-torch.eye(3, dtype=torch.float64))
    assert newton_direction(down, down.gradient())[0].norm() == 0
    assert krylov_newton(down, down.gradient()).norm() == 0
    assert krylov_newton(objective, torch.zeros(5, dtype=torch.float64)).norm() == 0


def test_curvature_along_has_a_standard_error_over_batches():
    model, loss, batches = nets.make("mlp")
    objective = Objective(model, loss, batches)
    v = torch.randn(objective.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    measured = curvature_along(objective, v)
    each = [float(v @ reference.dense_hessian(model, loss, [b]) @ v / (v @ v)) for b in batches]
    np.testing.assert_allclose(measured.details["by_batch"], each, rtol=1e-9)
    assert measured.se == pytest.approx(abs(each[0] - each[1]) / 2)


def test_top_eigenvalues_in_three_lines():
    model, loss, batches = nets.make("mlp")
    measured = top_eigenvalues(Objective(model, loss, batches), k=5)
    truth = np.linalg.eigvalsh(reference.dense_hessian(model, loss, batches).numpy())[::-1][:5]
    np.testing.assert_allclose(measured.value, truth, rtol=1e-3)
    assert (measured.se <= 1e-3 * truth[0]).all()
    assert measured.cost.backward > 0


def test_memory_bounds_the_products(monkeypatch):
    monkeypatch.setattr(_source, "MEMORY", 50 * 8 * 7)
    spectrum = extreme_eigenvalues(quadratic(symmetric(np.linspace(-1, 1, 50))), tolerance=1e-9)
    assert spectrum.products == 7
    assert not spectrum.converged
    assert "only 7 of 40" in spectrum.method


def test_same_seed_same_bits_and_any_operator():
    matrix = symmetric(np.linspace(-1, 1, 50))
    a, b = (extreme_eigenvalues(quadratic(matrix), seed=4) for _ in range(2))
    assert np.array_equal(a.nodes, b.nodes)
    doubled = extreme_eigenvalues(quadratic(matrix), seed=4, operator=lambda v: 2 * (matrix @ v))
    np.testing.assert_allclose(doubled.nodes, 2 * a.nodes, atol=1e-9)


def test_bad_input_is_said():
    objective = quadratic(symmetric([1.0, 2.0]))
    with pytest.raises(Usage):
        extreme_eigenvalues(objective, k=0)
    with pytest.raises(Usage):
        extreme_eigenvalues(objective, operator="fisher")
    with pytest.raises(CannotRun, match="not finite"):
        extreme_eigenvalues(quadratic(torch.full((2, 2), torch.nan)))
