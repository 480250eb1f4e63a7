"""Lightning: a fit is the same to the last bit with the callback, its records are right, and it becomes a Training."""

import copy
import logging
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradoscope.diagnose import diagnose_run
from gradoscope.errors import CannotRun, Usage
from gradoscope.guard import private_random
from gradoscope.integrations import lightning as adapter
from gradoscope.store import Run
from tests.integrations.common import ALL, assert_run_is_told, assert_same_end, break_looks, left, norm
from tests.test_neutral import assert_same

L = pytest.importorskip("lightning.pytorch", reason="an extra: gradoscope[lightning]")
F = nn.functional
DATA = torch.utils.data


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings(), private_random(5):
        warnings.filterwarnings("ignore", module="lightning|torch")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*|.*log_every_n_steps.*")
        yield


class Classifier(L.LightningModule):
    """A module as users write it: logs, steps its schedule per epoch, notes what it sees."""

    def __init__(self, noisy: bool = False, make: Callable[..., Any] | None = None, schedule: Any = "epoch") -> None:
        super().__init__()
        inside = [nn.BatchNorm1d(6), nn.Dropout(0.3)] if noisy else []
        self.net = nn.Sequential(nn.Linear(4, 6), *inside, nn.Tanh(), nn.Linear(6, 3))
        self.make = make or (lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9))
        self.schedule = schedule
        self.losses: list[float] = []
        self.norms: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        self.losses.append(loss.item())
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.norms.append(norm(self.parameters()))

    def configure_optimizers(self) -> Any:
        optimizer = self.make(self.parameters())
        if self.schedule is None:
            return optimizer
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": self.schedule}}


def loader(n: int = 12, batch: int = 2, shuffle: bool = False) -> Any:
    generator = torch.Generator().manual_seed(1)
    data = DATA.TensorDataset(torch.randn(n, 4, generator=generator), torch.randint(0, 3, (n,), generator=generator))
    return DATA.DataLoader(data, batch, shuffle=shuffle)


def trainer(callbacks: list[Any], **options: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}
    return L.Trainer(**({"accelerator": "cpu", "max_epochs": 2} | quiet | options), callbacks=callbacks)


def fit(seed: int, callback: Any, **options: Any) -> tuple[Any, Any]:
    with private_random(seed):
        module = Classifier(noisy=True)
        runs = trainer([] if callback is None else [callback], accumulate_grad_batches=2, gradient_clip_val=0.3, **options)
        runs.fit(module, loader(shuffle=True))
        found = left(module, runs.optimizers[0], runs.lr_scheduler_configs[0].scheduler)
        return module, found | {"losses": module.losses, "norms": module.norms}


def test_a_fit_is_bit_identical_and_its_records_are_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, plain = fit(3, None)
    watched = adapter.callback(record=tmp_path / "run", budget=ALL)
    module, seen = fit(3, watched)
    assert_same(plain, seen)
    assert not watched.watch.failure
    records = watched.watch.records
    # Accumulation: six batches are three steps; the loss of a step is the mean over its batches, undivided.
    assert [r["loss"] for r in records] == pytest.approx([sum(module.losses[i : i + 2]) / 2 for i in range(0, 12, 2)])
    # Clipping: norms are told before it, and what it left of them beside.
    assert [r["grad_norm"] for r in records] == pytest.approx(module.norms, rel=1e-5)
    assert {r["grad_norm_at"] for r in records} == {"unclipped"}
    for r in records:
        assert r.get("grad_norm_clipped", r["grad_norm"]) == pytest.approx(min(r["grad_norm"], 0.3), rel=1e-4)
    assert [r["lr"] for r in records] == [[0.2]] * 3 + [[0.1]] * 3
    capsys.readouterr()
    assert_run_is_told(tmp_path / "run", 6, capsys)
    assert Run.open(tmp_path / "run").provenance["name"] == "Classifier"


def test_the_fit_that_was_seen_is_repeated_and_diagnosed() -> None:
    module, watched = Classifier(), adapter.callback(budget=ALL)
    trainer([watched], accumulate_grad_batches=2, gradient_clip_val=0.3).fit(module, loader())
    training = watched.follower.training()
    assert (training.accumulate, training.steps) == (2, 6)
    assert training.clip_norm == pytest.approx(0.3, rel=1e-4)
    assert_same_end(training, module)
    end = copy.deepcopy(module.state_dict())
    found = watched.diagnose(counterfactuals=False)
    assert_same(end, module.state_dict())
    assert found.name == "Classifier"
    assert any("averaged over 2 batches" in note for note in found.notes)


class Data(L.LightningDataModule):
    def setup(self, stage: str) -> None:
        self.train = loader()

    def train_dataloader(self) -> Any:
        return self.train


@pytest.mark.parametrize("schedule", ["epoch", "step", None])
def test_module_and_data_as_a_training_end_where_the_fit_ends(schedule: Any) -> None:
    module = Classifier(schedule=schedule)
    start = copy.deepcopy(module.state_dict())
    runs = trainer([], accumulate_grad_batches=2, gradient_clip_val=0.3)
    training = adapter.training(module, Data(), steps=6, trainer=runs)
    assert (training.accumulate, training.clip_norm) == (2, 0.3)
    twin = Classifier(schedule=schedule)
    twin.load_state_dict(start)
    runs.fit(twin, loader())
    assert_same_end(training, twin)
    assert_same(start, module.state_dict())
    assert_same_end(adapter.training(twin, loader(), steps=1, name="mine"), rested(twin))  # after its fit: on from where it stands


def rested(module: Any) -> Any:
    """One more step, by hand."""
    twin = copy.deepcopy(module)
    optimizer = twin.make(twin.parameters())
    optimizer.zero_grad()
    F.cross_entropy(twin.net((batch := next(iter(loader())))[0]), batch[1]).backward()
    optimizer.step()
    return twin


def test_a_recorded_fit_goes_on_from_its_last_checkpoint_where_its_recipe_is_known(tmp_path: Path) -> None:
    file = tmp_path / "train.py"
    file.write_text(
        "from gradoscope.integrations.lightning import training\n"
        "from tests.integrations.test_lightning import Classifier, loader\n"
        "def make():\n"
        "    return training(Classifier(), loader(), steps=12)\n",
        encoding="utf-8",
    )
    watched = adapter.callback(record=tmp_path / "run", target=f"{file}:make", budget=ALL)
    trainer([watched]).fit(Classifier(), loader())
    found = diagnose_run(Run.open(tmp_path / "run"), counterfactuals=False)
    assert (found.name, found.provenance["recorded_steps"]) == ("Classifier", 12)
    assert any("from the last checkpoint, step 12" in note for note in found.notes)


def test_what_no_single_loss_describes_is_refused() -> None:
    module = Classifier(make=lambda p: torch.optim.SGD(p, lr=0.1), schedule=None)
    two = Classifier()
    two.configure_optimizers = lambda: [torch.optim.SGD(two.parameters(), 0.1)] * 2  # type: ignore[method-assign]  # a user's mistake
    for mistake, says, data in (
        (two, "2 optimizers", loader()),
        (module, "train_dataloader", None),
        (Generator(), "by hand", loader()),
    ):
        with pytest.raises(CannotRun, match=says):
            adapter.training(mistake, data, steps=2)
    waits = torch.optim.lr_scheduler.ReduceLROnPlateau
    module.configure_optimizers = lambda: ([o := module.make(module.parameters())], [waits(o)])  # type: ignore[method-assign]
    with pytest.raises(CannotRun, match="schedule=None"):
        adapter.training(module, loader(), steps=2)
    assert adapter.training(module, loader(), steps=2, schedule=None).schedule is None
    with pytest.raises(Usage, match="no option 'evry'"):
        adapter.callback(evry=3)


@pytest.mark.parametrize("fused", [False, True])
def test_scaled_gradients_and_losses_are_told_unscaled_and_refused_steps_counted(fused: bool) -> None:
    def run(scale: float, spoil: bool) -> Any:
        with private_random(2):
            module = Classifier(make=lambda p: torch.optim.SGD(p, lr=0.1, fused=fused), schedule=None)
            data = loader()
            if spoil:
                data.dataset.tensors[0][4, 0] = torch.inf
            watched = adapter.callback(budget=ALL)
            plugin = L.plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
            trainer([watched], plugins=[plugin], max_epochs=1).fit(module, data)
            return watched.watch

    scaled, plain = run(1024.0, False), run(1.0, False)
    for a, b in zip(scaled.records, plain.records, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-2)  # half precision
    spoilt = run(1024.0, True)
    assert (spoilt.steps, spoilt.skipped_updates) == (6, 1)
    assert spoilt.records[2]["skipped"] is True


def test_closure_calls_are_one_step() -> None:
    module = Classifier(make=lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3), schedule=None)
    watched = adapter.callback(budget=ALL)
    trainer([watched], max_epochs=1).fit(module, loader())
    records = watched.watch.records
    assert watched.watch.steps == 6
    assert sum(r["closure_calls"] for r in records) == len(module.losses) > 6
    assert records[0]["loss"] == pytest.approx(module.losses[0])
    assert records[0]["grad_norm"] == pytest.approx(module.norms[0], rel=1e-5)  # where the step starts
    assert_same_end(watched.follower.training(), module)


class Generator(L.LightningModule):
    """Two optimizers, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.a, self.b = nn.Linear(4, 2), nn.Linear(2, 1)
        self.seen: list[tuple[float, float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for i, optimizer in enumerate(self.optimizers()):
            if i == 1 and batch_idx % 2:
                continue  # the second one steps at every other batch
            optimizer.zero_grad()
            loss = self.b(self.a(batch[0])).square().mean() * (i + 1)
            self.manual_backward(loss)
            self.seen.append((i, loss.item()))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.a, self.b)]


def test_several_optimizers_have_a_watch_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends = []
    for watched in (None, adapter.callback(record=tmp_path, budget=ALL)):
        with private_random(8):
            module = Generator()
            trainer([] if watched is None else [watched], max_epochs=1).fit(module, loader())
            ends.append(left(module))
    assert_same(*ends)
    assert [f.watch.steps for f in watched.followers] == [6, 3]
    for i, follower in enumerate(watched.followers):
        records = follower.watch.records
        assert [r["loss"] for r in records] == pytest.approx([loss for k, loss in module.seen if k == i])
        assert set(records[0]["grad_norms"]) == {("a.weight", "b.weight")[i], ("a.bias", "b.bias")[i]}
        capsys.readouterr()
        assert_run_is_told(tmp_path / f"optimizer-{i}", (6, 3)[i], capsys)
    with pytest.raises(CannotRun, match="by hand"):
        watched.diagnose()


def test_the_users_mistake_passes_and_ours_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if len(self.losses) == 3:
                raise ValueError("the user's own mistake")
            return super().training_step(batch, batch_idx)

    module, watched = Fails(), adapter.callback(record=tmp_path, budget=ALL)
    runs = trainer([watched])
    with pytest.raises(ValueError, match="own mistake"):
        runs.fit(module, loader())
    assert len(Run.open(tmp_path).records()) == 3
    assert not runs.optimizers or not runs.optimizers[0]._optimizer_step_post_hooks
    break_looks(monkeypatch)
    _, plain = fit(4, None)
    watched = adapter.callback(budget=ALL)
    with pytest.warns(RuntimeWarning, match="ZeroDivisionError"):
        _, seen = fit(4, watched)
    assert_same(plain, seen)
    assert watched.watch.failure
    monkeypatch.undo()
    monkeypatch.setattr(adapter, "_scaler", lambda trainer: 1 / 0)  # a mistake of the adapter itself
    watched = adapter.callback(budget=ALL)
    with pytest.warns(RuntimeWarning, match="ZeroDivisionError"):
        _, seen = fit(4, watched)
    assert_same(plain, seen)


def test_copies_start_anew_and_data_are_read_once() -> None:
    watched = adapter.callback(budget=0.1)
    twin = pickle.loads(pickle.dumps(watched))
    assert (twin.options, twin.follower.watch) == ({"budget": 0.1}, None)
    with pytest.raises(CannotRun, match="not started"):
        _ = twin.watch

    class Stream(DATA.IterableDataset):  # type: ignore[type-arg]  # of anything
        read = 0

        def __iter__(self) -> Iterator[Any]:
            for x, y in zip(torch.randn(6, 4), torch.randint(0, 3, (6,)), strict=True):
                Stream.read += 1
                yield x, y

    watched = adapter.callback(budget=ALL)
    trainer([watched], max_epochs=1).fit(Classifier(schedule=None), DATA.DataLoader(Stream(), batch_size=2))
    assert Stream.read == 6
    watched.diagnose(counterfactuals=False)  # from the batches that were seen
    assert Stream.read == 6
    assert len(watched.watch.batches) == 3
