"""Products of single weights, whose surface is flat near the origin, and a logistic loss that has no minimum at all."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradoscope.errors import Usage
from gradoscope.problems import problem
from gradoscope.problems._data import generator
from gradoscope.training import Training

__all__ = ["deep", "healthy", "mixed_signs", "plateau", "separable"]

SLIDES = "Goodfellow 2015, Montreal deep learning summer school: linear view of the difficulty, factored linear loss function"


def _data(seed: int, rows: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Inputs of mean square exactly 1, and targets equal to them; the same again for validation."""
    random = generator(seed, 31)
    pairs = []
    for _ in range(2):
        x = torch.randn(rows, 1, generator=random)
        x = x / x.square().mean().sqrt()
        pairs.append((x, x.clone()))
    return pairs[0], pairs[1]


def _product(weights: list[float]) -> Callable[[], nn.Module]:
    def model() -> nn.Module:
        layers = [nn.Linear(1, 1, bias=False) for _ in weights]
        for layer, weight in zip(layers, weights, strict=True):
            nn.init.constant_(layer.weight, weight)
        return nn.Sequential(*layers)

    return model


def _training(name: str, seed: int, weights: list[float], rows: int, lr: float, steps: int) -> Training:
    if len(weights) < 2:
        raise Usage(f"a product needs at least 2 layers, got {len(weights)}.")
    train, validation = _data(seed, rows)
    return Training(
        name=name,
        model=_product(weights),
        optimizer=lambda params: torch.optim.SGD(params, lr=lr),
        loss_fn=nn.functional.mse_loss,
        data=train,
        validation=validation,
        batch_size=rows,
        steps=steps,
        noise_free=True,
    )


@problem(
    "factored:plateau",
    obstacle="saddle_point",
    says="y = w1 w2 w3 w4 w5 x near the origin: gradient and curvature vanish together, and gradient descent stays on the plateau.",
    source=SLIDES,
)
def plateau(*, seed: int = 0, layers: int = 5, weight: float = 0.1, rows: int = 64, lr: float = 0.05, steps: int = 400) -> Training:
    r"""Learn $y=x$ with a product of `layers` weights that all start at `weight`, by full-batch gradient descent.

    The gradient by each is $-2w^{L-1}(1-w^L)$, 2e-4 at the start, while the Hessian has the eigenvalue $-2(L-1)w^{L-2}$ along the
    common direction: the neighbourhood of a degenerate saddle. To leave it takes a time of $w^{2-L}/(2(L-2))$, thus some 3,300 steps.

    Args:
        seed: what the data are drawn from.
        layers: L, how many weights.
        weight: where all of them start.
        rows: examples, all of them at each step.
        lr: step size.
        steps: optimizer steps.
    """
    return _training("factored:plateau", seed, [weight] * layers, rows, lr, steps)


@problem(
    "factored:deep",
    obstacle="saddle_point",
    says="A product of ten weights that start at 0.4: weights that are not small at all have a product of 1e-4, and a gradient of 5e-4.",
    source=SLIDES,
)
def deep(*, seed: int = 0, layers: int = 10, weight: float = 0.4, rows: int = 64, lr: float = 0.02, steps: int = 400) -> Training:
    """`factored:plateau` with ten layers."""
    return _training("factored:deep", seed, [weight] * layers, rows, lr, steps)


@problem(
    "factored:mixed-signs",
    obstacle="saddle_point",
    says="Two factors on the axis a = -b: gradient descent runs into the saddle at the origin, and stays.",
    source="Perraudin and Hofmann 2018, l(a, b) = (sigma - ab)^2; Saxe, McClelland and Ganguli 2014",
)
def mixed_signs(*, seed: int = 0, weight: float = 0.8, rows: int = 64, lr: float = 0.05, steps: int = 120) -> Training:
    r"""Two weights, `weight` and -`weight`: the stable manifold of the saddle.

    What rounding puts beside it grows as $e^{2\eta t}$ in t steps, from 1e-8 to some 1e-3 in the 120 of this training.
    """
    return _training("factored:mixed-signs", seed, [weight, -weight], rows, lr, steps)


@problem(
    "factored:healthy",
    obstacle="healthy",
    says="The product of five weights started at 0.8, where its derivative is of order one: it is learnt exactly.",
    source=SLIDES,
)
def healthy(*, seed: int = 0, layers: int = 5, weight: float = 0.8, rows: int = 64, lr: float = 0.05, steps: int = 400) -> Training:
    """`factored:plateau` with a start at `weight`."""
    return _training("factored:healthy", seed, [weight] * layers, rows, lr, steps)


@problem(
    "factored:separable",
    obstacle="healthy",
    says="Logistic regression on separable classes: no critical point anywhere, the loss falls as 1/t while the weights grow without end.",
    source="Goodfellow 2015: some functions lack critical points",
)
def separable(*, seed: int = 0, d: int = 5, rows: int = 200, gap: float = 1.0, lr: float = 1.0, steps: int = 500) -> Training:
    r"""Two classes on both sides of a plane at a distance of at least `gap` / 2, by full-batch gradient descent on the logistic loss.

    Where w separates, $J(cw)$ falls for ever as c grows: the infimum 0 is not attained, $|w|$ grows as ln t and J falls as 1/t.

    Args:
        seed: what the data are drawn from.
        d: inputs.
        rows: examples, all of them at each step.
        gap: width of the empty strip between the classes.
        lr: step size.
        steps: optimizer steps.
    """
    random = generator(seed, 32, d)
    normal = nn.functional.normalize(torch.randn(d, generator=random), dim=0)
    pairs = []
    for _ in range(2):
        x = torch.randn(rows, d, generator=random)
        side = torch.where(x @ normal >= 0, 1.0, -1.0)
        pairs.append((x + gap / 2 * side[:, None] * normal, (side[:, None] + 1) / 2))
    return Training(
        name="factored:separable",
        model=lambda: nn.Linear(d, 1),
        optimizer=lambda params: torch.optim.SGD(params, lr=lr),
        loss_fn=nn.functional.binary_cross_entropy_with_logits,
        data=pairs[0],
        validation=pairs[1],
        batch_size=rows,
        steps=steps,
    )
