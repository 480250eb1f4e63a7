"""Members of communities in a random graph: who belongs where, from noisy features and who knows whom."""

from typing import Any

import torch
from torch import Tensor, nn

from gradoscope.training import Training
from gradoscope.trials.families._make import accuracy, adam, generator, planner, sgd
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("community-gcn", "graph", 1e-3)
NODES, GROUPS, FEATURES = 240, 4, 8


class Convolutions(nn.Module):
    """Graph convolutions over a fixed graph; it is asked about nodes by their numbers."""

    def __init__(
        self,
        graph: Tensor,
        features: Tensor,
        width: int,
        depth: int,
        activation: type[nn.Module],
        *,
        residual: bool,
        start: str,
        softmax: bool,
    ) -> None:
        super().__init__()
        self.register_buffer("graph", graph)
        self.register_buffer("features", features)
        self.layers = nn.ModuleList(nn.Linear(FEATURES if i == 0 else width, width) for i in range(depth))
        self.activation, self.residual = activation(), residual
        self.head = nn.Linear(width, GROUPS)
        self.ending: nn.Module = nn.Softmax(dim=-1) if softmax else nn.Identity()
        with torch.no_grad():
            for name, p in self.named_parameters():
                if start == "equal":
                    p.fill_(0.1)
                elif start == "zero":
                    p.zero_()
                elif start == "large" and name.endswith("weight"):
                    p.mul_(8.0)

    def forward(self, nodes: Tensor) -> Tensor:
        h: Tensor = self.features  # type: ignore[assignment]  # a buffer
        for i, layer in enumerate(self.layers):
            said = self.activation(self.graph @ layer(h))
            h = h + said if self.residual and i else said
        scores: Tensor = self.ending(self.head(h)[nodes])
        return scores


def make(
    seed: int,
    *,
    width: int = 16,
    depth: int = 2,
    activation: type[nn.Module] = nn.ReLU,
    residual: bool = False,
    start: str = "usual",
    softmax: bool = False,
    inside: float = 0.2,
    blur: float = 1.0,
    flipped: float = 0.0,
    train: int = 160,
    units: float = 1.0,
    offset: float = 0.0,
    lr: float = 1e-2,
    use_sgd: bool = False,
    batch: int = 80,
    steps: int = 200,
    head_only: bool = False,
    own_graph: bool = True,
) -> Training:
    """240 nodes in four groups, edges within a group with probability `inside`, else 0.02; features are the group's centre with noise."""
    random = generator(seed, 37)
    y = torch.arange(NODES) % GROUPS
    chance = torch.where(y[:, None] == y[None], inside, 0.02)
    edges = (torch.rand(NODES, NODES, generator=random) < chance).float().triu(1)
    edges = edges + edges.T + torch.eye(NODES)
    if not own_graph:
        edges = torch.eye(NODES)
    degree = edges.sum(1).rsqrt()
    graph = degree[:, None] * edges * degree[None]
    centres = torch.randn(GROUPS, FEATURES, generator=random)
    features = units * (centres[y] + blur * torch.randn(NODES, FEATURES, generator=random)) + offset
    lot = torch.rand(NODES, generator=random) < flipped
    told = torch.where(lot, torch.randint(0, GROUPS, (NODES,), generator=random), y)
    order = torch.randperm(NODES, generator=random)
    here, there = order[:train], order[160:]

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        assert isinstance(model, Convolutions)
        parameters = model.head.parameters() if head_only else model.parameters()
        made: torch.optim.Optimizer = (sgd if use_sgd else adam)(lr)(parameters)
        return made

    return Training(
        name="community-gcn",
        model=lambda: Convolutions(graph, features, width, depth, activation, residual=residual, start=start, softmax=softmax),
        optimizer=optimizer,
        loss_fn=nn.functional.cross_entropy,
        data=(here, told[here]),
        validation=(there, told[there]),
        metric=accuracy,
        batch_size=min(batch, train),
        steps=steps,
    )


plan = planner(make)


SORTED = Success("training", 0.35)
DESCENT: dict[str, Any] = {"use_sgd": True, "lr": 0.5}

FAMILY.faulty("tiny-step", "step_too_small", "easy", "Adam at 1e-5.", plan(lr=1e-5), ("step 1e-2", plan()), SORTED)
FAMILY.faulty(
    "short-step",
    "step_too_small",
    "hard",
    "Plain descent at 2e-3, where 0.5 is a good step.",
    plan(use_sgd=True, lr=2e-3),
    ("step 0.5", plan(**DESCENT)),
    SORTED,
)
FAMILY.faulty(
    "huge-step",
    "step_too_large",
    "easy",
    "Plain descent at 200.",
    plan(use_sgd=True, lr=200.0),
    ("step 0.5", plan(**DESCENT)),
    SORTED,
    rivals=(("all nodes at each step", plan(use_sgd=True, lr=200.0, batch=160)),),
)
FAMILY.faulty(
    "all-zero",
    "saddle_point",
    "easy",
    "Every weight starts at zero.",
    plan(start="zero", **DESCENT),
    ("the usual start", plan(**DESCENT)),
    SORTED,
    rivals=(("steps of 2", plan(start="zero", use_sgd=True, lr=2.0)), ("steps of 0.1", plan(start="zero", use_sgd=True, lr=0.1))),
)
FAMILY.faulty(
    "eight-sigmoid-layers",
    "vanishing_gradient",
    "medium",
    "Eight graph convolutions with sigmoids: each averages over neighbours and passes a quarter of the gradient.",
    plan(depth=8, activation=nn.Sigmoid, **DESCENT),
    ("two convolutions with ReLU", plan(**DESCENT)),
    SORTED,
    rivals=(("steps of 5", plan(depth=8, activation=nn.Sigmoid, use_sgd=True, lr=5.0)),),
)
FAMILY.faulty(
    "large-start",
    "exploding_gradient",
    "medium",
    "Weights eight times too large in eight layers: the signal grows some twofold to threefold per layer.",
    plan(depth=8, start="large", use_sgd=True, lr=0.05, steps=300),
    ("the usual start, with residuals", plan(depth=8, residual=True, use_sgd=True, lr=0.05, steps=300)),
    SORTED,
    rivals=(
        ("steps of 1e-3", plan(depth=8, start="large", use_sgd=True, lr=1e-3, steps=300)),
        ("steps of 1e-6", plan(depth=8, start="large", use_sgd=True, lr=1e-6, steps=300)),
    ),
)
FAMILY.faulty(
    "raw-features",
    "unnormalised_inputs",
    "medium",
    "Features around 300 with a spread of 30.",
    plan(units=30.0, offset=300.0, use_sgd=True, lr=1e-5),
    ("standardised features, with the step that they allow", plan(**DESCENT)),
    SORTED,
    rivals=(
        ("steps of 1e-3", plan(units=30.0, offset=300.0, use_sgd=True, lr=1e-3)),
        ("steps of 1e-4", plan(units=30.0, offset=300.0, use_sgd=True, lr=1e-4)),
        ("steps of 1e-6", plan(units=30.0, offset=300.0, use_sgd=True, lr=1e-6)),
    ),
)
FAMILY.faulty(
    "two-softmax",
    "wrong_loss_output",
    "medium",
    "A softmax before cross-entropy's own.",
    plan(softmax=True, **DESCENT),
    ("without the softmax", plan(**DESCENT)),
    SORTED,
)
NARROW: dict[str, Any] = {"width": 2, "activation": nn.Tanh}

FAMILY.faulty(
    "head-only",
    "frozen_parameters",
    "medium",
    "Only the last layer was handed to the optimizer, on two random units.",
    plan(**NARROW, head_only=True, lr=5e-2),
    ("all layers trained", plan(**NARROW, lr=5e-2)),
    Success("training", 0.2),
    rivals=(("steps of 0.5", plan(**NARROW, head_only=True, lr=0.5)),),
)
FAMILY.faulty(
    "few-nodes-no-graph",
    "overfitting",
    "medium",
    "Thirty nodes with blurred features, without their neighbours' help: learnt by heart.",
    plan(train=30, blur=2.5, own_graph=False, width=64, batch=30, steps=300),
    ("160 nodes, and the graph", plan(blur=2.5, width=64, steps=100)),
    Success("validation", 0.9),
)
FAMILY.healthy("plain", "easy", "Two convolutions find four groups.", plan(), SORTED)
FAMILY.healthy("descent", "medium", "Plain descent finds them as well.", plan(**{**DESCENT, "lr": 1.0}, steps=400), SORTED)
FAMILY.healthy(
    "without-edges",
    "medium",
    "No edges at all, and features that tell the groups by themselves.",
    plan(blur=0.4, own_graph=False, steps=300, lr=2e-2),
    SORTED,
)
