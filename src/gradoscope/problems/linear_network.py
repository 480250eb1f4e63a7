"""Two linear layers: the saddle at the origin, and the same network started where it learns."""

import torch
from torch import Tensor, nn

from gradoscope.errors import Usage
from gradoscope.problems import problem
from gradoscope.problems._data import generator
from gradoscope.problems.curves import half_squared_error
from gradoscope.training import Training

__all__ = ["healthy", "saddle"]

SINGULAR_VALUES = (3.0, 2.0, 1.0)


def _orthogonal(rows: int, columns: int, random: torch.Generator) -> Tensor:
    """A matrix with orthonormal columns, uniform over all of them; shape (rows, columns), float64."""
    q, r = torch.linalg.qr(torch.randn(rows, columns, generator=random, dtype=torch.float64))
    unique: Tensor = q * r.diagonal().sign()
    return unique


def _data(seed: int, d: int, rows: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Inputs with second moment exactly I and their targets y = Gamma x; the same again for validation."""
    if d < len(SINGULAR_VALUES) or rows < d:
        raise Usage(f"a linear network needs d >= {len(SINGULAR_VALUES)} and rows >= d, got d={d}, rows={rows}.")
    random = generator(seed, 4, d)
    count = len(SINGULAR_VALUES)
    gamma = _orthogonal(d, count, random) * torch.tensor(SINGULAR_VALUES, dtype=torch.float64) @ _orthogonal(d, count, random).T
    pairs = []
    for _ in range(2):
        x = _orthogonal(rows, d, random) * rows**0.5
        pairs.append((x.float(), (x @ gamma.T).float()))
    return pairs[0], pairs[1]


def _network(d: int, std: float) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False))
    for layer in model:
        assert isinstance(layer, nn.Linear)
        nn.init.normal_(layer.weight, std=std)
    return model


def _training(name: str, seed: int, d: int, rows: int, std: float, lr: float, steps: int) -> Training:
    train, validation = _data(seed, d, rows)
    return Training(
        name=name,
        model=lambda: _network(d, std),
        optimizer=lambda params: torch.optim.SGD(params, lr=lr),
        loss_fn=half_squared_error,
        data=train,
        validation=validation,
        batch_size=rows,
        steps=steps,
    )


@problem(
    "linear-network:saddle",
    obstacle="saddle_point",
    says="Two linear layers that start at the origin but for 1e-8 of noise: gradient descent does not leave the saddle.",
    source="Saxe, McClelland and Ganguli 2014; the saddle of y = W2 W1 x at zero",
)
def saddle(*, seed: int = 0, d: int = 10, rows: int = 200, noise: float = 1e-8, lr: float = 0.02, steps: int = 200) -> Training:
    r"""Learn $y=\Gamma x$ with $W_2W_1$ from a start of standard deviation `noise`, by full-batch gradient descent.

    At zero the gradient vanishes and the Hessian has the eigenvalues $\pm\sigma_i(\Gamma)$, here 3, 2, 1. With whitened
    inputs the part of the start along the first of them grows as $(1+\eta\sigma_1)^t$: at the step size 0.02 and from
    1e-8 it takes about 320 steps to leave the plateau, and the training ends after 200.

    Args:
        seed: what the data are drawn from.
        d: width of inputs, hidden layer and outputs.
        rows: examples, all of them at each step.
        noise: standard deviation of the start.
        lr: step size.
        steps: optimizer steps.
    """
    return _training("linear-network:saddle", seed, d, rows, noise, lr, steps)


@problem(
    "linear-network:healthy",
    obstacle="healthy",
    says="The same two linear layers, started well away from the origin: they learn the target exactly.",
    source="Saxe, McClelland and Ganguli 2014",
)
def healthy(*, seed: int = 0, d: int = 10, rows: int = 200, std: float = 0.3, lr: float = 0.1, steps: int = 400) -> Training:
    """`linear-network:saddle` with a start of standard deviation `std` and a step size near the best one."""
    return _training("linear-network:healthy", seed, d, rows, std, lr, steps)
