"""The pitfalls of measuring in real trainings, one test or more for each: it works, or it is refused with the reason."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import gradoscope
from gradoscope.batches import make_batches
from gradoscope.errors import CannotRun
from gradoscope.guard import private_random, random_fingerprint, second_order_kernels
from gradoscope.measure.curvature import extreme_eigenvalues
from gradoscope.measure.gradient import group_norms, layer_norms, missing_gradients
from gradoscope.measure.hessian_trace import hessian_trace
from gradoscope.measure.per_sample import per_sample
from gradoscope.measure.preconditions import preconditions
from gradoscope.objective import Objective
from gradoscope.sweeping.task import one_thread
from gradoscope.watching.norms import norms
from tests.measure.states import MEASUREMENTS, state

B = 6


def cross_entropy(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def batch(dtype: torch.dtype = torch.float64, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(B, *(shape or (4,)), generator=generator, dtype=dtype), torch.randint(0, 3, (B,), generator=generator)


def mlp(*middle: nn.Module) -> nn.Module:
    with private_random(5):
        return nn.Sequential(nn.Linear(4, 5), *(middle or (nn.Tanh(),)), nn.Linear(5, 3)).double()


def objective(model: nn.Module | None = None, **options: Any) -> Objective:
    return Objective(model or mlp(), cross_entropy, [batch()], **options)


def dense(o: Objective) -> Tensor:
    return torch.stack([o.hvp(row) for row in torch.eye(o.dim, dtype=torch.float64)])


# --- Random streams, modes, buffers ---------------------------------------------------------------------------------------


def test_reading_a_loader_moves_no_random_stream() -> None:
    loader = DataLoader(TensorDataset(*batch()), batch_size=2)
    stream = random_fingerprint()
    batches = make_batches(loader, None, 0)
    Objective(mlp(), cross_entropy, [batches.batch(i) for i in range(3)]).gradient()
    assert random_fingerprint() == stream


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_batch_norm_statistics_and_counter_stay(name: str) -> None:
    model = mlp(nn.BatchNorm1d(5), nn.Tanh()).train()
    before = state(model)
    if name == "gauss-newton trace":  # by rows, which the statistics of the batch couple
        with pytest.raises(CannotRun, match="single rows"):
            MEASUREMENTS[name](objective(model))
    else:
        MEASUREMENTS[name](objective(model))
    assert state(model) == before


def test_dropout_masks_are_fixed() -> None:
    o = objective(mlp(nn.Tanh(), nn.Dropout(0.5)))
    v = torch.ones(o.dim, dtype=torch.float64)
    assert torch.equal(o.hvp(v), o.hvp(v))
    again = objective(o.model)
    assert torch.equal(again.hvp(v), o.hvp(v))
    assert not torch.equal(objective(o.model, seed=1).hvp(v), o.hvp(v))


class Noise(nn.Module):
    """Augmentation inside the model, from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn(x.shape, generator=self.generator, dtype=x.dtype)


def test_augmentation_that_does_not_repeat_is_named() -> None:
    found = preconditions(objective(mlp(Noise(), nn.Tanh())))
    assert not found.repeatable
    assert found.unrepeatable == ("1",)
    assert "1" in found.notes[0]
    assert "augmentation" in found.notes[0]


# --- Precision ------------------------------------------------------------------------------------------------------------


def test_autocast_is_off_while_measuring_and_on_again() -> None:
    model = mlp().float()
    data = [batch(torch.float32)]
    v = torch.ones(sum(p.numel() for p in model.parameters()))
    plain = Objective(model, cross_entropy, data).hvp(v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = state(model)
        inside = Objective(model, cross_entropy, data)
        assert torch.equal(inside.hvp(v), plain)
        assert per_sample(inside).squares.dtype == np.float64
        assert state(model) == before
        assert torch.is_autocast_enabled("cpu")


def test_a_loss_with_autocast_inside_works() -> None:
    """Where the user's own loss switches it on, it is the loss in that precision that is measured, and its errors are bounded."""

    def loss(model: Any, data: Any) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return cross_entropy(model, data)

    model = mlp().float()
    low, full = (Objective(model, f, [batch(torch.float32)]) for f in (loss, cross_entropy))
    assert extreme_eigenvalues(low).largest == pytest.approx(extreme_eigenvalues(full).largest, rel=0.05)
    assert per_sample(low).norms == pytest.approx(per_sample(full).norms, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_parameters_of_any_real_type(dtype: torch.dtype) -> None:
    exact = objective()
    model = mlp().to(dtype)
    o = Objective(model, lambda m, b: F.cross_entropy(m(b[0].to(dtype)).float(), b[1]), [batch()])
    error = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.2}[dtype]
    assert extreme_eigenvalues(o, tolerance=1e-3).largest == pytest.approx(
        extreme_eigenvalues(exact, tolerance=1e-3).largest, rel=max(error, 1e-3)
    )
    assert per_sample(o).norms == pytest.approx(per_sample(exact).norms, rel=error)


def test_complex_parameters_are_refused_with_the_way_out() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4, dtype=torch.complex128, generator=torch.Generator().manual_seed(0)))

        def forward(self, x: Tensor) -> Tensor:
            return (x.to(self.weight.dtype) @ self.weight.T).abs()

    with pytest.raises(CannotRun, match=r"weight is complex.*view_as_real"):
        objective(Complex())

    class Pairs(Complex):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.view_as_real(self.weight.detach()).clone())

        def forward(self, x: Tensor) -> Tensor:
            return (x.to(torch.complex128) @ torch.view_as_complex(self.weight).T).abs()

    o = objective(Pairs())
    assert extreme_eigenvalues(o, tolerance=1e-8).largest == pytest.approx(float(torch.linalg.eigvalsh(dense(o))[-1]))


def test_scaled_gradients_are_told_unscaled() -> None:
    model = mlp()
    cross_entropy(model, batch()).backward()
    optimizer = torch.optim.Adam(model.parameters())
    plain = group_norms(optimizer)
    for p in model.parameters():
        assert p.grad is not None
        p.grad *= 1024
    optimizer.grad_scale = torch.tensor(1024.0)  # type: ignore[attr-defined]  # as a GradScaler tells a fused optimizer
    assert group_norms(optimizer) == pytest.approx(plain)


# --- Loops: accumulation, clipping, closures, groups -----------------------------------------------------------------------


def test_accumulation_counts_optimizer_steps_and_clipping_is_told_apart() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watched = gradoscope.watch(model, optimizer, nn.CrossEntropyLoss(), budget=np.inf)
    for _ in range(2):
        with watched.step() as step:
            for _ in range(3):
                (cross_entropy(model, batch()) / 3).backward()
            step.gradients()
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
        optimizer.zero_grad()
    watched.close()
    assert watched.steps == 2
    assert watched.records[0]["grad_norm"] > 1e-2 > watched.records[0]["grad_norm_clipped"]
    assert watched.records[0]["grad_norm_clipped"] == pytest.approx(1e-3, rel=1e-4)


def test_a_closure_is_one_step_and_never_called_by_us() -> None:
    model, calls = mlp(), [0]
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)

    def closure() -> Tensor:
        calls[0] += 1
        optimizer.zero_grad()
        loss = cross_entropy(model, batch())
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch's
    alone, calls[0] = calls[0], 0
    with gradoscope.watch(model, optimizer, nn.CrossEntropyLoss()) as watched:
        optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch's
    assert watched.steps == 1
    assert calls[0] <= alone


def test_groups_have_norms_of_their_own() -> None:
    model: Any = mlp()
    cross_entropy(model, batch()).backward()
    optimizer = torch.optim.SGD([{"params": model[0].parameters(), "name": "first"}, {"params": model[2].parameters(), "lr": 1.0}], lr=0.1)
    found = group_norms(optimizer)
    assert found["first"] == pytest.approx(float(torch.cat([p.grad.reshape(-1) for p in model[0].parameters()]).norm()))
    assert found["1"] == pytest.approx(float(torch.cat([p.grad.reshape(-1) for p in model[2].parameters()]).norm()))


# --- Kernels ---------------------------------------------------------------------------------------------------------------


def test_compiled_models_are_measured_as_written() -> None:
    model = mlp()
    compiled = torch.compile(model, backend="eager")
    compiled(batch()[0])
    expected = per_sample(objective(model), products=True)
    found = per_sample(objective(compiled), products=True)  # type: ignore[arg-type]  # torch says a callable
    assert found.names == expected.names
    assert not any("_orig_mod" in n for n in found.names)
    assert found.products == pytest.approx(expected.products)
    assert extreme_eigenvalues(objective(compiled)).largest == extreme_eigenvalues(objective(model)).largest  # type: ignore[arg-type]  # the same


def test_a_compiled_part_of_a_model_is_run_as_written() -> None:
    model: Any = mlp(nn.Tanh())
    expected = float(torch.linalg.eigvalsh(dense(objective(model)))[-1])
    model[1].compile(backend="eager")
    model(batch()[0])
    assert extreme_eigenvalues(objective(model), tolerance=1e-8).largest == pytest.approx(expected)


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v).mean(1))


def test_fused_attention_has_second_derivatives_here() -> None:
    o = Objective(Fused().double(), cross_entropy, [batch(torch.float64, 5, 4)])
    v = torch.randn(o.dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    exact = o.hvp(v)
    assert o.method == "autograd"
    o.distrust("to compare")
    assert o.hvp(v) == pytest.approx(exact, rel=1e-4, abs=1e-8)


def test_recurrent_layers_run_without_cudnn_and_the_flags_come_back() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.GRU(4, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x)[0][:, -1])

    model = Net().double()
    flag = torch.backends.cudnn.enabled
    with second_order_kernels(model):
        assert not torch.backends.cudnn.enabled
    assert torch.backends.cudnn.enabled == flag
    o = Objective(model, cross_entropy, [batch(torch.float64, 5, 4)])
    assert extreme_eigenvalues(o).converged
    assert o.method == "autograd"


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.out = nn.EmbeddingBag(9, 5, mode="mean"), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.bag(x)))


def test_operations_without_second_derivative_fall_back_and_say_so() -> None:
    tokens = torch.randint(0, 9, (B, 4), generator=torch.Generator().manual_seed(0))
    o = Objective(Bag().double(), cross_entropy, [(tokens, batch()[1])])
    found = extreme_eigenvalues(o, tolerance=1e-3)
    assert "finite differences" in found.method
    assert "embedding_bag" in o.why
    assert found.top_residuals[0] >= o.difference_error * found.largest
    rows = per_sample(o)
    for i in (0, 3):
        single = Objective(o.model, cross_entropy, [(tokens[i : i + 1], batch()[1][i : i + 1])])
        assert rows.norms[i] == pytest.approx(float(single.gradient().norm()), rel=1e-9)
    trace = hessian_trace(o, relative_error=0.3, max_probes=30)
    assert "finite differences" in trace.method


def test_in_place_operations_do_not_spoil_what_hooks_see() -> None:
    plain, inplace = objective(mlp(nn.ReLU())), objective(mlp(nn.ReLU(inplace=True)))
    assert per_sample(inplace).hooked == per_sample(plain).names
    assert per_sample(inplace).squares == pytest.approx(per_sample(plain).squares, rel=1e-12)


# --- Parameters -------------------------------------------------------------------------------------------------------------


def test_frozen_and_unused_parameters() -> None:
    model: Any = mlp()
    wrapper: Any = nn.ModuleDict({"net": model, "spare": nn.Linear(2, 2).double()})
    model[0].weight.requires_grad_(False)
    o = Objective(wrapper, lambda m, b: F.cross_entropy(m["net"](b[0]), b[1]), [batch()])
    F.cross_entropy(model(batch()[0]), batch()[1]).backward()
    assert missing_gradients(list(wrapper.named_parameters())) == ["net.0.weight", "spare.weight", "spare.bias"]
    assert "spare.weight" not in layer_norms(list(wrapper.named_parameters()))
    assert "net.0.weight" not in dict(o.named)
    values = torch.linalg.eigvalsh(dense(o))
    assert extreme_eigenvalues(o, tolerance=1e-8, max_products=60).largest == pytest.approx(float(values[-1]))
    rows = per_sample(o)
    assert dict(zip(rows.names, rows.squares.sum(0), strict=True))["spare.bias"] == 0


def test_sparse_gradients_are_added_up_before_they_are_squared() -> None:
    tokens = torch.tensor([[1, 1, 2], [3, 3, 3], [0, 4, 5], [1, 2, 3], [5, 5, 0], [2, 2, 2]])
    found = []
    for sparse in (False, True):
        with private_random(7):
            model = nn.Sequential(nn.Embedding(6, 4, sparse=sparse), nn.Flatten(), nn.Linear(12, 3)).double()
        o = Objective(model, cross_entropy, [(tokens, batch()[1])])
        cross_entropy(model, (tokens, batch()[1])).backward()
        grad = model[0].weight.grad
        assert grad is not None
        assert grad.is_sparse == sparse
        found.append((o.gradient(), o.hvp(o.gradient()), torch.as_tensor(per_sample(o).norms), norms([grad]), group_norms_of(model)))
        assert model[0].weight.grad is grad
        assert grad.is_sparse == sparse
    for a, b in zip(*found, strict=True):
        assert a == pytest.approx(b)


def group_norms_of(model: nn.Module) -> Tensor:
    return torch.tensor(list(group_norms(torch.optim.SGD(model.parameters(), lr=0.1)).values()))


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.a, self.b, self.reentrant = nn.Linear(4, 4), nn.Linear(4, 3), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(lambda t: self.b(torch.tanh(t)), self.a(x), use_reentrant=self.reentrant)


def test_checkpointing_works_or_is_explained() -> None:
    with private_random(1):
        good, bad = Checkpointed(False).double(), Checkpointed(True).double()
    o = objective(good)
    assert extreme_eigenvalues(o, tolerance=1e-8, max_products=60).largest == pytest.approx(float(torch.linalg.eigvalsh(dense(o))[-1]))
    assert per_sample(o).hooked == per_sample(o).names
    for measure in (lambda o: o.gradient(), extreme_eigenvalues, per_sample):
        before = state(bad)
        with pytest.raises(CannotRun, match="use_reentrant=False"):
            measure(objective(bad))
        assert state(bad) == before


# --- Losses -----------------------------------------------------------------------------------------------------------------


def test_several_losses_and_weights_per_sample() -> None:
    weights = torch.linspace(0.1, 2, B, dtype=torch.float64)

    def loss(model: Any, data: Any) -> Tensor:
        x, y, w = data
        out = model(x)
        return (w * F.cross_entropy(out, y, reduction="none")).sum() + 0.1 * out.square().mean()

    o = Objective(mlp(), loss, [(*batch(), weights)])
    assert extreme_eigenvalues(o, tolerance=1e-8, max_products=60).largest == pytest.approx(float(torch.linalg.eigvalsh(dense(o))[-1]))
    rows = per_sample(o, products=True)
    assert rows.gradient_square == pytest.approx(float(o.gradient().square().sum()))
    exact = hessian_trace(o, way="probes", relative_error=0.1)
    assert exact.value == pytest.approx(float(dense(o).trace()), abs=4 * exact.se)


# --- Data, memory, speed ------------------------------------------------------------------------------------------------------


class Stream(IterableDataset):  # type: ignore[type-arg]  # of pairs
    """An endless stream that counts how often it was read."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        while True:
            self.read += 1
            yield torch.randn(4, generator=torch.Generator().manual_seed(self.read)), self.read % 3


def test_a_users_iterator_is_refused_and_a_stream_is_read_once() -> None:
    iterator = iter([batch()])
    with pytest.raises(CannotRun, match="only once"):
        make_batches(iterator, None, 0)
    assert next(iterator) is not None
    stream = Stream()
    batches = make_batches(DataLoader(stream, batch_size=2), None, 0, most=3)
    first = [batches.batch(i)[0].clone() for i in range(3)]
    read = stream.read
    again = [batches.batch(i)[0] for i in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert stream.read == read


def test_no_graph_is_left_in_grad_or_in_memory() -> None:
    o = objective()
    o.hvp(torch.ones(o.dim, dtype=torch.float64))
    assert all(p.grad is None for p in o.model.parameters())
    kept = o._graphs[0][0]
    assert kept is not None
    graph = weakref.ref(kept)
    del kept
    per_sample(o)
    o.release()
    gc.collect()
    assert graph() is None


def test_norms_wait_for_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [torch.ones(3), torch.ones(4), torch.ones(2).double()]
    for name in ("item", "tolist", "__float__", "__bool__", "numpy"):
        monkeypatch.setattr(Tensor, name, lambda *_: pytest.fail("waits for the device"))
    found = norms(tensors)
    monkeypatch.undo()
    assert found.square().tolist() == pytest.approx([3, 4, 2])


def test_workers_of_a_study_use_one_thread() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
