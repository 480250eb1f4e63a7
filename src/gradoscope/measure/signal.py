"""How much a gradient says about the target: signal, noise, and the smallest signal that so many samples can show."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gradoscope.guard import untouched
from gradoscope.measurement import Measurement

__all__ = ["Signal", "SignalSums", "target_signal"]


@dataclass(frozen=True)
class Signal:
    r"""Signal $\|E[z]\|^2$ and noise $E\|z-E[z]\|^2$ of a random vector z, from n samples.

    Args:
        signal: unbiased estimate of the squared norm of the mean; may be negative.
        noise: unbiased estimate of the total variance.
        snr: signal / noise.
        se: standard error of `snr`; on the wide side, by up to 1.5 times, where there is no signal.
        resolution: three standard errors of `snr` where there is no signal: what is below it cannot be told from nothing.
        plain: the squared norm of the sample mean over the rest, whose expectation is snr + 1/n.
        n: samples.
    """

    signal: float
    noise: float
    snr: float
    se: float
    resolution: float
    plain: float
    n: int

    @property
    def samples_needed(self) -> float:
        """Samples at which a signal of this size would lie at the resolution; infinite where it is not positive."""
        return self.n * self.resolution / self.snr if self.snr > 0 else math.inf

    def to_measurement(self, step: int | None = None) -> Measurement:
        """The signal-to-noise ratio as a measurement; all the rest is in `details`."""
        return Measurement("target_signal", self.snr, se=self.se, n=self.n, step=step, method="U-statistic", details=dict(vars(self)))


class SignalSums:
    r"""Sums of samples z, gathered part by part, from which `Signal` is computed.

    $$\widehat{\|Ez\|^2}=\frac{\|\sum z_i\|^2-\sum\|z_i\|^2}{n(n-1)}$$
    The plain $\|\bar z\|^2$ is too large by noise / n: with n samples a signal of zero shows as 1/n. The standard errors come from
    the sums of `groups` groups of samples, and need at least 4 of them.

    Args:
        groups: samples are dealt out to so many groups in turn.
        dtype: of the sums.

    Example:
        >>> z = torch.randn(6400, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([1.0, 0.0, 0.0])
        >>> sums = SignalSums()
        >>> for part in z.split(640):
        ...     sums.add(part)
        >>> found = sums.signal()
        >>> abs(found.snr - 1 / 3) < 3 * found.se
        True

    Source: the U-statistic of a squared mean; Shalev-Shwartz, Shamir and Shammah 2017, section 3.2, define the ratio.
    """

    def __init__(self, groups: int = 64, dtype: torch.dtype = torch.float64) -> None:
        self.groups, self.dtype = groups, dtype
        self.sums: Tensor | None = None
        self.squares = 0.0
        self.n = 0

    def add(self, samples: Tensor) -> None:
        """Take in samples of shape (n, P); n a multiple of `groups`, so that all groups are of one size.

        Raises:
            ValueError: where n is no multiple of the number of groups.
        """
        if len(samples) == 0 or len(samples) % self.groups:
            raise ValueError(f"samples come in multiples of {self.groups}, got {len(samples)}.")
        z = samples.detach().to(self.dtype)
        part = z.view(-1, self.groups, z.shape[1]).sum(0)
        self.sums = part if self.sums is None else self.sums + part
        self.squares += float(z.square().sum())
        self.n += len(z)

    def signal(self) -> Signal:
        """What the samples say so far.

        Raises:
            ValueError: before anything was added.
        """
        if self.sums is None:
            raise ValueError("no samples were added yet.")
        n, k = self.n, self.groups
        mean_square = self.squares / n
        plain = float((self.sums.sum(0) / n).square().sum())
        signal = (n * plain - mean_square) / (n - 1)
        noise = mean_square - signal
        means = (self.sums * (k / n)).double().cpu().numpy()
        products = means @ means.T
        null, full = _errors(products)
        nothing = noise <= 0
        return Signal(
            signal,
            noise,
            math.inf if nothing else signal / noise,
            math.nan if nothing else full / noise,
            math.nan if nothing else 3 * null / noise,
            math.inf if nothing else plain / (mean_square - plain),
            n,
        )


def _errors(products: np.ndarray) -> tuple[float, float]:
    """(standard error of the signal where there is none, and with the signal that there is), from the groups' inner products.

    With K group means of covariance S: the variance is 2 tr(S^2) / (K (K - 1)), plus 4 G'SG / K where the mean G is not zero.
    """
    k = len(products)
    centred = products - products.mean(0) - products.mean(1)[:, None] + products.mean()
    trace = float(np.trace(centred)) / (k - 1)
    # E||C||_F^2 of the centred matrix is (k-1)^2 tr S^2 + (k-1) (tr S)^2 + (k-1) tr S^2 for normal group means
    square = max((float((centred**2).sum()) - (k - 1) * trace**2) / ((k - 1) * k), 0.0)
    rows = products.mean(1) - products.mean()
    along = max(float((rows**2).sum()) / (k - 1) - square / k, 0.0)  # G'SG, without what the noise itself contributes
    null = 2 * square / (k * (k - 1))
    return math.sqrt(null), math.sqrt(null + 4 * along / k)


def target_signal(
    model: nn.Module, x: Tensor, y: Tensor, *, parameters: Mapping[str, Tensor] | None = None, chunk: int = 512, groups: int = 64
) -> Signal:
    r"""How much the gradient of a predictor says about its target: the signal-to-noise ratio of $z=h(x)\,\partial p_w(x)/\partial w$.

    For losses $r(\hat y y)$ and the squared loss this is what the gradient carries about the target h; it needs no loss.

    Args:
        model: x to one number per example, shape (n,) or (n, 1).
        x: inputs, shape (n, ...), drawn independently; what is left of n after the last multiple of `groups` is not used.
        y: targets, shape (n,).
        parameters: of the model, by name; all that require a gradient where it is left out.
        chunk: examples whose gradients are held at once.
        groups: see `SignalSums`.

    Returns:
        The ratio with its standard error and resolution.

    Raises:
        ValueError: where there are fewer examples than groups.

    Cost: one forward and one backward pass per example, in batches.

    Example:
        >>> x = torch.randn(2048, 5, generator=torch.Generator().manual_seed(0))
        >>> found = target_signal(nn.Linear(5, 1), x, x[:, 0].sign())
        >>> found.snr > found.resolution
        True

    Source: Shalev-Shwartz, Shamir and Shammah 2017, section 3.2.
    """
    from torch.func import functional_call, grad, vmap

    if len(x) < groups:
        raise ValueError(f"a signal needs at least {groups} examples, got {len(x)}.")
    chosen = dict(parameters) if parameters is not None else {name: p for name, p in model.named_parameters() if p.requires_grad}
    chosen = {name: p.detach() for name, p in chosen.items()}

    def predict(weights: dict[str, Tensor], one: Tensor) -> Tensor:
        return torch.as_tensor(functional_call(model, weights, (one[None],))).reshape(())

    gradients = vmap(grad(predict), in_dims=(None, 0))
    size = max(chunk // groups, 1) * groups
    sums = SignalSums(groups)
    used = len(x) // groups * groups
    with untouched(model):
        for inputs, targets in zip(torch.split(x[:used], size), torch.split(y[:used], size), strict=True):
            flat = torch.cat([g.reshape(len(inputs), -1) for g in gradients(chosen, inputs).values()], dim=1)
            sums.add(flat * targets.reshape(-1, 1))
    return sums.signal()
