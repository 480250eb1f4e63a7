"""The examples run, and get the verdict that their construction demands."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gradoscope import diagnose
from gradoscope.loop import advance
from gradoscope.problems import find
from gradoscope.target import resolve
from gradoscope.training import Live

EXAMPLES = Path(__file__).parents[1] / "examples"
BROKEN = {
    "step_too_large": "step_too_large",
    "step_too_small": "step_too_small",
    "frozen": "frozen_parameters",
    "dead": "vanishing_gradient",
    "few_pages": "overfitting",
}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_text_is_real_and_held_back_text_is_another() -> None:
    module = load("transformer_text")
    text = module.text()
    assert len(text) > 300_000
    assert "Assert statements are a convenient way" in "".join(module.ALPHABET[i] for i in text[:2000])
    training = module.healthy()
    (x, y), (xv, _) = (data(torch.Generator().manual_seed(0), 64) for data in (training.data, training.validation))
    assert x.shape == y.shape == (64, module.CONTEXT)
    assert torch.equal(x[:, 1:], y[:, :-1])
    cut = len(text) * 9 // 10
    windows = {tuple(w.tolist()) for w in text[:cut].unfold(0, module.CONTEXT, 1)[::1]}
    assert all(tuple(row.tolist()) in windows for row in x)
    assert sum(tuple(row.tolist()) not in windows for row in xv) > 32  # some phrases stand in the manual more than once


def test_transformer_is_causal() -> None:
    module = load("transformer_text")
    model = module.Transformer().eval()
    x = torch.randint(0, 96, (2, 32), generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[:, 20:] = (other[:, 20:] + 1) % 96
    with torch.no_grad():
        a, b = model(x), model(other)
    torch.testing.assert_close(a[:, :20], b[:, :20])
    assert not torch.allclose(a[:, 20:], b[:, 20:])


@pytest.mark.parametrize("function", ["healthy", *BROKEN])
def test_transformer_advances(function: str) -> None:
    training = resolve(f"{EXAMPLES / 'transformer_text.py'}:{function}")
    with Live.of(training) as live:
        assert advance(live, 0, 3) == 3


def test_dead_is_dead() -> None:
    module = load("transformer_text")
    training = module.dead()
    with Live.of(training) as live:
        live.training.loss(live.model, live.batches.batch(0)).backward()
        reached = {name for name, p in live.model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert reached == {"head.bias"}


def test_digits_in_a_file_get_the_verdict_of_the_catalogue() -> None:
    mine = replace(resolve(f"{EXAMPLES / 'digits_file.py'}:deep_sigmoid"), steps=120)
    theirs = replace(find("digits:deep-sigmoid"), steps=120)
    found = [diagnose(t) for t in (mine, theirs)]
    assert [d.verdict for d in found] == ["obstructed", "obstructed"]
    assert [[f.obstacle for f in d.present] for d in found] == [["vanishing_gradient"], ["vanishing_gradient"]]


def test_live_loop_is_diagnosed() -> None:
    found = load("live_loop").main(steps=100)
    assert [f.obstacle for f in found.present] == ["step_too_small"]


@pytest.mark.slow
@pytest.mark.parametrize("function", ["healthy", *BROKEN])
def test_transformer_gets_the_verdict_that_its_construction_demands(function: str) -> None:
    found = diagnose(resolve(f"{EXAMPLES / 'transformer_text.py'}:{function}"))
    assert found.verdict == ("healthy" if function == "healthy" else "obstructed"), str(found)
    assert [f.obstacle for f in found.present] == ([] if function == "healthy" else [BROKEN[function]])
