"""Linear regression on Gaussian inputs whose spectrum, noise and size are set: every rate is known."""

from typing import Any

import torch
from torch import Tensor, nn

from gradoscope.training import Training
from gradoscope.trials.families._make import balanced, generator, planner, sgd
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("least-squares", "linear", 3e-4)


def make(
    seed: int,
    *,
    lr: float = 0.1,
    d: int = 20,
    rows: int = 1000,
    stretch: float = 1.0,
    whitened: bool = False,
    noise: float = 0.1,
    batch: int = 50,
    steps: int = 300,
    units: float = 1.0,
    fresh: bool = False,
    decay: float = 0.0,
    falling: bool = False,
) -> Training:
    r"""$y = w^\top x + \varepsilon$, each eigendirection of the inputs worth the same share of a signal of variance one.

    Eigenvalues of the input covariance run from 1 to 1/stretch, evenly in the logarithm, in random directions, so that all columns are
    about as wide as each other. `whitened` gives the model the same inputs with unit covariance.
    """
    random = generator(seed, 21, d)
    basis = torch.linalg.qr(torch.randn(d, d, generator=random, dtype=torch.float64))[0].float()
    eigenvalues = torch.logspace(0, -float(torch.tensor(stretch).log10()), d) * (1 if stretch == 1 else 2.0)
    signs = torch.randn(d, generator=random).sign() / d**0.5

    def sample(random: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, d, generator=random)
        y = (z @ signs)[:, None] + noise**0.5 * torch.randn(n, 1, generator=random)
        return (z if whitened else z * eigenvalues.sqrt()) @ basis.T, units * y

    def held(random: torch.Generator) -> tuple[Tensor, Tensor]:
        x, _ = sample(random, 500)
        clean = ((x @ basis) / (1.0 if whitened else eigenvalues.sqrt()) @ signs)[:, None]
        return balanced(x, units * clean, units**2 * noise, random)

    def schedule(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    return Training(
        name="least-squares",
        model=lambda: nn.Linear(d, 1),
        optimizer=sgd(lr, weight_decay=decay),
        loss_fn=nn.functional.mse_loss,
        data=sample if fresh else sample(random, rows),
        validation=held(random),
        batch_size=batch,
        steps=steps,
        schedule=schedule if falling else None,
    )


plan = planner(make)


LOW = Success("training", 0.2)

FAMILY.faulty(
    "tiny-step",
    "step_too_small",
    "easy",
    "Whitened inputs, and a step of 1e-5 of the stable one: the error shrinks by a part in two hundred.",
    plan(lr=1e-5),
    ("step 0.1", plan()),
    LOW,
)
FAMILY.faulty(
    "short-step",
    "step_too_small",
    "hard",
    "A step of a five-hundredth of the stable one: a third of the way in 300 steps, where a longer one needs twenty.",
    plan(lr=1.2e-3),
    ("step 0.1", plan()),
    LOW,
    rivals=(("batches of 400", plan(lr=1.2e-3, batch=400)),),
)
FAMILY.faulty(
    "beyond-stability",
    "step_too_large",
    "medium",
    "All rows at each step, and a step 10% beyond 2 over the largest eigenvalue, which is 2.6: it diverges along one direction.",
    plan(lr=0.9, batch=1000),
    ("step 0.3", plan(lr=0.3, batch=1000)),
    LOW,
)
FAMILY.faulty(
    "far-beyond-stability",
    "step_too_large",
    "easy",
    "Three times the stable step: the error grows fivefold per step until it overflows.",
    plan(lr=2.5, batch=1000),
    ("step 0.3", plan(lr=0.3, batch=1000)),
    LOW,
)
FAMILY.faulty(
    "stretched",
    "ill_conditioning",
    "easy",
    "Eigenvalues from 1 to 1e-5 at the step that the largest allows: half of the signal lies where 300 steps move nothing.",
    plan(stretch=1e5, lr=0.4, batch=1000, noise=0.01),
    ("whitened inputs", plan(stretch=1e5, whitened=True, lr=0.3, batch=1000, noise=0.01)),
    Success("training", 0.15),
    rivals=(
        ("steps of 1.2", plan(stretch=1e5, lr=1.2, batch=1000, noise=0.01)),
        ("steps of 0.13", plan(stretch=1e5, lr=0.13, batch=1000, noise=0.01)),
    ),
)
FAMILY.faulty(
    "somewhat-stretched",
    "ill_conditioning",
    "hard",
    "Eigenvalues from 1 to 3e-5, in batches: a third of the signal is out of reach of every stable step.",
    plan(stretch=3e4, lr=0.3, batch=200, noise=0.01),
    ("whitened inputs", plan(stretch=3e4, whitened=True, lr=0.1, batch=200, noise=0.01)),
    Success("training", 0.15),
    rivals=(
        ("steps of 0.9", plan(stretch=3e4, lr=0.9, batch=200, noise=0.01)),
        ("steps of 0.1", plan(stretch=3e4, lr=0.1, batch=200, noise=0.01)),
        ("all rows at each step", plan(stretch=3e4, lr=0.3, batch=1000, noise=0.01)),
    ),
)
FAMILY.faulty(
    "two-rows-a-step",
    "low_gradient_snr",
    "medium",
    "Noise of 16 times the signal's variance and two fresh rows a step: noise adds more per step than the mean gradient removes. Shorter "
    "steps that keep it down do not arrive in time.",
    plan(d=50, noise=16.0, lr=0.007, batch=2, fresh=True),
    ("batches of 64", plan(d=50, noise=16.0, lr=0.007, batch=64, fresh=True)),
    Success("validation", 16.3),
    rivals=(
        ("steps of 0.0023", plan(d=50, noise=16.0, lr=0.0023, batch=2, fresh=True)),
        ("steps of 0.0007", plan(d=50, noise=16.0, lr=0.0007, batch=2, fresh=True)),
    ),
)
FAMILY.faulty(
    "noisy-target",
    "bayes_floor",
    "easy",
    "Noise of four times the signal's variance, and the signal is learnt: four fifths of the constant answer's loss are noise.",
    plan(noise=4.0, rows=2000, batch=200, lr=0.1),
    ("targets without noise", plan(noise=0.0, rows=2000, batch=200, lr=0.1)),
    Success("training", 1.0),
    rivals=(
        ("steps of 0.01", plan(noise=4.0, rows=2000, batch=200, lr=0.01)),
        ("steps of 0.3", plan(noise=4.0, rows=2000, batch=200, lr=0.3)),
    ),
)
FAMILY.faulty(
    "as-many-weights-as-rows",
    "overfitting",
    "medium",
    "110 weights and 120 rows with noise: the fit is nearly exact, and the noise is carried into the weights many times over.",
    plan(d=110, rows=120, noise=0.5, batch=120, lr=0.2, steps=600),
    ("1,500 rows", plan(d=110, rows=1500, noise=0.5, batch=120, lr=0.1, steps=600)),
    Success("validation", 0.75),
)
FAMILY.faulty(
    "noisy-and-stretched",
    ("low_gradient_snr", "ill_conditioning"),
    "hard",
    "Noise of 16 times the signal's variance in batches of two, and half of the signal in directions that no stable step moves.",
    plan(d=50, noise=16.0, stretch=1e5, lr=0.007, batch=2, fresh=True),
    ("whitened inputs, in batches of 64", plan(d=50, noise=16.0, whitened=True, lr=0.007, batch=64, fresh=True)),
    Success("validation", 16.3),
    rivals=(
        ("batches of 64 alone", plan(d=50, noise=16.0, stretch=1e5, lr=0.007, batch=64, fresh=True)),
        ("whitened inputs alone", plan(d=50, noise=16.0, whitened=True, lr=0.007, batch=2, fresh=True)),
    ),
)
FAMILY.healthy("plain", "easy", "Whitened inputs at a good step.", plan(), LOW)
FAMILY.healthy(
    "some-noise",
    "medium",
    "A fifth of the targets' variance is noise, and all the rest is learnt: the loss stays at the noise.",
    plan(noise=0.25, rows=2000, batch=200),
    Success("training", 0.3),
)
FAMILY.healthy(
    "targets-in-hundreds",
    "hard",
    "Targets in other units: the loss is in the ten thousands, and falls as it does for targets of size one.",
    plan(units=300.0),
    Success("training", 18000.0),
)
FAMILY.healthy(
    "four-rows-a-step",
    "medium",
    "Four rows a step make every single loss jump; the step falls to zero, and the end is as good as any.",
    plan(batch=4, lr=0.02, falling=True, steps=500),
    LOW,
)
FAMILY.healthy(
    "converged-long-ago",
    "hard",
    "All rows at each step: after a tenth of the run the gradient is at rounding level, and nothing is left to do.",
    plan(batch=1000, lr=0.3, steps=500),
    LOW,
)
