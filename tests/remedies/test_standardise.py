"""Standardised inputs and targets are what standardising the data by hand gives."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradoscope.errors import GradoscopeError
from gradoscope.guard import private_random
from gradoscope.loop import advance, prepare
from gradoscope.remedies.standardise import Standardise, input_scales, target_scales
from gradoscope.state import State
from gradoscope.training import Live, Training
from tests.remedies.nets import prepared, training

SCALE, SHIFT = torch.tensor([1.0, 50.0, 0.1, 9.0]), torch.tensor([0.0, 100.0, 3.0, -7.0])


def rows(n: int = 24) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, generator=random).double(), torch.randn(n, 2, generator=random).double()


def recipe(x: Tensor, y: Tensor, **options: Any) -> Training:
    def model() -> nn.Module:
        with private_random(4):
            return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()

    base: dict[str, Any] = {
        "model": model,
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.125),
        "data": (x, y),
        "loss_fn": F.mse_loss,
        "batch_size": 24,
    }
    return Training(**(base | options))


def losses(live: Live, steps: int = 5) -> list[float]:
    seen: list[float] = []
    advance(live, 0, steps, [lambda _live, _i, loss: seen.append(loss)])
    return seen


def standardised(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0, correction=0)


def test_inputs_as_by_hand() -> None:
    x, y = rows()
    raw = x * SCALE + SHIFT
    assert losses(prepared(recipe(raw, y), Standardise())) == pytest.approx(losses(prepared(recipe(standardised(raw), y))), rel=1e-9)
    longer = losses(prepared(recipe(standardised(raw), y, optimizer=lambda p: torch.optim.SGD(p, lr=0.25))))
    assert losses(prepared(recipe(raw, y), Standardise(step=2.0))) == pytest.approx(longer, rel=1e-9)


def test_targets_as_by_hand() -> None:
    """The loss in its own unit is the variance of the targets times that on targets divided by their spread."""
    x, y = rows()
    spread, mean = 40.0, 300.0
    plain = (y - y.mean(0)) / y.std(0, correction=0)
    there = losses(prepared(recipe(x, plain)))
    here = losses(prepared(recipe(x, plain * spread + mean), Standardise(inputs=False, targets=True)))
    assert here == pytest.approx([spread**2 * value for value in there], rel=1e-9)


def test_images_are_standardised_by_channel() -> None:
    random = torch.Generator().manual_seed(2)
    x = torch.randn(24, 3, 4, 4, generator=random) * torch.tensor([1.0, 20.0, 0.1])[:, None, None] + 5
    seen: list[Tensor] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 2, 4)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return self.layer(x).flatten(1)

    live = prepared(
        Training(
            model=Net, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), data=(x, torch.zeros(24, 2)), loss_fn=F.mse_loss, batch_size=24
        ),
        Standardise(),
    )
    seen.clear()
    live.model(x)
    channels = seen[0].movedim(1, 0).flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(channels.std(1, correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_what_cannot_be_standardised_is_said() -> None:
    tokens = Training(
        model=lambda: nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2)),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        data=(torch.ones(8, 2, dtype=torch.long), torch.zeros(8, dtype=torch.long)),
        loss_fn=F.cross_entropy,
        batch_size=4,
    )
    with pytest.raises(GradoscopeError, match="no floating-point inputs"):
        prepared(tokens, Standardise())
    with pytest.raises(GradoscopeError, match="targets are no numbers"):
        prepared(training(), Standardise(inputs=False, targets=True))
    with Live.of(tokens) as live:
        assert input_scales(live) == [None]
        assert target_scales(live) is None


def test_zeros_and_ones_are_classes() -> None:
    x, _ = rows()
    with Live.of(recipe(x, torch.eye(2).double().repeat(12, 1))) as live:
        assert target_scales(live) is None


def test_it_goes_away_again_and_explains_itself() -> None:
    x, y = rows()
    live = prepared(recipe(x, y), Standardise(targets=True))
    live.close()
    assert not live.model._forward_hooks
    assert not live.model._forward_pre_hooks
    names = [Standardise().name, Standardise(targets=True).name, Standardise(step=100.0).name, Standardise(inputs=False, targets=True).name]
    assert names == ["standardise", "standardise(inputs+targets)", "standardise(step x100)", "standardise(targets)"]
    for remedy in (Standardise(), Standardise(targets=True, step=10.0)):
        assert remedy.explanation.endswith(".")
        compile(remedy.code, "code", "exec")


class OnPairs(nn.Module):
    """Nodes (n, m, d) and pairs (n, m, m, e) of graphs, of any number m of nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes, self.pairs = nn.Linear(2, 1), nn.Linear(3, 1)

    def forward(self, nodes: Tensor, pairs: Tensor) -> Tensor:
        return self.nodes(nodes).mean((1, 2)) + self.pairs(pairs).mean((1, 2, 3))


def test_graphs_of_different_sizes_have_their_features_last() -> None:
    random = torch.Generator().manual_seed(0)
    batches = [
        (5 + 3 * torch.randn(8, m, 2, generator=random), 2 * torch.randn(8, m, m, 3, generator=random), torch.randn(8, generator=random))
        for m in (4, 6, 5)
    ]
    with private_random(0):
        training = Training(model=OnPairs(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1), data=batches, loss_fn=F.mse_loss, steps=3)
    seen: list[Tensor] = []
    with Live.of(Standardise()(training)) as live:
        prepare(live, State.capture(live))
        live.model.pairs.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach()))
        for nodes, pairs, _ in batches:
            live.model(nodes, pairs)
    rows = torch.cat([x.reshape(-1, 3) for x in seen])
    torch.testing.assert_close(rows.mean(0), torch.zeros(3), atol=0.05, rtol=0)
    torch.testing.assert_close(rows.std(0), torch.ones(3), atol=0.05, rtol=0)
