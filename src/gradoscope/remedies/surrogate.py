"""Another loss in the place of the one that stands in for the metric."""

from dataclasses import replace

from gradoscope.measure.surrogates import Surrogate
from gradoscope.remedies import Remedy
from gradoscope.training import Training

__all__ = ["OtherSurrogate"]


class OtherSurrogate(Remedy):
    """Minimise another usual loss of the same outputs and targets, from the same start, with the same optimizer and data.

    Args:
        surrogate: of `measure.surrogates.surrogates`.
    """

    from_checkpoint = False

    def __init__(self, surrogate: Surrogate) -> None:
        self.surrogate = surrogate
        self.name = f"surrogate({surrogate.name})"
        self.explanation = f"Instead of the loss as given, {surrogate.says} is minimised."
        self.code = surrogate.code

    def __call__(self, training: Training) -> Training:
        return replace(training.with_change(self), loss_fn=self.surrogate.loss)
