"""The primary loss alone cannot train the parts of the model; targets for the parts can."""

from dataclasses import replace

from gradoscope import readings
from gradoscope import thresholds as T
from gradoscope.case import Case
from gradoscope.diagnosis import Counterfactual, Evidence, Finding
from gradoscope.obstacles import Mechanism, Obstacle, evidence
from gradoscope.obstacles._floor import learnt, try_alternatives
from gradoscope.obstacles._parts import PartSignals, part_signals, same_gradient, why_not
from gradoscope.obstacles.local_minimum import LEAST
from gradoscope.obstacles.low_gradient_snr import averaged
from gradoscope.remedies.decompose import Decompose
from gradoscope.remedies.restart import Restart

__all__ = ["OBSTACLE", "EndToEndComposition"]

TARGETS = "intermediate targets"
STARTS = ("restart", "rescale")  # remedies that draw another start
# What explains a standstill without any parts; those that rest on nothing else having helped are not among them.
CAUSES = ("local_minimum", "low_gradient_snr", "ill_conditioning")


class EndToEndComposition(Obstacle):
    """The primary gradient hardly tells the parts where to go; with targets of their own they learn, and so does the whole."""

    name = "end_to_end_composition"
    title = "the primary loss alone cannot train the parts of the model; targets for the parts can"
    advice = "Train the parts on targets of their own: add the intermediate loss to the primary one, or train them first."
    after = ("step_too_large", "step_too_small", "vanishing_gradient", "exploding_gradient", "saddle_point", "frozen_parameters")

    def mechanism(self, case: Case, known: dict[str, Finding]) -> Mechanism:
        """The signal-to-noise ratio of both losses' gradients on the parts, at the start and in the middle."""
        found: list[Evidence] = []
        answers: list[bool | None] = []
        for step in dict.fromkeys((case.checkpoint(0.0), case.checkpoint(0.5))):
            reading = part_signals(case, step)
            if reading is None:
                continue
            found += _told(reading)
            answers.append(reading.silent)
        if not answers:
            return Mechanism(None, missing=[why_not(case)])
        same = same_gradient(case)
        if same is not None:
            beta, se = same.signals.projection, same.signals.projection_se
            says = f"the two mean gradients are the same ({beta:.2f} +- {se:.2g} times as long): the primary one is there, and only noisier"
            found.append(evidence("projection", beta, says, supports=False, se=se, step=same.step, rules_out=(self.name,)))
            return Mechanism(False, 0.95, found)
        if any(answers):
            return Mechanism(True, 0.95, found)
        if None in answers:
            return Mechanism(None, 0.5, found, ["more data: these batches do not resolve the primary gradient on the parts"])
        return Mechanism(False, 0.9, found)

    def examine(self, case: Case, known: dict[str, Finding]) -> Finding:
        if case.training.intermediate is None:
            return self._without_targets(case, known)
        found = super().examine(case, known)
        tried = [c for c in case.trials() if c.remedy == Decompose().name and not c.failed]
        short = bool(tried) and all(c.start + c.steps < case.first + case.steps and case.material(c) is False for c in tried)
        if found.status == "absent" and short and learnt(case) < T.NOT_LEARNT:
            # The parts come first and the whole follows: a fork that stopped early says nothing against it.
            says = f"{found.summary} so far, but the time did not allow to run it to the last step"
            missing = ("time for a run with the added targets to the last step",)
            return replace(found, status="undetermined", confidence=0.5, summary=says, missing=missing)
        return found

    def _without_targets(self, case: Case, known: dict[str, Finding]) -> Finding:
        """What can be said where no intermediate targets were given; it costs nothing."""
        share = learnt(case)
        trains = share >= T.NOT_LEARNT
        says = f"the primary loss alone removed {max(share, 0.0):.1%} of what the best constant answer leaves"
        first = Mechanism(not trains, 0.9 if share >= T.UNEXPLAINED else 0.7, [evidence("learnt_share", share, says, supports=not trains)])
        if trains:
            return self.finding("absent", first.probability, "the primary loss alone trains the parts", first)
        cause = next((n for n in (*self.after, *CAUSES) if n in known and known[n].status == "present"), None)
        if cause is not None:
            return self.finding("absent", known[cause].confidence, f"{cause} explains it", first)
        return self.finding(
            "undetermined",
            0.5,
            "next to nothing was learnt from the primary loss; where the model has parts, give targets for them: "
            "Training(intermediate=f), f(model, batch) being the loss of the parts on targets of their own",
            first,
            missing=[TARGETS],
        )

    def confirm(self, case: Case, known: dict[str, Finding]) -> list[Counterfactual]:
        ran = any(c.remedy == Decompose().name and c.steps == case.steps for c in case.trials())
        if not ran and learnt(case) < T.NOT_LEARNT and case.baseline.seconds <= case.limit - case.seconds_confirmed:
            # To the end at once: the parts come first and the whole follows, so that a first part cannot show what leads.
            case.trial(Decompose(), start=case.first, steps=case.steps)
            case.seconds_confirmed += case.baseline.seconds
        whole = case.trial(Decompose())
        # Supervision applies to a state: from the middle it tells besides that the run is not caught where it stands.
        return [whole, case.trial(Decompose(), start=case.checkpoint(0.5))]

    def rivals(self, case: Case, best: Counterfactual, known: dict[str, Finding]) -> Evidence | None:
        """A change that keeps to the primary loss and does as well."""
        try_alternatives(case)
        if not readings.live_full_batch(case):
            averaged(case)
        start = part_signals(case, case.checkpoint(0.0))
        silent = start is not None and start.silent is True
        if not silent:
            # It knew the parts at the start: then it may sit in a minimum, which other starts would show.
            for number in range(1, LEAST + 1):
                if case.material(case.trial(Restart(number))):
                    break
        tried = [c for c in case.trials() if c.on == "training" and not c.failed and not c.remedy.startswith("decompose")]
        # Where the start itself says nothing, another one that gets through had luck, unless its scale was what is wrong.
        confirmed = {f.counterfactual for f in known.values() if f.status == "present" and f.obstacle in self.after}
        lucky = [c for c in tried if silent and c.remedy.startswith(STARTS) and c.remedy not in confirmed]
        # A fork that only begins in the middle is compared with the targets given from there on.
        ours = {c.start: c.shortfall for c in self.confirm(case, known)}
        counted = [
            c
            for c in tried
            if case.material(c) and c not in lucky and c.shortfall >= T.EXPLAINED * min(best.shortfall, ours.get(c.start, best.shortfall))
        ]
        other = max(counted, key=lambda c: c.shortfall, default=None)
        if other is None:
            return None
        says = f"{other.remedy} gains {other.shortfall:.0%} with the primary loss alone"
        return evidence(f"counterfactual {other.remedy}", other.shortfall, says, supports=False)

    def summary(self, best: Counterfactual) -> str:
        return f"with targets for the parts the primary loss ends at {best.loss_remedy:.4g} instead of {best.loss_unchanged:.4g}"


def _told(reading: PartSignals) -> list[Evidence]:
    """One checkpoint in three lines: the signal-to-noise ratio of each loss's gradient on the parts, and how they compare."""
    found = []
    for name, loss, s in (("primary", "primary", reading.signals.first), ("intermediate", "intermediate", reading.signals.second)):
        se = s.signal_se / s.trace if s.trace > 0 else None
        word = "is" if s.p_value < T.ALPHA else "is not"
        says = f"at step {reading.step} the {loss} gradient on the parts {word} resolved: signal over noise {s.snr:.2g} per batch"
        says += "" if se is None else f" +- {se:.1g}"
        holds = s.p_value < T.ALPHA if name == "intermediate" else None
        found.append(evidence(f"{name}_snr", s.snr, says, supports=holds, se=se, step=reading.step, p=s.p_value))
    ratio, upper = reading.signals.ratio, reading.signals.ratio_upper
    says = (
        f"at step {reading.step} the primary gradient has {ratio:.2g} times the intermediate one's signal over noise (at most {upper:.2g})"
    )
    found.append(evidence("snr_ratio", ratio, says, supports=reading.silent, step=reading.step))
    return found


OBSTACLE = EndToEndComposition()
