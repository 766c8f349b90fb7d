"""Random combinations of parameters, data, modules and calls: an answer or a refusal in words, and nothing changed."""

from __future__ import annotations

import os

import pytest
from torch import nn

from combinations.case import Case, Fault
from combinations.functions import FUNCTIONS, run_single_change, run_single_module, single_changes
from combinations.kinds import KINDS, run
from combinations.modules import FACTORIES, MODULES

pytestmark = [pytest.mark.fuzz, pytest.mark.filterwarnings("ignore")]

SEED, CASES = int(os.environ.get("FUZZ_SEED", "0")), int(os.environ.get("FUZZ_CASES", "80"))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_combinations(kind):
    faults, totals = run(kind, SEED, range(CASES))
    assert totals["answered"] > CASES / 10 and totals["refused"] > CASES / 10, totals
    again = f"python -m tests.combinations {kind} {SEED} --cases 1 --first"
    shown = "\n".join(f"{again} {number}\n  {choices}\n  {fault}" for number, choices, fault in faults)
    assert not faults, f"{len(faults)} of {CASES} cases:\n{shown}"


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - {"load"}))  # of a file that `save` has written
def test_usual_arguments_are_answered(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function, arguments = FUNCTIONS[name]
    function(**arguments())


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_each_parameter_takes_or_refuses_every_object(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # `save` takes any name of a file
    changes = single_changes(name)
    if CASES <= 80:  # all of them are 32,000 calls
        changes = changes[SEED % 50 :: 50]
    faults = []
    for key, number in changes:
        try:
            run_single_change(name, key, number)
        except Fault as fault:
            faults.append(f"run_single_change({name!r}, {key!r}, {number}): {fault}")
    assert not faults, "\n".join(faults)


MODULE_CHANGES = [
    (name, key, module)
    for name in sorted(FUNCTIONS)
    for key, value in FUNCTIONS[name][1]().items()
    if isinstance(value, nn.Module)
    for module in (*MODULES, *FACTORIES)
]


def test_each_function_takes_or_refuses_every_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    faults = []
    for name, key, module in MODULE_CHANGES if CASES > 80 else MODULE_CHANGES[SEED % 50 :: 50]:
        try:
            run_single_module(name, key, module)
        except Fault as fault:
            faults.append(f"run_single_module({name!r}, {key!r}, {module!r}): {fault}")
    assert not faults, "\n".join(faults)


def test_a_case_is_reproduced_from_its_number():
    cases = [Case(3, 14), Case(3, 14), Case(3, 15)]
    drawn = [[case.random.random() for _ in range(5)] for case in cases]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("lost"), "KeyError"),
        (RuntimeError("size mismatch"), "RuntimeError"),
        (ValueError("no"), "has no message"),
    ],
)
def test_faults_are_seen(error, message):
    def fails():
        raise error

    with pytest.raises(Fault, match=message):
        Case(0, 0).call("a call", fails)


def test_refusals_are_counted():
    def refuses():
        raise ValueError("`x` must be positive, got -1.")

    case = Case(0, 0)
    assert case.call("a call", refuses) is None
    assert (case.answered, case.refused) == (0, 1)
