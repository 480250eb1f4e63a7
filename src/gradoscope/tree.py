"""Batches are anything: tensors, or tuples, lists and dicts of them. These functions walk them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["concatenate", "copied", "leaves", "map_tensors", "rows", "take", "to_device"]


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply `function` to every tensor of `tree` and keep everything else as it is."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        # `type(tree)` may want other constructor arguments (transformers' BatchEncoding), a dict does as well.
        return {key: map_tensors(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(function, value) for value in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(map_tensors(function, value) for value in tree)
    return tree  # also objects with tensors of their own, e.g. a graph library's batch


def leaves(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors of `tree` in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, (tuple, list)):
        for value in tree:
            yield from leaves(value)


def rows(tree: Any) -> int | None:
    """The common leading dimension of all tensors of `tree`, or None where there is none."""
    sizes = {t.shape[0] if t.dim() else -1 for t in leaves(tree)}
    return sizes.pop() if len(sizes) == 1 and -1 not in sizes else None


def take(tree: Any, index: Tensor | slice) -> Any:
    """The rows `index` of every tensor of `tree`."""
    return map_tensors(lambda t: t[index], tree)


def copied(tree: Any) -> Any:
    """The same with tensors of its own, for code that may write into what it is given."""
    return map_tensors(torch.clone, tree)


def concatenate(trees: Sequence[Any]) -> Any:
    """Put batches of the same structure one after the other along their first dimension."""
    first = trees[0]
    if isinstance(first, Tensor):
        return torch.cat(list(trees))
    if isinstance(first, dict):
        return {key: concatenate([t[key] for t in trees]) for key in first}
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(concatenate(list(parts)) for parts in zip(*trees, strict=True)))
    if isinstance(first, (tuple, list)):
        return type(first)(concatenate(list(parts)) for parts in zip(*trees, strict=True))
    return first


def to_device(tree: Any, device: torch.device) -> Any:
    """Move every tensor of `tree` to `device`; objects with a `.to` of their own are asked to move themselves."""
    if isinstance(tree, dict):
        return {key: to_device(value, device) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(to_device(value, device) for value in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(to_device(value, device) for value in tree)
    return tree.to(device) if hasattr(tree, "to") else tree
