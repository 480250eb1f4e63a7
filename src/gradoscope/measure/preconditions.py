"""What a measurement presumes, tried out before: two passes agree, rows do not meet, second derivatives are what they say."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from gradoscope import tree
from gradoscope.graph import once_differentiable
from gradoscope.guard import derive_seed, seed_all
from gradoscope.measure._source import working_dtype
from gradoscope.objective import Objective, asymmetry_limit

__all__ = ["Preconditions", "preconditions"]


@dataclass(frozen=True)
class Preconditions:
    """What was found; `notes` says in words what it means and what to do.

    Attributes:
        repeatable: whether two passes over the same batch with the same seeds give the same loss.
        unrepeatable: the modules that give other outputs for the same inputs and seeds.
        random: the modules that draw masks or noise; they are drawn alike in each pass of a measurement.
        batch_statistics: the normalisation layers that use the statistics of the batch, which couples its rows.
        second_derivatives: "autograd", or "finite differences" where autograd has none or lies; then `objective` uses them from now on.
        difference: how far a Hessian-vector product is from a finite difference of gradients, relative to its norm.
        difference_error: the estimated relative error of that finite difference itself.
        once_differentiable: the functions of the user's own that cannot be differentiated twice.
        notes: one sentence for each thing that limits what can be measured; empty where there is none.
    """

    repeatable: bool
    unrepeatable: tuple[str, ...]
    random: tuple[str, ...]
    batch_statistics: tuple[str, ...]
    second_derivatives: str
    difference: float
    difference_error: float
    once_differentiable: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing was found."""
        return not self.notes


def preconditions(objective: Objective, *, seed: int = 0) -> Preconditions:
    r"""Try out what curvature and noise measurements presume, and name what does not hold.

    Two passes with the same random streams must give the same loss: else a module draws from a stream of its own, keeps state
    between passes, or the device does not repeat itself. Two passes with different streams tell which modules draw masks. A
    Hessian-vector product must be symmetric, $u^\top Hv=v^\top Hu$, and agree with a finite difference of two gradients.

    Args:
        objective: the loss. Where its second derivatives are found to lie it takes finite differences from now on.
        seed: what the test vectors are drawn from.

    Returns:
        What was found.

    Cost: five forward passes, and the cost of three Hessian-vector products, one of them by finite differences.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
        >>> found = preconditions(Objective(model, lambda m, b: m(b).square().mean(), [torch.eye(2)]))
        >>> found.repeatable, found.random
        (True, ('1',))
    """
    first, second = objective.losses(), objective.losses()
    scale = max(float(abs(first).max()), 1e-30)
    same = bool((first == second).all()) or float(abs(first - second).max()) <= 1e-6 * scale
    unrepeatable = () if same else _apart(objective, 0, 0)
    drawing = set(_drawing(objective)) | (set(_apart(objective, 0, 1)) - set(unrepeatable) if same else set())
    names = [name for name, _ in objective.model.named_modules()]
    random = tuple(sorted(drawing, key=names.index))
    statistics = _batch_statistics(objective)
    with objective.inside(0), torch.enable_grad():
        loss = objective.batch_loss(0)
        marked = tuple(once_differentiable(loss)) if loss.requires_grad else ()
    method, difference, error = _second(objective, seed) if same else ("not tested", math.nan, math.nan)
    notes = tuple(_notes(objective, unrepeatable if not same else None, random, statistics, method, marked))
    return Preconditions(same, unrepeatable, random, statistics, method, difference, error, marked, notes)


def _notes(
    objective: Objective,
    unrepeatable: tuple[str, ...] | None,
    random: tuple[str, ...],
    statistics: tuple[str, ...],
    method: str,
    marked: tuple[str, ...],
) -> Iterable[str]:
    if unrepeatable is not None:
        where = f": {', '.join(unrepeatable)}" if unrepeatable else ""
        yield (
            f"Two passes over the same batch with the same seeds differ{where}. Random augmentation or noise from a generator of its "
            "own, or state that is kept between passes, has to be switched off, or nothing that compares passes can be measured."
        )
    if random:
        yield (
            f"Masks or noise are drawn in {', '.join(random)}. Each pass of a measurement draws the same ones: it is the loss of one "
            "draw that is measured. Use mode='eval' for the loss without them."
        )
    if statistics:
        yield (
            f"The statistics of the batch are used in {', '.join(statistics)}, so its rows are coupled and the loss depends on the batch "
            "size. Per-sample measurements hold them fixed. Use mode='eval' for the loss with running statistics."
        )
    if method == "finite differences":
        yield f"Second derivatives are finite differences of gradients, with wider error bars, because {objective.why}."
    elif marked:
        yield f"{', '.join(marked)}: only once differentiable, although no product was found wrong here."


def _second(objective: Objective, seed: int) -> tuple[str, float, float]:
    """How second derivatives are taken, how far one product is from a finite difference, and the error of that."""
    generator = torch.Generator().manual_seed(derive_seed(seed, 203))
    v = torch.randn(objective.dim, generator=generator).to(objective.parameters[0].device, working_dtype(objective))
    product = objective.hvp(v)
    if objective.method != "autograd":
        return objective.method, 0.0, objective.difference_error
    other = objective.restricted([name for name, _ in objective.named])
    other.distrust("to compare")
    differences = other.hvp(v)
    size = float(product.norm())
    apart = float((product - differences).norm())
    relative = apart / size if size > 0 else (0.0 if apart <= 1e-12 else math.inf)
    # Kinks and rounding limit a finite difference; a derivative that is wrong by less than that cannot be told from it.
    if relative > max(5 * other.difference_error, 3 * asymmetry_limit(objective), 0.05):
        objective.distrust(f"the double backward differs from finite differences of gradients by {relative:.1%}, so it is wrong")
    return objective.method, relative, other.difference_error


def _batch_statistics(objective: Objective) -> tuple[str, ...]:
    training = objective.mode == "train"
    layers = ((name, m) for name, m in objective.model.named_modules() if isinstance(m, _BatchNorm))
    return tuple(name for name, m in layers if training or not m.track_running_stats)


def _drawing(objective: Objective) -> list[str]:
    """The modules of known kinds that draw masks in training mode."""
    if objective.mode != "train":
        return []
    found = []
    for name, m in objective.model.named_modules():
        share = m.p if isinstance(m, _DropoutNd) else m.dropout if isinstance(m, (nn.RNNBase, nn.MultiheadAttention)) else 0.0
        if share or isinstance(m, nn.RReLU):
            found.append(name)
    return found


def _apart(objective: Objective, one: int, other: int) -> tuple[str, ...]:
    """The innermost modules that answer the same input differently in two passes, with these random streams."""
    passes = [_trace(objective, s) for s in (one, other)]
    found = {
        name
        for (name, given, answer), (again, given_again, answer_again) in zip(*passes, strict=False)
        if name == again and given == given_again and answer != answer_again
    }
    return tuple(n for n in sorted(found) if not any(o != n and (o.startswith(f"{n}.") or not n) for o in found))


def _trace(objective: Objective, stream: int) -> list[tuple[str, tuple[float, ...], tuple[float, ...]]]:
    """What each module was given and answered, in a number or two for each tensor."""
    seen: list[tuple[str, tuple[float, ...], tuple[float, ...]]] = []
    inputs: dict[str, tuple[float, ...]] = {}
    with objective.inside(0), torch.enable_grad():
        seed_all(derive_seed(objective.seed, 0, stream))
        handles: list[Any] = []
        for name, m in objective.model.named_modules():

            def before(_m: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                inputs[name] = _print([args, kwargs])

            def after(_m: nn.Module, _args: Any, output: Any, name: str = name) -> None:
                seen.append((name, inputs.get(name, ()), _print(output)))

            handles += [m.register_forward_pre_hook(before, with_kwargs=True), m.register_forward_hook(after)]
        try:
            objective.batch_loss(0)
        finally:
            for handle in handles:
                handle.remove()
    return seen


def _print(values: Any) -> tuple[float, ...]:
    return tuple(number for t in tree.leaves(values) for number in _pair(t.detach()))


def _pair(t: Tensor) -> tuple[float, float]:
    wide = t.to(torch.float32 if t.device.type == "mps" else torch.float64) if not t.is_complex() else torch.view_as_real(t).double()
    return float(wide.sum()), float(wide.norm())
