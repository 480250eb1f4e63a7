"""Targets for the parts: the loss of the parts on targets of their own is added to the primary loss, or takes its place."""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from gradoscope import tree
from gradoscope.errors import CannotRun
from gradoscope.remedies import Remedy
from gradoscope.training import Training

__all__ = ["Decompose"]


class Decompose(Remedy):
    r"""Minimise $J(\theta)+J_\mathrm{parts}(\theta)$, or $J_\mathrm{parts}$ alone, where the training was given `intermediate`.

    What is compared stays the primary loss: the probes of a case know nothing of the parts.

    Args:
        alone: leave the primary loss out. Only where the loss of the parts reaches every parameter, as where it is another
            estimate of the same gradient.

    Cost: one more forward and backward pass per batch (none with `alone`).

    Source: Shalev-Shwartz, Shamir and Shammah 2017, section 3.
    """

    def __init__(self, *, alone: bool = False) -> None:
        self.alone = alone
        self.name = "decompose(alone)" if alone else "decompose"
        how = "takes the place of" if alone else "is added to"
        self.explanation = f"The loss of the parts on targets of their own {how} the primary loss."
        primary = "" if alone else "loss_fn(model(x), y) + "
        self.code = f"loss = {primary}intermediate(model, batch)  # the loss of the parts on targets of their own"

    def __call__(self, training: Training) -> Training:
        parts = training.intermediate
        if parts is None:
            raise CannotRun(
                "the training has no intermediate targets. Give Training(intermediate=...), a function of (model, batch) that "
                "returns the loss of the model's parts on targets of their own."
            )

        def loss(model: nn.Module, batch: Any) -> Tensor:
            # The primary loss first: it draws the same masks as in the unchanged training.
            primary = None if self.alone else training.loss(model, batch)
            added = parts(model, tree.copied(batch))
            if primary is None:
                return added
            return primary.reshape(()) + added.reshape(())

        return replace(training.with_change(self), loss_fn=None, batch_loss=loss)
