"""Everything that a measurement may not change, as one comparable snapshot, and the measurements that are held to it."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradoscope.measure.curvature import block_spectra, curvature_along, extreme_eigenvalues
from gradoscope.measure.hessian_trace import gauss_newton_trace, hessian_trace
from gradoscope.measure.per_sample import per_sample
from gradoscope.measure.preconditions import preconditions
from gradoscope.measure.sensitivity import layer_sensitivity
from gradoscope.objective import Objective

MEASUREMENTS: dict[str, Callable[[Objective], Any]] = {
    "loss": lambda o: o.losses(),
    "gradient": lambda o: o.batch_gradients(),
    "hvp": lambda o: o.hvp(torch.ones_like(o.theta())),
    "finite differences": lambda o: (o.distrust("for the test"), o.hvp(torch.ones_like(o.theta()))),
    "eigenvalues": lambda o: extreme_eigenvalues(o, max_products=8),
    "warm start": lambda o: extreme_eigenvalues(o, max_products=4, start=extreme_eigenvalues(o, max_products=6, accuracy="values")),
    "blocks": lambda o: block_spectra(o, max_products=3),
    "gauss-newton": lambda o: extreme_eigenvalues(o, max_products=4, operator="gauss_newton"),
    "along": lambda o: curvature_along(o, o.gradient()),
    "trace": lambda o: hessian_trace(o, max_probes=3),
    "gauss-newton trace": lambda o: gauss_newton_trace(o, max_probes=3),
    "per sample": lambda o: per_sample(o, products=True),
    "single rows": lambda o: per_sample(o, way="rows"),
    "sensitivity": layer_sensitivity,
    "preconditions": preconditions,
}


def _bytes(t: Tensor | None) -> bytes | None:
    if t is None:
        return None
    dense = t.detach().to_dense() if t.is_sparse else t.detach()
    return dense.contiguous().cpu().view(torch.uint8).numpy().tobytes() if dense.dim() else dense.cpu().numpy().tobytes()


def state(model: nn.Module) -> dict[str, Any]:
    """Parameters, buffers, `.grad`, modes, hooks, flags of the process and random streams: equal dicts are bitwise equal states."""
    found: dict[str, Any] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        grad = None if p.grad is None else (p.grad.is_sparse, _bytes(p.grad))
        found[f"parameter {name}"] = (id(p), p.data_ptr(), _bytes(p), p.requires_grad, p.is_leaf, grad)
    for name, b in model.named_buffers(remove_duplicate=False):
        found[f"buffer {name}"] = (id(b), _bytes(b))
    for name, m in model.named_modules(remove_duplicate=False):
        hooks = [m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks, m._state_dict_hooks]
        found[f"module {name}"] = (m.training, "forward" in vars(m), sorted(m._parameters), sorted(m._buffers), *(tuple(h) for h in hooks))
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    found["flags"] = (
        *(cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        *(cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled(), cuda.matmul.allow_tf32),
        *(torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled()),
        *(torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled(), torch.get_default_dtype()),
        *(torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()),
    )
    found["global hooks"] = tuple(len(getattr(nn.modules.module, h)) for h in ("_global_forward_hooks", "_global_forward_pre_hooks"))
    numpy = np.random.get_state()
    found["random"] = (torch.get_rng_state().numpy().tobytes(), str(numpy[0]), numpy[1].tobytes(), numpy[2:], random.getstate())  # type: ignore[union-attr, index]  # the legacy state is a tuple
    return found
