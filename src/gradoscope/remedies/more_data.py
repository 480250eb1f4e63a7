"""More data: half of the validation examples join the training; the other half judges."""

from gradoscope import tree
from gradoscope.batches import TensorBatches
from gradoscope.remedies import Remedy
from gradoscope.training import Live

__all__ = ["MoreData"]


class MoreData(Remedy):
    """Train on the training data and the first half of the validation data, as many steps of the same batch size."""

    name = "more_data"
    explanation = "Half of the validation examples join the training data; the other half judges both."
    from_checkpoint = False
    code = "# more data, or augmentation: the same model generalises better from more examples"

    def __init__(self, extra: object) -> None:
        self.extra = extra

    def prepare(self, live: Live) -> None:
        old = live.batches
        assert isinstance(old, TensorBatches)
        whole = tree.concatenate([old.data, self.extra])
        size = None if old.batch_size == old.size else old.batch_size
        live.batches = TensorBatches(whole, size or tree.rows(whole), old.seed, shuffle=old.shuffle)
