"""What a training says of its targets tells noise from a hidden function, where nothing that is measured can."""

from dataclasses import replace

import gradoscope
from gradoscope.problems import find


def test_a_hidden_cosine() -> None:
    training = replace(find("linear-periodic:d=6,r=6,width_factor=4"), steps=400)
    told = gradoscope.diagnose(training, step_seconds=1e-3)
    assert [f.obstacle for f in told.present] == ["uninformative_gradient"]
    assert any(e.measurement.name == "noise_free" for e in told["uninformative_gradient"].evidence)
    silent = gradoscope.diagnose(replace(training, noise_free=False), step_seconds=1e-3)
    assert silent.present == ()
    assert silent["uninformative_gradient"].status == "undetermined"
    assert "noise_free=True" in silent["uninformative_gradient"].missing[0]
