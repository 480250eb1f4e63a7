"""Tuples of line images: the parity of their slopes, learnt end to end or with the slopes as targets of their own (F3)."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradoscope.errors import Usage
from gradoscope.problems import problem
from gradoscope.problems.parity import hinge
from gradoscope.training import Training

__all__ = ["LineNet", "Lines", "TupleNet", "draw_lines", "start_weights", "tuple_labels"]

LAWS = ("text", "code")
SHORTEST = 5  # pixels; the longest line is as much shorter than the frame


@dataclass(frozen=True)
class Lines:
    """Images of one line each, with what was drawn.

    Args:
        images: shape (n, size, size), uint8, 1 on the line; the first index counts rows upwards.
        labels: shape (n,), +1 where the line slopes upwards and -1 where downwards.
        angle: shape (n,), radians in [0, pi).
        length: shape (n,), pixels, before what lies outside the frame is cut off.
        centre: shape (n, 2), row and column in pixels.
    """

    images: Tensor
    labels: Tensor
    angle: Tensor
    length: Tensor
    centre: Tensor


def draw_lines(random: torch.Generator, n: int, size: int = 28, law: str = "text") -> Lines:
    r"""Draw n binary images of a random line: $\theta\sim U[0,\pi]$, $l\sim U[5,\text{size}-5]$, and its centre uniform in the frame.

    The label is +1 where $\theta<\pi/2$. Two laws turn a line into pixels:

    - "text": the centre lies in $[0,\text{size}-1]^2$; points from one end to the other, at most a pixel apart, are rounded to
      the nearest pixel. The paper says no more than that.
    - "code": the authors' program. The centre lies in $[0,\text{size}]^2$; $2\lfloor l/2\rfloor-1$ points a pixel apart, so
      that a line is one to three pixels shorter than l; coordinates are cut off towards zero instead of rounded.

    Args:
        random: on the CPU.
        n: images.
        size: pixels of a side, at least 11.
        law: "text" or "code".

    Raises:
        Usage: for another law, or a frame that is too small.

    Cost: some 0.3 microseconds of one core per point, about 5 ms for a thousand images of 28 x 28.

    Example:
        >>> lines = draw_lines(torch.Generator().manual_seed(0), 1000)
        >>> lines.images.shape, int(lines.images.max()), abs(float(lines.labels.mean())) < 0.1
        (torch.Size([1000, 28, 28]), 1, True)

    Source: Shalev-Shwartz, Shamir and Shammah 2017, section 3.1.
    """
    if law not in LAWS or size < 2 * SHORTEST + 1:
        raise Usage(f"lines are drawn by the law 'text' or 'code' in a frame of at least {2 * SHORTEST + 1} pixels, got {law!r}, {size}.")
    uniform = torch.rand(n, 4, generator=random)
    angle = math.pi * uniform[:, 0]
    length = SHORTEST + (size - 2 * SHORTEST) * uniform[:, 1]
    centre = uniform[:, 2:] * (size - 1 if law == "text" else size)
    if law == "text":
        parts = length.ceil()[:, None]
        # Points beyond a shorter line's end fall on its end.
        along = (torch.arange(size - SHORTEST + 1) / parts).clamp(max=1).sub(0.5) * length[:, None]
    else:
        most = (size - SHORTEST) // 2 - 1
        half = ((length / 2).floor() - 1)[:, None]
        along = torch.arange(-most, most + 1).float().clamp(-half, half)
    row = centre[:, :1] + along * angle.sin()[:, None]
    column = centre[:, 1:] + along * angle.cos()[:, None]
    row, column = (row.round(), column.round()) if law == "text" else (row.trunc(), column.trunc())
    inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
    pixel = (row * size + column).long() + torch.arange(0, n * size * size, size * size)[:, None]
    canvas = torch.zeros(n * size * size + 1, dtype=torch.uint8)  # the last place takes what lies outside
    canvas[torch.where(inside, pixel, n * size * size)] = 1
    labels = torch.where(angle < math.pi / 2, 1.0, -1.0)
    return Lines(canvas[:-1].view(n, size, size), labels, angle, length, centre)


def tuple_labels(parts: Tensor, law: str = "text") -> Tensor:
    r"""The target of a tuple, the product $\prod_j y_j$ of its parts' labels; shape (n, k) to (n,).

    The authors' code takes -1 + 2 (number of upward lines mod 2), which is minus the product where k is even. For a learner
    it makes no difference.

    Example:
        >>> parts = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
        >>> tuple_labels(parts).tolist(), tuple_labels(parts, "code").tolist()
        ([1.0, -1.0], [-1.0, 1.0])
    """
    product = parts.prod(dim=1)
    return -product if law == "code" and parts.shape[1] % 2 == 0 else product


class LineNet(nn.Module):
    """The first network, one image to one score: convolutions with max-pooling and without ReLU, dense layers with ReLU.

    Args:
        size: pixels of a side.
        channels: of each convolution (5 x 5, the size is kept), followed by 2 x 2 max-pooling.
        hidden: widths of the dense layers.
    """

    def __init__(self, size: int = 28, channels: Sequence[int] = (16, 16), hidden: Sequence[int] = (50, 100)) -> None:
        super().__init__()
        sizes = [1, *channels]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 5, padding=2) for a, b in itertools.pairwise(sizes))
        widths = [channels[-1] * (size >> len(channels)) ** 2, *hidden]
        self.dense = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.score = nn.Linear(widths[-1], 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, size, size) of any type to scores (n,)."""
        first = self.convolutions[0]
        x = images.to(next(first.parameters()).dtype)[:, None].contiguous(memory_format=torch.channels_last)
        return self.after(nn.functional.max_pool2d(first(x), 2))

    def after(self, x: Tensor) -> Tensor:
        """What follows the first pooling, (n, channels, size / 2, size / 2), in channels-last order, to scores (n,)."""
        for convolution in list(self.convolutions)[1:]:
            x = nn.functional.max_pool2d(convolution(x), 2)
        x = x.permute(0, 2, 3, 1).flatten(1)
        for layer in self.dense:
            x = torch.relu(layer(x))
        return torch.as_tensor(self.score(x)[:, 0])


class TupleNet(nn.Module):
    """The whole network: one `LineNet` for all images of a tuple, a sigmoid, and one ReLU layer on the k numbers.

    Args:
        k: images of a tuple.
        first: the network for one image.
        width: of the second network.
        parts: whether the images' scores are answered too.
    """

    def __init__(self, k: int, first: LineNet, width: int = 100, parts: bool = False) -> None:
        super().__init__()
        self.k, self.first, self.parts = k, first, parts
        self.second = nn.Sequential(nn.Linear(k, width), nn.ReLU(), nn.Linear(width, 1))

    def scores(self, images: Tensor) -> Tensor:
        """The first network's scores (n, k) of the images (n, k, size, size)."""
        return torch.as_tensor(self.first(images.flatten(0, 1))).view(-1, self.k)

    def combine(self, scores: Tensor) -> Tensor:
        """The tuple's score (n,) from its images' scores (n, k)."""
        return torch.as_tensor(self.second(torch.sigmoid(scores))[:, 0])

    def forward(self, images: Tensor) -> Tensor:
        """The tuples' scores (n,); with `parts` (n, 1 + k), the images' scores behind them."""
        scores = self.scores(images)
        whole = self.combine(scores)
        return torch.cat([whole[:, None], scores], 1) if self.parts else whole


def start_weights(model: nn.Module, size: int, start: str = "code", random: torch.Generator | None = None) -> nn.Module:
    r"""Draw truncated normal weights (cut at two standard deviations) and zero biases, in place.

    Dense layers have std $1/\sqrt{\text{inputs}}$. "code": convolutions as in the authors' program, which takes the image's
    width for the number of input channels of the first ($1/\sqrt{\text{size}}$) and leaves out the 25 places of the filter
    in the second ($1/\sqrt{\text{channels}}$). "fan-in": convolutions with $1/\sqrt{25\,\text{channels}}$. The paper says nothing.

    Example:
        >>> net = start_weights(LineNet(), 28, "code", torch.Generator().manual_seed(0))
        >>> float(net.convolutions[1].weight.detach().abs().max()) <= 0.5
        True
    """
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                fan_in = layer.weight[0].numel()
                if isinstance(layer, nn.Conv2d) and start == "code":
                    fan_in = size if layer.in_channels == 1 else layer.in_channels
                std = 1 / math.sqrt(fan_in)
                nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std, generator=random)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
    return model


Target = tuple[Tensor, Tensor]


def _sampler(k: int, size: int, law: str) -> Callable[[torch.Generator, int], tuple[Tensor, Target]]:
    def sample(random: torch.Generator, n: int) -> tuple[Tensor, Target]:
        lines = draw_lines(random, n * k, size, law)
        parts = lines.labels.view(n, k)
        return lines.images.view(n, k, size, size).float(), (tuple_labels(parts, law), parts)

    return sample


def _primary(output: Tensor, target: Target) -> Tensor:
    return hinge(output if output.dim() == 1 else output[:, 0], target[0])


def _both(output: Tensor, target: Target) -> Tensor:
    return _primary(output, target) + hinge(output[:, 1:], target[1])


def _of_parts(model: nn.Module, batch: tuple[Tensor, Target]) -> Tensor:
    """The mean hinge loss of the images' own scores."""
    assert isinstance(model, TupleNet)
    return hinge(model.scores(batch[0]), batch[1][1])


def _accuracy(output: Tensor, target: Target) -> float:
    score = output if output.dim() == 1 else output[:, 0]
    return float((score * target[0] > 0).double().mean())


def _training(
    approach: str, k: int, size: int, channels: int, hidden: int, batch: int, lr: float, steps: int, law: str, start: str
) -> Training:
    if k < 1 or size < 12 or start not in ("code", "fan-in"):
        raise Usage(f"lines need k >= 1, size >= 12 and start=code or start=fan-in, got k={k}, size={size}, start={start}.")
    if law not in LAWS:
        raise Usage(f"lines need law=text or law=code, got law={law}.")
    sample, decomposed = _sampler(k, size, law), approach == "decomposed"

    def model() -> nn.Module:
        return start_weights(TupleNet(k, LineNet(size, (channels, channels), (hidden, 2 * hidden)), parts=decomposed), size, start)

    return Training(
        name=f"lines:{approach},k={k}",
        model=model,
        optimizer=lambda params: torch.optim.Adam(params, lr=lr, betas=(0.9, 0.99), eps=1e-5),
        loss_fn=_both if decomposed else _primary,
        data=sample,
        validation=sample,
        metric=_accuracy,
        intermediate=_of_parts,
        batch_size=batch,
        steps=steps,
    )


SOURCE = "Shalev-Shwartz, Shamir and Shammah 2017, section 3.1 and figure 3"


@problem(
    "lines:end-to-end",
    obstacle="end_to_end_composition",
    says="The parity of k lines' slopes from the tuple's label alone: both parts are easy, together they stay at chance.",
    source=SOURCE,
)
def end_to_end(
    *,
    seed: int = 0,
    k: int = 3,
    size: int = 28,
    channels: int = 16,
    hidden: int = 50,
    batch: int = 200,
    lr: float = 1e-3,
    steps: int = 300,
    law: str = "text",
    start: str = "code",
) -> Training:
    """Learn the product of k slopes from images, primary loss only.

    The paper trains for 20,000 steps; the loss is as flat after 300. The labels of the single images come along as
    `intermediate` targets, which the training itself does not use.

    Args:
        seed: not used: samples are drawn afresh, and the problem has no hidden target.
        k: images of a tuple.
        size: pixels of a side.
        channels: of each of the two convolutions.
        hidden: width of the first dense layer, half that of the second.
        batch: fresh tuples per step.
        lr: step size of Adam.
        steps: optimizer steps.
        law: how lines become pixels, see `draw_lines`.
        start: how weights start, see `start_weights`.

    Raises:
        Usage: for options that make no sense.
    """
    return _training("end-to-end", k, size, channels, hidden, batch, lr, steps, law, start)


@problem(
    "lines:decomposed",
    obstacle="healthy",
    says="The same network and tuples with the slopes of the single lines as targets beside the tuple's: it learns at once.",
    source=SOURCE,
)
def decomposed(
    *,
    seed: int = 0,
    k: int = 3,
    size: int = 28,
    channels: int = 16,
    hidden: int = 50,
    batch: int = 200,
    lr: float = 1e-3,
    steps: int = 300,
    law: str = "text",
    start: str = "code",
) -> Training:
    """Minimise the sum of the tuple's hinge loss and the mean hinge loss of the single images; options as `lines:end-to-end`."""
    return _training("decomposed", k, size, channels, hidden, batch, lr, steps, law, start)
