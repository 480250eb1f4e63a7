"""Small random graphs, and how dense or how triangular they are: a graph network with dense adjacency."""

from typing import Any

import torch
from torch import Tensor, nn

from gradoscope.training import Training
from gradoscope.trials.families._make import adam, generator, planner, sgd
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("motif-gcn", "graph", 1.5e-3)
NODES = 10


class Counter(nn.Module):
    """Message passing over a dense adjacency, the mean over nodes, one number."""

    def __init__(self, width: int, depth: int, activation: type[nn.Module], *, gain: float, dead: float, frozen: bool) -> None:
        super().__init__()
        self.own = nn.ModuleList(nn.Linear(1 if i == 0 else width, width) for i in range(depth))
        self.others = nn.ModuleList(nn.Linear(1 if i == 0 else width, width, bias=False) for i in range(depth))
        self.activation, self.head = activation(), nn.Linear(width, 1)
        with torch.no_grad():
            for p in self.parameters():
                if p.dim() > 1:
                    p.mul_(gain)
            if dead:
                self.own[-1].bias.fill_(dead)  # type: ignore[operator]  # a linear layer
        if frozen:
            self.requires_grad_(False)
            self.head.requires_grad_(True)

    def forward(self, graphs: Tensor) -> Tensor:
        h = graphs.mean(2, keepdim=True)
        for own, others in zip(self.own, self.others, strict=True):
            h = self.activation(own(h) + graphs @ others(h) / NODES**0.5)
        answer: Tensor = self.head(h.mean(1))
        return answer


def make(
    seed: int,
    *,
    width: int = 16,
    depth: int = 2,
    activation: type[nn.Module] = nn.ReLU,
    gain: float = 1.0,
    dead: float = 0.0,
    frozen: bool = False,
    noise: float = 0.0,
    weights: float = 1.0,
    units: float = 1.0,
    lr: float = 1e-2,
    use_sgd: bool = False,
    momentum: float = 0.0,
    rows: int = 1200,
    batch: int = 50,
    steps: int = 250,
    column: bool = True,
) -> Training:
    """Graphs of ten nodes with edges of a random density; the target is the number of paths of two edges, standardised, with noise."""
    random = generator(seed, 38)
    n = rows + 400
    density = 0.2 + 0.6 * torch.rand(n, 1, 1, generator=random)
    upper = (torch.rand(n, NODES, NODES, generator=random) < density).float().triu(1)
    graphs = upper + upper.transpose(1, 2)
    paths = graphs.sum(2).square().sum(1, keepdim=True)
    y = (paths - paths.mean()) / paths.std() + noise**0.5 * torch.randn(n, 1, generator=random)
    x, y = weights * (graphs - 0.5), units * y
    y = y if column else y[:, 0]
    return Training(
        name="motif-gcn",
        model=lambda: Counter(width, depth, activation, gain=gain, dead=dead, frozen=frozen),
        optimizer=sgd(lr, momentum=momentum) if use_sgd else adam(lr),
        loss_fn=nn.functional.mse_loss,
        data=(x[:rows], y[:rows]),
        validation=(x[rows:], y[rows:]),
        batch_size=batch,
        steps=steps,
    )


plan = planner(make)


COUNTED = Success("training", 0.2)
DESCENT: dict[str, Any] = {"use_sgd": True, "lr": 0.03, "momentum": 0.9}

FAMILY.faulty("tiny-step", "step_too_small", "easy", "Adam at 1e-5.", plan(lr=1e-5), ("step 1e-2", plan()), COUNTED)
FAMILY.faulty(
    "huge-step",
    "step_too_large",
    "medium",
    "Plain descent at 3, with momentum.",
    plan(**{**DESCENT, "lr": 3.0}),
    ("step 0.03", plan(**DESCENT)),
    COUNTED,
    rivals=(("batches of 400", plan(**{**DESCENT, "lr": 3.0}, batch=400)),),
)
FAMILY.faulty(
    "dead-messages",
    "vanishing_gradient",
    "easy",
    "Biases of -40 in the last layer: no node has anything to say.",
    plan(dead=-40.0),
    ("the usual biases", plan()),
    COUNTED,
    rivals=(("steps of 1e-3", plan(dead=-40.0, lr=1e-3)),),
)
FAMILY.faulty(
    "large-start",
    "exploding_gradient",
    "hard",
    "Five layers of weights six times too large: what nodes say grows from layer to layer.",
    plan(depth=5, gain=6.0, use_sgd=True, lr=0.01),
    ("the usual start", plan(depth=5, gain=1.6, use_sgd=True, lr=0.01)),
    Success("training", 0.4),
    rivals=(
        ("steps of 1e-4", plan(depth=5, gain=6.0, use_sgd=True, lr=1e-4)),
        ("steps of 1e-7", plan(depth=5, gain=6.0, use_sgd=True, lr=1e-7)),
    ),
)
FAMILY.faulty(
    "row-against-column",
    "wrong_loss_output",
    "easy",
    "Outputs of shape (n, 1) and targets of shape (n,) are broadcast against each other.",
    plan(column=False),
    ("targets of shape (n, 1)", plan()),
    COUNTED,
)
FAMILY.faulty(
    "frozen-messages",
    "frozen_parameters",
    "hard",
    "Only the last layer is trained, on two random units.",
    plan(width=2, frozen=True, activation=nn.Sigmoid, lr=3e-2),
    ("all layers trained", plan(width=2, activation=nn.Sigmoid, lr=3e-2)),
    COUNTED,
)
FAMILY.faulty(
    "edges-of-a-thousandth",
    "unnormalised_inputs",
    "medium",
    "Edges weigh a thousandth: next to its biases, a node hears nothing of the others.",
    plan(weights=1e-3, use_sgd=True, lr=0.03, momentum=0.9),
    ("edges that weigh one", plan(**DESCENT)),
    COUNTED,
    rivals=(
        ("steps of 0.3", plan(weights=1e-3, use_sgd=True, lr=0.3, momentum=0.9)),
        ("steps of 0.003", plan(weights=1e-3, use_sgd=True, lr=0.003, momentum=0.9)),
    ),
)
FAMILY.faulty(
    "mostly-noise",
    "bayes_floor",
    "medium",
    "Noise of four times the variance of what is counted.",
    plan(noise=4.0, rows=5000, batch=200),
    ("counts without noise", plan(rows=5000, batch=200)),
    Success("training", 1.0),
    rivals=(("steps of 3e-3", plan(noise=4.0, rows=5000, batch=200, lr=3e-3)),),
)
FAMILY.healthy("plain", "easy", "It counts.", plan(), COUNTED)
FAMILY.healthy(
    "counts-in-tens",
    "hard",
    "Counts in other units, ten times as large: the loss is a hundred times as large, and falls as far.",
    plan(units=10.0, lr=3e-2, steps=300),
    Success("training", 20.0),
)
