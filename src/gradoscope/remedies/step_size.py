"""Another step size: every learning rate times one factor, schedules and groups included."""

from gradoscope.remedies import Remedy

__all__ = ["StepSize"]


class StepSize(Remedy):
    """Multiply every learning rate by `factor`.

    Example:
        >>> StepSize(10).name
        'step_size(x10)'
    """

    def __init__(self, factor: float) -> None:
        self.factor = float(factor)
        self.name = f"step_size(x{self.factor:g})"
        word = "larger" if factor > 1 else "smaller"
        times = factor if factor > 1 else 1 / factor
        self.explanation = f"Every learning rate is {times:g} times {word}."
        self.code = f"for group in optimizer.param_groups:\n    group['lr'] *= {self.factor:g}"

    def step_scale(self) -> float:
        return self.factor
