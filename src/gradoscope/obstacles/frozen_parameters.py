"""Parameters that matter are not trained, though they should be."""

from gradoscope.case import Case
from gradoscope.diagnosis import Counterfactual, Finding
from gradoscope.obstacles import Mechanism, Obstacle, evidence
from gradoscope.remedies.unfreeze import Unfreeze, cut_off, frozen

__all__ = ["OBSTACLE", "FrozenParameters"]


class FrozenParameters(Obstacle):
    """Some parameters never move, and letting them move progresses."""

    name = "frozen_parameters"
    title = "parameters that matter are not trained"
    advice = "Give every parameter that matters to the optimizer, with requires_grad=True and a learning rate above zero."

    def mechanism(self, case: Case, known: dict[str, Finding]) -> Mechanism:
        with case.live() as live:
            still = frozen(live)
            sizes = {n: p.numel() for n, p in live.model.named_parameters()}
        share = sum(sizes[n] for n in still) / sum(sizes.values())
        if not still:
            return Mechanism(
                False, 0.99, [evidence("frozen_share", 0.0, "every parameter is in the optimizer and has a gradient", supports=False)]
            )
        names = ", ".join(f"{n} ({why})" for n, why in list(still.items())[:3])
        says = f"{len(still)} parameter tensors never move, {share:.0%} of all numbers: {names}"
        return Mechanism(True, 0.99, [evidence("frozen_share", share, says, supports=True)])

    def confirm(self, case: Case, known: dict[str, Finding]) -> list[Counterfactual]:
        with case.live() as live:
            cut = bool(cut_off(live))
        return [case.trial(Unfreeze(reattach=cut))]


OBSTACLE = FrozenParameters()
