"""The signal of the composition's gradient at random starts, directly and by quadrature; the variance over directions of theorem 3."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradoscope.measure.signal import Signal, SignalSums
from gradoscope.problems.lines import LineNet, TupleNet, draw_lines, start_weights
from gradoscope.stacked import generator, start_like_source
from gradoscope.theory.products import product_bound, product_model_variance

__all__ = ["Pool", "authors_ratio", "direct", "pool_of", "population", "second_network", "theorem"]

KEY = 741
PARTS = 24  # divisible by 2k for k = 1..4


@dataclass(frozen=True)
class Pool:
    """Images as the last layer of the first network sees them, all in float64.

    Args:
        features: shape (n, 100), the input of that layer.
        scores: shape (n,), its output.
        labels: shape (n,), +1 or -1.
    """

    features: Tensor
    scores: Tensor
    labels: Tensor


def pool_of(seed: int, images: int, size: int, device: str = "cpu") -> Pool:
    """Fresh images through a first network at its random start."""
    first = start_weights(LineNet(size), size, "code", generator(seed, KEY, 1)).to(device)
    assert isinstance(first, LineNet)
    random = generator(seed, KEY, 2)
    inputs: list[Tensor] = []
    hook = first.score.register_forward_hook(lambda module, args, output: inputs.append(args[0].double()))
    labels = []
    with torch.no_grad():
        for start in range(0, images, 1000):
            lines = draw_lines(random, min(1000, images - start), size)
            first(lines.images.to(device))
            labels.append(lines.labels.double())
    hook.remove()
    features = torch.cat(inputs).cpu()
    weight, bias = first.score.weight.detach().double().cpu(), first.score.bias.detach().double().cpu()
    return Pool(features, (features @ weight.T + bias)[:, 0], torch.cat(labels))


def second_network(seed: int, k: int, size: int) -> TupleNet:
    """The second network for k numbers at its random start, in float64; the first one of it is not used."""
    net = start_weights(TupleNet(k, LineNet(size, (2, 2), (2, 2))), size, "code", generator(seed, KEY, 3, k)).double()
    assert isinstance(net, TupleNet)
    return net


def _slopes(net: TupleNet, scores: Tensor) -> Tensor:
    """The derivative of the tuple's score by each image's score, shape (n, k) for scores of shape (n, k)."""
    with torch.enable_grad():
        leaf = scores.detach().requires_grad_()
        (slopes,) = torch.autograd.grad(net.combine(leaf).sum(), leaf)
    return slopes


def _tuples(pool: Pool, net: TupleNet, chunk: int = 6400) -> Iterator[Tensor]:
    """The vectors h g of disjoint tuples, a chunk at a time, shape (chunk, 100)."""
    n = len(pool.scores) // (net.k * 64) * 64
    k, dim = net.k, pool.features.shape[1]
    for start in range(0, n, chunk):
        count = min(chunk, n - start)
        part = slice(start * k, (start + count) * k)
        slopes = _slopes(net, pool.scores[part].view(count, k))
        gradient = (slopes[..., None] * pool.features[part].view(count, k, dim)).sum(1)
        yield gradient * pool.labels[part].view(count, k).prod(1)[:, None]


def direct(pool: Pool, net: TupleNet | None, dtype: torch.dtype = torch.float64) -> Signal:
    """The signal to noise of the last layer's gradient over disjoint tuples; without a second network that of a single image."""
    sums = SignalSums(dtype=dtype)
    if net is None:
        n = len(pool.scores) // 64 * 64
        for features, labels in zip(torch.split(pool.features[:n], 6400), torch.split(pool.labels[:n], 6400), strict=True):
            sums.add(features * labels[:, None])
    else:
        for part in _tuples(pool, net):
            sums.add(part)
    return sums.signal()


def authors_ratio(pool: Pool, net: TupleNet, batch: int = 100) -> float:
    r"""The authors' estimate: signal $S=\|\bar z\|^2$ over "noise" $B\,E\|\bar z_B\|^2-S^2$, with batches of B tuples.

    The noise takes the square of a squared norm, and the signal is too large by noise / n.
    """
    mean, squares, batches = torch.zeros(pool.features.shape[1], dtype=torch.float64), 0.0, 0
    for part in _tuples(pool, net):
        whole = part[: len(part) // batch * batch].view(-1, batch, part.shape[1]).mean(1)
        mean, squares, batches = mean + whole.sum(0), squares + float(whole.square().sum()), batches + len(whole)
    signal = float((mean / batches).square().sum())
    return signal / (batch * squares / batches - signal**2)


def population(pool: Pool, net: TupleNet, bins: int, rounds: int, random: torch.Generator, *, shuffled: bool = False) -> float:
    r"""The squared norm of E[h g] from the law of single images: no tuples are drawn, so there is no noise of tuples.

    With $\nu=E[y;s]$ and $\eta=E[y\,\phi\,;s]$, $E[hg]=\sum_j\int\partial_jN(s)\,\eta(ds_j)\prod_{i\ne j}\nu(ds_i)$, as images are
    independent. The pool is dealt into 2k parts, one per factor, twice: the inner product of the two estimates is free of the
    pool's own noise on average. It is averaged over `rounds` deals.

    Args:
        pool: images.
        net: the second network.
        bins: quantile bins of the score.
        rounds: deals.
        random: of the deals, and of the labels with `shuffled`.
        shuffled: permute the labels over the images first: there is no signal then, and what comes out is noise.
    """
    labels = pool.labels[torch.randperm(len(pool.labels), generator=random)] if shuffled else pool.labels
    nu, eta, centres = _measures(pool, labels, bins)
    slopes = _slopes_on_grid(net, centres)
    total = 0.0
    for _ in range(rounds):
        order = torch.randperm(PARTS, generator=random).view(2, net.k, -1)
        one, two = (_mean_gradient(slopes, nu, eta, deal) for deal in order)
        total += float(one @ two)
    return total / rounds


def _measures(pool: Pool, labels: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """(nu, eta, bins' centres): nu of shape (PARTS, bins), eta (PARTS, bins, 100), each a mean over its part of the pool."""
    n = len(pool.scores) // PARTS * PARTS
    edges = torch.quantile(pool.scores[:100_000], torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1])
    where = torch.bucketize(pool.scores[:n], edges)
    part = torch.arange(n) % PARTS
    cell = part * bins + where
    size = n // PARTS
    # Both labels are equally likely. Taking each part's own mean label away keeps nu and eta what they are on average (but for
    # 1/size), and removes the largest part of their noise.
    labels = labels[:n] - (torch.zeros(PARTS, dtype=torch.float64).index_add_(0, part, labels[:n]) / size)[part]
    nu = torch.zeros(PARTS * bins, dtype=torch.float64).index_add_(0, cell, labels) / size
    eta = torch.zeros(PARTS * bins, pool.features.shape[1], dtype=torch.float64)
    eta.index_add_(0, cell, pool.features[:n] * labels[:, None]).div_(size)
    count = torch.bincount(where, minlength=bins)
    centres = torch.zeros(bins, dtype=torch.float64).index_add_(0, where, pool.scores[:n]) / count.clamp_min(1)
    return nu.view(PARTS, bins), eta.view(PARTS, bins, -1), centres


def _slopes_on_grid(net: TupleNet, centres: Tensor) -> Tensor:
    """The k slopes at every combination of bins, shape (k, bins, ..., bins)."""
    bins, k = len(centres), net.k
    found = torch.empty(bins**k, k, dtype=torch.float64)
    for rows in torch.split(torch.arange(bins**k), 1 << 16):
        index = torch.stack([rows // bins ** (k - 1 - i) % bins for i in range(k)], dim=1)
        found[rows] = _slopes(net, centres[index])
    return found.T.reshape(k, *[bins] * k)


def _mean_gradient(slopes: Tensor, nu: Tensor, eta: Tensor, deal: Tensor) -> Tensor:
    """E[h g] with the measures of coordinate i averaged over the parts deal[i]."""
    k = len(deal)
    nus = [nu[parts].mean(0) for parts in deal]
    total = torch.zeros(eta.shape[2], dtype=torch.float64)
    for j in range(k):
        weights = slopes[j]
        for i in reversed(range(k)):  # from the last dimension on, so that the numbers of those before stay
            if i != j:
                weights = torch.tensordot(weights, nus[i], dims=([i], [0]))
        total += weights @ eta[deal[j]].mean(0)
    return total


DIRECTIONS, WIDTH = 64, 16


class _Shared(nn.Module):
    """One ReLU layer with a scalar output on each of k inputs, and a ReLU layer on the k numbers."""

    def __init__(self, d: int, k: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(d, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))
        self.second = nn.Sequential(nn.Linear(k, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.second(self.first(x)[..., 0]))


def theorem(values: Mapping[str, Any], seed: int, device: str) -> list[dict[str, Any]]:
    """Var over directions / G^2 of a network at its start, without bias: two halves of the samples, the same directions."""
    from torch.func import functional_call, grad, vmap

    d, k, samples = values["d"], values["k"], values["samples"]
    random = generator(seed, KEY, 5, d, k)
    model = start_like_source(_Shared(d, k), random).double()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    gradients = vmap(grad(lambda w, x: functional_call(model, w, (x[None],)).reshape(())), in_dims=(None, 0))
    u = nn.functional.normalize(torch.randn(DIRECTIONS, d, generator=random, dtype=torch.float64), dim=1)
    halves, square = [], 0.0
    for _ in range(2):
        total = torch.zeros(DIRECTIONS, sum(w.numel() for w in weights.values()), dtype=torch.float64)
        for _ in range(samples // 2048 // 2):
            x = torch.randn(2048, k, d, generator=random, dtype=torch.float64)
            g = torch.cat([part.reshape(2048, -1) for part in gradients(weights, x).values()], dim=1)
            total += (x @ u.T).sign().prod(1).T @ g
            square += float(g.square().sum())
        total /= samples // 2048 // 2 * 2048
        halves.append(total - total.mean(0))
    square /= samples // 2048 // 2 * 2048 * 2
    variance = float((halves[0] * halves[1]).sum()) / (DIRECTIONS - 1)
    return [{"seed": seed, "variance": variance / square, "closed_form": product_model_variance(d, k), "bound": product_bound(d, k)}]
