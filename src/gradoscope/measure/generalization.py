"""How much better the training data do than data that were held back."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from gradoscope.measurement import Measurement

__all__ = ["gap"]


def gap(train_losses: Sequence[float] | np.ndarray, validation_losses: Sequence[float] | np.ndarray) -> Measurement:
    r"""The generalisation gap, validation minus training loss, with Welch's standard error.

    $$\Delta=\bar v-\bar t,\qquad \mathrm{se}^2=\frac{s_v^2}{M}+\frac{s_t^2}{K}$$

    Args:
        train_losses: losses of batches (or examples) of the training data, shape (K,), in the loss's unit.
        validation_losses: the same of held-back data, shape (M,), measured in the same mode with the same parameters.

    Returns:
        The gap in the loss's unit (positive: validation is worse), its standard error and the two-sided p-value of
        Welch's t-test. With a single value on either side the standard error and p are NaN. `details` has both means,
        the degrees of freedom and the 95% interval.

    Raises:
        ValueError: where one of the two is empty.

    Example:
        >>> gap([1.0, 3.0], [4.0, 6.0]).value
        3.0

    Source: Welch (1947), The generalization of Student's problem when several population variances are involved.
    """
    train = np.asarray(train_losses, dtype=np.float64).reshape(-1)
    held = np.asarray(validation_losses, dtype=np.float64).reshape(-1)
    if not len(train) or not len(held):
        raise ValueError(f"the gap needs at least one loss on each side, got {len(train)} of training and {len(held)} of validation.")
    value = float(held.mean() - train.mean())
    se = p = df = math.nan
    if len(train) > 1 and len(held) > 1:
        a, b = train.var(ddof=1) / len(train), held.var(ddof=1) / len(held)
        se = float(math.sqrt(a + b)) if math.isfinite(a + b) else math.nan
        if se > 0:
            df = float((a + b) ** 2 / (a**2 / (len(train) - 1) + b**2 / (len(held) - 1)))
            p = float(2 * stats.t.sf(abs(value) / se, df))
        elif se == 0:
            # Both sides without spread: a difference that is certain, or none.
            df, p = math.inf, float(value == 0)
    width = float(stats.t.ppf(0.975, df)) * se if se > 0 else se
    details = {
        "train": float(train.mean()),
        "validation": float(held.mean()),
        "degrees_of_freedom": df,
        "interval": (value - width, value + width),
    }
    return Measurement("gap", value, se=se, n=len(train) + len(held), unit="loss", p=p, method="Welch", details=details)
