"""Do loss, output and targets fit together? Found from the graph of the output and from what the loss does to other outputs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["INVERSES", "Mismatch", "last_activation", "mismatches"]

Loss = Callable[[Any, Any], Tensor]
TOLERANCE = 1e-4
TINY = 1e-30
REACHED = 0.01  # the share of targets that may lie outside of what the output can reach

# What only changes the shape, the type or the place of an output, and not its values.
_PASSED = ("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Transpose", "T", "Permute", "Alias", "Clone", "ToCopy", "Expand")
_ACTIVATIONS = {
    "Sigmoid": "sigmoid",
    "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
    "Relu": "relu",
    "Tanh": "tanh",
    "Softplus": "softplus",
}
INVERSES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda p: p.clamp_min(TINY).log(),  # up to a constant per row, which a softmax does not feel
    "sigmoid": lambda p: torch.logit(p, eps=1e-7),
    "tanh": lambda a: torch.atanh(a.clamp(-1 + 1e-7, 1 - 1e-7)),
    "none": lambda z: z,
}
_RANGES = {"sigmoid": (0.0, 1.0), "softmax": (0.0, 1.0), "relu": (0.0, float("inf")), "softplus": (0.0, float("inf")), "tanh": (-1.0, 1.0)}


@dataclass(frozen=True)
class Mismatch:
    """A loss, an output and targets that do not fit together.

    Attributes:
        says: what is wrong.
        activation: the last activation, which must be left out; "none" where it can stay.
        repaired: the loss that fits, of the output without that activation and the targets.
        fitting: by what the output as it is is judged against that: the loss as given where it is the same one, else the same loss of
            the same prediction.
        code: how a user mends it.
    """

    says: str
    activation: str
    repaired: Loss
    fitting: Loss
    code: str


def last_activation(output: Tensor) -> str:
    """The name of the activation that an output comes from, by its graph; "none" where it comes from something else.

    Example:
        >>> x = torch.ones(2, 3, requires_grad=True)
        >>> last_activation(torch.softmax(x, dim=1)), last_activation(x @ x.T)
        ('softmax', 'none')
    """
    node = output.grad_fn
    while node is not None:
        name = node.name().rstrip("0123456789").removesuffix("Backward")
        if name in _ACTIVATIONS:
            return _ACTIVATIONS[name]
        if name not in _PASSED or not node.next_functions:
            return "none"
        node = node.next_functions[0][0]
    return "none"


def mismatches(loss_fn: Loss, output: Tensor, target: Any) -> list[Mismatch]:
    r"""What does not fit between a loss, an output and its targets, most certain first.

    - the loss applies a softmax or a sigmoid of its own (it does not feel a constant added to each row, or equals the
      binary cross-entropy of logits), and the output comes from an activation already;
    - the loss is $-\sum_ny_{n,t_n}$, which wants log-probabilities, and the output is none;
    - the loss is a squared error of probabilities against zeros and ones;
    - the targets lie where the output's activation cannot reach;
    - output and targets differ in shape, and are broadcast against each other.

    Args:
        loss_fn: of (output, target).
        output: with its graph, shape (n, ...).
        target: as the loss takes it.

    Returns:
        Nothing where all fits.

    Cost: some ten evaluations of the loss, none of the model.

    Example:
        >>> z, t = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), requires_grad=True), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
        >>> [m.activation for m in mismatches(F.cross_entropy, z.softmax(1), t)], mismatches(F.cross_entropy, z, t)
        (['softmax'], [])
    """
    if not isinstance(target, Tensor) or not output.is_floating_point() or output.dim() == 0 or len(output) < 2:
        return []
    activation = last_activation(output)
    plain = output.detach()
    found: list[Mismatch] = []
    for rule in (_own_activation, _wants_logarithms, _squared_probabilities, _out_of_reach, _broadcast):
        try:
            found += rule(loss_fn, plain, target, activation)
        except (RuntimeError, ValueError, TypeError, IndexError):
            continue  # a loss that refuses other outputs than the model's: this rule cannot be asked
    return found


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(torch.isclose(a.double(), b.double(), rtol=TOLERANCE, atol=1e-7).all())


def _other(like: Tensor, seed: int = 0) -> Tensor:
    """Random outputs of the same shape."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=random).to(like)


def _softmaxes(loss_fn: Loss, output: Tensor, target: Tensor) -> bool:
    """Whether the loss does not feel a number added to all scores of a row, but feels their size."""
    if output.dim() < 2 or output.shape[1] < 2:
        return False
    z = _other(output)
    shift = _other(output[:, :1], seed=1)
    here = loss_fn(z, target)
    return _same(here, loss_fn(z + 5 * shift, target)) and not _same(here, loss_fn(2 * z, target))


def _sigmoids(loss_fn: Loss, output: Tensor, target: Tensor) -> bool:
    """Whether the loss is the binary cross-entropy of logits."""
    if target.shape != output.shape or not bool(((target == 0) | (target == 1)).all()):
        return False
    z = 3 * _other(output)
    return _same(loss_fn(z, target), F.binary_cross_entropy_with_logits(z, target.to(z)))


def _own_activation(loss_fn: Loss, output: Tensor, target: Tensor, activation: str) -> Iterator[Mismatch]:
    if activation in ("none", "log_softmax"):
        return
    code = "return self.last(x)  # scores as they are: the loss applies the softmax or sigmoid itself"
    own = "softmax" if _softmaxes(loss_fn, output, target) else "sigmoid" if _sigmoids(loss_fn, output, target) else None
    if own is not None:
        says = f"the loss takes scores and applies a {own} itself, but the output has been through a {activation}"
        yield Mismatch(says, activation, loss_fn, loss_fn, code)


def _wants_logarithms(loss_fn: Loss, output: Tensor, target: Tensor, activation: str) -> Iterator[Mismatch]:
    if activation == "log_softmax" or output.dim() < 2 or target.is_floating_point():
        return
    if bool((output.logsumexp(1).abs() < 1e-3).all()):
        return  # logarithms of probabilities, made in another way
    z = _other(output)
    if not _same(loss_fn(z, target), F.nll_loss(z, target)):
        return
    if activation == "softmax":
        says = "the loss takes logarithms of probabilities, but is given the probabilities themselves"

        def of_probabilities(p: Tensor, t: Tensor) -> Tensor:
            return F.nll_loss(p.clamp_min(TINY).log(), t)

        yield Mismatch(says, "softmax", F.cross_entropy, of_probabilities, "return torch.log_softmax(self.last(x), dim=1)")
    elif activation == "none":
        says = "the loss takes logarithms of probabilities, but is given scores: it has no lower bound"
        yield Mismatch(says, "none", F.cross_entropy, F.cross_entropy, "return torch.log_softmax(self.last(x), dim=1)")


def _squared_probabilities(loss_fn: Loss, output: Tensor, target: Tensor, activation: str) -> Iterator[Mismatch]:
    if activation not in ("softmax", "sigmoid") or target.shape != output.shape or not bool(((target == 0) | (target == 1)).all()):
        return
    z = _other(output)
    if not _same(loss_fn(z, target), F.mse_loss(z, target.to(z))):
        return
    says = f"the loss is a squared error, whose gradient vanishes where the {activation} is sure of a wrong answer"
    if activation == "sigmoid":

        def fitting(p: Tensor, t: Tensor) -> Tensor:
            return F.binary_cross_entropy(p.clamp(0, 1), t.to(p))

        def repaired(z: Tensor, t: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(z, t.to(z))

        yield Mismatch(says, activation, repaired, fitting, "loss = F.binary_cross_entropy_with_logits(scores, y)")
    elif bool((target.sum(-1) == 1).all()):

        def fitting(p: Tensor, t: Tensor) -> Tensor:
            return -(t * p.clamp_min(TINY).log()).sum(-1).mean()

        def repaired(z: Tensor, t: Tensor) -> Tensor:
            return -(t * z.log_softmax(-1)).sum(-1).mean()

        yield Mismatch(says, activation, repaired, fitting, "loss = F.cross_entropy(scores, y.argmax(-1))")


def _out_of_reach(loss_fn: Loss, output: Tensor, target: Tensor, activation: str) -> Iterator[Mismatch]:
    if activation not in _RANGES or target.shape != output.shape or not target.is_floating_point():
        return
    low, high = _RANGES[activation]
    outside = float(((target < low) | (target > high)).double().mean())
    # The lowest loss must be at the targets themselves: a hinge loss on -1 and 1 does not ask for them, and what is paid for shares of
    # a purse has no lowest value at all once the shares are free.
    there = float(loss_fn(target.to(output), target))
    spread = target.double().std().to(output)
    others = (2 * target.to(output), target.to(output) + spread * _other(output), target.to(output) - spread * _other(output))
    if outside <= REACHED or there >= float(loss_fn(target.clamp(low, high).to(output), target)):
        return
    if any(float(loss_fn(z, target)) < there for z in others):
        return
    says = f"{outside:.0%} of the targets lie where a {activation} cannot reach"
    yield Mismatch(says, activation, loss_fn, loss_fn, "return self.last(x)  # no activation after the last layer")


def _broadcast(loss_fn: Loss, output: Tensor, target: Tensor, activation: str) -> Iterator[Mismatch]:
    if output.shape == target.shape or output.numel() != target.numel() or not target.is_floating_point():
        return
    z = _other(output)
    wide = torch.broadcast_tensors(z, target)  # type: ignore[no-untyped-call]  # torch gives it no types
    if wide[0].numel() == z.numel() or not _same(loss_fn(z, target), loss_fn(*wide)):
        return

    def aligned(z: Tensor, t: Tensor) -> Tensor:
        return loss_fn(z, t.reshape(z.shape))

    shapes = f"{tuple(output.shape)} and {tuple(target.shape)}"
    says = f"output and targets of shapes {shapes} are broadcast against each other: every answer is compared with every target"
    yield Mismatch(says, "none", aligned, aligned, "loss = loss_fn(output, y.reshape(output.shape))")
