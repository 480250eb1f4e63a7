"""Slow, obvious float64 versions of the statistics of gradients, to compare with."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def signal(gradients: np.ndarray) -> float:
    """The mean of g_i'g_j over all pairs of different batches."""
    return float(np.mean([gradients[i] @ gradients[j] for i, j in itertools.permutations(range(len(gradients)), 2)]))


def trace(gradients: np.ndarray) -> float:
    """The trace of the sample covariance matrix."""
    return float(np.trace(np.atleast_2d(np.cov(gradients, rowvar=False))))


def sign_flip_exact(gradients: np.ndarray) -> float:
    """The p-value over all 2^K sign vectors."""
    observed = np.sum(gradients.sum(axis=0) ** 2)
    flipped = [np.sum((np.array(s) @ gradients) ** 2) for s in itertools.product([-1.0, 1.0], repeat=len(gradients))]
    return float(np.mean([f >= observed * (1 - 1e-12) for f in flipped]))


def step_terms(gradients: np.ndarray, hessian: np.ndarray, lr: float) -> dict[str, float]:
    """Descent, curvature and noise by loops over pairs of batches."""
    pairs = list(itertools.permutations(range(len(gradients)), 2))
    across = np.mean([gradients[i] @ hessian @ gradients[j] for i, j in pairs])
    own = np.mean([g @ hessian @ g for g in gradients])
    return {"D": lr * signal(gradients), "C": lr**2 / 2 * float(across), "M": lr**2 / 2 * float(own - across)}


def kendall(values: np.ndarray) -> float:
    """Kendall's tau-b of `values` with their index."""
    pairs = list(itertools.combinations(range(len(values)), 2))
    signs = [np.sign(values[j] - values[i]) for i, j in pairs]
    return float(sum(signs) / math.sqrt(len(pairs) * sum(s != 0 for s in signs)))


def gradient_of(model: nn.Module, loss: Callable[[], Tensor]) -> np.ndarray:
    """The whole gradient as one float64 vector."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss(), parameters, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters, strict=True)]
    return torch.cat([part.reshape(-1) for part in parts]).double().numpy()


def permutation_test(true: np.ndarray, permuted: np.ndarray) -> tuple[float, np.ndarray, float]:
    """T, its null distribution and the p-value, straight from the definition."""
    r = len(permuted)
    mean = permuted.mean(axis=0)
    t = float(np.linalg.norm(true - mean) / math.sqrt(1 + 1 / r))
    null = np.array([np.linalg.norm(g - mean) * math.sqrt(r / (r - 1)) for g in permuted])
    return t, null, (1 + int(np.sum(null >= t))) / (r + 1)


def sensitivity(model: nn.Module, layers: dict[str, list[nn.Parameter]], losses: list[Callable[[], Tensor]]) -> dict[str, float]:
    """RMS over single-example losses of the norm of the gradient by a layer, times the norm of the layer."""
    result = {}
    for name, parameters in layers.items():
        squares = [sum(float(g.double().square().sum()) for g in torch.autograd.grad(loss(), parameters)) for loss in losses]
        size = math.sqrt(sum(float(p.detach().double().square().sum()) for p in parameters))
        result[name] = size * math.sqrt(float(np.mean(squares)))
    return result


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that a measurement must leave as it is: bits of parameters, buffers, gradients, modes, hooks and random streams."""
    return {
        "parameters": [p.detach().clone() for p in model.parameters()],
        "buffers": [(id(b), b.clone()) for b in model.buffers()],
        "grads": [(id(p.grad), None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "requires": [p.requires_grad for p in model.parameters()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), len(m._backward_pre_hooks)) for m in model.modules()
        ],
        "tensor_hooks": [len(p._backward_hooks or {}) for p in model.parameters()],
        "random": torch.get_rng_state().clone(),
        "numpy": np.random.get_state()[1].copy(),
    }


def same(a: Any, b: Any) -> bool:
    """Bitwise equality of two snapshots."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    return bool(a == b)
