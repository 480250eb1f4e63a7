"""How numbers, names and costs are written, the same on the terminal and on the page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gradoscope.diagnosis import Counterfactual, Diagnosis, Evidence, Finding
from gradoscope.measurement import Measurement, plain

__all__ = [
    "best_counterfactuals",
    "clean",
    "clip",
    "confirming",
    "duration",
    "flatten",
    "gain",
    "interval",
    "measured",
    "number",
    "obstacle",
    "percent",
    "phrase",
    "summary_of_cost",
    "terms",
]

_UPPER = {"snr": "SNR"}
_DASH = "–"


def clean(text: object) -> str:
    r"""Text without control characters, so that no string can move the cursor or colour a terminal.

    >>> clean("a\x1b[31mb\tc\nd")
    'a[31mb c\nd'
    """
    kept = str(text).replace("\r\n", "\n").replace("\t", " ")
    return "".join(c for c in kept if c == "\n" or (ord(c) >= 32 and not 127 <= ord(c) < 160))


def clip(text: object, length: int = 28) -> str:
    """Text shortened in the middle to at most `length` characters.

    >>> clip("encoder.layers.10.attention.weight", 20)
    'encoder.la…on.weight'
    """
    short = clean(text)
    if len(short) <= length:
        return short
    tail = (length - 1) // 2
    return f"{short[: length - 1 - tail]}…{short[len(short) - tail :]}"


def obstacle(name: str) -> str:
    """The name of an obstacle as words.

    >>> obstacle("low_gradient_snr")
    'Low gradient SNR'
    """
    words = " ".join(_UPPER.get(w, w) for w in name.split("_"))
    return words[:1].upper() + words[1:]


def phrase(name: str) -> str:
    """The name of an obstacle inside a sentence.

    >>> phrase("low_gradient_snr")
    'low gradient SNR'
    """
    words = obstacle(name)
    return words[:1].lower() + words[1:]


def number(value: object, digits: int = 3) -> str:
    """A number with `digits` significant digits; a dash where there is none.

    >>> number(0.0000123456), number(1234567.0), number(2.5), number(float("nan")), number(float("inf"))
    ('1.23e-5', '1.23e6', '2.5', '–', '∞')
    """
    if value is None or isinstance(value, str):
        return _DASH if value is None else clean(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    try:
        real = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return clean(value)
    if math.isnan(real):
        return _DASH
    if math.isinf(real):
        return "∞" if real > 0 else "−∞"
    if real == 0.0:
        return "0"
    size = abs(real)
    if real == int(real) and size < 1e5:
        return str(int(real)).replace("-", "−")
    if size < 1e-4 or size >= 1e5:
        mantissa, exponent = f"{size:.{digits - 1}e}".split("e")
        text = f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    else:
        text = f"{size:.{max(digits - 1 - math.floor(math.log10(size)), 0)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    return f"−{text}" if real < 0 else text


def percent(value: object) -> str:
    """A share as a percentage; small ones keep two significant digits.

    >>> percent(0.973), percent(0.0042), percent(-1.5), percent(None), percent(0.9961), percent(0.9996)
    ('97%', '0.42%', '−150%', '–', '99.6%', '>99.9%')
    """
    real = _real(value)
    if real is None:
        return _DASH
    if abs(real) > 1000:
        return ">1000-fold" if real > 0 else "<−1000-fold"
    if 0.99 < real < 1.0:  # nearly all is not all
        return f"{100 * real:.1f}%" if real < 0.9995 else ">99.9%"
    hundred = 100.0 * real
    text = f"{hundred:.0f}" if abs(hundred) >= 1 or abs(hundred) < 0.005 else f"{hundred:.2g}"
    return ("0" if text in ("-0", "0") else text.replace("-", "−")) + "%"


def interval(bounds: Sequence[object] | None) -> str:
    """A confidence interval of a share, or "" where there is none.

    >>> interval((0.95, 0.98)), interval(None), interval((float("nan"), 0.1))
    ('95% to 98%', '', '')
    """
    if bounds is None or any(_real(b) is None for b in bounds):
        return ""
    low, high = percent(bounds[0]), percent(bounds[1])
    return f"{low} to {high}" if low != high else low


def gain(value: object, bounds: Sequence[object] | None) -> str:
    """A gain with its interval in brackets.

    >>> gain(0.97, (0.95, 0.98))
    '97% [95% to 98%]'
    """
    inside = interval(bounds)
    return f"{percent(value)} [{inside}]" if inside and _real(value) is not None else percent(value)


def duration(seconds: object) -> str:
    """Seconds in the unit a person would use.

    >>> duration(0.0421), duration(12.34), duration(200), duration(7300)
    ('42 ms', '12.3 s', '3 min 20 s', '2 h 1 min')
    """
    real = _real(seconds)
    if real is None:
        return _DASH
    if real < 1:
        return f"{1000 * real:.0f} ms"
    if real < 100:
        return f"{real:.3g} s"
    minutes, rest = divmod(round(real), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def measured(measurement: Measurement) -> str:
    """The value of a measurement with its standard error; arrays and dicts as their range.

    >>> measured(Measurement("a", 0.5, se=0.01)), measured(Measurement("b", {"x": 1.0, "y": 3.0}))
    ('0.5 ± 0.01', '1 to 3 (2 values)')
    """
    value, se = plain(measurement.value), plain(measurement.se)
    unit = "" if measurement.unit in ("", "1") else f" {clean(measurement.unit)}"
    if isinstance(value, (dict, list)):
        leaves = [v for v in _leaves(value) if _real(v) is not None]
        if not leaves:
            return f"{_DASH} ({sum(1 for _ in _leaves(value))} values)"
        low, high = min(leaves), max(leaves)
        return f"{number(low)} to {number(high)}{unit} ({len(leaves)} values)" if len(leaves) > 1 else number(low) + unit
    error = f" ± {number(se, 2)}" if _real(se) is not None and not isinstance(se, (dict, list)) else ""
    return number(measurement.value) + error + unit if not isinstance(value, str) else clean(value)


def terms(evidence: Evidence) -> list[str]:
    """What a piece of evidence rests on: value with its error, sample size, step, p-value, method.

    >>> terms(Evidence(Measurement("gap", 0.5, se=0.1, n=64, step=10, p=0.004), "It is there."))
    ['gap = 0.5 ± 0.1', 'n = 64', 'step 10', 'p = 0.004']
    """
    m = evidence.measurement
    out = [f"{clean(m.name)} = {measured(m)}"]
    if m.n is not None:
        out.append(f"n = {m.n}")
    if m.step is not None:
        out.append(f"step {m.step}")
    if m.p is not None:
        out.append(f"p = {number(m.p, 2)}")
    if m.method:
        out.append(clean(m.method))
    return out


def confirming(diagnosis: Diagnosis, finding: Finding) -> Counterfactual | None:
    """The experiment that a finding names: the one with its gain, else the longest of that name."""
    named = [c for c in diagnosis.counterfactuals if c.remedy == finding.counterfactual]
    if not named:
        return None
    return max(named, key=lambda c: (c.gain == finding.gain, not c.failed, c.steps))


def judged_by(c: Counterfactual) -> str:
    """What an experiment was judged by: "training loss", "validation loss", "metric" ..."""
    return c.on if c.on == "metric" else f"{c.on} loss"


def best_counterfactuals(diagnosis: Diagnosis, count: int) -> list[Counterfactual]:
    """At most `count` experiments, one per remedy: those that findings name, then the others by gain."""
    chosen = [c for f in diagnosis.present if (c := confirming(diagnosis, f)) is not None]
    ranked = sorted(diagnosis.counterfactuals, key=lambda c: (bool(c.failed), -_or(c.gain, -math.inf), -c.steps))
    seen: dict[tuple[str, str], Counterfactual] = {}
    for c in [*chosen, *ranked]:
        seen.setdefault((c.remedy, c.on), c)
    return list(seen.values())[:count]


def flatten(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested data as (name, text) rows.

    >>> flatten({"training": {"seconds": 2.5, "forward_passes": 400}, "seed": 0})
    [('training seconds', '2.5 s'), ('training forward passes', '400'), ('seed', '0')]
    """
    rows: list[tuple[str, str]] = []
    for key, value in data.items():
        name = f"{prefix} {clean(key).replace('_', ' ')}".strip()
        if isinstance(value, Mapping):
            rows.extend(flatten(value, name))
        elif isinstance(value, (list, tuple)):
            rows.append((name, ", ".join(number(v, 6) for v in value) or _DASH))
        else:
            last = clean(key).split("_")[-1]
            rows.append((name, duration(value) if last == "seconds" else number(value, 4 if isinstance(value, float) else 6)))
    return rows


def summary_of_cost(cost: Mapping[str, Any]) -> str:
    """The cost in one line: per part its seconds first, then what else was counted.

    >>> summary_of_cost({"training": {"seconds": 3.1, "forward": 400}, "share": 0.04})
    'training 3.1 s, forward 400 · share 0.04'
    >>> summary_of_cost({"total_seconds": 7.78})
    'total 7.78 s'
    """
    parts = []
    for key, value in cost.items():
        rows = flatten(value) if isinstance(value, Mapping) else [("", text) for _, text in flatten({key: value})]
        texts = [text if name in ("", "seconds") else f"{name} {text}" for name, text in rows]
        parts.append(f"{clean(key).removesuffix('_seconds').replace('_', ' ')} {', '.join(texts)}")
    return " · ".join(parts)


def _real(value: object) -> float | None:
    """The value as a finite float, or None."""
    if value is None or isinstance(value, (str, bool, dict, list)):
        return None
    real = float(value)  # type: ignore[arg-type]
    return real if math.isfinite(real) else None


def _or(value: object, default: float) -> float:
    real = _real(value)
    return default if real is None else real


def _leaves(value: Any) -> Any:
    if isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value
