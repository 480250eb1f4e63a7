"""Recurrent networks: the adding problem, the cells against loops, stacks against single networks."""

import pytest
import torch
from torch import nn

from gradoscope.errors import Usage
from gradoscope.problems import find
from gradoscope.problems.recurrent import CHANCE, Recurrent, adding


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_targets_are_sums_of_one_marked_number_in_each_half():
    x, y = adding(torch.Generator().manual_seed(0), 4000, 11)
    assert x[:, :5, 1].sum(1).eq(1).all()
    assert x[:, 5:, 1].sum(1).eq(1).all()
    for sequence, target in zip(x[:50].tolist(), y[:50, 0].tolist(), strict=True):
        assert sum(number for number, mark in sequence if mark == 1) == pytest.approx(target, abs=1e-6)
    assert float(y.square().mean()) == pytest.approx(CHANCE, rel=0.06)


def test_lstm_is_torchs():
    net = Recurrent("lstm", 5, seeded(0)).double()
    theirs = nn.LSTM(2, 5, batch_first=True).double()
    i, f, o, g = (slice(5 * j, 5 * j + 5) for j in range(4))
    with torch.no_grad():
        for mine, copy in ((net.input, theirs.weight_ih_l0), (net.recurrent, theirs.weight_hh_l0), (net.bias, theirs.bias_ih_l0[None].T)):
            copy.copy_(torch.cat([mine[:, part] for part in (i, f, g, o)], dim=1).T)  # torch's order of gates
        theirs.bias_hh_l0.zero_()
    x = torch.randn(3, 7, 2, dtype=torch.float64)
    torch.testing.assert_close(net(x), theirs(x)[0][:, -1] @ net.answer)


def test_tanh_is_torchs_and_sigmoid_is_tanh_of_the_half():
    x = torch.randn(3, 7, 2, dtype=torch.float64)
    net, theirs = Recurrent("tanh", 5, seeded(0)).double(), nn.RNN(2, 5, batch_first=True).double()
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(net.input.T)
        theirs.weight_hh_l0.copy_(net.recurrent.T)
        theirs.bias_ih_l0.copy_(net.bias[0] + 0.3)
        theirs.bias_hh_l0.zero_()
        net.bias += 0.3
    torch.testing.assert_close(net(x), theirs(x)[0][:, -1] @ net.answer)
    flat = Recurrent("sigmoid", 5, seeded(0)).double()
    h = torch.zeros(3, 5, dtype=torch.float64)
    for t in range(7):
        h = 1 / (1 + torch.exp(-(x[:, t] @ flat.input + h @ flat.recurrent + flat.bias)))
    torch.testing.assert_close(flat(x), h @ flat.answer)


@pytest.mark.parametrize("cell", ["sigmoid", "tanh", "lstm"])
def test_a_stack_is_its_networks(cell):
    stack = Recurrent(cell, 4, seeded(0, 1, 2), sharpness=3.0)
    x, y = (torch.stack(part) for part in zip(*(adding(random, 6, 9) for random in seeded(5, 6, 7)), strict=True))
    answers = stack(x)
    (answers - y).square().mean((1, 2)).sum().backward()
    for s, random in enumerate(seeded(0, 1, 2)):
        alone = Recurrent(cell, 4, [random], sharpness=3.0)
        answer = alone(x[s])
        (answer - y[s]).square().mean().backward()
        torch.testing.assert_close(answers[s], answer)
        for mine, theirs in zip(stack.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine.grad[s], theirs.grad)


def test_recurrent_matrices_are_orthogonal_at_the_start():
    net = Recurrent("lstm", 8, seeded(3))
    for part in net.recurrent.split(8, dim=1):
        torch.testing.assert_close(part.T @ part, torch.eye(8), atol=1e-5, rtol=0)


def test_gates_learn_what_the_sigmoid_does_not(train):
    for cell, low, high in (("lstm", 0.0, 0.3), ("sigmoid", 0.8, 1.3)):
        training = find(f"recurrent:{cell},T=16,steps=120,batch=32")
        loss, _ = train(training).on(training.data, 1000)
        assert low <= loss / CHANCE <= high


def test_bad_options():
    with pytest.raises(Usage, match="at least T=2"):
        find("recurrent:tanh,T=1")
    with pytest.raises(Usage, match="no cell 'gru'"):
        Recurrent("gru", 3, seeded(0))
