"""A peer to compare with: threshold rules on what a training loop shows, of the kind that fault detectors in the literature use.

Each rule looks at one symptom (a loss that does not fall, gradients of a layer that are small beside another's, units that never fire, a
gap between training and validation) and names the fault that usually comes with it. The thresholds are round numbers, as usual for such
rules, and were not fitted to the trials. Nothing is tried out and nothing is asked of the data.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gradoscope.loop import advance
from gradoscope.probe import Probe
from gradoscope.training import Live, Training, split

__all__ = ["Answer", "Peer", "Seen", "named", "threshold_rules", "watch"]


@dataclass(frozen=True)
class Answer:
    """What a judge says of a training.

    Args:
        verdict: "healthy", "obstructed" or "undetermined".
        present: the obstacles that it names, the first one first, each with the probability it gives, or NaN.
        absent: those it rules out, with probabilities.
        confidence: of the verdict `healthy`, or NaN.
    """

    verdict: str
    present: tuple[tuple[str, float], ...] = ()
    absent: tuple[tuple[str, float], ...] = ()
    confidence: float = math.nan


Peer = Callable[[Training, int], Answer]
"""An adapter to another tool: it runs the training with that seed and translates what the tool says into obstacles' names."""

LOOKS = 10
SAME_LOSS = 0.01  # a loss that fell by less than 1% did not fall
SMALL_RATIO = 1e-3  # gradients of the first layer beside the last layer's
LARGE_GRADIENT = 1e3
DEAD = 0.5  # share of a layer's units that never fire
SATURATED = 0.8  # share of bounded outputs within 5% of their bounds
UPS = 0.4  # share of looks at which the loss rose
SMALL_UPDATE = 1e-5  # of a step beside the weights
GAP = 1.5  # validation loss over training loss
INPUT = 10.0  # largest input


@dataclass
class Seen:
    """The symptoms of one run.

    Attributes:
        losses: of the training probe at 11 points.
        validation: of the validation data at the same points, where there are any.
        steps: loss of each step.
        norms: gradient norm of the first and of the last weight matrix at each look.
        update: largest ratio of a step to the weights at a look, by weight matrix.
        dead: largest share of dead ReLU units in a layer at the end.
        saturated: largest share of saturated sigmoid or tanh outputs.
        inputs: largest input.
        double: whether the model ends in a softmax or sigmoid, and the loss feels no constant added to its output.
    """

    losses: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    norms: list[tuple[float, float]] = field(default_factory=list)
    update: list[float] = field(default_factory=list)
    dead: float = 0.0
    saturated: float = 0.0
    inputs: float = 0.0
    double: bool = False


def named(seen: Seen) -> list[str]:
    """The obstacles that the rules name for these symptoms, in the order of the rules; empty for a training without any.

    Example:
        >>> named(Seen(losses=[2.3, 2.2, float("inf")], steps=[2.3, float("nan")]))
        ['exploding_gradient']
        >>> named(Seen(losses=[2.3, 1.0, 0.1], validation=[2.3, 1.1, 1.3], steps=[2.3, 0.1]))
        ['overfitting']
    """
    found: list[str] = []
    first, last = seen.losses[0], seen.losses[-1]
    broke = not all(map(math.isfinite, (*seen.losses, *seen.steps)))
    if seen.double:
        found.append("wrong_loss_output")
    if broke or any(max(pair) > LARGE_GRADIENT for pair in seen.norms):
        found.append("exploding_gradient")
    flat = not broke and last > first - SAME_LOSS * abs(first)
    if any(top > 0 and bottom < SMALL_RATIO * top for bottom, top in seen.norms) or seen.dead > DEAD or seen.saturated > SATURATED:
        found.append("vanishing_gradient")
    if seen.inputs > INPUT:
        found.append("unnormalised_inputs")
    rises = sum(b > a for a, b in zip(seen.losses, seen.losses[1:], strict=False)) / max(1, len(seen.losses) - 1)
    if not broke and (last > first or rises >= UPS):
        found.append("step_too_large")
    elif flat and seen.update and max(seen.update) < SMALL_UPDATE:
        found.append("step_too_small")
    elif flat and not found:
        found.append("low_gradient_snr")
    if seen.validation and not broke and seen.validation[-1] > GAP * last and seen.validation[-1] > min(seen.validation) * (1 + SAME_LOSS):
        found.append("overfitting")
    return found


def watch(training: Training, seed: int) -> Seen:
    """Run a training and note the symptoms.

    Cost: the training, and ten passes over a probe.
    """
    seen = Seen()
    with Live.of(training, seed=seed) as live:
        probe = Probe(live, live.batches.sample(512, "probe"), "eval")
        held = training.validation
        other = None if held is None else Probe(live, [held(torch.Generator().manual_seed(2), 512) if callable(held) else held], "eval")
        seen.double = _double(live)
        batch = live.batches.batch(0)
        for x in split(batch)[0] if training.loss_fn is not None else ():
            if isinstance(x, Tensor) and x.is_floating_point():
                seen.inputs = max(seen.inputs, float(x.abs().max()))
        at = 0
        for k in range(LOOKS + 1):
            seen.losses.append(_mean(probe, live))
            if other is not None:
                seen.validation.append(_mean(other, live))
            if k == LOOKS:
                break
            before = {n: p.detach().clone() for n, p in live.trainable()}
            until = training.steps * (k + 1) // LOOKS
            reached = advance(live, at, until - at, [lambda _live, _step, loss: seen.steps.append(loss)])
            _look(live, seen, before, max(1, until - at))
            if reached < until:
                seen.losses.append(math.inf)
                break
            at = until
        _units(live, batch, seen)
    return seen


def _mean(probe: Probe, live: Live) -> float:
    return float(probe.losses(live).mean())


def _look(live: Live, seen: Seen, before: dict[str, Tensor], steps: int) -> None:
    matrices = [(n, p) for n, p in live.trainable() if p.dim() > 1 and p.grad is not None]
    if not matrices:
        return
    norms = [float(p.grad.norm()) for _, p in matrices if p.grad is not None]
    seen.norms.append((norms[0], norms[-1]))
    moved = [float((p.detach() - before[n]).norm() / before[n].norm().clamp_min(1e-12)) / steps for n, p in matrices if n in before]
    seen.update.append(max(moved, default=0.0))


def _units(live: Live, batch: object, seen: Seen) -> None:
    """Dead and saturated units of the activations that are modules."""

    def note(module: nn.Module, _: object, output: Tensor) -> None:
        if isinstance(module, nn.ReLU):
            units = output.transpose(1, -1).reshape(-1, output.shape[1]) if output.dim() > 2 else output
            seen.dead = max(seen.dead, float((units <= 0).all(0).float().mean()))
        else:
            low = 0.0 if isinstance(module, nn.Sigmoid) else -1.0
            near = (output < low + 0.05 * (1 - low)) | (output > 1 - 0.05 * (1 - low))
            seen.saturated = max(seen.saturated, float(near.float().mean()))

    modules = list(live.model.modules())
    last = modules[-1]
    own = [m for m in modules if isinstance(m, (nn.ReLU, nn.Sigmoid, nn.Tanh)) and m is not last]
    handles = [module.register_forward_hook(note) for module in own]
    try:
        with torch.no_grad():
            live.model.eval()
            live.loss(batch)
    finally:
        for handle in handles:
            handle.remove()


def _double(live: Live) -> bool:
    loss = live.training.loss_fn
    last = list(live.model.modules())[-1]
    if loss is None or not isinstance(last, (nn.Softmax, nn.Sigmoid)):
        return False
    inputs, target = split(live.batches.batch(0))
    with torch.no_grad():
        live.model.eval()
        output = live.model(*inputs)
        a, b = loss(output, target), loss(output + 1.0, target)
        live.model.train()
    return bool(torch.isclose(a, b, rtol=1e-4))


def threshold_rules(training: Training, seed: int) -> Answer:
    """The rules as a judge: the first obstacle that they name, or healthy.

    Cost: the training, and ten passes over a probe.
    """
    found = named(watch(training, seed))
    return Answer("obstructed" if found else "healthy", tuple((name, math.nan) for name in found))
