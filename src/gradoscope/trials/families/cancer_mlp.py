"""Breast tumours by thirty measurements of cell nuclei (scikit-learn's bundled set), in their own units or standardised."""

from typing import Any

import torch
from torch import Tensor, nn

from gradoscope.training import Training
from gradoscope.trials.families._make import adam, generator, mlp, planner, scaled, sgd
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("cancer-mlp", "mlp", 5e-4)


def make(
    seed: int,
    *,
    lr: float = 0.2,
    use_adam: bool = False,
    raw: bool = False,
    layers: tuple[int, ...] = (32,),
    activation: type[nn.Module] = nn.Tanh,
    gain: float = 1.0,
    ending: str = "scores",
    batch: int = 40,
    steps: int = 300,
    rows: int = 400,
    only_first: bool = False,
    tuned: bool = False,
    decay: float = 0.0,
) -> Training:
    """One score per tumour, sigmoid and cross-entropy; `tuned` starts from weights that an earlier training left."""
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    x, y = torch.from_numpy(bunch.data).float(), torch.from_numpy(bunch.target).float()[:, None]
    order = torch.randperm(len(x), generator=generator(seed, 25))
    x, y = x[order], y[order]
    if not raw:
        x = (x - x[:400].mean(0)) / x[:400].std(0)

    def model() -> nn.Module:
        network = scaled(mlp((30, *layers, 1), activation), gain)
        if tuned:
            _pretrain(network, x[:400], torch.where(torch.rand(400, 1) < 0.4, 1 - y[:400], y[:400]))
        if only_first:
            for layer in list(network.children())[1:]:
                layer.requires_grad_(False)
        return network.append(nn.Sigmoid()) if ending != "scores" else network

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(output, target)

    def right(output: Tensor, target: Tensor) -> float:
        return float(((output > (0.5 if ending != "scores" else 0.0)) == (target > 0.5)).double().mean())

    return Training(
        name="cancer-mlp",
        model=model,
        optimizer=(adam if use_adam else sgd)(lr, weight_decay=decay),
        loss_fn=loss,
        data=(x[:rows], y[:rows]),
        validation=(x[400:], y[400:]),
        metric=right,
        batch_size=batch,
        steps=steps,
    )


def _pretrain(network: nn.Module, x: Tensor, y: Tensor) -> None:
    """Thirty steps of all rows on labels of which many are wrong, as someone did before they were corrected."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        loss: Any = nn.functional.binary_cross_entropy_with_logits(network(x), y)
        loss.backward()
        optimizer.step()
    network.zero_grad()


plan = planner(make)


LEARNT = Success("training", 0.12)

FAMILY.faulty(
    "raw-units",
    "unnormalised_inputs",
    "easy",
    "Areas of hundreds beside smoothness of hundredths: the large ones saturate every unit.",
    plan(raw=True),
    ("standardised columns", plan()),
    LEARNT,
    rivals=(("steps of 0.02", plan(raw=True, lr=0.02)), ("steps of 2", plan(raw=True, lr=2.0))),
)
FAMILY.faulty(
    "raw-units-linear",
    "unnormalised_inputs",
    "medium",
    "No hidden layer: the areas allow a step of 1e-6, at which the other columns do not count.",
    plan(raw=True, layers=(), lr=1e-6),
    ("standardised columns, with the step that they allow", plan(layers=())),
    LEARNT,
    rivals=(("steps of 1e-5", plan(raw=True, layers=(), lr=1e-5)), ("steps of 1e-7", plan(raw=True, layers=(), lr=1e-7))),
)
FAMILY.faulty(
    "two-sigmoids",
    "wrong_loss_output",
    "medium",
    "A sigmoid before the loss that applies its own: no tumour is given less than a half.",
    plan(ending="sigmoid"),
    ("without the sigmoid", plan()),
    LEARNT,
    rivals=(("steps of 2", plan(ending="sigmoid", lr=2.0)),),
)
FAMILY.faulty(
    "tiny-step",
    "step_too_small",
    "medium",
    "A step five-hundred times too small.",
    plan(lr=4e-4),
    ("step 0.2", plan()),
    LEARNT,
)
FAMILY.faulty(
    "huge-step",
    "step_too_large",
    "medium",
    "Steps of 10 in three ReLU layers: within a few of them the weights are thrown out of reach.",
    plan(lr=10.0, layers=(32, 32), activation=nn.ReLU),
    ("step 0.2", plan(layers=(32, 32), activation=nn.ReLU)),
    LEARNT,
    rivals=(("all rows at each step", plan(lr=10.0, layers=(32, 32), activation=nn.ReLU, batch=400)),),
)
FAMILY.faulty(
    "ten-sigmoid-layers",
    "vanishing_gradient",
    "medium",
    "Ten sigmoid layers of 16 units: next to nothing of the gradient reaches the first.",
    plan(layers=(16,) * 10, activation=nn.Sigmoid, lr=0.5),
    ("ten tanh layers", plan(layers=(16,) * 10, gain=1.7, lr=0.1)),
    LEARNT,
    rivals=(("steps of 5", plan(layers=(16,) * 10, activation=nn.Sigmoid, lr=5.0)),),
)
FAMILY.faulty(
    "raw-units-two-sigmoids",
    ("unnormalised_inputs", "wrong_loss_output"),
    "hard",
    "Measurements in their own units, and a sigmoid before the loss that applies its own.",
    plan(raw=True, ending="sigmoid"),
    ("standardised columns, and no sigmoid", plan()),
    LEARNT,
    rivals=(("standardised columns alone", plan(ending="sigmoid")), ("no sigmoid alone", plan(raw=True))),
)
FAMILY.healthy("plain", "easy", "32 tanh units on standardised measurements.", plan(steps=100), LEARNT)
FAMILY.healthy(
    "fine-tuning",
    "hard",
    "It starts from what was learnt on labels with many mistakes: a third of the loss is gone before the first step.",
    plan(tuned=True, lr=0.05, steps=150, decay=0.02),
    LEARNT,
)
FAMILY.healthy(
    "decayed",
    "medium",
    "Weight decay of 0.01 keeps the loss from falling on, and validation is none the worse.",
    plan(decay=0.01),
    LEARNT,
)
