"""Before the long work: does the training run at all? Each failure is told at once, in the terms in which it is mended."""

from typing import Any

import torch
from torch import Tensor

from gradoscope import tree
from gradoscope.batches import Batches, RecordedBatches, TensorBatches
from gradoscope.errors import CannotRun
from gradoscope.guard import derive_seed, untouched
from gradoscope.loop import check_gradient, scalar, scalar_of
from gradoscope.training import Live

__all__ = ["rehearse"]


def rehearse(live: Live, validation: Batches | None = None) -> None:
    """Compute the loss of the first batch, of some validation data and of data that are not finite; change nothing.

    Data with NaN or infinity are refused only where the loss on them is not finite: a model may mask them.

    Args:
        live: the training at its start.
        validation: the batches of its validation data, where there are any.

    Cost: one forward pass of each, and one look at every number of data that lie in memory.

    Raises:
        CannotRun: where a pass fails, or the loss is no scalar that depends on the parameters, or not finite because
            the data are not; the message says how to mend it.
    """
    with untouched(live.model, seed=derive_seed(live.seed, 102, 0)):
        live.model.train()
        check_gradient(scalar(live, 0))
        with torch.no_grad():
            _refuse_not_finite(live, live.batches, "the data")
            if validation is not None:
                live.model.eval()
                scalar_of(live, validation.sample(64, "probe")[0], "on the validation data")
                _refuse_not_finite(live, validation, "the validation data")


def _refuse_not_finite(live: Live, batches: Batches, name: str) -> None:
    found = _suspect(batches)
    if found is None:
        return
    batch, place = found
    if bool(scalar_of(live, batch, f"on {name}").isfinite()):
        return
    raise CannotRun(
        f"{name} hold NaN or infinity ({place}), and so the loss is not finite there. Expected finite numbers: "
        "drop or fill in these examples, or mask them in the model or the loss."
    )


def _suspect(batches: Batches) -> tuple[Any, str] | None:
    """The first batch with a number that is not finite, and where that is; data in memory are searched whole."""
    if isinstance(batches, TensorBatches):
        good = _finite_rows(batches.data, batches.size)
        if bool(good.all()):
            return None
        rows = (~good).nonzero().squeeze(-1)
        # Beside whole rows, as batch normalisation needs more than one.
        chosen = torch.cat([rows[:1], torch.arange(batches.size)[good][: batches.batch_size - 1]])
        return tree.take(batches.data, chosen), f"{len(rows):,} of {batches.size:,} rows, first row {int(rows[0])}"
    many = batches.per_epoch if isinstance(batches, RecordedBatches) and batches.per_epoch is not None else 1
    for k in range(many):
        batch = batches.batch(k)
        if not all(_finite(t) for t in tree.leaves(batch)):
            return batch, f"first in batch {k}"
    return None


def _finite(t: Tensor) -> bool:
    return not (t.is_floating_point() or t.is_complex()) or bool(t.isfinite().all())


def _finite_rows(data: Any, n: int) -> Tensor:
    """Which rows are finite in every tensor of `data`; boolean, shape (n,)."""
    good = torch.ones(n, dtype=torch.bool)
    for t in tree.leaves(data):
        if t.is_floating_point() or t.is_complex():
            good &= t.isfinite().reshape(n, -1).all(dim=1).cpu()
    return good
