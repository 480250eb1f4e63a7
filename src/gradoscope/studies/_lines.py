"""The training of the line tuples: fresh images in chunks, the first convolution by table, held-out accuracy, checkpoints."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradoscope.problems.lines import LineNet, TupleNet, draw_lines, start_weights, tuple_labels
from gradoscope.problems.parity import hinge
from gradoscope.stacked import generator
from gradoscope.study import Row

__all__ = ["CHUNK", "KEY", "Run", "accuracy", "fixed_tuples", "make_net", "pooled", "prepared", "single_scores", "tuple_loss", "windows"]

KEY = 731  # of this study's random streams
CHUNK = 20  # steps whose images are drawn at once
BETAS, EPSILON = (0.9, 0.99), 1e-5


def make_net(values: Mapping[str, Any], seed: int) -> TupleNet:
    """The network of a setting, at its start."""
    first = LineNet(values["size"], (values["channels"],) * values["convolutions"], (values["hidden"], 2 * values["hidden"]))
    net = TupleNet(values["k"], first)
    start_weights(net, values["size"], values["start"], generator(seed, KEY, 1))
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net


def windows(images: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct 6 x 6 surroundings of the 2 x 2 cells of binary images, and which one each cell has.

    What max-pooling leaves of a 5 x 5 convolution in one cell depends on these 36 pixels alone, and lines show few kinds
    of them: 600 images have 118,000 cells with about 3,000 kinds.

    Args:
        images: (n, size, size), uint8 of 0 and 1, size even.

    Returns:
        Patches (u, 1, 6, 6) as float, and for each cell the index of its patch, (n * (size / 2)^2,).
    """
    padded = nn.functional.pad(images, (2, 2, 2, 2))
    half, cells = images.shape[1] // 2, images.shape[1]
    rows = sum(padded[:, :, j : j + cells : 2] << j for j in range(6))  # six pixels of a row in one byte
    assert isinstance(rows, Tensor)
    bytes_ = [rows[:, i : i + cells : 2] for i in range(6)]
    low = (bytes_[0].int() | (bytes_[1].int() << 6) | (bytes_[2].int() << 12)).long()
    high = (bytes_[3].int() | (bytes_[4].int() << 6) | (bytes_[5].int() << 12)).long()
    codes = (low | (high << 18)).reshape(-1)
    index = torch.zeros(len(images) * half * half, dtype=torch.int64)
    lit = codes.nonzero()[:, 0]  # sorting is for cells near a line only
    kinds, which = torch.unique(codes[lit], return_inverse=True)
    index[lit] = which + 1
    kinds = torch.cat([torch.zeros(1, dtype=torch.int64), kinds])
    bits = (kinds[:, None] >> torch.arange(36)) & 1
    return bits.view(-1, 1, 6, 6).float(), index


def pooled(convolution: nn.Conv2d, patches: Tensor, index: Tensor, half: int) -> Tensor:
    """The first convolution and pooling of images given by `windows`: (n, channels, half, half), in channels-last order.

    The same numbers as by the convolution of whole images, up to rounding, at a fraction of the work.
    """
    table = nn.functional.conv2d(patches, convolution.weight, convolution.bias)
    table = nn.functional.max_pool2d(table, 2).flatten(1)
    return table.index_select(0, index).view(-1, half, half, table.shape[1]).permute(0, 3, 1, 2)


def prepared(images: Tensor, parts: Tensor) -> tuple[Tensor, ...]:
    """A batch for `tuple_loss` on the device of `parts`: images by `windows` on the CPU, and as they are elsewhere."""
    return (*windows(images), parts) if parts.device.type == "cpu" else (images.to(parts.device), parts)


def tuple_loss(net: TupleNet, batch: tuple[Tensor, ...], law: str, decomposed: bool = False) -> Tensor:
    """The tuples' mean hinge loss; for the decomposition the mean hinge loss of the single images is added."""
    *data, parts = batch
    convolution = net.first.convolutions[0]
    assert isinstance(convolution, nn.Conv2d)
    if len(data) == 2:
        half = math.isqrt(len(data[1]) // parts.numel())
        scores = net.first.after(pooled(convolution, data[0], data[1], half)).view(parts.shape)
    else:
        scores = net.first(data[0]).view(parts.shape)
    primary = hinge(net.combine(scores), tuple_labels(parts, law))
    return primary + hinge(scores, parts) if decomposed else primary


@dataclass
class Run:
    """One training of one seed, which can be kept after any chunk and taken up again.

    Args:
        values: the setting, see `LineTuples.grid`.
        seed: of weights and data.
        device: where to compute.
    """

    values: Mapping[str, Any]
    seed: int
    device: str = "cpu"
    step: int = 0
    curve: list[Row] = field(default_factory=list)
    found: Row = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.net = make_net(self.values, self.seed).to(self.device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=self.values["lr"], betas=BETAS, eps=EPSILON, fused=True)
        self.random = generator(self.seed, KEY, 2)
        self.held_out = fixed_tuples(self.values, self.seed, (3,), self.values["test"])

    def advance(self, to: int, phase: str) -> None:
        """Train up to step `to`, a multiple of the chunk, by the loss of a phase ("decomposed", "end-to-end", "released")."""
        decomposed = phase == "decomposed"
        batches = self._batches()
        every = self.values["every"]
        while self.step < to:
            if self.step % every == 0:
                self.look(phase)
            loss = tuple_loss(self.net, next(batches), self.values["law"], decomposed)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.step += 1
            for group in self.optimizer.param_groups:
                # TensorFlow adds epsilon before the correction of the second moment's bias, torch after it.
                group["eps"] = EPSILON / math.sqrt(1 - BETAS[1] ** self.step)
            self.optimizer.step()

    def _batches(self) -> Iterator[tuple[Tensor, ...]]:
        """One step's `prepared` images and labels; a stream must stop at the end of a chunk to be kept."""
        k, batch = self.values["k"], self.values["batch"]
        while True:
            lines = draw_lines(self.random, CHUNK * batch * k, self.values["size"], self.values["law"])
            steps = lines.images.view(CHUNK, batch * k, *lines.images.shape[1:])
            for images, labels in zip(steps, lines.labels.view(CHUNK, batch, k), strict=True):
                yield prepared(images, labels.to(self.device))

    def look(self, phase: str) -> None:
        """One point of the curve: loss and accuracies on the held-out tuples."""
        found = accuracy(self.net, self.held_out, self.values["law"])
        self.curve.append({"seed": self.seed, "kind": "curve", "phase": phase, "step": self.step, **found})

    def keep(self, path: Path, done: list[tuple[Row, list[Row]]]) -> None:
        """Write where the run stands, whole or not at all; to be called between chunks only."""
        state = {
            "seed": self.seed,
            "step": self.step,
            "curve": self.curve,
            "found": self.found,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": self.random.get_state(),
            "done": done,
        }
        draft = path.with_name(path.name + ".part")
        torch.save(state, draft)
        draft.replace(path)

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Go on from what `keep` wrote."""
        self.step, self.curve = state["step"], list(state["curve"])
        self.found = dict(state["found"])
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.random.set_state(state["random"])


def fixed_tuples(values: Mapping[str, Any], seed: int, stream: tuple[int, ...], n: int) -> tuple[Tensor, Tensor]:
    """n fixed tuples of a stream of their own: images (n * k, size, size) and the parts' labels (n, k)."""
    lines = draw_lines(generator(seed, KEY, *stream), n * values["k"], values["size"], values["law"])
    return lines.images, lines.labels.view(n, values["k"])


@torch.no_grad()
def accuracy(net: TupleNet, tuples: tuple[Tensor, Tensor], law: str) -> dict[str, float]:
    """Hinge loss and accuracy of tuples, accuracy of single images, and the spread of what the second network gets.

    End to end nothing tells the first network which sign to give: `single_up_to_sign` is its accuracy under the better choice.
    """
    images, parts = tuples
    scores = single_scores(net, images).view(parts.shape)
    parts = parts.to(scores.device)
    labels, answer = tuple_labels(parts, law), net.combine(scores)
    single = float((scores * parts > 0).double().mean())
    return {
        "loss": float(hinge(answer, labels)),
        "accuracy": float((answer * labels > 0).double().mean()),
        "single": single,
        "single_up_to_sign": max(single, 1 - single),
        "spread": float(torch.sigmoid(scores).std()),
    }


@torch.no_grad()
def single_scores(net: TupleNet, images: Tensor) -> Tensor:
    """The first network's scores of images (n, size, size), a thousand at a time."""
    device = net.first.score.weight.device
    parts = [images[i : i + 1000] for i in range(0, len(images), 1000)]
    return torch.cat([net.first(part.to(device)) for part in parts])
