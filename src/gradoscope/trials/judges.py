"""Who judges the trials: this project's diagnosis and its peers, each as one function from a training and a seed to an answer."""

from gradoscope.training import Training
from gradoscope.trials.rules import Answer, Peer, threshold_rules

__all__ = ["JUDGES", "OURS", "gradoscope"]

OURS = "gradoscope"


def gradoscope(training: Training, seed: int, step_seconds: float | None = None) -> Answer:
    """The project's own diagnosis, which is told nothing but the training.

    Cost: that of `gradoscope.diagnose.diagnose`.
    """
    from gradoscope.diagnose import diagnose

    found = diagnose(training, seed=seed, step_seconds=step_seconds)
    absent = tuple((f.obstacle, f.confidence) for f in found.findings if f.status == "absent")
    return Answer(found.verdict, tuple((f.obstacle, f.confidence) for f in found.present), absent, found.healthy.confidence)


JUDGES: dict[str, Peer] = {OURS: gradoscope, "threshold rules": threshold_rules}
"""Every judge by name. An adapter to another tool is one function more."""
