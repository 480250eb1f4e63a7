"""The training that a watch saw, rebuilt: from its start, with the batches, the loss, the rates and the clipping that were seen."""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gradoscope.errors import CannotRun
from gradoscope.training import Live, Training
from gradoscope.watching.calls import WholeCall
from gradoscope.watching.replay import Rates, call_loss, clip_norm, copy_loss, pair_loss

if TYPE_CHECKING:
    from gradoscope.watch import Watch

__all__ = ["NO_TARGETS", "notes", "rebuild", "summary"]

NO_TARGETS = (
    "it saw no targets. Before the loop write `loss_fn = watch.loss_fn` and call that, pass the loss as a module and call that very "
    "module, or pass data=... to watch()."
)


@contextmanager
def rebuild(watch: "Watch") -> Iterator[tuple[Training, Live]]:
    """The training at its start, with copies of model and optimizer; a model that cannot be copied is lent and put back."""
    if watch.steps == 0:
        raise CannotRun(
            "the watch has seen no optimizer step. Call watch() before the loop, with the optimizer whose step() the loop calls."
        )
    schedule = _schedule(watch)
    base = Training(
        model=watch.inner,
        optimizer=watch.optimizer,
        schedule=schedule,
        steps=watch.steps,
        validation=watch.recipe["validation"],
        metric=watch.recipe["metric"],
        name=watch.recipe["name"],
        clip_norm=clipping(watch),
        accumulate=accumulation(watch),
        shuffle=watch.recipe["data"] is not None,
        **_loss_and_data(watch),
    )
    live = Live.of(base)
    try:
        start = watch.snapshots.states[0]
        if schedule is not watch.schedule:
            start = replace(start, schedule=None)
        start.restore(live)
        if live.model is not watch.inner:
            live.model.zero_grad(set_to_none=True)
        yield replace(base, model=live.model, optimizer=live.optimizer, schedule=live.schedule), live
    finally:
        live.close()


def _loss_and_data(watch: "Watch") -> dict[str, Any]:
    """What of `loss_fn`, `batch_loss` and `data` a Training needs, from what was given and seen."""
    data, batch_loss, calls = watch.recipe["data"], watch.recipe["batch_loss"], watch.calls
    loss_fn = copy_loss(watch.criterion)
    batches = watch.batches
    if watch.blind:
        raise CannotRun(_no_batches(watch))
    if batch_loss is not None:
        return {"batch_loss": batch_loss, "data": batches if data is None else data}
    if data is not None or watch.explicit:
        kept = batches if data is None else data
        if loss_fn is not None:
            return {"loss_fn": pair_loss(loss_fn, calls.pick), "data": kept}
        if calls.own_loss is None and not watch.explicit:
            raise CannotRun("no loss is known: pass `loss_fn(output, target)` or `batch_loss(model, batch)` to watch().")
        return {"batch_loss": _model_loss(calls.own_loss or ()), "data": kept}
    if calls.criterion is not None and calls.pick is None:
        raise CannotRun(
            "the loss was called with something that is not recognised as a function of the model's output, so it cannot be "
            "run again. Pass `batch_loss(model, batch)` to watch() and mark the steps: `with watch.step(batch):`."
        )
    if not any(isinstance(b, WholeCall) for b in batches):
        assert loss_fn is not None
        return {"loss_fn": pair_loss(loss_fn, calls.pick), "data": batches}
    whole = [b if isinstance(b, WholeCall) else {"args": b[:-1], "kwargs": {}, "targets": b[-1:], "target_kwargs": {}} for b in batches]
    return {"batch_loss": call_loss(loss_fn, calls.pick, calls.own_loss), "data": whole}


def _model_loss(path: tuple[Any, ...]) -> Any:
    """The loss of a model that computes it itself, from batches as a loader gives them."""

    def loss(model: Any, batch: Any) -> Any:
        output = model(**batch) if isinstance(batch, dict) else model(*batch) if isinstance(batch, (tuple, list)) else model(batch)
        for key in path or (("loss",) if isinstance(output, dict) else ()):
            output = output[key]
        return output

    return loss


def _no_batches(watch: "Watch") -> str:
    if watch.recipe["batch_loss"] is not None:
        return "`batch_loss(model, batch)` needs batches: mark the steps with `with watch.step(batch):`, or pass data=... to watch()."
    if watch.criterion is None:
        return (
            "the watch saw no targets and no loss, so the loss cannot be computed again. Pass the loss to watch(): "
            "loss_fn(output, target), or batch_loss(model, batch) with data=... or `with watch.step(batch):`."
        )
    return f"the watch cannot compute the loss again: {NO_TARGETS}"


def _schedule(watch: "Watch") -> Any:
    """The user's scheduler where it steps once per optimizer step, else the rates that were seen, else None."""
    rates = [(r["step"], r["lr"]) for r in watch.records if r.get("lr")]
    first = watch.first_epoch
    if watch.schedule is not None and first is not None and getattr(watch.schedule, "last_epoch", None) == first + watch.steps:
        return watch.schedule
    if len({tuple(r) for _, r in rates}) < 2:
        return None
    return lambda optimizer: Rates(optimizer, rates)


def accumulation(watch: "Watch") -> int:
    """How many batches one step averaged over: the median of the steps that were recorded."""
    return int(statistics.median_low(watch.calls_per_step)) if watch.calls_per_step else 1


def clipping(watch: "Watch") -> float | None:
    """The norm at which gradients were clipped, as far as it was seen."""
    clipped = [r["grad_norm_clipped"] for r in watch.records if "grad_norm_clipped" in r]
    if clipped:
        return float(f"{max(clipped):.5g}")
    if watch.explicit:
        return None
    return clip_norm([r["grad_norm"] for r in watch.records if r.get("grad_norm_at") == "step"])


def notes(watch: "Watch") -> list[str]:
    """What a reader of the diagnosis should know about what it rests on, in sentences."""
    out = []
    share = f"{watch.overhead:.1%}" if watch.overhead < 10 else "more than ten times"
    line = f"Watched {watch.steps:,} steps, {len(watch.records):,} of them recorded, at {share} of the training's own time"
    out.append(line + (f"; {watch.skipped:,} looks were skipped to keep within the budget." if watch.skipped else "."))
    reservoir = watch.calls.reservoir
    if watch.recipe["data"] is None and reservoir.seen > len(reservoir):
        out.append(f"The diagnosis rests on {len(reservoir):,} batches, a sample of the {reservoir.seen:,} that were recorded.")
    elif watch.recipe["data"] is None and len(watch.records) < watch.steps:
        out.append(f"The diagnosis rests on {len(reservoir):,} batches, those of the steps that were recorded; pass data=... to use all.")
    clip = clipping(watch)
    if clip is not None:
        out.append(f"Gradients were clipped at a norm of {clip:g}, as far as their norms show.")
    if accumulation(watch) > 1:
        out.append(f"Each step averaged over {accumulation(watch)} batches.")
    schedule = _schedule(watch)
    if schedule is not None and schedule is not watch.schedule:
        out.append("The learning rates that were seen are repeated.")
    if watch.skipped_updates:
        out.append(f"The gradient scaler refused {watch.skipped_updates:,} of {watch.steps:,} steps because gradients overflowed.")
    bad = next((r for r in watch.records if "nonfinite" in r), None)
    if bad is not None:
        found, before = bad["nonfinite"], [r["step"] for r in watch.records if r["step"] < bad["step"]]
        where = {"forward": f"in the output of {found['layer']}", "loss": "in the loss", "backward": f"in the gradient of {found['layer']}"}
        since = f", all was finite at step {before[-1]}" if before else ""
        out.append(f"At step {bad['step']} numbers were not finite, first {where[found['where']]}{since}.")
    if watch.failure:
        out.append(f"Watching stopped early: {watch.failure}.")
    return out


def summary(watch: "Watch") -> dict[str, Any]:
    """What was watched and what it cost, as plain values."""
    return {
        "steps": watch.steps,
        "recorded": len(watch.records),
        "skipped": watch.skipped,
        "skipped_updates": watch.skipped_updates,
        "overhead": watch.overhead,
        "budget": watch.budget.share,
        "batches": len(watch.calls.reservoir),
        "failure": watch.failure,
    }
