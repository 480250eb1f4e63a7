"""Leaving no trace: what a measurement may disturb is captured here and put back, also after an exception."""

import functools
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "RandomState",
    "derive_seed",
    "math_attention",
    "private_generators",
    "private_random",
    "reachable_generators",
    "second_order_kernels",
    "seed_all",
    "untouched",
]

RandomState = dict[str, Any]
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
DEPTH, WIDTH, COUNT = 8, 64, 10_000  # how far a user's objects are searched for generators
_WORD = 2**64 - 1


def derive_seed(*keys: int) -> int:
    """A 63-bit seed that is a pure function of `keys`, for generators that must not overlap.

    Each key goes through the finaliser of SplitMix64 (Steele, Lea and Flood 2014), which a step can afford.

    Example:
        >>> derive_seed(0, 1) == derive_seed(0, 1), derive_seed(0, 1) == derive_seed(1, 0)
        (True, False)
    """
    mixed = 0
    for key in keys:
        mixed = (mixed + 0x9E3779B97F4A7C15 + (key & _WORD)) & _WORD
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _WORD
        mixed ^= mixed >> 31
    return mixed >> 1


def _cuda_in_use() -> bool:
    return torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def capture_random() -> RandomState:
    """The state of every global random stream: torch on each device in use, numpy, python."""
    state: RandomState = {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()}
    if _cuda_in_use():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def random_fingerprint() -> tuple[bytes, ...]:
    """What changes when somebody draws from a global random stream."""
    state = capture_random()
    numpy = state["numpy"]
    parts = [
        state["torch"].numpy().tobytes(),
        numpy[1].tobytes(),
        repr((numpy[2:], state["python"])).encode(),  # numpy draws normal numbers in pairs and keeps the second
    ]
    return (*parts, *(t.numpy().tobytes() for t in state.get("cuda", [])))


def restore_random(state: RandomState) -> None:
    """Put every global random stream back to `state`."""
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "mps" in state:
        torch.mps.set_rng_state(state["mps"])


@contextmanager
def private_random(seed: int | None = None) -> Iterator[None]:
    """Let the code inside draw from the global streams (seeded if `seed` is given) and put them back afterwards."""
    state = capture_random()
    try:
        if seed is not None:
            seed_all(seed)
        yield
    finally:
        restore_random(state)


def seed_all(seed: int) -> None:
    """Seed the global streams that user code draws from; call it inside `private_random` only."""
    torch.default_generator.manual_seed(seed)
    if _cuda_in_use():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def reachable_generators(owner: Any) -> list[Any]:
    """The random generators of its own that a user's loader, dataset, sampler or function holds.

    Attributes, short lists and dicts, closures, and the globals that functions and methods name are searched.

    Example:
        >>> own = torch.Generator()
        >>> reachable_generators(torch.utils.data.DataLoader([1, 2], shuffle=True, generator=own)) == [own]
        True
    """
    found: list[Any] = []
    seen: dict[int, Any] = {}  # keeps what it has seen alive: identities are not given twice
    ahead: list[tuple[Any, int]] = [(owner, 0)]
    while ahead and len(seen) < COUNT:
        thing, depth = ahead.pop()
        if id(thing) in seen or isinstance(thing, (Tensor, np.ndarray, str, bytes, int, float, ModuleType)):
            continue
        seen[id(thing)] = thing
        if isinstance(thing, GENERATORS):
            found.append(thing)
        elif depth < DEPTH:
            ahead += [(part, depth + 1) for part in _parts(thing)]
    return found


def _parts(thing: Any) -> Iterable[Any]:
    """What an object is made of, as far as it may hold a random generator."""
    if isinstance(thing, dict):
        return list(thing.values()) if len(thing) <= WIDTH else ()
    if isinstance(thing, (list, tuple)):
        return thing if len(thing) <= WIDTH else ()
    if isinstance(thing, functools.partial):
        return (thing.func, thing.args, thing.keywords)
    if isinstance(thing, MethodType):
        return (thing.__self__, thing.__func__)
    if isinstance(thing, FunctionType):
        named = (thing.__globals__.get(name) for name in thing.__code__.co_names)
        return [*(g for g in named if isinstance(g, GENERATORS)), *(thing.__closure__ or ()), *(thing.__defaults__ or ())]
    if isinstance(thing, CellType):
        try:
            return (thing.cell_contents,)
        except ValueError:  # a name that is not bound yet
            return ()
    if isinstance(thing, type):
        own = thing.__module__.partition(".")[0] not in ("torch", "numpy", "builtins")
        return [f for f in vars(thing).values() if isinstance(f, FunctionType)] if own else ()
    return [*getattr(thing, "__dict__", {}).values(), *type(thing).__mro__]


@contextmanager
def private_generators(generators: Sequence[Any], seed: int) -> Iterator[None]:
    """Seed these generators inside, each in its own way, and put them back afterwards."""
    with ExitStack() as stack:
        for k, g in enumerate(generators):
            own = derive_seed(seed, k)
            if isinstance(g, torch.Generator):
                stack.callback(g.set_state, g.get_state())
                g.manual_seed(own)
            elif isinstance(g, np.random.Generator):
                stack.callback(setattr, g.bit_generator, "state", g.bit_generator.state)
                g.bit_generator.state = type(g.bit_generator)(own).state
            elif isinstance(g, np.random.RandomState):
                stack.callback(g.set_state, g.get_state())
                g.seed(own % 2**32)
            else:
                stack.callback(g.setstate, g.getstate())
                g.seed(own)
        yield


@contextmanager
def math_attention() -> Iterator[None]:
    """Run attention by its plain formula, which has the second derivatives that the fused kernels lack."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        yield


@contextmanager
def second_order_kernels(model: nn.Module) -> Iterator[None]:
    """Run only kernels that can be differentiated twice: plain attention, no cuDNN for recurrent layers, no compilation.

    cuDNN stays on for all other models: its convolutions can be differentiated twice, and are the fast ones.
    """
    with ExitStack() as stack:
        stack.enter_context(math_attention())
        modules = list(model.modules())
        if any(isinstance(m, nn.RNNBase) for m in modules):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) is not None for m in modules):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextmanager
def untouched(model: nn.Module, *, seed: int | None = None) -> Iterator[None]:
    """Put back, whatever happens inside: buffers, `.grad`, modes, `requires_grad`, random streams, autocast.

    Parameters are captured too, as user code inside a forward pass may write to them (spectral norm does), also past
    autograd: a weight that is clamped through `.data` at each forward pass leaves no other trace than its values.

    Args:
        model: the module that the code inside runs.
        seed: seeds the global random streams inside, so that masks can be replayed.
    """
    parameters = [(p, p.data, p.detach().clone(), p._version) for p in model.parameters()]
    buffers = _lend_buffers(model)
    grads = [(p, p.grad, None if p.grad is None else p.grad.detach().clone()) for p in model.parameters()]
    modes = [(m, m.training) for m in model.modules()]
    requires = [(p, p.requires_grad) for p in model.parameters()]
    with ExitStack() as stack:
        stack.enter_context(private_random(seed))
        for device_type in {p.device.type for p in model.parameters()} | {"cpu"}:
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        try:
            yield
        finally:
            with torch.no_grad():
                for p, data, value, version in parameters:
                    if p.data_ptr() != data.data_ptr():
                        p.data = data
                    if p._version != version or not _same(p.detach(), value):
                        p.copy_(value)
            for owner, name, own in buffers:
                owner[name] = own
            for p, grad, kept in grads:
                p.grad = grad
                if grad is not None and kept is not None and not _same(grad, kept):
                    with torch.no_grad():
                        grad.copy_(kept)
            for module, mode in modes:
                module.training = mode
            for p, flag in requires:
                if p.requires_grad != flag:
                    p.requires_grad_(flag)


def _lend_buffers(model: nn.Module) -> list[tuple[dict[str, Tensor | None], str, Tensor]]:
    """Let the module write to copies of its buffers, and say how to put the buffers themselves back.

    Copies, and not copying back: batch normalisation keeps its running statistics in the graph of the gradient, which
    a write from outside would spoil.
    """
    lent: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
    copies: dict[int, Tensor] = {}
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                lent.append((module._buffers, name, buffer))
                copies.setdefault(id(buffer), buffer.detach().clone())
    for owner, name, buffer in lent:
        owner[name] = copies[id(buffer)]
    return lent


def _same(a: Tensor, b: Tensor) -> bool:
    """Bitwise equality, NaN equal to NaN."""
    if a.is_sparse and b.is_sparse:
        return a.shape == b.shape and _same(a._indices(), b._indices()) and _same(a._values(), b._values())
    if a.shape != b.shape or a.dtype != b.dtype or a.is_sparse or b.is_sparse:
        return False
    return bool(torch.equal(a, b)) or bool(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))
