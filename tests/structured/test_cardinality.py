"""Predict and Constrain: every step against a slow loop, the loss against its formula, stacked against single, gradients."""

import math

import pytest
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn

from gradoscope.errors import Usage
from gradoscope.guard import private_random
from gradoscope.structured.cardinality import (
    PredictAndConstrain,
    example_f1,
    f1_scores,
    mlp,
    soft_f1,
    soft_f1_loss,
    stack_networks,
    top_labels,
)
from gradoscope.structured.projections import dykstra, project_sum

KINDS = ("exact", "dykstra", "smooth", "box")


def made(kind: str, seed: int = 0, **options: object) -> PredictAndConstrain:
    with private_random(seed):
        return PredictAndConstrain(5, 7, most=3, hidden=6, units=4, constraint=kind, steps=6, rate=0.1, **options).double()  # type: ignore[arg-type]  # words and numbers


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_inference_is_the_loop_of_the_paper(kind: str) -> None:
    model = made(kind, rounds=3)
    x = randn(4, 5)
    found = model(x)
    assert found.shape == (4, 6, 7)
    for row in range(4):
        scores = model.score(x[row])
        chances = torch.softmax(model.head(x[row]), 0)
        z = sum((c + 1) * chances[c] for c in range(3))
        u, v = torch.sigmoid(scores), torch.zeros(7, dtype=torch.float64)
        for t in range(6):
            free = u.detach().requires_grad_()
            score = free @ scores + model.weights @ torch.relu(model.words.T @ free)
            (slope,) = torch.autograd.grad(score, free, retain_graph=True)
            v = 0.9 * v + 0.1 * slope
            if kind == "box":
                u = (u + v).clamp(0, 1)
            elif kind == "exact":
                u = project_sum(u + v, z)
            else:
                u = dykstra(u + v, z, 3, smooth=kind == "smooth")
            assert torch.allclose(found[row, t], u, atol=1e-12)


def test_the_exact_constraint_keeps_the_sum_and_the_smooth_one_does_not() -> None:
    x = randn(50, 5, seed=1)
    for kind in ("exact", "dykstra"):
        model = made(kind)
        assert (model(x).sum(-1) - model.count(x)[:, None]).abs().max() < 1e-12
    smooth = made("smooth")
    assert (smooth(x)[:, -1].sum(-1) - smooth.count(x)).abs().max() > 0.1
    smooth.sharpness = smooth.inner = 1e4
    assert (smooth(x)[:, -1].sum(-1) - smooth.count(x)).abs().max() < 0.01
    assert bool(((smooth.count(x) > 1) & (smooth.count(x) < 3)).all())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_central_differences(kind: str) -> None:
    model = made(kind)
    x, y = randn(3, 5, seed=2), (randn(3, 7, seed=3) > 0).double()
    loss = soft_f1_loss(model(x), y)
    loss.backward()
    for parameter in model.parameters():
        if parameter.grad is None:
            assert kind == "box"  # the head is not asked
            continue
        spot = int(parameter.grad.abs().flatten().argmax())
        with torch.no_grad():
            values = []
            for step in (1e-6, -2e-6):
                parameter.view(-1)[spot] += step
                values.append(float(soft_f1_loss(model(x), y)))
            parameter.view(-1)[spot] += 1e-6
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(float(parameter.grad.flatten()[spot]), rel=1e-4, abs=1e-9)


def test_the_loss_is_its_formula() -> None:
    u, y = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1]])
    slow = 0.0
    for row in range(2):
        for t in range(3):
            f1 = 2 * float(u[row, t] @ y[row]) / float(u[row, t].sum() + y[row].sum())
            slow -= f1 / (3 - t) / 3 / 2
    assert float(soft_f1_loss(u, y)) == pytest.approx(slow, rel=1e-6)
    assert soft_f1(torch.zeros(4), torch.zeros(4)) == 0


def test_scores_are_those_of_scikit_learn() -> None:
    random = torch.Generator().manual_seed(1)
    labels, y = (torch.rand(40, 6, generator=random) < 0.3).float(), (torch.rand(40, 6, generator=random) < 0.4).float()
    labels[0] = y[0] = 0
    found = f1_scores(labels, y)
    for name, way in (("f1", "samples"), ("micro", "micro"), ("macro", "macro")):
        assert found[name] == pytest.approx(f1_score(y.numpy(), labels.numpy(), average=way, zero_division=0), rel=1e-6)
    assert found["true"] == pytest.approx(float(y.sum() / 40))
    assert example_f1(y, y)[1:].tolist() == [1.0 if r.any() else 0.0 for r in y[1:]]


def test_top_labels_takes_the_largest_and_rounds_the_number() -> None:
    scores = torch.tensor([[0.3, 0.9, 0.5, 0.5], [1.0, 2.0, 3.0, 4.0]])
    assert top_labels(scores, torch.tensor([1.6, 0.2])).tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]
    assert top_labels(scores, torch.tensor([9.0, 1.0])).sum(1).tolist() == [4, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_models_train_as_single_ones(kind: str) -> None:
    singles = [made(kind, seed) for seed in range(3)]
    together = PredictAndConstrain.stacked(singles)
    x, y = randn(3, 8, 5, seed=4), (randn(3, 8, 7, seed=5) > 0.5).double()
    assert torch.allclose(together(x), torch.stack([m(x[k]) for k, m in enumerate(singles)]), atol=1e-12)
    optimizers = [torch.optim.Adagrad(m.parameters(), lr=0.05) for m in (*singles, together)]
    for _ in range(5):
        for k, model in enumerate(singles):
            optimizers[k].zero_grad()
            soft_f1_loss(model(x[k]), y[k]).backward()
            optimizers[k].step()
        optimizers[3].zero_grad()
        soft_f1_loss(together(x), y).sum().backward()
        optimizers[3].step()
    assert torch.allclose(together(x), torch.stack([m(x[k]) for k, m in enumerate(singles)]), atol=1e-8)


def test_dropout_acts_in_training_alone() -> None:
    with private_random(0):
        network = mlp(4, 50, 3, drop=(0.2, 0.5))
        x = torch.ones(2, 4)
        assert not torch.equal(network(x), network(x))
        both = stack_networks([network, network])
    network.eval()
    both.eval()
    assert torch.allclose(both(torch.stack([x, x]))[1], network(x), atol=1e-6)
    assert isinstance(mlp(4, 5, 3)[0], nn.Identity)


def test_mistakes_are_told_and_starts_are_drawn_anew() -> None:
    with pytest.raises(Usage, match="exact, dykstra, smooth, box"):
        PredictAndConstrain(3, 4, constraint="simplex")  # type: ignore[arg-type]  # that is the mistake
    with pytest.raises(Usage, match="at least 1"):
        PredictAndConstrain(3, 0)
    model = made("exact")
    before = model.words.detach().clone()
    with private_random(5):
        model.reset_parameters()
    assert not torch.equal(model.words, before)
    assert math.isfinite(float(model(torch.zeros(1, 5, dtype=torch.float64)).detach().sum()))
