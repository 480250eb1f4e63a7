"""A training by hand: the plain PyTorch loop that every other way of training is compared with, and small things to train."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradoscope.guard import derive_seed, private_random, seed_all

CLASSES = 3


def data(n: int = 24, dim: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs (n, dim) and classes (n,)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator), torch.randint(0, CLASSES, (n,), generator=generator)


def mlp(*middle: nn.Module, dim: int = 4, width: int = 6, seed: int = 0) -> nn.Sequential:
    """Linear, tanh, what is given, linear; drawn from a private stream."""
    with private_random(seed):
        return nn.Sequential(nn.Linear(dim, width), nn.Tanh(), *middle, nn.Linear(width, CLASSES))


def plain_loop(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Callable[[int], Any],
    loss_fn: Callable[[Any, Any], Tensor],
    steps: int,
    *,
    seed: int = 0,
    schedule: Any = None,
    clip_norm: float | None = None,
    accumulate: int = 1,
) -> list[float]:
    """Train as anybody would; only the masks are drawn from the streams of (seed, step)."""
    losses = []
    model.train()
    with private_random():
        for i in range(steps):
            seed_all(derive_seed(seed, 102, i))

            def backward(i: int = i) -> Tensor:
                optimizer.zero_grad()
                total = torch.zeros(())
                for j in range(accumulate):
                    x, y = batch(i * accumulate + j)
                    loss = loss_fn(model(x), y) / accumulate
                    loss.backward()
                    total = total + loss.detach()
                if clip_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
                return total

            if isinstance(optimizer, torch.optim.LBFGS):
                losses.append(float(optimizer.step(backward)))
            else:
                losses.append(float(backward()))
                optimizer.step()
            if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
                schedule.step(losses[-1])
            elif schedule is not None:
                schedule.step()
    return losses


def same(a: Any, b: Any, at: str = "") -> None:
    """Assert equality to the last bit, in nested containers too."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        assert a.shape == b.shape, at
        assert a.dtype == b.dtype, at
        assert a.detach().contiguous().numpy().tobytes() == b.detach().contiguous().numpy().tobytes(), at
    elif isinstance(a, np.ndarray):
        assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), at
    elif isinstance(a, dict):
        assert list(a) == list(b), at
        for key in a:
            same(a[key], b[key], f"{at}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), at
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{at}.{i}")
    else:
        assert a == b or (a != a and b != b), f"{at}: {a} and {b}"


def everything(model: nn.Module, optimizer: Any = None, schedule: Any = None) -> dict[str, Any]:
    """A deep copy of all that a training may change in what it was given."""
    kept: dict[str, Any] = {
        "parameters": [p.detach().clone() for p in model.parameters()],
        "buffers": [b.clone() for b in model.buffers()],
        "grads": [None if p.grad is None else p.grad.detach().clone() for p in model.parameters()],
        "identity": [id(p) for p in model.parameters()] + [id(b) for b in model.buffers()] + [id(p.grad) for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "hooks": [len(v) for m in model.modules() for k, v in vars(m).items() if "hook" in k and isinstance(v, dict)],
    }
    if optimizer is not None:
        state = optimizer.state_dict()
        kept["optimizer"] = {k: {i: dict(s) for i, s in v.items()} if k == "state" else [dict(g) for g in v] for k, v in state.items()}
        kept["optimizer"] = clone(kept["optimizer"])
        kept["attributes"] = sorted(optimizer.__dict__)
        kept["step"] = repr(optimizer.__dict__.get("step"))
    if schedule is not None:
        kept["schedule"] = clone({k: v for k, v in schedule.state_dict().items() if not callable(v)})
    return kept


def clone(value: Any) -> Any:
    """A copy that later steps do not reach; of functions and the like only the name."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: clone(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clone(v) for v in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else repr(value)
