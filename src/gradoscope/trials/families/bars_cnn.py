"""Images of bars with noise, and a small convolutional network."""

import torch
from torch import Tensor, nn

from gradoscope.training import Training
from gradoscope.trials.families._make import accuracy, adam, generator, planner, scaled, sgd
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("bars-cnn", "cnn", 1.5e-3)
SIZE = 10


def network(
    depth: int, width: int, activation: type[nn.Module], *, norm: bool, gain: float, equal: bool, dead: float, softmax: bool
) -> nn.Sequential:
    """`depth` convolutions of 3x3 with pooling after the first, the mean over the image, four scores."""
    layers: list[nn.Module] = []
    before = 1
    for i in range(depth):
        layers.append(nn.Conv2d(before, width, 3, padding=1))
        if norm:
            layers.append(nn.BatchNorm2d(width))
        layers.append(activation())
        if i == 0:
            layers.append(nn.MaxPool2d(2))
        before = width
    made = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))
    scaled(made, gain)
    with torch.no_grad():
        if equal:
            for p in made.parameters():
                p.fill_(0.1)
        if dead:
            convolutions = [m for m in made if isinstance(m, nn.Conv2d)]
            assert convolutions[-1].bias is not None
            convolutions[-1].bias.fill_(dead)
    return made.append(nn.Softmax(dim=-1)) if softmax else made


def make(
    seed: int,
    *,
    lr: float = 0.1,
    use_adam: bool = False,
    depth: int = 2,
    width: int = 8,
    activation: type[nn.Module] = nn.ReLU,
    norm: bool = False,
    gain: float = 1.0,
    equal: bool = False,
    dead: float = 0.0,
    softmax: bool = False,
    noise: float = 0.5,
    flipped: float = 0.0,
    offset: float = 0.0,
    rows: int = 1000,
    batch: int = 50,
    steps: int = 250,
    head_only: bool = False,
    momentum: float = 0.9,
    shares: tuple[float, ...] = (1, 1, 1, 1),
) -> Training:
    """A bar somewhere in the image: lying, standing, or along one of two diagonals; pixels have mean zero and about unit spread."""
    random = generator(seed, 33)

    def sample(n: int) -> tuple[Tensor, Tensor]:
        kind = torch.multinomial(torch.tensor(shares, dtype=torch.float32), n, replacement=True, generator=random)
        i, j = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
        place = torch.randint(2, SIZE - 2, (n, 1, 1), generator=random)
        lies, stands = (i == place), (j == place)
        falls, rises = (i - j == place - SIZE // 2), (i + j == place + SIZE // 2)
        bars = torch.stack([lies, stands, falls, rises], 1)[torch.arange(n), kind].float()
        x = 3 * (bars - bars.mean()) + noise * torch.randn(n, SIZE, SIZE, generator=random)
        lot = torch.rand(n, generator=random) < flipped
        y = torch.where(lot, torch.randint(0, 4, (n,), generator=random), kind)
        return x[:, None] + offset, y

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        parameters = [p for m in model if isinstance(m, nn.Linear) for p in m.parameters()] if head_only else model.parameters()  # type: ignore[attr-defined]  # a Sequential
        made: torch.optim.Optimizer = adam(lr)(parameters) if use_adam else sgd(lr, momentum=momentum)(parameters)
        return made

    return Training(
        name="bars-cnn",
        model=lambda: network(depth, width, activation, norm=norm, gain=gain, equal=equal, dead=dead, softmax=softmax),
        optimizer=optimizer,
        loss_fn=nn.functional.cross_entropy,
        data=sample(rows),
        validation=sample(400),
        metric=accuracy,
        batch_size=batch,
        steps=steps,
    )


plan = planner(make)


SEEN = Success("training", 0.35)

FAMILY.faulty(
    "tiny-step",
    "step_too_small",
    "easy",
    "A step of a thousandth of a good one.",
    plan(lr=1e-4),
    ("step 0.1", plan()),
    SEEN,
)
FAMILY.faulty(
    "huge-step",
    "step_too_large",
    "easy",
    "Steps of 10 with momentum.",
    plan(lr=10.0),
    ("step 0.1", plan()),
    SEEN,
    rivals=(("batches of 400", plan(lr=10.0, batch=400)),),
)
FAMILY.faulty(
    "equal-filters",
    "saddle_point",
    "medium",
    "All weights start at 0.1: the filters stay copies of one another, and a flat one does not see which way a bar runs.",
    plan(equal=True, noise=1.0),
    ("a random start", plan(noise=1.0)),
    SEEN,
    rivals=(("steps of 0.01", plan(equal=True, noise=1.0, lr=0.01)),),
)
FAMILY.faulty(
    "dead-filters",
    "vanishing_gradient",
    "medium",
    "The last convolution's biases are at -30: no ReLU behind it ever fires.",
    plan(dead=-30.0),
    ("the usual biases", plan()),
    SEEN,
    rivals=(("steps of 1", plan(dead=-30.0, lr=1.0)), ("steps of 0.01", plan(dead=-30.0, lr=0.01))),
)
FAMILY.faulty(
    "seven-sigmoid-layers",
    "vanishing_gradient",
    "easy",
    "Seven convolutions with sigmoids.",
    plan(depth=7, activation=nn.Sigmoid),
    ("ReLU with batch normalisation", plan(depth=7, norm=True)),
    SEEN,
    rivals=(("steps of 1", plan(depth=7, activation=nn.Sigmoid, lr=1.0)),),
)
FAMILY.faulty(
    "counts-with-offset",
    "unnormalised_inputs",
    "medium",
    "Pixels around 60 with unit spread, as counts over a bright background have it: the offset takes the whole step for itself.",
    plan(offset=60.0, lr=1e-4),
    ("pixels around zero, and the step that they allow", plan()),
    SEEN,
    rivals=(("steps of 1e-3", plan(offset=60.0, lr=1e-3)), ("steps of 1e-5", plan(offset=60.0, lr=1e-5))),
)
FAMILY.faulty(
    "two-softmax",
    "wrong_loss_output",
    "medium",
    "A softmax before cross-entropy's own.",
    plan(softmax=True, lr=0.05),
    ("without the softmax", plan(lr=0.05)),
    SEEN,
)
FAMILY.faulty(
    "head-only",
    "frozen_parameters",
    "easy",
    "Only the last layer was handed to the optimizer: the mean of four random filters does not say which way a bar runs.",
    plan(width=4, head_only=True),
    ("all layers trained", plan(width=4)),
    SEEN,
    rivals=(("steps of 1", plan(width=4, head_only=True, lr=1.0)),),
)
FAMILY.faulty(
    "thirty-images",
    "overfitting",
    "medium",
    "Thirty noisy images are learnt by heart.",
    plan(rows=30, noise=2.0, batch=20, width=16, lr=0.05),
    ("2,000 images", plan(rows=2000, noise=2.0, batch=20, width=16, lr=0.05)),
    Success("validation", 1.2),
)
FAMILY.faulty(
    "guessed-labels",
    "bayes_floor",
    "medium",
    "Three in four labels are drawn at random.",
    plan(flipped=0.75, rows=4000, batch=100, lr=0.03),
    ("the true labels", plan(rows=4000, batch=100, lr=0.03)),
    Success("training", 0.7),
    rivals=(("steps of 0.01", plan(flipped=0.75, rows=4000, batch=100, lr=0.01)),),
)
FAMILY.faulty(
    "offset-and-two-softmax",
    ("unnormalised_inputs", "wrong_loss_output"),
    "hard",
    "Pixels around 60, and a softmax before cross-entropy's own.",
    plan(offset=60.0, softmax=True, lr=0.05),
    ("pixels around zero, and no softmax", plan(lr=0.05)),
    SEEN,
    rivals=(("pixels around zero alone", plan(softmax=True, lr=0.05)), ("no softmax alone", plan(offset=60.0, lr=0.05))),
)
FAMILY.faulty(
    "two-images-a-step",
    "low_gradient_snr",
    "medium",
    "Three in five labels are drawn at random, and two images make a step: they hardly ever agree on a direction.",
    plan(flipped=0.6, rows=4000, batch=2, lr=0.02, steps=300),
    ("batches of 250", plan(flipped=0.6, rows=4000, batch=250, lr=0.02, steps=300)),
    Success("metric", 0.42, above=True),
    rivals=(("steps of 0.003", plan(flipped=0.6, rows=4000, batch=2, lr=0.003, steps=300)),),
)
FAMILY.healthy("plain", "easy", "Two convolutions see which way a bar runs.", plan(), SEEN)
FAMILY.healthy("six-layers-with-norm", "medium", "Six convolutions with batch normalisation.", plan(depth=6, norm=True, lr=0.05), SEEN)
FAMILY.healthy(
    "rare-kinds",
    "hard",
    "Four bars in five lie: the loss starts low, and accuracy high.",
    plan(shares=(0.8, 0.1, 0.05, 0.05), steps=300),
    Success("training", 0.12),
)
FAMILY.healthy(
    "eight-images-a-step",
    "medium",
    "Eight images a step: single losses jump from a hundredth to one.",
    plan(batch=8, lr=0.02, steps=500),
    SEEN,
)
