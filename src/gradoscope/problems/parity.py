"""Parities of random subsets: a function that the network can express and that no gradient can find (F1)."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from gradoscope.errors import Usage
from gradoscope.problems import problem
from gradoscope.problems._data import generator
from gradoscope.training import Training

__all__ = ["Reader", "bulk_parity", "full_lstm", "hidden_subset", "hinge", "network", "parity", "sparse"]

SOURCE = "Shalev-Shwartz, Shamir and Shammah 2017, section 2.1 and figure 1"


def hidden_subset(d: int, seed: int, size: int = 0) -> Tensor:
    """The bits whose parity is the target, each taken with probability 1/2; boolean, shape (d,).

    Empty subsets and single bits are drawn again, and for d >= 20 all of fewer than 8 bits: a small subset can be
    learnt (measured: up to 6 of 30 bits at a larger step size), and it is the large ones that carry the theorem.

    Args:
        d: bits.
        seed: what the subset is drawn from.
        size: how many bits; 0 draws that too.

    Raises:
        Usage: where there are fewer than `size` bits.

    Example:
        >>> int(hidden_subset(30, seed=0).sum()) >= 8, int(hidden_subset(30, seed=0, size=3).sum())
        (True, 3)
    """
    if not 0 <= size <= d:
        raise Usage(f"a subset of {d} bits cannot have {size} of them.")
    draw = generator(seed, 2, d)
    if size:
        subset = torch.zeros(d, dtype=torch.bool)
        subset[torch.randperm(d, generator=draw)[:size]] = True
        return subset
    least = 8 if d >= 20 else 2
    while True:
        subset = torch.rand(d, generator=draw) < 0.5
        if int(subset.sum()) >= least:
            return subset


def hinge(score: Tensor, target: Tensor) -> Tensor:
    r"""The mean hinge loss $\frac1n\sum_i \max(0, 1-y_i s_i)$ of scores and targets in {-1, +1} of one shape."""
    return torch.relu(1 - target * score).mean()


def _accuracy(score: Tensor, target: Tensor) -> float:
    """The share of scores on the target's side of zero."""
    return float((score * target > 0).double().mean())


def network(d: int, width: int, depth: int = 1) -> nn.Sequential:
    """ReLU layers of one width and a linear score, with PyTorch's own start.

    Example:
        >>> [layer.out_features for layer in network(5, 50, depth=2) if isinstance(layer, nn.Linear)]
        [50, 50, 1]
    """
    layers: list[nn.Module] = []
    for fan_in in [d, *[width] * (depth - 1)]:
        layers += [nn.Linear(fan_in, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 1))


def _started(model: nn.Sequential) -> nn.Sequential:
    """Weights truncated normal with std 1/sqrt(fan in), no biases, drawn from the global generator."""
    for layer in model:
        if isinstance(layer, nn.Linear):
            std = 1 / math.sqrt(layer.in_features)
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(layer.bias)
    return model


def _bits(inputs: str) -> bool:
    if inputs not in ("signs", "bits"):
        raise Usage(
            f"inputs of a parity are signs (-1 and +1, as in the authors' code) or bits (0 and 1, as in their text), got {inputs!r}."
        )
    return inputs == "bits"


def _sampler(subset: Tensor, bits: bool = False) -> Callable[[torch.Generator, int], tuple[Tensor, Tensor]]:
    index = subset.nonzero().squeeze(-1)

    def sample(random: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        x = torch.randint(0, 2, (n, len(subset)), generator=random).float() * 2 - 1
        y = x[:, index].prod(dim=1, keepdim=True)
        return ((1 - x) / 2 if bits else x), y

    return sample


def bulk_parity(subset: Tensor, batch: int, inputs: str = "signs") -> Callable[[np.random.Generator, int], tuple[Tensor, Tensor]]:
    r"""What `stacked.bulk` draws: the inputs and parities of many batches at once, eight bits per random byte by tables.

    Args:
        subset: boolean, shape (d,).
        batch: B.
        inputs: "signs": $x\in\{-1,+1\}^d$, $y=\prod_{j\in S}x_j$; "bits": $x\in\{0,1\}^d$, $y=(-1)^{\sum_{j\in S}x_j}$.

    Returns:
        A function of (generator, n): x of shape (n, B, d) and y of shape (n, B, 1), float32.

    Example:
        >>> x, y = bulk_parity(torch.tensor([True, False, True]), 4)(np.random.default_rng(0), 2)
        >>> bool((x[..., 0] * x[..., 2] == y[..., 0]).all()), x.shape
        (True, torch.Size([2, 4, 3]))
    """
    d = len(subset)
    columns = -(-d // 8)
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.float32)
    values = np.ascontiguousarray((bits if _bits(inputs) else 1 - 2 * bits)[:, : min(d, 8)])
    taken = np.pad(subset.numpy(), (0, 8 * columns - d)).reshape(columns, 8)
    signs = [(1 - 2 * (bits[:, t].sum(1) % 2)).astype(np.float32) for t in taken]

    def draw(random: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
        raw = np.frombuffer(random.bytes(n * batch * columns), np.uint8).reshape(n * batch, columns)
        x = values.take(raw, axis=0).reshape(n, batch, -1)[:, :, :d]
        y = signs[0].take(raw[:, 0])
        for column in range(1, columns):
            y *= signs[column].take(raw[:, column])
        return torch.from_numpy(x), torch.from_numpy(y).reshape(n, batch, 1)

    return draw


class Reader(nn.Module):
    """An LSTM that reads the bits one after the other, with a score after each of them.

    Args:
        hidden: its size.
    """

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.reader = nn.LSTM(1, hidden, batch_first=True)
        self.score = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x of shape (n, T); the score after the last bit, shape (n, 1)."""
        return self.scores(x)[:, -1:]

    def scores(self, x: Tensor) -> Tensor:
        """The scores after each bit, shape (n, T)."""
        scores: Tensor = self.score(self.reader(x[..., None])[0])
        return scores[..., 0]


@problem(
    "parity",
    obstacle="uninformative_gradient",
    says="The parity of about half of d random bits: the gradient is nearly the same whichever bits they are.",
    source=SOURCE,
)
def parity(
    *,
    seed: int = 0,
    d: int = 30,
    width_factor: int = 10,
    depth: int = 1,
    size: int = 0,
    inputs: str = "signs",
    batch: int = 128,
    lr: float = 0.01,
    steps: int = 3000,
) -> Training:
    r"""Learn $y=\prod_{j\in S}x_j$, $x$ uniform on {-1,+1}^d, with ReLU layers of width `width_factor * d`.

    Hinge loss, plain SGD, fresh samples at each step. The variance of the gradient over the targets is at most
    $G^2/2^d$ (theorem 1), so d = 5 is learnt and d = 30 stays at chance; the network itself can express every parity.
    The paper trains for 50,000 steps; at d = 30 the loss is as flat after 3,000.

    Args:
        seed: what the subset S is drawn from.
        d: input dimension.
        width_factor: hidden units per input.
        depth: hidden layers.
        size: bits in S; 0 takes each with probability 1/2.
        inputs: "signs" are -1 and +1, as in the authors' code, "bits" are 0 and 1, as in their text.
        batch: fresh examples per step.
        lr: step size.
        steps: optimizer steps.

    Raises:
        Usage: where d is less than 2.
    """
    if d < 2:
        raise Usage(f"parity needs d of at least 2 bits, got d={d}.")
    sample = _sampler(hidden_subset(d, seed, size), _bits(inputs))
    return Training(
        name=f"parity:d={d}",
        model=lambda: _started(network(d, width_factor * d, depth)),
        optimizer=lambda params: torch.optim.SGD(params, lr=lr),
        loss_fn=hinge,
        data=sample,
        validation=sample,
        metric=_accuracy,
        batch_size=batch,
        steps=steps,
    )


@problem(
    "parity:sparse",
    obstacle="healthy",
    says="The parity of 2 of 30 bits at a larger step size: few enough bits for the gradient to know them, and it learns.",
    source=SOURCE,
)
def sparse(*, seed: int = 0, d: int = 30, size: int = 2, lr: float = 0.1, steps: int = 1500) -> Training:
    """`parity` with a subset of few bits: there are only about d^size / size! such targets."""
    return parity(seed=seed, d=d, size=size, lr=lr, steps=steps)


@problem(
    "parity:full-lstm",
    obstacle="healthy",
    says="The parity of all d bits, known in advance, read bit by bit by an LSTM: it learns what the random subset hides.",
    source=SOURCE,
)
def full_lstm(
    *, seed: int = 0, d: int = 30, hidden: int = 16, batch: int = 128, lr: float = 0.01, steps: int = 800, mixed: bool = True
) -> Training:
    r"""Learn $y=\prod_{j\le T}x_j$ with an LSTM over the bits, hinge loss, Adam.

    Each batch has words of one length T, uniform in 1...d: the short ones teach the flip that the long ones repeat. With words of
    d bits alone (`mixed=False`) the same training stays at chance.

    Args:
        seed: not used by the target, which is the full parity; kept for the command line.
        d: the longest word, and the length on which it is validated.
        hidden: size of the LSTM.
        batch: fresh words per step.
        lr: step size of Adam.
        steps: optimizer steps.
        mixed: words of all lengths.

    Raises:
        Usage: where d is less than 1.
    """
    if d < 1:
        raise Usage(f"parity needs words of at least one bit, got d={d}.")

    def words(random: torch.Generator, n: int, length: int) -> tuple[Tensor, Tensor]:
        x = torch.randint(0, 2, (n, length), generator=random).float() * 2 - 1
        return x, x.prod(dim=1, keepdim=True)

    def sample(random: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        return words(random, n, int(torch.randint(1, d + 1, (1,), generator=random)) if mixed else d)

    return Training(
        name=f"parity:full-lstm,d={d}",
        model=lambda: Reader(hidden),
        optimizer=lambda params: torch.optim.Adam(params, lr=lr),
        loss_fn=hinge,
        data=sample,
        validation=lambda random, n: words(random, n, d),
        metric=_accuracy,
        batch_size=batch,
        steps=steps,
    )
