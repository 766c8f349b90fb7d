"""The command of GPU checks: it reports what fails, what does not apply and what it had no time for."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from structure import ROOT
from tests.gpu import runner
from tests.gpu.__main__ import main


def fail(device):
    assert device.type == "none", "planted"


def skip(device):
    raise runner.Skip("no reason")


CHECKS = {function.__name__: runner.Check(function.__name__, function) for function in (fail, skip)}
CHECKS["succeed"] = runner.Check("succeed", lambda device: f"on {device.type}")


def test_outcomes_are_reported_and_counted(capsys):
    assert runner.run(CHECKS.values(), "cpu", minutes=1.0) == 1
    shown = capsys.readouterr().out
    assert torch.__version__ in shown
    assert "FAILED   fail" in shown and "planted" in shown
    assert "skipped  skip" in shown and "no reason" in shown
    assert "passed   succeed" in shown and "on cpu" in shown and "1 failed" in shown


def test_what_the_time_does_not_allow_counts_as_a_failure(capsys):
    assert runner.run([CHECKS["succeed"]], "cpu", minutes=-1.0) == 1
    assert "NOT RUN  succeed" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and nothing to complain of")
def test_a_missing_gpu_is_named():
    with pytest.raises(SystemExit, match="sees no GPU here"):
        runner.device_context("cuda")


def test_bad_arguments_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit, match="must be a folder that holds wheels"):
        main(["--wheels", str(tmp_path)])
    with pytest.raises(SystemExit):
        main(["--device", "cpu", "--only", "nothing"])
    assert "no check is called nothing" in capsys.readouterr().err


def test_checks_see_a_device_that_computes_otherwise(monkeypatch):
    from tests.gpu import agreement

    real = agreement._value_and_gradient
    calls = iter(range(1000))
    monkeypatch.setattr(agreement, "_value_and_gradient", lambda *args: real(*args) * (1 + 1e-6 * (next(calls) % 2)))
    with pytest.raises(AssertionError, match="frobenius, logits"):
        agreement.penalties_equal_the_cpu(torch.device("cpu"))


def test_the_command_runs_by_itself():
    command = [sys.executable, "-m", "tests.gpu", "--device", "cpu", "--only", "checkpoints_resume"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all passed" in done.stdout
    planned = subprocess.run([*command[:3], "--help"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "--wheels" in planned.stdout


def test_checks_run_on_the_pretended_device():
    checks = [runner.CHECKS["penalties_equal_the_cpu"]]
    assert runner.run(checks, "pretend", minutes=10.0) == 0
