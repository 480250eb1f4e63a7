"""Recurrences: what hands a state on is found, and what each step of a sequence moves is the gradient by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from gradoscope.guard import private_random, random_fingerprint
from gradoscope.measure.recurrences import recurrences, time_profile
from gradoscope.problems.recurrent import Recurrent
from gradoscope.problems.recurrent import generator as stream

T, N = 12, 5


class Loop(nn.Module):
    """A cell in a loop, with a head."""

    def __init__(self, cell: nn.Module, *, fresh: bool = False) -> None:
        super().__init__()
        self.cell, self.head, self.fresh = cell, nn.Linear(4, 1), fresh

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = None
        for now in x:
            state = self.cell(now, None if self.fresh else state)
        return self.head(state[0] if isinstance(state, tuple) else state)


def inputs() -> torch.Tensor:
    return torch.randn(T, N, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("make", "links"), [(nn.RNNCell, 1), (nn.GRUCell, 1), (nn.LSTMCell, 2)])
@private_random(0)
def test_cells_in_a_loop_are_found_with_what_they_hand_on(make, links) -> None:
    model, x = Loop(make(3, 4)), inputs()
    (found,) = recurrences(model, lambda: model(x))
    assert (found.name, found.module, found.length) == ("cell", model.cell, T)
    assert len(found.links) == links


@private_random(0)
def test_layers_are_found_with_the_length_of_their_sequences() -> None:
    x = inputs()
    for layer, given in ((nn.GRU(3, 4), x), (nn.LSTM(3, 4, batch_first=True), x.transpose(0, 1))):
        (found,) = recurrences(layer, lambda layer=layer, given=given: layer(given))
        assert (found.name, found.length, found.links) == ("", T, ())
    packed = nn.utils.rnn.pack_padded_sequence(x, [12, 11, 10, 9, 3])
    layer = nn.RNN(3, 4)
    assert recurrences(layer, lambda: layer(packed))[0].length == T


@private_random(0)
def test_what_is_no_recurrence_is_not_found() -> None:
    x = inputs()
    plain = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    assert recurrences(plain, lambda: plain(x)) == []
    apart = Loop(nn.RNNCell(3, 4), fresh=True)  # called often, but never with what it returned
    assert recurrences(apart, lambda: apart(x)) == []
    short = Loop(nn.RNNCell(3, 4))
    assert recurrences(short, lambda: short(x[:7])) == []


@private_random(0)
def test_the_profile_of_a_layer_is_the_gradient_by_its_inputs() -> None:
    layer, x = nn.RNN(3, 4).double(), inputs().double()
    (found,) = recurrences(layer, lambda: layer(x))
    profile = time_profile(found, lambda: layer(x)[0][-1].square().sum())
    twin = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(twin)[0][-1].square().sum(), twin)
    np.testing.assert_allclose(profile, gradient.flatten(1).norm(dim=1).numpy(), rtol=1e-12)


@private_random(0)
def test_the_profile_of_a_cell_is_the_gradient_by_its_states() -> None:
    model, x = Loop(nn.RNNCell(3, 4)).double(), inputs().double()
    (found,) = recurrences(model, lambda: model(x))
    profile = time_profile(found, lambda: model(x).sum())
    w, states = model.cell.weight_hh.detach(), []
    state = torch.zeros(N, 4, dtype=torch.float64)
    for now in x:
        state = model.cell(now, state).detach()
        states.append(state)
    row = model.head.weight.detach().expand(N, 4)
    expected = [row.norm()]
    for state in reversed(states[1:]):
        row = (row * (1 - state**2)) @ w
        expected.append(row.norm())
    np.testing.assert_allclose(profile, torch.stack(expected[::-1]).numpy(), rtol=1e-12)


def test_a_sigmoid_network_loses_three_quarters_a_step_and_gates_that_start_open_do_not() -> None:
    x = torch.rand(60, 40, 2, generator=torch.Generator().manual_seed(3))

    def over_twenty_steps(network: Recurrent) -> float:
        (found,) = recurrences(network, lambda: network(x))
        assert (found.name, found.length) == ("one_step", 40)
        profile = time_profile(found, lambda: network(x).sum())
        assert profile is not None
        return float(profile[9] / profile[29])

    assert 0 < over_twenty_steps(Recurrent("sigmoid", 8, [stream(0, 1)])) <= 4.0**-20 * 1.0001
    # the product of 20 forget gates near sigmoid(6), is 0.95 on the path through the cell state
    assert over_twenty_steps(Recurrent("lstm", 8, [stream(0, 1)], forget=6.0)) > 0.5


@private_random(0)
def test_nothing_is_touched() -> None:
    model, x = Loop(nn.LSTMCell(3, 4)), inputs()
    before, streams = {k: v.clone() for k, v in model.state_dict().items()}, random_fingerprint()
    (found,) = recurrences(model, lambda: model(x))
    time_profile(found, lambda: model(x).sum())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert random_fingerprint() == streams


@private_random(0)
def test_without_a_gradient_there_is_no_profile() -> None:
    model, x = Loop(nn.RNNCell(3, 4)), inputs()
    (found,) = recurrences(model, lambda: model(x))
    assert time_profile(found, lambda: model(x).detach().sum()) is None
    assert time_profile(found, lambda: model(x).sum() + model(x).sum()) is None  # two sequences in one pass
