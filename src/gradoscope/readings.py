"""Readings: what several obstacles ask of a training at a checkpoint, taken once and kept by the case."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from gradoscope import thresholds as T
from gradoscope import tree
from gradoscope.case import Case
from gradoscope.errors import GradoscopeError
from gradoscope.loop import advance
from gradoscope.measure.curvature import Spectrum, extreme_eigenvalues, lanczos
from gradoscope.measure.information import TargetInformation, batch_information, target_information
from gradoscope.measure.metric import preconditioner, stability_limit
from gradoscope.measure.noise import NoiseStatistics, expected_step, noise_statistics
from gradoscope.measurement import Measurement
from gradoscope.objective import Objective
from gradoscope.probe import Probe
from gradoscope.training import Live, split

__all__ = ["Curvature", "curvature", "information", "moving", "noise", "window"]


@dataclass(frozen=True)
class Curvature:
    """Curvature and gradient at a checkpoint, plain and in the metric of the optimizer.

    Attributes:
        step: of the checkpoint.
        spectrum: extreme eigenvalues of the Hessian.
        s: largest eigenvalue times the step size, in the optimizer's metric, scaled so that 2 is its stability limit;
            None where the optimizer's metric is unknown.
        s_error: its error bound (residual of the eigenvalue).
        c: curvature along the step the optimizer would take, on the scale of `s`: s'Hs / |g's|.
        gamma: |G| / sqrt(2 E |lambda|).
        gradient_norm: |G|.
        negative: (mean, standard error) of v'H v over independent parts of the data, v found on other data.
        excess: E, the loss above the best known level.
    """

    step: int
    spectrum: Spectrum
    s: float | None
    s_error: float
    c: float | None
    gamma: float
    gradient_norm: float
    negative: tuple[float, float]
    excess: float


PRODUCTS = 100  # forward and backward passes that a reading of curvature takes, roughly
WHOLE = 2048  # rows up to which curvature is that of the whole data set
WHOLE_FULL_BATCH = 20_000  # the same where every step sees it all anyway, and so can the measurements


def window(case: Case) -> list[int]:
    """The checkpoints at which curvature is read: a tenth in, the middle and the end, and the start for a first step."""
    # Where a product with the Hessian is dear, the start, the middle and the end must do.
    dear = case.rows(PRODUCTS, least=1) < 128
    steps = {case.checkpoint(share) for share in ((0.0, 0.5, 1.0) if dear else (0.0, 0.1, 0.5, 1.0))}
    return sorted(steps)


def curvature(case: Case, step: int) -> Curvature:
    """Curvature at a kept checkpoint. Cost: about 30 to 60 Hessian-vector products on up to 512 examples."""
    reading: Curvature = case.measure("curvature", step, lambda live: _curvature(case, live, step))
    return reading


def _curvature(case: Case, live: Live, step: int) -> Curvature:
    objective, others = _halves(case, live)
    loss = objective.loss()
    gradient = objective.gradient()
    # Products of two independent estimates have no noise floor: the square of one gradient has.
    twin = gradient if others is None else others.gradient()
    spectrum = extreme_eigenvalues(objective, k=1, tolerance=0.05, max_products=30, seed=case.seed)
    s = s_error = c = None
    rates = _metric(live, objective.named, gradient)
    if rates is not None and not _constant(rates) and not live.optimizer.state:
        rates = None  # before its first steps an adaptive optimizer has no metric: that of one gradient divides by zeros
    if rates is not None and bool((rates > 0).any()):
        scaled, factor = spectrum, float(rates[0])
        if not _constant(rates):
            scaled, factor = extreme_eigenvalues(objective, k=1, tolerance=0.05, max_products=15, seed=case.seed, scale=rates), 1.0
        limit = stability_limit(live.optimizer)
        s = 2 * factor * float(max(scaled.top[0], -scaled.bottom[0])) / limit
        s_error = 2 * factor * float(scaled.top_residuals[0]) / limit
        slope = float(gradient @ (rates * twin))
        c = 2 * float((rates * gradient) @ objective.hvp(rates * twin)) / slope / limit if slope > 0 else None
    direction = spectrum.bottom_vectors[0].to(gradient)
    objective.release()
    # On the whole data set the curvature is known up to the residual; on a sample, others must confirm it.
    whole = live.batches.size is not None and others is None
    exact = (float(spectrum.bottom[0]), float(spectrum.bottom_residuals[0]))
    negative = exact if whole else _rayleigh(case, live, direction)
    excess = _excess(case, loss)
    magnitude = abs(spectrum.largest_magnitude)
    norm = math.sqrt(max(float(gradient.double() @ twin.double()), 0.0))
    gamma = norm / math.sqrt(2 * excess * magnitude) if excess > 0 and magnitude > 0 else math.inf if norm > 0 else 0.0
    return Curvature(step, spectrum, s, s_error or 0.0, c, gamma, norm, negative, excess)


def _excess(case: Case, loss: float) -> float:
    """The loss above the lowest that is known to be attainable.

    Where nothing lower is known, at least what would be material: whether the gradient is small is then asked against
    an excess that would matter, and restarts must tell whether it is there.
    """
    if case.attainable is not None:
        return max(loss - case.attainable, 0.0)
    return max(loss - min(case.best, loss), T.MATERIAL * case.scale)


def _halves(case: Case, live: Live) -> tuple[Objective, Objective | None]:
    """The training's objective on all its data where that is affordable, else on two samples that share no example."""
    size = live.batches.size
    rows = case.rows(PRODUCTS, WHOLE_FULL_BATCH if live_full_batch(case) else WHOLE, least=64)
    if size is not None and size <= rows:
        return case.objective(live, size), None
    parts = _parts(case, live, min(rows, 1024), 2)
    if len(parts) < 2:
        return case.objective(live, rows), None
    return Objective.of(live, parts[:1], seed=7), Objective.of(live, parts[1:2], seed=8)


def _constant(rates: Tensor) -> bool:
    return bool((rates == rates[0]).all())


def _metric(live: Live, named: Any, gradient: Tensor) -> Tensor | None:
    try:
        return preconditioner(live.optimizer, named, gradient=gradient)
    except TypeError:
        return preconditioner(live.optimizer, named)


def _rayleigh(case: Case, live: Live, direction: Tensor) -> tuple[float, float]:
    """v'Hv on up to 8 parts of other data than v was found on, by central differences of gradients along v."""
    values = []
    for part in _parts(case, live, case.rows(20, 512, least=64), 8, stream="probe"):
        objective = Objective.of(live, [part], seed=9)
        values.append(float(direction @ objective.hvp(direction)))
        objective.release()
    mean = float(np.mean(values))
    se = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
    return mean, se


def _parts(case: Case, live: Live, rows: int, parts: int, stream: str = "fresh") -> list[Any]:
    """Independent batches of equal size from one sample, on the device; whole batches where rows cannot be cut."""
    sample = [tree.to_device(b, live.device) for b in live.batches.sample(rows, stream)]
    if len(sample) > 1:
        return sample[:parts]
    n = tree.rows(sample[0])
    if n is None or n < 2 * parts:
        return sample
    each = n // parts
    return [tree.take(sample[0], slice(k * each, (k + 1) * each)) for k in range(parts)]


def flat_share(case: Case, step: int) -> float:
    r"""The share of the loss that Newton's step would remove which lies along flat directions, at a checkpoint.

    In a Krylov space of the gradient, $\sum_{\theta_j<0.05\,\theta_{max}} (g\cdot q_j)^2/2\theta_j$ over the same sum for all
    positive $\theta_j$. The curvature along the gradient itself says less: noise and overshooting keep a run in motion along
    stiff directions, whatever is left in the flat ones.

    Cost: about 30 Hessian-vector products.
    """

    def read(live: Live) -> float:
        objective, _ = _halves(case, live)
        gradient = objective.gradient()
        if not bool(gradient.any()):
            return 0.0
        generator = torch.Generator().manual_seed(case.seed)
        space = lanczos(
            objective.hvp, objective.dim, steps=30, generator=generator, dtype=gradient.dtype, device=gradient.device, start=gradient
        )
        objective.release()
        values, vectors = space.ritz()
        removable = vectors[0] ** 2 / (2 * np.where(values > 1e-6 * values.max(), values, np.inf))
        return float(removable[values < T.FLAT_CONTRACTION * values.max()].sum() / max(removable.sum(), 1e-300))

    reading: float = case.measure("flat_share", step, read)
    return reading


def noise(case: Case, step: int, k: int = 16) -> tuple[NoiseStatistics, dict[str, Measurement]] | None:
    """Gradient noise at a checkpoint from k batches of the training's own size, and what it does to a step.

    None for full-batch training, which has none. Cost: k gradients, and k Hessian-vector products.
    """
    if live_full_batch(case):
        return None
    reading: tuple[NoiseStatistics, dict[str, Measurement]] = case.measure("noise", step, lambda live: _noise(case, live, step, k))
    return reading


def overshoot(case: Case, steps: int = 20) -> float:
    """What the first steps lose on the very examples they were made of, as a share of what the others gain on theirs.

    A step along a gradient, however noisy, lowers the loss of its own examples if it is short enough. The start is where it has to be:
    what a too long step destroys there may stay flat, and quiet, ever after.

    Cost: the steps, and two forward passes over each batch.
    """

    def read(live: Live) -> float:
        up, down, many = 0.0, 0.0, live.training.accumulate
        for i in range(case.first, case.first + min(steps, case.baseline.done - case.first)):
            own = Probe(live, [live.batches.batch(i * many + j) for j in range(many)], "train")
            before = own.losses(live).mean()
            advance(live, i, 1)
            change = float(own.losses(live).mean() - before)
            if not math.isfinite(change):
                return math.inf
            up, down = up + max(change, 0.0), down + max(-change, 0.0)
        return up / down if down > 0 else math.inf if up > 0 else 0.0

    found: float = case.measure("overshoot", case.first, read)
    return found


def live_full_batch(case: Case) -> bool:
    """Whether every step sees the whole data set."""
    per_epoch = case.batches.per_epoch
    return per_epoch is not None and per_epoch <= case.training.accumulate


def _noise(case: Case, live: Live, step: int, k: int) -> tuple[NoiseStatistics, dict[str, Measurement]]:
    per_epoch = live.batches.per_epoch or 10**9
    first = -(-(case.first + case.steps) // per_epoch) * per_epoch if live.batches.per_epoch else step + 10**6
    # Small batches are cheap, and their gradients scatter: more of them.
    count = min(k if (live.batches.batch_size or 1) >= 8 else 4 * k, per_epoch)
    batches = [live.batches.batch(first + j) for j in range(count)]
    objective = Objective.of(live, batches, seed=5)
    gradients = objective.batch_gradients()
    batch = (live.batches.batch_size or 1) * case.training.accumulate
    statistics = noise_statistics(gradients, batch, seed=case.seed)
    rates = _metric(live, objective.named, gradients.mean(0))
    terms: dict[str, Measurement] = {}
    if rates is not None:
        root = rates.clamp_min(0).sqrt()
        curved = case.objective(live, case.rows(PRODUCTS, 512))
        terms = expected_step(gradients * root, lambda v: root * curved.hvp(root * v), 1.0)
        curved.release()
    return statistics, terms


def information(case: Case, step: int) -> TargetInformation | None:
    """Does the gradient know the targets? A permutation test on examples that were not trained on, where there are any.

    A p-value in the grey zone below 0.1 is tried again on four times as many examples: information then shows, and
    chance does not repeat. None where the targets cannot be told from the batch.
    """
    reading: TargetInformation | None = case.measure("information", step, lambda live: _information(case, live))
    return reading


def _information(case: Case, live: Live) -> TargetInformation | None:
    result = None
    few = case.rows(200, 512, least=64)
    for attempt, rows in enumerate((few, 4 * few)):
        sample = live.batches.sample(rows, "fresh") if attempt == 0 else live.batches.sample(rows + 1, "fresh")
        batch = tree.to_device(sample[0], live.device)
        if len(sample) > 1 and live.training.loss_fn is not None:
            batch = tree.to_device(tree.concatenate(sample), live.device)
        parameters = live.trainable()
        try:
            if live.training.loss_fn is not None:
                inputs, target = split(batch)
                if not isinstance(target, Tensor):
                    return None
                result = target_information(
                    live.model, live.training.loss_fn, inputs, target, parameters, permutations=199, seed=case.seed + attempt
                )
            else:
                result = batch_information(live.model, live.training.loss, batch, parameters, permutations=99, seed=case.seed + attempt)
        except (GradoscopeError, RuntimeError, ValueError, TypeError, IndexError):
            return None  # targets that cannot be told from the inputs, or not be permuted
        if result.p_value >= 0.1 or result.p_value <= 1.5 / (result.permutations + 1):
            break
        if live.batches.size is not None and live.batches.size <= rows:
            break
    return result


def moving(case: Case) -> tuple[bool, Measurement, float]:
    """Does the training make progress in its second half? (verdict, trend of the probe loss, share of excess removed)."""
    curve = [value for _, value in case.baseline.curve()]
    half = [v for v in curve[len(curve) // 2 :] if math.isfinite(v)]
    if len(half) < 4:
        return False, Measurement("trend", math.nan, p=1.0), 0.0
    drop = (half[0] - half[-1]) / max(_excess(case, half[0]), 1e-12)
    tau = stats.kendalltau(range(len(half)), half)
    reading = Measurement("trend", float(tau.statistic), n=len(half), p=float(tau.pvalue))
    return bool(tau.pvalue < T.ALPHA and tau.statistic < 0 and drop > T.LEVEL), reading, float(drop)
