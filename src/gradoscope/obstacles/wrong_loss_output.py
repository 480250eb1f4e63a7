"""Loss, output activation and target encoding do not fit together."""

import torch
from torch import Tensor

from gradoscope import tree
from gradoscope.case import Case
from gradoscope.diagnosis import Counterfactual, Finding
from gradoscope.fitting import outcome
from gradoscope.guard import untouched
from gradoscope.measure.pairing import Mismatch, mismatches
from gradoscope.obstacles import Mechanism, Obstacle, evidence
from gradoscope.remedies.repair import Repair
from gradoscope.training import Live, split

__all__ = ["OBSTACLE", "WrongLossOutput"]


class WrongLossOutput(Obstacle):
    """The loss is given something else than it takes, and the right pairing learns far better."""

    name = "wrong_loss_output"
    title = "loss, output activation and target encoding do not fit together"
    about = "outcome"  # the loss as it was given may be at its floor, and the model untrained
    advice = "Give the loss what it takes: scores, probabilities or their logarithms, in the shape of the targets."

    def mechanism(self, case: Case, known: dict[str, Finding]) -> Mechanism:
        found = self._found(case)
        if not found:
            return Mechanism(False, 0.9, [evidence("mismatches", 0, "loss, output and targets fit together", supports=False)])
        return Mechanism(True, 0.97, [evidence("mismatches", len(found), m.says, supports=True) for m in found])

    def examine(self, case: Case, known: dict[str, Finding]) -> Finding:
        if case.training.loss_fn is None:
            return self.finding(
                "undetermined", 0.5, "the loss cannot be looked into", Mechanism(None), missing=["a loss of output and target"]
            )
        return super().examine(case, known)

    def confirm(self, case: Case, known: dict[str, Finding]) -> list[Counterfactual]:
        first = self._found(case)[0]
        return [outcome(case, Repair(first), first.fitting)]

    @staticmethod
    def _found(case: Case) -> list[Mismatch]:
        found: list[Mismatch] = case.measure("mismatches", case.checkpoint(0.0), _mismatches)
        return found


def _mismatches(live: Live) -> list[Mismatch]:
    loss_fn = live.training.loss_fn
    assert loss_fn is not None
    inputs, target = split(tree.to_device(live.batches.sample(64, "fresh")[0], live.device))
    with untouched(live.model, seed=0), torch.enable_grad():
        output = live.model(*inputs)
        return mismatches(loss_fn, output, target) if isinstance(output, Tensor) else []


OBSTACLE = WrongLossOutput()
