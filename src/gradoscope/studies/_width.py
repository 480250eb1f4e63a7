"""What the study of width computes: many starts of networks of several widths, linear auto-encoders, separable patterns."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from gradoscope.measure.curvature import extreme_eigenvalues
from gradoscope.objective import Objective
from gradoscope.problems._data import digits
from gradoscope.stacked import blank, fit, generator, stack, unstack
from gradoscope.study import Context, Result, Row
from gradoscope.theory.linear_networks import autoencoder_losses

__all__ = ["PARTS", "network", "separable_pair"]

KEY = 389  # of this study's random streams: 1 starts of networks, 2 of auto-encoders, 3 of networks on separable patterns
CLASSIFIED = 20  # runs of a width whose curvature is measured at the end
F64 = torch.float64


def pixels(seed: int, images: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and validation digits with pixels from 0 to 1; the split is the same for all starts."""
    (x, y), (x_valid, y_valid) = digits(seed, train=images)
    low, high = x.min(), x.max()  # `digits` is an affine map of the pixels
    return ((x - low) / (high - low), y), ((x_valid - low) / (high - low), y_valid)


def network(seed: int, inputs: int, width: int, outputs: int, hidden: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    """One hidden layer, uniform start within 1/sqrt(fan in), as PyTorch's."""
    first, last = blank(inputs, width), blank(width, outputs)
    random = generator(seed, KEY, 1, width)
    with torch.no_grad():
        for layer, fan_in in ((first, inputs), (last, width)):
            for p in layer.parameters():
                bound = fan_in**-0.5
                p.copy_((2 * torch.rand(p.shape, generator=random) - 1) * bound)
    return nn.Sequential(first, hidden(), last)


def _cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    scores: Tensor = model(x)
    each = nn.functional.cross_entropy(scores.transpose(1, 2), y.expand(len(scores), -1), reduction="none")
    return each.mean(1)


def starts(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """3.6: networks of one width from many starts, full-batch gradient descent with momentum."""
    (x, y), (x_valid, y_valid) = pixels(0, values["images"])
    model = stack([network(seed, 64, values["width"], 10) for seed in seeds])
    optimizer = torch.optim.SGD(model.parameters(), lr=values["lr"], momentum=0.9)

    def look(step: int, _: Tensor) -> None:
        context.tick(step / values["steps"])

    fit(model, optimizer, itertools.repeat((x, y)), _cross_entropy, values["steps"], look=look, every=50)
    with torch.no_grad():
        train, valid = _cross_entropy(model, x, y), _cross_entropy(model, x_valid, y_valid)
    result = Result()
    for i, seed in enumerate(seeds):
        row: Row = {"seed": seed, "train": float(train[i]), "valid": float(valid[i])}
        if seed < CLASSIFIED and values["width"] <= values["classify"]:
            single = unstack(model, i, network(seed, 64, values["width"], 10))
            row |= _point(Objective(single, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), [(x, y)]), row["train"])
        result.rows.append(row)
    return result


def _point(objective: Objective, loss: float) -> Row:
    """How near to a critical point, and of which kind: the gradient against what the curvature could supply, both ends of H."""
    spectrum = extreme_eigenvalues(objective, tolerance=1e-2, max_products=60)
    scale = (2 * loss * spectrum.largest_magnitude) ** 0.5
    residual = float(spectrum.bottom_residuals[0])
    return {"gamma": float(objective.gradient().norm()) / scale, "lowest": spectrum.smallest / spectrum.largest, "residual": residual}


def autoencoder(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """3.6, Baldi and Hornik: the critical points of a linear auto-encoder of the digits, and where trainings of it end."""
    (x, _), (rest, _) = pixels(0, 1347)
    x = torch.cat([x, rest]).double()
    x = x - x.mean(0)
    covariance, width = x.T @ x / len(x), values["width"]
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    eigenvalues, vectors = eigenvalues.flip(0), vectors.flip(1)
    rows = 8 * vectors * eigenvalues.clamp_min(0).sqrt() @ vectors.T  # 64 rows with the covariance of all images, so of the same loss
    result = Result()
    for modes, told in autoencoder_losses(eigenvalues.tolist(), width, width + 1):
        chosen = vectors[:, list(modes)]
        encoder, decoder = (blank(*size, bias=False, dtype=F64) for size in ((64, width), (width, 64)))
        model = nn.Sequential(encoder, decoder)
        with torch.no_grad():
            encoder.weight.copy_(chosen.T)
            decoder.weight.copy_(chosen)
        objective = Objective(model, _reconstruction, [rows])
        spectrum = extreme_eigenvalues(objective, tolerance=1e-4, max_products=120)
        row: Row = {"modes": "".join(str(m + 1) for m in modes), "told": told, "loss": objective.loss()}
        row |= {
            "gradient": float(objective.gradient().norm()),
            "lowest": spectrum.smallest,
            "residual": float(spectrum.bottom_residuals[0]),
        }
        result.rows.append(row)
        context.tick(0.1 * len(result.rows))
    best = float(eigenvalues[width:].sum())
    q, w = (
        torch.stack([0.1 * torch.randn(*size, generator=generator(s, KEY, 2), dtype=F64) for s in seeds])
        for size in ((64, width), (width, 64))
    )
    q, w = q.requires_grad_(), w.requires_grad_()
    optimizer = torch.optim.Adam([q, w], lr=values["lr"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, values["steps"])
    eye = torch.eye(64, dtype=F64)
    for _ in range(values["steps"]):
        optimizer.zero_grad()
        error = eye - q @ w
        losses = ((error @ covariance) * error).sum((1, 2))
        losses.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    result.rows += [{"seed": seed, "over_best": float(loss) / best - 1} for seed, loss in zip(seeds, losses.detach(), strict=True)]
    return result


def _reconstruction(model: nn.Module, x: Tensor) -> Tensor:
    error: Tensor = x - model(x)
    return error.square().sum(1).mean()


def separable_pair(images: int) -> tuple[Tensor, Tensor, bool]:
    """Images of the digits 0 and 1, their classes (0 or 1), and whether a plane separates them (a linear programme's answer)."""
    (x, y), _ = pixels(0, 1347)
    keep = (y < 2).nonzero()[:images, 0]
    x, y = x[keep], y[keep]
    signs = 2 * y.numpy() - 1.0
    rows = -signs[:, None] * np.column_stack([x.numpy(), np.ones(len(x))])
    found = linprog(np.zeros(rows.shape[1]), A_ub=rows, b_ub=-np.ones(len(rows)), bounds=(None, None))
    return x, y[:, None].float(), bool(found.status == 0)


def _threshold_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gori and Tesi's: squared distances to 0.1 and 0.9, nothing for what is beyond."""
    out = torch.sigmoid(model(x))
    return torch.relu(torch.where(y > 0, 0.9 - out, out - 0.1)).square().mean((1, 2))


def separable(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """3.6, Gori and Tesi: a sigmoid network on linearly separable patterns from many starts."""
    x, y, apart = separable_pair(values["images"])
    model = stack([network(seed, 64, values["width"], 1, nn.Sigmoid) for seed in seeds])
    optimizer = torch.optim.SGD(model.parameters(), lr=values["lr"], momentum=0.9)
    batches: Iterator[tuple[Tensor, ...]] = itertools.repeat((x, y))
    fit(model, optimizer, batches, _threshold_loss, values["steps"], look=lambda step, _: context.tick(step / values["steps"]), every=50)
    with torch.no_grad():
        losses, right = _threshold_loss(model, x, y), ((model(x) > 0) == (y > 0)).float().mean((1, 2))
    return Result([{"seed": s, "loss": float(losses[i]), "right": float(right[i]), "separable": apart} for i, s in enumerate(seeds)])


PARTS: dict[str, Callable[[Mapping[str, Any], Sequence[int], Context], Result]] = {
    "starts": starts,
    "autoencoder": autoencoder,
    "separable": separable,
}
