r"""Predict and Constrain (Brukhim and Globerson 2018): labels that maximise a score, given how many there are; both are learnt.

The score of labels $u\in[0,1]^L$ is $\langle u,F(x)\rangle+w\cdot\mathrm{relu}(W^\top u)$ and their number $z=h(x)$ is the mean of a
softmax over 1..m. Inference climbs the score for T steps with momentum, and after each step goes back to $\{0\le u\le1,\ \sum u=z\}$.
It is part of the network: the loss, a soft F1 of all iterates, is differentiated through all steps and projections.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from gradoscope.errors import Usage
from gradoscope.stacked import stack
from gradoscope.structured.projections import dykstra, project_sum

__all__ = [
    "Constraint",
    "PredictAndConstrain",
    "example_f1",
    "f1_scores",
    "mlp",
    "soft_f1",
    "soft_f1_loss",
    "stack_networks",
    "top_labels",
]

Constraint = Literal["exact", "dykstra", "smooth", "box"]


def mlp(inputs: int, hidden: int, outputs: int, *, drop: tuple[float, float] = (0.0, 0.0)) -> nn.Sequential:
    """One hidden layer of ReLUs.

    Args:
        inputs: how many.
        hidden: units.
        outputs: how many.
        drop: the share of inputs and of hidden units that dropout takes away in training.
    """
    first, second = (nn.Dropout(share) if share else nn.Identity() for share in drop)
    return nn.Sequential(first, nn.Linear(inputs, hidden), nn.ReLU(), second, nn.Linear(hidden, outputs))


def stack_networks(networks: Sequence[nn.Module]) -> nn.Module:
    """`stacked.stack` for such networks: dropout acts on all of the stack alike in law."""
    layers = [list(n.children()) for n in networks]
    return nn.Sequential(*(c[0] if isinstance(c[0], nn.Dropout) else stack(c) for c in zip(*layers, strict=True)))


class PredictAndConstrain(nn.Module):
    r"""Unrolled inference under a predicted number of labels.

    Steps: $u_0=\sigma(F(x))$, $v\leftarrow\mu v+\eta\,\partial s/\partial u$, $u\leftarrow\Pi(u+v)$ for t = 1..T, where $\Pi$ is

    - "exact": the projection on $\{0\le u\le1,\sum u=z\}$ with its implicit gradient;
    - "dykstra": `rounds` rounds of Dykstra's algorithm with the exact simplex step (2 as published);
    - "smooth": the same with the published smooth step, which keeps the sum only roughly;
    - "box": no constraint on the number, $u\in[0,1]^L$.

    Args:
        features: inputs d.
        labels: L.
        most: m, the largest number of labels that the head can predict.
        hidden: units of F and of the head h.
        units: of the global term.
        constraint: which projection.
        steps: T.
        rate: eta.
        momentum: mu.
        rounds: of Dykstra's algorithm.
        sharpness: of the smooth step; training may raise it.
        inner: the same inside, see `smooth_simplex`.
        drop: dropout of inputs and hidden units, of both networks.

    Raises:
        Usage: for another constraint, or sizes below 1.

    Cost: T projections of L numbers per example, T products with the L x units matrix, beside the two networks.

    Example:
        >>> model = PredictAndConstrain(5, 8, most=3, hidden=4)
        >>> u = model(torch.zeros(2, 5))
        >>> u.shape, bool(torch.allclose(u[:, -1].sum(-1), model.count(torch.zeros(2, 5)), atol=1e-5))
        (torch.Size([2, 15, 8]), True)
    """

    def __init__(
        self,
        features: int,
        labels: int,
        *,
        most: int = 3,
        hidden: int = 150,
        units: int = 16,
        constraint: Constraint = "exact",
        steps: int = 15,
        rate: float = 0.005,
        momentum: float = 0.9,
        rounds: int = 2,
        sharpness: float = 1.0,
        inner: float = 1.0,
        drop: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__()
        if constraint not in get_args(Constraint):
            raise Usage(f"`constraint` must be one of {', '.join(get_args(Constraint))}, got {constraint!r}.")
        if min(features, labels, most, hidden, units, steps, rounds) < 1:
            raise Usage("features, labels, most, hidden, units, steps and rounds must be at least 1.")
        self.constraint: Constraint = constraint
        self.steps, self.rate, self.momentum, self.rounds = steps, rate, momentum, rounds
        self.sharpness, self.inner, self.most = sharpness, inner, most
        self.score: nn.Module = mlp(features, hidden, labels, drop=drop)
        self.head: nn.Module = mlp(features, hidden, most, drop=drop)
        self.words = nn.Parameter(torch.empty(labels, units))
        self.weights = nn.Parameter(torch.empty(units))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw another start of the global term; the layers have their own."""
        with torch.no_grad():
            self.words.normal_(std=self.words.shape[-2] ** -0.5)
            self.weights.normal_(std=self.weights.shape[-1] ** -0.5)

    @classmethod
    def stacked(cls, models: Sequence["PredictAndConstrain"]) -> "PredictAndConstrain":
        """One model that computes what S of them compute, each on its own slice (S, B, d); the parameters are copies."""
        first = models[0]
        labels, units = first.words.shape
        found = cls(1, labels, most=first.most, hidden=1, units=units, constraint=first.constraint, steps=first.steps, rounds=first.rounds)
        found.rate, found.momentum, found.sharpness, found.inner = first.rate, first.momentum, first.sharpness, first.inner
        found.score, found.head = stack_networks([m.score for m in models]), stack_networks([m.head for m in models])
        found.words = nn.Parameter(torch.stack([m.words.detach() for m in models]))
        found.weights = nn.Parameter(torch.stack([m.weights.detach()[None] for m in models]))
        return found

    def count(self, x: Tensor) -> Tensor:
        r"""The number of labels $z=\sum_c c\,p_c$, $c\in1..m$; shape (..., B)."""
        chances = torch.softmax(self.head(x), -1)
        return chances @ torch.arange(1, self.most + 1, dtype=chances.dtype, device=chances.device)

    def slope(self, scores: Tensor, u: Tensor) -> Tensor:
        """The gradient of the score in u, in closed form: F(x) + W (w on the units that are on)."""
        on = (u @ self.words > 0).to(u.dtype)
        return scores + (on * self.weights) @ self.words.mT

    def project(self, u: Tensor, z: Tensor | None) -> Tensor:
        """Back to the constraint."""
        if z is None:
            return u.clamp(0, 1)
        if self.constraint == "exact":
            return project_sum(u, z)
        smooth = self.constraint == "smooth"
        return dykstra(u, z, self.rounds, smooth=smooth, sharpness=self.sharpness, inner=self.inner)

    def forward(self, x: Tensor) -> Tensor:
        """x of shape (..., B, d); returns all iterates, shape (..., B, T, L): the last one is the prediction."""
        return self.infer(self.score(x), None if self.constraint == "box" else self.count(x))

    def infer(self, scores: Tensor, z: Tensor | None) -> Tensor:
        """The iterates for these scores F(x), shape (..., B, L), and numbers of labels (..., B); None for no constraint."""
        u = torch.sigmoid(scores)
        speed = torch.zeros_like(u)
        found = []
        for _ in range(self.steps):
            speed = self.momentum * speed + self.rate * self.slope(scores, u)
            u = self.project(u + speed, z)
            found.append(u)
        return torch.stack(found, -2)


def soft_f1(u: Tensor, y: Tensor) -> Tensor:
    r"""$2\langle u,y\rangle/(\sum u+\sum y)$ of each row; 0 where both are empty."""
    return 2 * (u * y).sum(-1) / (u.sum(-1) + y.sum(-1)).clamp(min=1e-9)


def soft_f1_loss(iterates: Tensor, y: Tensor) -> Tensor:
    r"""Minus the soft F1 of all iterates, $-\frac1T\sum_t\frac{1}{T-t+1}\mathrm{F1}(u_t,y)$, mean over examples: later steps count more.

    Args:
        iterates: shape (..., B, T, L).
        y: labels, shape (..., B, L).

    Returns:
        shape (...): one number per stacked model.

    Example:
        >>> y = torch.tensor([[1.0, 0.0]])
        >>> float(soft_f1_loss(y[:, None, :], y))
        -1.0
    """
    steps = iterates.shape[-2]
    weight = 1 / torch.arange(steps, 0, -1, dtype=iterates.dtype, device=iterates.device)
    return -(soft_f1(iterates, y[..., None, :]) @ weight).mean(-1) / steps


def top_labels(scores: Tensor, count: Tensor) -> Tensor:
    """The labels of the `count` largest scores of each row, 0 or 1; count of shape (...) is rounded.

    Example:
        >>> top_labels(torch.tensor([[0.1, 0.9, 0.5]]), torch.tensor([2])).tolist()
        [[0.0, 1.0, 1.0]]
    """
    rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return (rank < count.round()[..., None]).to(scores.dtype)


def example_f1(labels: Tensor, y: Tensor) -> Tensor:
    """F1 of each example, 2 |both| / (|predicted| + |true|); 0 where both are empty. Mean over the rows is the example-averaged F1.

    Example:
        >>> example_f1(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])).tolist()
        [0.6666666865348816, 0.0]
    """
    return 2 * (labels * y).sum(-1) / (labels.sum(-1) + y.sum(-1)).clamp(min=1)


def f1_scores(labels: Tensor, y: Tensor) -> dict[str, float]:
    """F1 averaged over examples ("f1"), over all decisions ("micro") and over labels ("macro"), and the mean number of labels.

    Args:
        labels: predicted, 0 or 1, shape (n, L).
        y: true, the same shape.
    """
    both, size = (labels * y).sum(0).double(), (labels + y).sum(0).double()
    return {
        "f1": float(example_f1(labels, y).double().mean()),
        "micro": float(2 * both.sum() / size.sum().clamp(min=1)),
        "macro": float((2 * both / size.clamp(min=1)).mean()),
        "predicted": float(labels.sum(-1).double().mean()),
        "true": float(y.sum(-1).double().mean()),
    }
