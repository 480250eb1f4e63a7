"""Remember the first symbol of a sequence until its end, past symbols that do not matter."""

from typing import Any

import torch
from torch import Tensor, nn

from gradoscope.training import Training
from gradoscope.trials.families._make import accuracy, adam, generator, planner, sgd
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("recall-lstm", "recurrent", 4e-3)
SYMBOLS = 6


class Recaller(nn.Module):
    """Embedding, a recurrent layer, scores from the last state."""

    def __init__(self, kind: str, width: int, *, forget: float, gain: float, zero: bool, softmax: bool) -> None:
        super().__init__()
        self.symbols = nn.Embedding(SYMBOLS, width)
        layers: dict[str, Any] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
        self.cells: Any = layers[kind](width, width, batch_first=True)
        self.head = nn.Linear(width, SYMBOLS)
        self.ending: nn.Module = nn.Softmax(dim=-1) if softmax else nn.Identity()
        with torch.no_grad():
            if kind == "lstm":
                self.cells.bias_hh_l0[width : 2 * width] += forget
            if gain != 1:
                nn.init.orthogonal_(self.cells.weight_hh_l0)
                self.cells.weight_hh_l0.mul_(gain)
            if zero:
                for p in self.parameters():
                    p.zero_()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.ending(self.head(self.cells(self.symbols(x))[0][:, -1]))
        return scores


def make(
    seed: int,
    *,
    kind: str = "lstm",
    width: int = 20,
    lag: int = 8,
    forget: float = 1.0,
    gain: float = 1.0,
    zero: bool = False,
    softmax: bool = False,
    lr: float = 1e-2,
    use_sgd: bool = False,
    rows: int = 1500,
    garbled: float = 0.0,
    batch: int = 64,
    steps: int = 250,
) -> Training:
    """One of six symbols, `lag` others after it, and the question which came first."""
    random = generator(seed, 35)

    def sample(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randint(0, SYMBOLS, (n, lag + 1), generator=random)
        lot = torch.rand(n, generator=random) < garbled
        return x, torch.where(lot, torch.randint(0, SYMBOLS, (n,), generator=random), x[:, 0])

    return Training(
        name="recall-lstm",
        model=lambda: Recaller(kind, width, forget=forget, gain=gain, zero=zero, softmax=softmax),
        optimizer=(sgd if use_sgd else adam)(lr),
        loss_fn=nn.functional.cross_entropy,
        data=sample(rows),
        validation=sample(400),
        metric=accuracy,
        batch_size=batch,
        steps=steps,
    )


plan = planner(make)


RECALLED = Success("training", 0.7)
FAR: dict[str, Any] = {"lag": 40, "steps": 300}

FAMILY.faulty(
    "closed-gates",
    "vanishing_gradient",
    "medium",
    "Forget gates that start closed (a bias of -3): a twentieth of the state is left after each step, nothing of it after forty.",
    plan(forget=-3.0, **FAR),
    ("gates that start open", plan(forget=4.0, **FAR)),
    RECALLED,
    rivals=(("steps of 1e-1", plan(forget=-3.0, **FAR, lr=1e-1)), ("steps of 1e-3", plan(forget=-3.0, **FAR, lr=1e-3))),
)
FAMILY.faulty(
    "tanh-over-forty-steps",
    "vanishing_gradient",
    "easy",
    "A tanh network whose recurrent matrix shrinks the state to 0.6 at every step, over forty of them.",
    plan(kind="rnn", gain=0.6, **FAR),
    ("an LSTM whose gates start open", plan(forget=4.0, **FAR)),
    RECALLED,
    rivals=(("steps of 1e-3", plan(kind="rnn", gain=0.6, **FAR, lr=1e-3)),),
)
FAMILY.faulty(
    "all-zero",
    "saddle_point",
    "medium",
    "Every weight starts at zero, embedding and all: only the last bias gets a gradient.",
    plan(zero=True),
    ("the usual start", plan()),
    RECALLED,
    rivals=(("steps of 1e-1", plan(zero=True, lr=1e-1)), ("steps of 1e-3", plan(zero=True, lr=1e-3))),
)
FAMILY.faulty(
    "two-softmax",
    "wrong_loss_output",
    "medium",
    "A softmax before cross-entropy's own.",
    plan(softmax=True),
    ("without the softmax", plan()),
    RECALLED,
)
FAMILY.faulty(
    "tiny-step",
    "step_too_small",
    "medium",
    "Adam at 3e-5.",
    plan(lr=3e-5),
    ("step 1e-2", plan()),
    RECALLED,
)
FAMILY.faulty(
    "closed-gates-tiny-step",
    ("vanishing_gradient", "step_too_small"),
    "hard",
    "Closed gates over forty steps, and Adam at 3e-5.",
    plan(forget=-3.0, **FAR, lr=3e-5),
    ("open gates, and a step of 1e-2", plan(forget=4.0, **FAR)),
    RECALLED,
    rivals=(("open gates alone", plan(forget=4.0, **FAR, lr=3e-5)), ("a step of 1e-2 alone", plan(forget=-3.0, **FAR))),
)
FAMILY.healthy("short-lag", "easy", "Eight symbols in between: it remembers.", plan(), RECALLED)
FAMILY.healthy(
    "open-gates",
    "hard",
    "Forty symbols in between, and gates that start open: a plateau, and then it remembers.",
    plan(forget=4.0, **FAR),
    RECALLED,
)
