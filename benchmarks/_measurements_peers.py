"""The published tools on the tasks of `benchmarks/measurements.py`, each called as its documentation says; all of them are optional."""

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from _measurements_work import Work

__all__ = ["PEERS", "Answer", "versions"]

Answer = dict[str, Any]  # "values" (eigenvalues), "value" and "se" (a trace), "norms", "note"
PROBES = 100

PACKAGES = {
    "hessian-eigenthings": "hessian_eigenthings",
    "curvlinops": "curvlinops",
    "PyHessian": "pyhessian",
    "BackPACK": "backpack",
    "Cockpit": "cockpit",
}
DISTRIBUTIONS = {"curvlinops": "curvlinops-for-pytorch", "BackPACK": "backpack-for-pytorch", "Cockpit": "cockpit-for-pytorch"}


def versions() -> dict[str, str]:
    """The peers that can be imported here."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name, module in PACKAGES.items():
        if importlib.util.find_spec(module) is not None:
            try:
                found[name] = version(DISTRIBUTIONS.get(name, name))
            except PackageNotFoundError:
                found[name] = "?"
    return found


def _eigenthings(work: Work) -> Any:
    from hessian_eigenthings.loss_fns import supervised_loss
    from hessian_eigenthings.operators import HessianOperator

    return HessianOperator(work.model, [(work.x, work.y)], supervised_loss(work.loss))


def _lanczos(work: Work, k: int, which: str) -> Answer:
    """There is no stopping rule: the number of steps is doubled until the tool's own residuals say that it has converged."""
    from hessian_eigenthings import algorithms

    operator, steps, spent = _eigenthings(work), 20, 0
    while True:
        found = algorithms.lanczos(operator, k=k, max_iter=steps, tol=1e-3, which=which, reorthogonalize=True, seed=0)
        spent += found.iterations
        if bool(found.converged.all()) or steps >= 160:
            return {"values": found.eigenvalues.tolist(), "note": f"{spent} products"}
        steps *= 2


def _arpack(work: Work, k: int, which: str) -> Answer:
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import eigsh

    matrix = HessianLinearOperator(work.model, work.loss, work.parameters, [(work.x, work.y)], check_deterministic=False)
    values = eigsh(matrix.to_scipy(np.float32), k=k, which=which, tol=1e-3)[0]
    return {"values": sorted(map(float, values), reverse=which == "LA")}


def _power(work: Work, k: int) -> Answer:
    from pyhessian import hessian

    found = hessian(work.model, work.loss, data=(work.x, work.y), cuda=False).eigenvalues(maxIter=200, tol=1e-3, top_n=k)[0]
    work.model.zero_grad()
    return {"values": found, "note": "stops when successive quotients agree"}


def _cockpit_power(work: Work) -> Answer:
    from cockpit.quantities.hess_max_ev import HVPLinearOperator

    operator = HVPLinearOperator(work.loss(work.model(work.x), work.y), work.parameters)
    return {"values": [float(operator.power_iteration(maxiter=100, rtol=1e-3))], "note": "stops when successive quotients agree"}


def _diagonal(work: Work) -> Answer:
    """The exact diagonal of the Hessian, which is what Cockpit's trace is made from."""
    from backpack import backpack, extend
    from backpack.extensions import DiagHessian

    model, loss = extend(_copy(work.model)), extend(nn.CrossEntropyLoss())
    with backpack(DiagHessian()):
        loss(model(work.x), work.y).backward()
    return {"value": sum(float(p.diag_h.sum()) for p in model.parameters()), "se": 0.0}


def _hutchinson(work: Work) -> Answer:
    from hessian_eigenthings import algorithms

    found = algorithms.hutchinson(_eigenthings(work), num_samples=PROBES, seed=0)
    return {"value": float(found.estimate), "se": float(found.stderr), "note": f"{PROBES} probes"}


def _density(work: Work) -> Answer:
    from hessian_eigenthings import algorithms

    algorithms.spectral_density(_eigenthings(work), num_runs=1, lanczos_steps=80, seed=0)
    return {}


def _together(work: Work) -> Answer:
    top, low = _lanczos(work, 5, "LA"), _lanczos(work, 1, "SA")
    _density(work)
    return {"values": top["values"], "low": low["values"], "note": f"three runs: {top['note']}, {low['note']}, 80"}


def _batch_norms(work: Work) -> Answer:
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad

    sequential = all(not list(m.children()) or isinstance(m, nn.Sequential) for m in work.model.modules())
    model, loss = extend(_copy(work.model), use_converter=not sequential).eval(), extend(nn.CrossEntropyLoss())
    with backpack(BatchL2Grad()):
        loss(model(work.x), work.y).backward()
    total: Tensor = sum(p.batch_l2 for p in model.parameters())
    return {"norms": (total.sqrt() * len(work.x)).tolist()}


def _vmap(work: Work) -> Answer:
    from torch.func import functional_call, grad, vmap

    parameters = {n: p.detach() for n, p in work.model.named_parameters()}
    buffers = dict(work.model.named_buffers())

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return work.loss(functional_call(work.model, (values, buffers), (x.unsqueeze(0),)), y.unsqueeze(0))  # type: ignore[no-any-return]  # a module's call

    found = []
    for x, y in zip(work.x.split(64), work.y.split(64), strict=True):
        grads = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
        found.append(sum(g.flatten(1).pow(2).sum(1) for g in grads.values()).sqrt())
    return {"norms": torch.cat(found).tolist()}


def _copy(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model)


# task -> name of the peer -> its answer
PEERS: dict[str, dict[str, Callable[[Work], Answer]]] = {
    "top": {
        "hessian-eigenthings": lambda w: _lanczos(w, 1, "LA"),
        "curvlinops": lambda w: _arpack(w, 1, "LA"),
        "PyHessian": lambda w: _power(w, 1),
        "Cockpit": _cockpit_power,
    },
    "top five": {"hessian-eigenthings": lambda w: _lanczos(w, 5, "LA"), "curvlinops": lambda w: _arpack(w, 5, "LA")},
    "most negative": {"hessian-eigenthings": lambda w: _lanczos(w, 1, "SA")},
    "together": {"hessian-eigenthings": _together},
    "trace": {"BackPACK": _diagonal, "hessian-eigenthings": _hutchinson},
    "rows": {"BackPACK": _batch_norms, "torch vmap": _vmap},
}
