"""The shared filter and its relatives: closed forms against samples, autograd and slow loops."""

import itertools
import math

import pytest
import torch

from gradoscope.errors import Usage
from gradoscope.theory import convnet, relu_students, set_splitting
from gradoscope.theory.arc_cosine import angle, kernel, kernel_gradient, kernel_hessian, kernel_mixed
from gradoscope.theory.exact import differentiable
from gradoscope.theory.overlap import SharedFilter, descend, on_sphere

F64 = torch.float64


def stream(seed):
    return torch.Generator().manual_seed(seed)


def draw(seed, *shape):
    return torch.randn(*shape, generator=stream(seed), dtype=F64)


def slow_kernel(u, v):
    """As in the source, by the arc cosine: right away from 0 and pi."""
    size = u.norm() * v.norm()
    theta = torch.acos(u @ v / size)
    return size / (2 * math.pi) * (torch.sin(theta) + (math.pi - theta) * torch.cos(theta))


def mean_and_error(x):
    return float(x.mean()), float(x.std()) / math.sqrt(len(x))


# --- The kernel -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_kernel_is_the_mean_of_products_of_relus(seed):
    u, v = draw(seed, 2, 3)
    x = draw(seed + 10, 400_000, 3)
    mean, se = mean_and_error(torch.relu(x @ u) * torch.relu(x @ v))
    assert abs(mean - float(kernel(u, v))) < 4 * se
    assert float(kernel(u, v)) == pytest.approx(float(slow_kernel(u, v)), rel=1e-12)


def test_derivatives_of_the_kernel_are_those_of_autograd():
    u, v = draw(4, 2, 5)
    jacobian, hessian = torch.autograd.functional.jacobian, torch.autograd.functional.hessian
    torch.testing.assert_close(kernel_gradient(u, v), jacobian(lambda w: slow_kernel(w, v), u))
    torch.testing.assert_close(kernel_hessian(u, v), hessian(lambda w: slow_kernel(w, v), u))
    mixed = jacobian(lambda b: jacobian(lambda a: slow_kernel(a, b), u, create_graph=True), v)
    torch.testing.assert_close(kernel_mixed(u, v), mixed)


def test_angles_keep_their_digits_where_the_arc_cosine_loses_them():
    for tiny in (1e-6, 1e-10, 1e-14):
        assert float(angle(torch.tensor([1.0, 0.0], dtype=F64), torch.tensor([1.0, tiny], dtype=F64))) == pytest.approx(tiny, rel=1e-6)
    assert float(angle(draw(1, 4), -3 * draw(1, 4))) == pytest.approx(math.pi, abs=1e-15)


def test_a_function_with_known_derivatives_passes_gradgradcheck():
    target = draw(5, 4)
    f = differentiable(*(lambda w, of=of: of(w, target, 3) for of in (convnet.loss, convnet.gradient, convnet.hessian)))
    w = draw(6, 4).requires_grad_()
    assert torch.autograd.gradcheck(f, (w,))
    (slope,) = torch.autograd.grad(f(w), w, create_graph=True)
    vector = draw(7, 4)
    (product,) = torch.autograd.grad(slope @ vector, w)
    torch.testing.assert_close(product, convnet.hessian(w.detach(), target, 3) @ vector)


# --- Without overlap ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 4, 8, 16])
def test_loss_is_the_mean_over_samples(k):
    target, w = draw(k, 2, 4)
    x = convnet.sample(60_000, k, 4, stream(k + 30))
    mean, se = mean_and_error((torch.relu(x @ w).mean(1) - torch.relu(x @ target).mean(1)).square())
    assert abs(mean - float(convnet.loss(w, target, k))) < 4 * se
    r, theta = w.norm(), angle(w, target)
    assert float(convnet.polar_loss(r, theta, float(target.norm()), k)) == pytest.approx(float(convnet.loss(w, target, k)), rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5, 20])
def test_gradient_and_hessian_are_those_of_the_loss(k):
    target, w = draw(40 + k, 2, 6)

    def slow(v):
        _, beta, gamma = convnet.constants(k)
        r, s = v.norm(), target.norm()
        return (gamma * (r * r + s * s) - 2 * k * slow_kernel(v, target) - 2 * beta * r * s) / k**2

    torch.testing.assert_close(convnet.gradient(w, target, k), torch.autograd.functional.jacobian(slow, w))
    hessian = torch.autograd.functional.hessian(slow, w)
    torch.testing.assert_close(convnet.hessian(w, target, k), hessian)
    gamma = convnet.constants(k)[2]
    many = draw(50 + k, 300, 6)
    assert float(torch.linalg.eigvalsh(convnet.hessian(many, target, k)).max()) <= 2 * gamma / k**2 + 1e-12


@pytest.mark.parametrize("k", [2, 5, 6, 20, 30])
def test_critical_points(k):
    target = draw(60 + k, 5)
    _, beta, gamma = convnet.constants(k)
    s = float(target.norm())
    minimum, saddle, peak = convnet.critical_points(target, k)
    for point in (minimum, saddle):
        assert float(convnet.gradient(point.w, target, k).norm()) < 1e-14 * max(1, s)
    assert minimum.eigenvalues.tolist() == pytest.approx([1 / k] * 4 + [2 * gamma / k**2], rel=1e-10)
    assert float(minimum.eigenvalues[-1] / minimum.eigenvalues[0]) == pytest.approx(1 + (k - 1) / math.pi, rel=1e-10)
    assert saddle.eigenvalues.tolist() == pytest.approx([0] * 4 + [2 * gamma / k**2], abs=1e-12)
    assert saddle.loss == pytest.approx(s * s * (gamma**2 - beta**2) / (gamma * k**2), abs=1e-10)
    assert peak.loss > saddle.loss > minimum.loss == pytest.approx(0, abs=1e-14)
    assert (minimum.kind, saddle.kind, peak.kind) == ("minimum", "degenerate saddle", "maximum")


@pytest.mark.parametrize("k", [1, 3])
def test_slopes_at_zero_are_limits_of_the_loss(k):
    target, directions = draw(70, 4), on_sphere(20, 4, stream(71))
    h = 1e-7
    zero = convnet.constants(k)[2] * float(target.norm()) ** 2 / k**2
    measured = (convnet.loss(h * directions, target, k) - zero) / h
    torch.testing.assert_close(convnet.one_sided_slope(directions, target, k), measured, rtol=1e-5, atol=1e-6)
    back = float(convnet.one_sided_slope(-target / target.norm(), target, k))
    assert back == pytest.approx(0, abs=1e-15) if k == 1 else back < -0.1


def test_no_other_point_has_a_small_gradient():
    target = torch.tensor([1.0, 0.0], dtype=F64)
    x = torch.linspace(-2, 2, 161, dtype=F64)
    points = torch.cartesian_prod(x, x[x > 0])
    small = convnet.gradient(points, target, 5).norm(dim=1) < 0.012
    assert bool(small.any())
    places = torch.tensor([[1.0, 0.0], [-convnet.constants(5)[0], 0.0]], dtype=F64)
    assert float(torch.cdist(points[small], places).min(1).values.max()) < 0.3


def test_descent_is_a_plain_loop_and_keeps_its_guarantees():
    target, start = draw(80, 6), draw(81, 3, 6)
    step = 0.4 * convnet.step_limit(4)
    run = convnet.descend(start, target, 4, step=step, steps=60, keep_path=True)
    w = start[1].clone().requires_grad_()
    for t in range(60):
        torch.testing.assert_close(run.path[t, 1], w.detach(), rtol=1e-10, atol=1e-12)
        _, beta, gamma = convnet.constants(4)
        value = (gamma * w.square().sum() - 8 * slow_kernel(w, target) - 2 * beta * w.norm() * target.norm()) / 16
        (g,) = torch.autograd.grad(value, w)
        w = (w - step * g).detach().requires_grad_()
    found = convnet.guarantees(run, float(target.norm()), 4, step)
    assert all(float(v.max()) < 1e-9 for v in found.values())


def test_guarantees_fail_where_they_must():
    target = torch.tensor([1.0, 0.0], dtype=F64)
    start = torch.tensor([[-0.9, 0.3]], dtype=F64)
    step = 2.3 * convnet.step_limit(5)  # beyond two over the curvature
    broken = convnet.guarantees(convnet.descend(start, target, 5, step=step, steps=30), 1.0, 5, step)
    assert float(broken["loss"]) > 0.01


def test_escape_takes_the_time_of_theory():
    alpha, step, target = convnet.constants(5)[0], 0.5 * convnet.step_limit(5), torch.eye(4, dtype=F64)[0]
    for phi in (0.1, 0.03):
        start = alpha * torch.tensor([[-math.cos(phi), math.sin(phi), 0, 0]], dtype=F64)
        run = convnet.descend(start, target, 5, step=step, steps=1000, until=lambda theta: bool(theta < math.pi / 2))
        assert (len(run.losses) - 1) == pytest.approx(convnet.escape_steps(5, step, phi), rel=0.05)
    assert math.pi * 5 * alpha / step == pytest.approx(8.0, abs=0.01)


def test_bad_sizes():
    with pytest.raises(Usage, match="at least 1 patch"):
        convnet.constants(0)
    with pytest.raises(Usage, match="at least 1"):
        SharedFilter(3, 0, 2)


# --- With overlap ---------------------------------------------------------------------------------------------------


SHAPES = [(2, 1, 2), (3, 1, 5), (4, 2, 6), (5, 3, 4), (4, 4, 3), (3, 5, 4), (6, 1, 1)]


def slow_inner(net, u, v):
    """All pairs of patches, each filter written out into the whole input."""
    total = torch.zeros((), dtype=F64)
    for i, j in itertools.product(range(net.k), repeat=2):
        a, b = (torch.nn.functional.pad(w, (at * net.stride, net.inputs - at * net.stride - net.m)) for w, at in ((u, i), (v, j)))
        same = a is b or bool(torch.equal(a, b))
        total = total + (a.square().sum() / 2 if same else slow_kernel(a, b))
    return total / net.k**2


@pytest.mark.parametrize("shape", SHAPES)
def test_overlapping_loss_and_derivatives(shape):
    net = SharedFilter(*shape)
    target, w = draw(sum(shape), 2, net.m)

    def slow(v):
        return slow_inner(net, v, v) - 2 * slow_inner(net, v, target) + slow_inner(net, target, target)

    assert float(net.loss(w, target)) == pytest.approx(float(slow(w)), rel=1e-10)
    torch.testing.assert_close(net.gradient(w, target), torch.autograd.functional.jacobian(slow, w))
    torch.testing.assert_close(net.hessian(w, target), torch.autograd.functional.hessian(slow, w))
    assert float(net.loss(target, target)) == pytest.approx(0, abs=1e-15)
    assert float(net.gradient(target, target).norm()) < 1e-14


def test_overlapping_loss_is_the_mean_over_samples():
    net = SharedFilter(4, 2, 5)
    target, w = draw(90, 2, 4)
    x = draw(91, 100_000, net.inputs)
    mean, se = mean_and_error((net.forward(x, w) - net.forward(x, target)).square())
    assert abs(mean - float(net.loss(w, target))) < 4 * se


def test_without_overlap_it_is_the_other_closed_form():
    net, (target, w) = SharedFilter(5, 5, 7), draw(92, 2, 5)
    assert float(net.loss(w, target)) == pytest.approx(float(convnet.loss(w, target, 7)), rel=1e-12)
    torch.testing.assert_close(net.gradient(w, target), convnet.gradient(w, target, 7))
    torch.testing.assert_close(net.hessian(w, target), convnet.hessian(w, target, 7))
    assert net.step_limit == pytest.approx(convnet.step_limit(7))


def test_the_explicit_bad_minimum():
    net, target = SharedFilter(2, 1, 2), torch.tensor([-1.0, 1.0], dtype=F64) / math.sqrt(2)
    w = net.best_length(-target, target) * -target
    assert w.tolist() == pytest.approx([0.3883, -0.3883], abs=1e-4)
    assert float(net.loss(w, target)) == pytest.approx(0.19364, abs=1e-5)
    assert float(net.gradient(w, target).norm()) < 1e-14
    assert torch.linalg.eigvalsh(net.hessian(w, target)).tolist() == pytest.approx([0.3865, 0.5545], abs=1e-4)


def test_stacked_descent_is_that_of_single_starts():
    net = SharedFilter(3, 1, 4)
    targets, starts = on_sphere(6, 3, stream(3)), on_sphere(6, 3, stream(4))
    ends = descend(net, starts, targets, step=0.8, steps=120)
    for at in (0, 5):
        w = starts[at]
        for _ in range(120):
            w = w - 0.8 * net.step_limit * net.gradient(w, targets[at])
        torch.testing.assert_close(ends.w[at], w, rtol=1e-8, atol=1e-8)
    late = descend(net, starts, targets, step=0.8, steps=3000)
    assert bool((late.steps >= 0).all())
    assert float(late.gradients.max()) < 1e-12


# --- Other networks -------------------------------------------------------------------------------------------------


def test_fully_connected_loss_and_gradient():
    w, v = draw(100, 3, 4), draw(101, 2, 4)

    def slow(rows):
        a = sum(slow_kernel(x, y) if i != j else x.square().sum() / 2 for (i, x), (j, y) in itertools.product(enumerate(rows), repeat=2))
        b = sum(slow_kernel(x, y) for x, y in itertools.product(rows, v))
        c = sum(slow_kernel(x, y) if i != j else x.square().sum() / 2 for (i, x), (j, y) in itertools.product(enumerate(v), repeat=2))
        return a / 2 - b + c / 2

    assert float(relu_students.connected_loss(w, v)) == pytest.approx(float(slow(w)), rel=1e-12)
    torch.testing.assert_close(relu_students.connected_gradient(w, v), torch.autograd.functional.jacobian(slow, w))
    x = draw(102, 200_000, 4)
    mean, se = mean_and_error((torch.relu(x @ w.T).sum(1) - torch.relu(x @ v.T).sum(1)).square() / 2)
    assert abs(mean - float(slow(w))) < 4 * se


def test_descent_of_connected_students_is_that_of_torch():
    v, starts = torch.eye(3, dtype=F64), draw(103, 2, 3, 3)
    ends, losses, _ = relu_students.descend_connected(starts, v, step=0.1, steps=40)
    w = starts[1].clone().requires_grad_()
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9)
    for _ in range(40):
        w.grad = relu_students.connected_gradient(w.detach(), v)
        optimizer.step()
    torch.testing.assert_close(ends[1], w.detach())
    assert float(losses[1]) == pytest.approx(float(relu_students.connected_loss(w.detach(), v)))


def test_two_layer_loss_and_gradient():
    (w, target), (a, target_a) = draw(110, 2, 3), draw(111, 2, 4)
    x = convnet.sample(200_000, 4, 3, stream(112))
    mean, se = mean_and_error((torch.relu(x @ w) @ a - torch.relu(x @ target) @ target_a).square() / 2)
    assert abs(mean - float(relu_students.two_layer_loss(w, a, target, target_a))) < 4 * se
    by_w, by_a = relu_students.two_layer_gradient(w, a, target, target_a)
    slow_w, slow_a = torch.autograd.functional.jacobian(lambda u, b: relu_students.two_layer_loss(u, b, target, target_a), (w, a))
    torch.testing.assert_close(by_w, slow_w)
    torch.testing.assert_close(by_a, slow_a)


@pytest.mark.parametrize(("q", "bad"), [(0.0, True), (0.39, True), (0.42, False), (1.0, False)])
def test_the_bad_point_of_two_layers_is_a_minimum_by_the_sign_of_one_product(q, bad):
    k, target = 8, on_sphere(1, 4, stream(120))[0]
    a = draw(121, k)
    a = math.sqrt(1 - q) * torch.nn.functional.normalize(a - a.mean(), dim=0) + math.sqrt(q / k)
    point = relu_students.two_layer_bad_minimum(target, a)
    by_w, by_a = relu_students.two_layer_gradient(-target, point.a, target, a)
    assert float(by_w.norm() + by_a.norm()) < 1e-14
    assert (point.correlation < 0) == bad
    across = draw(123, 4)
    across = across - (across @ target) * target
    for phi in (0.05, 0.1):
        turned = -math.cos(phi) * target + math.sin(phi) * across / across.norm()
        change = float(relu_students.two_layer_loss(turned, point.a, target, a)) - point.loss
        assert change == pytest.approx(-point.correlation * phi**3 / (6 * math.pi), rel=0.02)


# --- Set splitting --------------------------------------------------------------------------------------------------


def slow_solvable(instance):
    sets = instance.sets.tolist()
    return any(all(len({sides[a] for a in s}) == 2 for s in sets) for sides in itertools.product((0, 1), repeat=instance.elements))


@pytest.mark.parametrize("seed", range(6))
def test_zero_loss_is_a_splitting(seed):
    instance = set_splitting.random_instance(7, 10 + 3 * seed, stream(seed))
    solution = set_splitting.solvable(instance)
    assert (solution is not None) == slow_solvable(instance)
    for k in (2, 4):
        x, y = set_splitting.samples(instance, k)
        signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=7)), dtype=F64)
        zero = set_splitting.empirical_loss(signs, x, y) < 1e-15
        assert bool((zero == set_splitting.splits(signs, instance)).all())
        assert bool(zero.any()) == (solution is not None)


def test_the_gap_is_the_least_that_an_unsplit_set_leaves():
    instance = set_splitting.Instance(3, torch.tensor([[0, 1, 2]]))
    x, y = set_splitting.samples(instance)
    sizes = torch.cartesian_prod(*[torch.linspace(0, 1.5, 31, dtype=F64)] * 3)  # all of one sign
    sums = set_splitting.empirical_loss(sizes, x, y) * len(y)
    assert float(sums.min()) == pytest.approx(set_splitting.GAP, abs=1e-12)
    assert sizes[int(sums.argmin())].tolist() == pytest.approx([0.5] * 3)


def test_scales_change_no_solution():
    instance = set_splitting.planted(10, 15, stream(3))
    scales = 0.5 + torch.rand(25, generator=stream(4), dtype=F64)
    x, y = set_splitting.samples(instance, scales=scales)
    assert float(set_splitting.empirical_loss(instance.sides, x, y)) < 1e-30
    assert float(y.std()) > 0.1
    wrong = instance.sides.clone()
    wrong[0] *= -0.9
    assert float(set_splitting.empirical_loss(wrong, x, y)) > 1e-4


def test_empirical_loss_gradient_and_smoothness():
    x, y = draw(130, 20, 3, 4), draw(131, 20)
    w = draw(132, 2, 4)
    slow = torch.stack([(torch.stack([torch.relu(x[:, i] @ v) for i in range(3)]).mean(0) - y).square().mean() for v in w])
    torch.testing.assert_close(set_splitting.empirical_loss(w, x, y), slow)
    gradient = torch.autograd.functional.jacobian(lambda v: set_splitting.empirical_loss(v, x, y).sum(), w)
    torch.testing.assert_close(set_splitting.empirical_gradient(w, x, y), gradient)
    active = (torch.einsum("nkm,m->nk", x, w[0]) > 0).double()
    features = torch.einsum("nk,nkm->nm", active, x) / 3
    curvature = float(torch.linalg.eigvalsh(2 / 20 * features.T @ features)[-1])
    assert curvature <= set_splitting.smoothness(x)


def test_instances_that_cannot_be():
    with pytest.raises(Usage, match="only 4"):
        set_splitting.random_instance(4, 5, stream(0))
    with pytest.raises(Usage, match="at least 3"):
        set_splitting.random_instance(2, 0, stream(0))
    with pytest.raises(Usage, match="2 patches"):
        set_splitting.samples(set_splitting.random_instance(4, 2, stream(0)), 1)
    with pytest.raises(Usage, match="24"):
        set_splitting.solvable(set_splitting.random_instance(25, 5, stream(0)))
