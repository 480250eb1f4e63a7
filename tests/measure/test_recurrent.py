"""Jacobians of the state, against autograd step by step and against closed forms."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from gradoscope.errors import CannotRun
from gradoscope.guard import private_random
from gradoscope.measure.recurrent import state_jacobians


def slow(cell, inputs, parts, example):
    """The product of one-step Jacobians of one sequence, each taken by autograd on its own; from the last time to the first."""
    sizes = [part.shape[1] for part in parts]
    flat = torch.cat([part[example] for part in parts])

    def once(x, joined):
        pieces = [piece[None] for piece in joined.split(sizes)]
        new = cell(x[None], tuple(pieces) if len(pieces) > 1 else pieces[0])
        return torch.cat([part[0] for part in (new if isinstance(new, tuple) else (new,))])

    steps = []
    for x in inputs[:, example]:
        steps.append(torch.autograd.functional.jacobian(lambda s, x=x: once(x, s), flat))
        flat = once(x, flat).detach()
    product, norms = torch.eye(sum(sizes), dtype=flat.dtype), [1.0]
    for jacobian in reversed(steps):
        product = product @ jacobian
        norms.append(float(torch.linalg.matrix_norm(product, ord=2)))
    return norms


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
@private_random(0)
def test_cells_against_products_of_single_steps(kind):
    cell = kind(3, 4).double()
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    zeros = torch.zeros(2, 4, dtype=torch.float64)
    found = state_jacobians(cell, x)
    parts = (zeros, zeros) if kind is nn.LSTMCell else (zeros,)
    expected = np.array([slow(cell, x, parts, example) for example in range(2)]).T
    np.testing.assert_allclose(found.details["norms"], expected, rtol=1e-9)
    np.testing.assert_allclose(found.value, np.sqrt((expected**2).mean(1)), rtol=1e-9)
    assert found.cost.backward == 4 * len(parts)


@pytest.mark.parametrize(("module", "cell"), [(nn.RNN, nn.RNNCell), (nn.GRU, nn.GRUCell), (nn.LSTM, nn.LSTMCell)])
@pytest.mark.parametrize("batch_first", [False, True])
@private_random(1)
def test_modules_against_their_cells(module, cell, batch_first):
    whole, single = module(3, 4, batch_first=batch_first).double(), cell(3, 4).double()
    for mine, theirs in zip(single.parameters(), whole.parameters(), strict=True):
        mine.data.copy_(theirs.data)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    fast = state_jacobians(whole, x.transpose(0, 1) if batch_first else x)
    np.testing.assert_allclose(fast.value, state_jacobians(single, x).value, rtol=1e-10)
    # the states are those of the ordinary pass
    out = whole(x.transpose(0, 1) if batch_first else x)[0]
    last = (out[:, -1] if batch_first else out[-1]).detach().numpy()
    np.testing.assert_allclose(fast.details["states"][-1][:, :4], last, rtol=1e-10)


@private_random(2)
def test_layers_are_one_state():
    two = nn.LSTM(3, 4, num_layers=2).double()
    found = state_jacobians(two, torch.randn(3, 2, 3, dtype=torch.float64))
    assert found.details["states"].shape == (4, 2, 16)
    assert found.value[0] == pytest.approx(1.0)


@private_random(3)
def test_probes_estimate_the_frobenius_norm():
    cell, x = nn.RNNCell(2, 6).double(), torch.randn(8, 3, 2, dtype=torch.float64)
    exact = np.zeros(9)
    for row in torch.eye(6, dtype=torch.float64):
        h = [torch.zeros(3, 6, dtype=torch.float64, requires_grad=True)]
        for current in x:
            h.append(cell(current, h[-1]))
        gradients = torch.autograd.grad(h[-1], h, row.expand(3, 6))
        exact += np.array([float(g.square().sum(1).mean()) for g in reversed(gradients)])
    found = state_jacobians(cell, x, probes=400, seed=1)
    assert (np.abs(found.value - np.sqrt(exact)) <= 4 * found.se + 1e-12).all()
    assert found.value[0] == pytest.approx(math.sqrt(6))
    assert (found.se[1:] < 0.1 * found.value[1:]).all()


def test_tiny_norms_do_not_underflow():
    found = state_jacobians(lambda x, h: 1e-3 * h, torch.zeros(90, 2, 1, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64))
    np.testing.assert_allclose(np.log10(found.value), -3.0 * np.arange(91), atol=1e-9)


def test_what_cannot_be_measured_is_said():
    with pytest.raises(CannotRun, match="bidirectional"):
        state_jacobians(nn.GRU(2, 3, bidirectional=True), torch.zeros(4, 1, 2))
    with pytest.raises(CannotRun, match="needs `state`"):
        state_jacobians(lambda x, h: h, torch.zeros(4, 1, 2))


def test_gradients_and_parameters_are_left_alone():
    cell = nn.GRUCell(2, 3)
    state_jacobians(cell, torch.randn(4, 2, 2))
    assert all(p.grad is None for p in cell.parameters())
