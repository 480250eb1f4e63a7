"""What the loss looks like where a training of line tuples ended: gradient, curvature, and steps along it, on fresh tuples."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradoscope.measure.curvature import curvature_along, extreme_eigenvalues
from gradoscope.objective import Objective
from gradoscope.problems.lines import TupleNet, tuple_labels
from gradoscope.studies._lines import fixed_tuples, prepared, tuple_loss

__all__ = ["surroundings"]

PRODUCTS = 60
BATCHES = 5  # that judge what was found on others
LENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3)  # of a step, in units of the parameters' norm


def surroundings(net: TupleNet, values: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Gradient and Hessian of the tuples' loss at a point, and what a step along the lowest eigenvector gains.

    Eigenvectors and the best step are found on `probe` tuples and judged on as many others, since with so many parameters
    some direction improves any sample.

    Returns:
        gradient_norm: of the first sample.
        gradient_cosine: between the gradients of the two samples; 0 where there is no signal but the samples' noise.
        smallest, largest, residual: the Hessian's signed extremes on the first sample, and the larger of their residuals.
        smallest_elsewhere, largest_elsewhere: the curvature along their eigenvectors on the second sample.
        gain_seen, gain: the decrease of the first and of the second sample's loss by the best step along the lowest eigenvector,
            as shares of the loss.
        loss_here, reached: the second sample's loss at the point and after that step.
        gradient_reached: the same after the best step down the first sample's gradient.
        rise: the largest increase of the second sample's loss by any of the steps tried along the highest eigenvector.
    """
    first = _objective(net, values, seed, 4, 1)
    second = _objective(net, values, seed, 5, BATCHES)
    one, two = first.gradient().double(), second.gradient().double()
    spectrum = extreme_eigenvalues(first, max_products=PRODUCTS, seed=seed)
    low, high = spectrum.bottom_vectors[0], spectrum.top_vectors[0]
    theta = first.theta()
    lengths = [length * float(theta.norm()) for length in LENGTHS]
    signed = [*lengths, *(-length for length in lengths)]
    downhill = -(one / one.norm().clamp(min=1e-300)).to(theta)
    start = second.loss()
    seen, reached = _best_step(first, second, theta, low, signed)
    risen = max(float(second.at(theta + high * t).mean()) for t in signed)
    return {
        "gradient_norm": float(one.norm()),
        "gradient_cosine": float(one @ two / (one.norm() * two.norm()).clamp(min=1e-300)),
        "smallest": spectrum.smallest,
        "largest": spectrum.largest,
        "residual": float(max(spectrum.bottom_residuals[0], spectrum.top_residuals[0])),
        "smallest_elsewhere": float(curvature_along(second, low).value),
        "largest_elsewhere": float(curvature_along(second, high).value),
        "loss_here": start,
        "gain_seen": 1 - seen / first.loss(),
        "gain": 1 - reached / start,
        "reached": reached,
        "gradient_reached": _best_step(first, second, theta, downhill, lengths)[1],
        "rise": risen / start - 1,
    }


def _best_step(first: Objective, second: Objective, theta: Tensor, direction: Tensor, steps: list[float]) -> tuple[float, float]:
    """Both losses after the step along a direction that is best for the first."""
    losses = [float(first.at(theta + direction * t).mean()) for t in steps]
    best = min(range(len(steps)), key=losses.__getitem__)
    return losses[best], float(second.at(theta + direction * steps[best]).mean())


def _objective(net: TupleNet, values: Mapping[str, Any], seed: int, stream: int, batches: int) -> Objective:
    device = next(net.parameters()).device
    pieces = [_balanced(values, seed, (stream, i), values["probe"] // batches) for i in range(batches)]

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        assert isinstance(model, TupleNet)
        return tuple_loss(model, batch, values["law"])

    return Objective(net, loss, [prepared(images, parts.to(device)) for images, parts in pieces], mode="eval")


def _balanced(values: Mapping[str, Any], seed: int, stream: tuple[int, int], n: int) -> tuple[Tensor, Tensor]:
    """n tuples, half of each label.

    Labels are equally probable, so that expectations are the same. What a sample's surplus of one label would do to a network
    that answers nearly the same to everything hides all else: there gradient and Hessian are in proportion to the mean label.
    """
    images, parts = fixed_tuples(values, seed, stream, 2 * n + 100)
    labels = tuple_labels(parts, values["law"])
    chosen = torch.cat([(labels == sign).nonzero()[: n // 2, 0] for sign in (1, -1)])
    size = images.shape[1]
    return images.view(len(parts), -1, size, size)[chosen].flatten(0, 1), parts[chosen]
