"""`python -m gradoscope` is the command line."""

import subprocess
import sys

import gradoscope


def python(*words):
    return subprocess.run([sys.executable, "-m", "gradoscope", *words], capture_output=True, text=True, timeout=120, check=False)


def test_the_package_runs_as_a_module():
    done = python("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"gradoscope {gradoscope.__version__}")


def test_it_hands_on_the_exit_code():
    done = python("diagnose", "digits:helthy")
    assert done.returncode == 2
    assert done.stderr.startswith("gradoscope: ")
    assert "there is no problem" in done.stderr
