"""A gradient of less variance: each step averages over several batches, at the same step size."""

from gradoscope.remedies import Remedy

__all__ = ["LargerBatch"]


class LargerBatch(Remedy):
    """Average each step's gradient over `times` batches (at most one epoch: then it is the full gradient)."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.name = f"larger_batch(x{times})"
        self.explanation = f"Each step averages over {times} batches, at the same step size."
        self.code = f"# same learning rate, a batch size {times} times as large, or the mean gradient of {times} batches per step"

    def batches_per_step(self) -> int:
        return self.times
