"""Where a training through smoothed steps has stopped: a minimum, a saddle point, or a plateau? With numbers."""

import torch
from torch import Tensor, nn

from gradoscope.measure.curvature import extreme_eigenvalues
from gradoscope.objective import Objective
from gradoscope.problems.steps import Smooth, Staircase
from gradoscope.stacked import unstack
from gradoscope.studies._flat import LAW, Target

__all__ = ["where_it_stands"]

REACH = (0.01, 0.03, 0.1)  # lengths of steps along v_min; <w, x> has a standard deviation of 0.1
POINTS = 101  # on each leg of the path to the target


def where_it_stands(
    target: Target, stacked: nn.Sequential, slot: int, sharpness: float, examples: tuple[Tensor, Tensor]
) -> dict[str, float]:
    """One seed's network in double precision, on a probe.

    Args:
        target: of the stack.
        stacked: the trained stack, a linear layer and `Smooth`.
        slot: which of the stack.
        sharpness: of its sigmoids.
        examples: (x, y) of the seed, shapes (n, d) and (n, 1).

    Returns:
        "gradient": |g|. "passed": |g| over what it would be with the identity in place of the derivative. "lambda_min",
        "lambda_max": the ends of the Hessian. "saddle_gain": the largest share of the loss that a step of up to 0.1 along v_min,
        either way, takes off. "barrier" and "path_end": how far the loss rises above where it stands on the straight way to
        b = b* and then to w = v*, and what is left at its end, as shares of the loss where it stands: a local minimum has a
        barrier around it. "hard_gradient": the norm of autograd's gradient with the hard staircase in place of the smooth one.
    """
    d = target.direction.shape[1]
    linear = nn.Linear(d, 1)
    unstack(stacked[0], slot, linear)
    offset = target.offset[slot].reshape(1)
    model = nn.Sequential(linear, Smooth(LAW, offset, sharpness)).double()
    x, y = examples[0].double(), examples[1].double()
    objective = Objective(model, lambda m, b: (m(b[0]) - b[1]).square().mean(), [(x, y)])
    gradient = objective.gradient()
    error = (model(x) - y).detach()
    through = 2 * torch.cat([(error * x).mean(0), error.mean(0)])
    spectrum = extreme_eigenvalues(objective, tolerance=1e-3, max_products=60)
    here = _loss(model, x, y)
    found = {
        "gradient": float(gradient.norm()),
        "passed": float(gradient.norm() / through.norm()),
        "lambda_min": spectrum.smallest,
        "lambda_max": spectrum.largest,
        "saddle_gain": _best_step(model, spectrum.bottom_vectors[0], x, y) / here,
    }
    path = _path(model, target.direction[slot].double(), offset.double(), x, y) / here
    found |= {"barrier": float(path.max()) - 1, "path_end": float(path[-1])}
    hard = nn.Sequential(linear, Staircase(LAW, offset).double())
    found["hard_gradient"] = float(sum(g.norm() for g in torch.autograd.grad((hard(x) - y).square().mean(), list(linear.parameters()))))
    return found


@torch.no_grad()
def _loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((model(x) - y).square().mean())


@torch.no_grad()
def _best_step(model: nn.Sequential, direction: Tensor, x: Tensor, y: Tensor) -> float:
    """The largest fall of the loss over the steps along a direction, both ways; negative where all rise."""
    linear = model[0]
    start = torch.nn.utils.parameters_to_vector(linear.parameters())
    here, falls = _loss(model, x, y), []
    for length in REACH:
        for sign in (-1, 1):
            torch.nn.utils.vector_to_parameters(start + sign * length * direction.to(start), linear.parameters())
            falls.append(here - _loss(model, x, y))
    torch.nn.utils.vector_to_parameters(start, linear.parameters())
    return max(falls)


@torch.no_grad()
def _path(model: nn.Sequential, weight: Tensor, bias: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The loss at each point of the straight way to b = b*, and from there to w = v*; the first is where the model stands."""
    linear, curve = model[0], model[1]
    assert isinstance(linear, nn.Linear)
    first, second = x @ linear.weight[0], x @ weight
    ways = torch.linspace(0, 1, POINTS, dtype=x.dtype)
    seen = [first + linear.bias + t * (bias - linear.bias) for t in ways]
    seen += [first + t * (second - first) + bias for t in ways[1:]]
    return torch.stack([(curve(r.unsqueeze(-1)) - y).square().mean() for r in seen])
