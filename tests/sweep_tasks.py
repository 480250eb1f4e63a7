"""What the tests of `gradoscope.sweep` run in worker processes."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import torch


def train(seed):
    """A small training with its loss curve and weights, and a decomposition in the BLAS of numpy."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(64, 8, generator=generator), torch.randn(64, 1, generator=generator)
    weights = torch.randn(8, 1, generator=generator).requires_grad_()
    losses = []
    for _ in range(20):
        loss = (torch.tanh(x @ weights) - y).square().mean()
        (gradient,) = torch.autograd.grad(loss, weights)
        weights = (weights - 0.1 * gradient).detach().requires_grad_()
        losses.append(loss.item())
    values = np.linalg.svd(np.random.default_rng(seed).normal(size=(150, 150)), compute_uv=False)
    return {"seed": seed, "losses": losses, "weights": weights.detach(), "values": values}


def threads():
    """The threads of torch, and of every BLAS and OpenMP in this process."""
    from threadpoolctl import threadpool_info

    return torch.get_num_threads(), [pool["num_threads"] for pool in threadpool_info()]


def die_once(marker, seed):
    """Kill the own process the first time."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return train(seed)


def die_always():
    os.kill(os.getpid(), signal.SIGKILL)


def start_and_wait(started, go, seed):
    """Note one's process id and wait until `go` is there."""
    with open(started, "a") as file:
        file.write(f"{os.getpid()}\n")
    while not Path(go).exists():
        time.sleep(0.02)
    return train(seed)


class OwnError(Exception):
    def __init__(self, code):
        super().__init__(f"code {code}")
        self.code = code

    def __reduce__(self):
        return OwnError, (self.code,)


class Unpicklable(Exception):
    def __init__(self, first, second):
        super().__init__(first + second)


def fail(code):
    raise OwnError(code)


def fail_unpicklably():
    raise Unpicklable("not ", "picklable")


def give_unpicklable():
    return lambda: None


def tick(file):
    from gradoscope.sweep import Ticker

    ticker = Ticker(Path(file))
    ticker(0.25)
    ticker(0.5)  # within the same second: left out
