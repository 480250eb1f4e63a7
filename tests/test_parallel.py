"""Two gloo processes measure what one process measures on all batches: gradients, products, eigenvalues, noise, traces."""

import os
import pickle
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from gradoscope.errors import CannotRun
from gradoscope.guard import private_random
from gradoscope.measure.curvature import extreme_eigenvalues
from gradoscope.measure.hessian_trace import hessian_trace
from gradoscope.measure.noise import noise_statistics
from gradoscope.objective import Objective
from gradoscope.parallel import ParallelObjective

WORLD = 2


def loss(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def scene() -> tuple[nn.Module, list[Any]]:
    with private_random(5):
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3)).double()
        batches = [(torch.randn(7, 4, dtype=torch.float64), torch.randint(0, 3, (7,))) for _ in range(4)]
    return model, batches


def measured(objective: Objective) -> dict[str, Any]:
    v = torch.arange(objective.dim, dtype=torch.float64).cos()
    found: dict[str, Any] = {"losses": objective.losses(), "loss": objective.loss(), "gradient": objective.gradient().numpy()}
    found["hvp"], found["hvps"] = objective.hvp(v).numpy(), objective.batch_hvps(v).numpy()
    spectrum = extreme_eigenvalues(objective, k=2, tolerance=1e-8, max_products=objective.dim)
    found["ends"], found["products"] = np.r_[spectrum.top, spectrum.bottom], spectrum.products
    found["noise"] = list(vars(noise_statistics(objective.batch_gradients(), 7)).values())
    found["trace"] = hessian_trace(objective, way="probes", max_probes=9).value
    found["block"] = objective.restricted(["3.weight"]).gradient().numpy()
    objective.distrust("for the test")
    found["differences"], found["error"] = objective.hvp(v).numpy(), objective.difference_error
    return found


def work(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    model, batches = scene()
    own = batches[2 * rank : 2 * rank + 2]
    found = measured(ParallelObjective(nn.parallel.DistributedDataParallel(model), loss, own))

    def broken(m: Any, batch: Any) -> Tensor:
        value = loss(m, batch)
        if rank == 1:  # on one rank only the loss has no second derivative
            value = value + 0 * F.embedding_bag(torch.zeros(1, 2, dtype=torch.long), m[0].weight, mode="mean").square().sum()
        return value

    one_sided = ParallelObjective(model, broken, own)
    found["one-sided"] = one_sided.hvp(torch.ones(one_sided.dim, dtype=torch.float64)).numpy()
    found["one-sided method"] = one_sided.method
    found["refused"] = []
    for count in (own, own[: 1 + rank]):
        with torch.no_grad():
            model[0].weight += rank * (count is own)
        try:
            ParallelObjective(model, loss, count)
        except CannotRun as error:
            found["refused"].append(str(error))
        with torch.no_grad():
            model[0].weight -= rank * (count is own)
    Path(folder, f"{rank}.pkl").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(work, args=(port, str(folder)), nprocs=WORLD)  # type: ignore[no-untyped-call]  # torch's
    return [pickle.loads((folder / f"{r}.pkl").read_bytes()) for r in range(WORLD)]


def test_several_ranks_measure_what_one_process_does(ranks: list[dict[str, Any]]) -> None:
    model, batches = scene()
    alone = measured(Objective(model, loss, batches))
    for found in ranks:
        for name, value in alone.items():
            error = 1e-6 if name in ("differences", "error") else 1e-10
            assert found[name] == pytest.approx(value, rel=error, abs=error), name
    for name in alone:
        assert np.array_equal(ranks[0][name], ranks[1][name]), name


def test_a_rank_that_cannot_differentiate_twice_takes_all_with_it(ranks: list[dict[str, Any]]) -> None:
    model, batches = scene()
    expected = Objective(model, loss, batches).hvp(torch.ones(sum(p.numel() for p in model.parameters()), dtype=torch.float64))
    for found in ranks:
        assert found["one-sided method"] == "finite differences"
        assert found["one-sided"] == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-7)


def test_ranks_that_do_not_fit_together_are_refused(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert "different parameters" in found["refused"][0]
        assert "different numbers" in found["refused"][1]
    model, batches = scene()
    with pytest.raises(CannotRun, match="process group"):
        ParallelObjective(model, loss, batches)
