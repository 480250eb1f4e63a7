"""Images of handwritten digits with pixels from 0 to 1: MNIST where the user has it, scikit-learn's digits otherwise."""

import gzip
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gradoscope.errors import Usage
from gradoscope.problems._data import digits

__all__ = ["FOLDER", "has_mnist", "images", "mnist"]

FOLDER = "GRADOSCOPE_DATA"  # the environment variable that names the folder in which `mnist` is a folder
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TRAINED = 50_000  # the first ones; the other 10,000 validate, as in the source

Pair = tuple[Tensor, Tensor]


def has_mnist() -> bool:
    """Whether the folder that GRADOSCOPE_DATA names holds MNIST."""
    return all(_file(name) is not None for name in FILES)


def _file(name: str) -> Path | None:
    """The file of this name in the user's data folder, packed or not."""
    folder = os.environ.get(FOLDER)
    candidates = [Path(folder) / "mnist" / (name + end) for end in (".gz", "")] if folder else []
    return next((path for path in candidates if path.is_file()), None)


def read_idx(path: Path) -> Tensor:
    """An array of bytes in the IDX format: two zero bytes, 8 for the type, the number of sizes, the sizes (big-endian), the bytes.

    Raises:
        Usage: where the file is of another kind, or cut off.
    """
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise Usage(f"{path.name} is no IDX file of bytes.")
    sizes = tuple(int(n) for n in np.frombuffer(raw, ">u4", raw[3], 4))
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if values.size != int(np.prod(sizes)):
        raise Usage(f"{path.name} is cut off: {values.size} bytes, expected {int(np.prod(sizes))}.")
    return torch.from_numpy(values.reshape(sizes).copy())


@lru_cache(maxsize=1)
def _mnist(images_path: Path, labels_path: Path) -> Pair:
    return read_idx(images_path), read_idx(labels_path).long()


def mnist(train: int = TRAINED, validation: int = 10_000) -> tuple[Pair, Pair]:
    """The training set of MNIST, split where the source splits it: the first 50,000 images, and the last 10,000.

    Args:
        train: images to train on, the first of the 50,000.
        validation: images to validate on, the first of the 10,000.

    Returns:
        ((train, 784) pixels from 0 to 1, (train,) labels), and the same for validation.

    Raises:
        Usage: where the user has no MNIST.
    """
    paths = [_file(name) for name in FILES]
    if paths[0] is None or paths[1] is None:
        raise Usage(
            f"there is no MNIST: set {FOLDER} to a folder in which mnist/ holds {FILES[0]}.gz and {FILES[1]}.gz, or use data=digits."
        )
    pixels, labels = _mnist(paths[0], paths[1])
    pairs = []
    for low, count in ((0, min(train, TRAINED)), (TRAINED, min(validation, len(labels) - TRAINED))):
        pairs.append((pixels[low : low + count].flatten(1).float() / 255, labels[low : low + count]))
    return pairs[0], pairs[1]


def images(data: str, seed: int, train: int = 0, validation: int = 0) -> tuple[Pair, Pair]:
    """Training and validation images with pixels from 0 to 1, one row each.

    Args:
        data: "digits", scikit-learn's 8x8 ones, or "mnist".
        seed: what the split of the digits is drawn from; that of MNIST is fixed.
        train: how many to train on; 0 for all that there are.
        validation: how many to validate on; 0 for all that there are.

    Raises:
        Usage: for other data, or where the user has no MNIST.

    Example:
        >>> (x, _), _ = images("digits", 0, train=100)
        >>> tuple(x.shape), float(x.min()), float(x.max())
        ((100, 64), 0.0, 1.0)
    """
    if data == "mnist":
        return mnist(train or TRAINED, validation or 10_000)
    if data != "digits":
        raise Usage(f"`data` must be digits or mnist, got {data!r}.")
    (x, y), (x_valid, y_valid) = digits(seed)
    low, high = x.min(), x.max()  # `digits` is an affine map of the pixels
    x, x_valid = (x - low) / (high - low), (x_valid - low) / (high - low)
    return (x[: train or None], y[: train or None]), (x_valid[: validation or None], y_valid[: validation or None])
