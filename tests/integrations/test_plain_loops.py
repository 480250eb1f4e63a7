"""Plain loops as people write them: several optimizers, several ranks, compiled models, activation checkpointing, tied weights."""

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradoscope.errors import CannotRun
from gradoscope.guard import private_random
from gradoscope.watch import Watch, watch
from tests.integrations.common import ALL, assert_same_end, left
from tests.test_neutral import assert_same

F = nn.functional


@pytest.fixture(autouse=True)
def _own_random() -> Iterator[None]:
    with private_random(7):
        yield


def adversaries(watched: bool) -> tuple[list[Watch], dict[str, Any]]:
    """A generator and a discriminator that step in turns, the second one twice, in one loop."""
    with private_random(2):
        makes, tells = nn.Linear(2, 3), nn.Linear(3, 1)
        first = torch.optim.Adam(makes.parameters(), lr=0.01)
        second = torch.optim.SGD(tells.parameters(), lr=0.1)
        watches = [watch(makes, first, budget=ALL), watch(tells, second, budget=ALL)] if watched else []
        for _ in range(4):
            for _ in range(2):
                second.zero_grad()
                made = makes(torch.randn(5, 2)).detach()
                (F.softplus(tells(made)) + F.softplus(-tells(torch.randn(5, 3)))).mean().backward()
                second.step()
            first.zero_grad()
            F.softplus(-tells(makes(torch.randn(5, 2)))).mean().backward()
            first.step()
        for w in watches:
            w.close()
        return watches, {"a": left(makes, first), "b": left(tells, second)}


@pytest.mark.filterwarnings("ignore:the watch can record")
def test_several_optimizers_have_a_watch_each() -> None:
    _, plain = adversaries(watched=False)
    (first, second), seen = adversaries(watched=True)
    assert_same(plain, seen)
    assert (first.steps, second.steps) == (4, 8)
    assert set(first.records[0]["grad_norms"]) == {"weight", "bias"}
    assert {tuple(r["lr"]) for r in first.records} == {(0.01,)}
    assert {tuple(r["lr"]) for r in second.records} == {(0.1,)}
    with pytest.raises(CannotRun, match="no targets"):
        first.training()  # no single loss tells what it trains


class Tied(nn.Module):
    """Weights with two names, and activations that are computed again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.inside, self.body, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.inside.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, self.inside(x), use_reentrant=self.reentrant).tanh())


@pytest.mark.parametrize("reentrant", [False, True])
def test_tied_weights_and_checkpointing(reentrant: bool) -> None:
    ends = []
    for watched in (False, True):
        with private_random(3):
            model, criterion = Tied(reentrant), nn.CrossEntropyLoss()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
            w = watch(model, optimizer, criterion, budget=ALL) if watched else None
            for _ in range(3):
                x = torch.randint(0, 7, (4,))
                optimizer.zero_grad()
                criterion(model(x), x.flip(0)).backward()
                optimizer.step()
            if w is not None:
                w.close()
            ends.append(left(model, optimizer))
    assert_same(*ends)
    assert w is not None
    assert list(w.records[0]["grad_norms"]) == ["inside.weight", "body.weight", "body.bias"]  # once, though it has two names
    assert_same_end(w.training(), model)


def test_compiled_model_is_watched_by_its_eager_self() -> None:
    ends = []
    for watched in (False, True):
        with private_random(3):
            model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
            compiled: Any = torch.compile(model, backend="aot_eager")
            optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.3), nn.CrossEntropyLoss()
            compiled(torch.randn(4, 3))  # hooks that come after the first compiled call must fire all the same
            w = watch(compiled, optimizer, criterion, budget=ALL) if watched else None
            for _ in range(4):
                optimizer.zero_grad()
                criterion(compiled(torch.randn(4, 3)), torch.randint(0, 2, (4,))).backward()
                optimizer.step()
            if w is not None:
                w.close()
            ends.append(left(model, optimizer))
    assert_same(*ends)
    assert w is not None
    assert [r["loss"] > 0 for r in w.records] == [True] * 4
    assert not any("_orig_mod" in name for name in w.records[0]["grad_norms"])
    training = w.training()
    assert type(training.model) is nn.Sequential  # never the compiled one: it has no second derivative
    assert_same_end(training, model)
    assert w.diagnose(counterfactuals=False).verdict


RANK = """
import os, sys, torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from gradoscope.guard import private_random
from gradoscope.objective import Objective
from gradoscope.watch import watch

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()

def train(watched):
    with private_random(1):
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        x, y = torch.randn(5, 8, 3), torch.randint(0, 2, (5, 8))
    parallel = DistributedDataParallel(model)
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), nn.CrossEntropyLoss()
    # The ranks look at different steps, and the second one not at all: looking must need no other rank.
    w = None
    if watched and rank == 0:
        w = watch(parallel, optimizer, criterion, budget=float("inf"), record=sys.argv[1])
    for i in range(5):
        optimizer.zero_grad()
        criterion(parallel(x[i, rank::2]), y[i, rank::2]).backward()
        optimizer.step()
    if w is not None:
        w.close()
    return w, model, x, y

_, plain, *_ = train(False)
w, model, x, y = train(True)
assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), model.parameters()))
if rank == 0:
    assert [n for n in w.records[0]["grad_norms"]] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    # What this rank sees of the gradient is the mean over the ranks: that of the whole batch.
    with private_random(1):
        whole = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    nn.functional.cross_entropy(whole(x[0]), y[0]).backward()
    norm = sum(float(p.grad.square().sum()) for p in whole.parameters()) ** 0.5
    assert abs(w.records[0]["grad_norm"] / norm - 1) < 1e-5
    assert type(w.training().model) is nn.Sequential
# Every rank measures its own part, without DDP's hooks; the mean over the ranks is the product with the whole Hessian.
double = model.double()
loss = lambda m, b: nn.functional.cross_entropy(m(b[0].double()), b[1])
mine = Objective(double, loss, [(x[0, rank::2], y[0, rank::2])])
full = Objective(double, loss, [(x[0], y[0])])
v = torch.arange(mine.dim, dtype=torch.float64) / mine.dim
product = mine.hvp(v)
dist.all_reduce(product)
torch.testing.assert_close(product / 2, full.hvp(v), rtol=1e-9, atol=1e-12)

# Sharded parameters: the norm of a shard is no norm.
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from gradoscope.errors import CannotRun

sharded = nn.Linear(4, 4)
fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
try:
    watch(sharded, torch.optim.SGD(sharded.parameters(), lr=0.1), nn.MSELoss())
except CannotRun as error:
    assert "sharded over ranks (weight" in str(error), error
else:
    raise AssertionError("sharded parameters were watched")
dist.barrier()
dist.destroy_process_group()
print("done", rank)
"""


def test_two_ranks_of_gloo(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK, encoding="utf-8")
    source = str(Path(__file__).parents[2] / "src")
    common = os.environ | {
        "PYTHONPATH": source,
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "run")],
            env=common | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=300)[0] for process in ranks]
    for rank, (process, text) in enumerate(zip(ranks, told, strict=True)):
        assert process.returncode == 0, text
        assert f"done {rank}" in text
    assert (tmp_path / "run" / "steps.jsonl").read_text(encoding="utf-8").count("\n") == 5


def free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_refused_steps_of_a_fused_optimizer_are_counted() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = copy.deepcopy(model.state_dict())
    with watch(model, optimizer, F.cross_entropy, budget=ALL) as w:
        for value in (torch.inf, 1.0):
            x, y = torch.full((2, 3), value), torch.tensor([0, 1])
            with w.step((x, y), scaler=scaler) as step:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                step.loss(loss)
                scaler.scale(loss).backward()
                step.gradients()
                scaler.step(optimizer)
                scaler.update()
            if value == torch.inf:
                assert_same(before, model.state_dict())  # the optimizer ran, and did nothing
    assert (w.steps, w.skipped_updates) == (2, 1)
    assert w.records[0]["skipped"] is True
    assert w.records[0]["nonfinite"]["where"] in ("forward", "loss")
