"""Bad input gets one clear message (what was expected, what came, how to mend it) and its own exit code, no traceback."""

import math
import os
import signal
import sys
import textwrap

import pytest
import torch
from torch import nn

from gradoscope import cli
from gradoscope.batches import make_batches
from gradoscope.case import Case
from gradoscope.errors import CannotRun, GradoscopeError
from gradoscope.loop import advance
from gradoscope.rehearsal import rehearse
from gradoscope.store import Run
from gradoscope.training import Live, Training

X, Y = torch.linspace(-1, 1, 24).reshape(8, 3), torch.linspace(0, 1, 8).reshape(8, 1)
mse = nn.functional.mse_loss


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def training(**changes) -> Training:
    """A small training that is right, but for `changes`."""
    return Training(**({"model": lambda: nn.Linear(3, 1), "optimizer": sgd, "loss_fn": mse, "data": (X, Y), "steps": 5} | changes))


class ReturnsDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x):
        return {"logits": self.layer(x)}


class Detached(ReturnsDict):
    def forward(self, x):
        return self.layer(x).detach()


def frozen() -> nn.Module:
    return nn.Linear(3, 1).requires_grad_(False)


def once():
    yield X, Y


class EmptyAfterFirst:
    """A collection of batches that gives them once and then none."""

    def __init__(self) -> None:
        self.left = [(X, Y)]

    def __iter__(self):
        while self.left:
            yield self.left.pop()


# What is wrong -> (the changes that make it so, what the message must say: what was expected, what came, how to mend it).
CASES = {
    "empty loader": ({"data": []}, ["empty", "at least one batch"]),
    "empty DataLoader": (
        {"data": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 64, drop_last=True)},
        ["loader is empty", "at least one batch", "drop_last"],
    ),
    "no rows": ({"data": (X[:0], Y[:0])}, ["no rows", "at least one example"]),
    "unequal rows": ({"data": (X, Y[:5])}, ["same number of rows", "(8, 3)", "(5, 1)"]),
    "a generator": ({"data": once()}, ["generator", "only once", "list("]),
    "a collection that is read once": ({"data": EmptyAfterFirst()}, ["only once", "Pass a list"]),
    "data of no known kind": ({"data": 7}, ["is a int", "expected tensors"]),
    "target dtype": (
        {"model": nn.Linear(3, 4), "loss_fn": nn.functional.cross_entropy, "data": (X, torch.zeros(8, dtype=torch.int32))},
        ["(8, 4)", "torch.int32", "torch.int64"],
    ),
    "target shape": (
        {"model": nn.Linear(3, 4), "loss_fn": nn.functional.cross_entropy, "data": (X, torch.zeros(8, 2, dtype=torch.int64))},
        ["(8, 4)", "(8, 2)", "of shape (N,)"],
    ),
    "input shape": ({"model": nn.Linear(5, 1)}, ["forward pass", "(8, 3)"]),
    "batches without a target": ({"data": X}, ["batches (x, y)", "Tensor", "batch_loss"]),
    "no trainable parameters": ({"model": frozen()}, ["no trainable parameters", "requires_grad"]),
    "no parameters": ({"model": nn.ReLU()}, ["no parameters", "at least one"]),
    "an optimizer over other parameters": (
        {"model": nn.Linear(3, 1), "optimizer": sgd(nn.Linear(3, 1).parameters())},
        ["not the model's", "model.parameters()"],
    ),
    "an optimizer beside a model function": (
        {"model": lambda: nn.Linear(3, 1), "optimizer": sgd(nn.Linear(3, 1).parameters())},
        ["`model` is a function", "optimizer=lambda params"],
    ),
    "an optimizer function that returns nothing": ({"optimizer": lambda params: None}, ["NoneType", "lambda params"]),
    "a bad option of the optimizer": ({"optimizer": lambda p: torch.optim.SGD(p, lr=-1)}, ["could not be made", "learning rate"]),
    "a model function that returns no module": ({"model": lambda: 3}, ["returned a int", "torch.nn.Module"]),
    "a model that returns a dict": ({"model": ReturnsDict()}, ["a dict", "Pick the tensor out"]),
    "a loss that is not a scalar": (
        {"loss_fn": lambda o, t: (o - t) ** 2},
        ["must be a scalar", "(8, 1)", "reduction='mean'"],
    ),
    "a loss that is a float": ({"loss_fn": lambda o, t: mse(o, t).item()}, ["scalar tensor", "float", "without .item()"]),
    "a loss without a gradient": ({"model": Detached()}, ["requires_grad=False", "detach"]),
    "a loss that fails": ({"batch_loss": lambda m, b: b["x"], "loss_fn": None}, ["TypeError", "batch_loss(model, batch)"]),
}


@pytest.mark.parametrize("name", CASES)
def test_one_clear_message(name):
    changes, words = CASES[name]
    with pytest.raises(CannotRun) as caught:
        advance(Live.of(training(**changes)), 0, 20)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert message.endswith((".", ")."))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss_fn": None}, ["exactly one of", "neither"]),
        ({"batch_loss": lambda m, b: m(b[0]).mean()}, ["exactly one of", "both"]),
        ({"steps": 0}, ["at least 1", "0"]),
        ({"steps": 2.5}, ["whole number", "2.5"]),
        ({"batch_size": 0}, ["`batch_size`", "0"]),
        ({"accumulate": 0}, ["`accumulate`", "0"]),
        ({"model": 3}, ["torch.nn.Module", "int"]),
        ({"optimizer": "adam"}, ["torch.optim.Optimizer", "str"]),
        ({"metric_mode": "best"}, ["'max' or 'min'", "best"]),
    ],
)
def test_a_recipe_that_cannot_be(changes, words):
    with pytest.raises(CannotRun) as caught:
        training(**changes)
    assert all(word in str(caught.value) for word in words)


def test_the_users_objects_are_left_as_they_were_when_it_fails():
    model = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters())
    mse(model(X), Y).backward()
    model.eval()
    before = [p.detach().clone() for p in model.parameters()]
    grads = [p.grad.clone() for p in model.parameters()]
    stream = torch.get_rng_state()
    calls = []

    def fails_late(output, target):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("the disk of the user is full")
        return mse(output, target)

    with pytest.raises(CannotRun, match="the disk of the user is full"):
        advance(Live.of(training(model=model, optimizer=optimizer, loss_fn=fails_late)), 0, 9)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert not model.training
    assert not optimizer.state
    assert torch.equal(stream, torch.get_rng_state())


def test_nan_in_the_data_stops_the_loop_at_the_step_that_met_it():
    x = X.clone()
    x[5, 1] = float("nan")
    losses = []
    live = Live.of(training(data=(x, Y), batch_size=8))
    assert advance(live, 0, 5, [lambda _live, _step, loss: losses.append(loss)]) == 1
    assert len(losses) == 1
    assert math.isnan(losses[0])


# ------------------------------------------------------------------ through the command line, with the diagnosis itself

FILE = """
    import os, signal, sys
    import torch
    from torch import nn
    from gradoscope import Training

    X, Y = torch.linspace(-1, 1, 96).reshape(32, 3), torch.linspace(0, 1, 32).reshape(32, 1)
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1)

    def good(**changes):
        return Training(**(dict(model=nn.Linear(3, 1), optimizer=sgd, loss_fn=nn.functional.mse_loss, data=(X, Y), steps=8) | changes))

    class ReturnsDict(nn.Linear):
        def forward(self, x):
            return dict(logits=super().forward(x))

    def empty(): return good(data=[])
    def target_shape(): return good(model=nn.Linear(3, 4), loss_fn=nn.functional.cross_entropy)
    def no_parameters(): return good(model=nn.Linear(3, 1).requires_grad_(False))
    def other_parameters(): return good(optimizer=sgd(nn.Linear(3, 1).parameters()))
    def returns_dict(): return good(model=ReturnsDict(3, 1))
    def no_scalar(): return good(loss_fn=lambda o, t: (o - t) ** 2)
    def read_once(): return good(data=(pair for pair in [(X, Y)]))

    counting, calls = True, 0  # whether calls of the loss are counted; at the fifth the user presses Ctrl-C

    def interrupted():
        def loss(output, target):
            global calls
            calls += counting
            if calls == 5:
                os.kill(os.getpid(), signal.SIGINT)
            return nn.functional.mse_loss(output, target)
        # Too small a step, so that forks have something to gain.
        return good(loss_fn=loss, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-5))

    def interrupted_in_a_fork():
        global counting
        counting = False  # the test counts from the first fork on
        return interrupted()

    def nan_data():
        x = X.clone()
        x[5, 1] = float("nan")
        return good(data=(x, Y))

    def nan_validation(): return good(validation=nan_data().data)
    def nan_batch(): return good(data=[(X, Y), nan_data().data])
"""


@pytest.fixture
def diagnosed(tmp_path, capsys, monkeypatch):
    """Runs `gradoscope diagnose` on a function of FILE; returns (exit code, stdout, stderr)."""
    path = tmp_path / "bad.py"
    path.write_text(textwrap.dedent(FILE))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, "bad", raising=False)

    def run(function: str, *words: str):
        code = cli.main(["diagnose", f"{path}:{function}", *words])
        return code, *capsys.readouterr()

    yield run
    sys.modules.pop("bad", None)


@pytest.mark.parametrize(
    ("function", "word"),
    [
        ("empty", "empty"),
        ("target_shape", "target"),
        ("no_parameters", "no trainable parameters"),
        ("other_parameters", "not the model's"),
        ("returns_dict", "a dict"),
        ("no_scalar", "must be a scalar"),
        ("read_once", "only once"),
    ],
)
def test_command_line_says_it_once_and_exits_with_3(diagnosed, function, word):
    code, out, err = diagnosed(function)
    assert code == 3, err
    assert out == ""
    assert word in err
    assert "Traceback" not in err
    assert err.count("gradoscope: ") == 1


@pytest.mark.parametrize("function", ["interrupted", "interrupted_in_a_fork"])
def test_ctrl_c_leaves_everything_as_it_was(diagnosed, function, monkeypatch, tmp_path):
    trial, forks = Case.trial, []

    def counted(*arguments, **options):
        forks.append(1)
        sys.modules["bad"].counting = True
        return trial(*arguments, **options)

    monkeypatch.setattr(Case, "trial", counted)
    handler, stream = signal.getsignal(signal.SIGINT), torch.get_rng_state()
    code, out, err = diagnosed(function, "--json", "--record", str(tmp_path / "run"))
    assert code == 130, err
    assert out == ""
    assert err.startswith("gradoscope: interrupted")
    assert "Traceback" not in err
    assert bool(forks) == (function == "interrupted_in_a_fork")
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.equal(stream, torch.get_rng_state())
    # Nothing recorded is lost: the whole training was on disk before its first fork.
    steps = [record["step"] for record in Run.open(tmp_path / "run").records() if "loss" in record]
    assert steps == (list(range(8)) if forks else steps)


@pytest.mark.parametrize("function", ["nan_data", "nan_validation", "nan_batch"])
def test_nan_in_the_data_is_told(diagnosed, function):
    code, out, err = diagnosed(function, "--json")
    assert code == 3, err
    assert out == ""
    assert "hold NaN or infinity" in err
    assert ("first in batch 1" if function == "nan_batch" else "1 of 32 rows, first row 5") in err
    assert "drop or fill in these examples" in err
    assert "Traceback" not in err


def test_nan_that_the_loss_masks_is_no_mistake():
    y = Y.clone()
    y[2] = float("nan")

    def masked(output, target):
        known = target.isfinite()
        return (output[known] - target[known]).square().mean()

    rehearse(Live.of(training(data=(X, y), loss_fn=masked)))
    with pytest.raises(CannotRun, match="1 of 8 rows, first row 2"):
        rehearse(Live.of(training(data=(X, y), batch_size=1)))


def test_a_rehearsal_changes_nothing():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    live, other = Live.of(training(model=model, validation=(X, Y))), Live.of(training(model=model))
    rehearse(live, make_batches((X, Y), None, 0))
    assert advance(live, 0, 3) == advance(other, 0, 3)
    for name, value in live.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


def test_exit_codes_are_distinct():
    codes = {kind.__name__: kind.exit_code for kind in GradoscopeError.__subclasses__()}
    assert codes == {"Usage": 2, "CannotRun": 3, "CannotWrite": 4}
    assert cli.INTERRUPTED == 130
    assert not {cli.BUG, cli.INTERRUPTED} & {*codes.values(), *cli.CHECK.values()}


def test_the_environment_is_not_changed_by_a_target(diagnosed):
    before = dict(os.environ)
    diagnosed("empty")
    assert dict(os.environ) == before
