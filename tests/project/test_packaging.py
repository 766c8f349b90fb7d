"""The declared ranges, the two constraint files and the environment of the tests agree with each other."""

from __future__ import annotations

import os
import re
import socket
import sys
import tomllib
import warnings

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version

import sklearn_capacity
from sklearn_capacity._validation import CapacityWarning
from structure import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()}


def pins(file: str) -> dict[str, Version]:
    """Name -> version of a constraints file."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    return {name.lower(): Version(version) for name, version in (line.split("==") for line in lines)}


def lower_end(requirement: Requirement) -> Version:
    (low,) = [s.version for s in requirement.specifier if s.operator == ">="]
    return Version(low)


@pytest.mark.parametrize("requirement", CORE, ids=lambda r: r.name)
def test_core_ranges_are_what_is_tested(requirement):
    assert pins("constraints.txt")[requirement.name] in requirement.specifier
    assert any(s.operator == "<" for s in requirement.specifier)
    oldest = pins("constraints-oldest.txt")[requirement.name]
    assert oldest in requirement.specifier
    assert oldest.release[:2] == lower_end(requirement).release[:2]


@pytest.mark.parametrize(
    "requirement", [r for lines in EXTRAS.values() for r in lines if r.name != PROJECT["name"]], ids=str
)
def test_extras_are_pinned_inside_their_ranges(requirement):
    assert pins("constraints.txt")[requirement.name.lower()] in requirement.specifier


def test_the_other_torch_of_the_checks_is_admitted_and_another():
    (torch_range,) = [r for r in CORE if r.name == "torch"]
    (other,) = re.findall(r"^TORCH \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert Version(other) in torch_range.specifier
    assert Version(other).release[:2] != pins("constraints.txt")["torch"].release[:2]
    assert "make test-torch" in (ROOT / ".ci" / "run").read_text()


def test_the_version_is_in_one_place():
    (cited,) = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited == sklearn_capacity.__version__
    assert "version" in PROJECT["dynamic"]


def test_declared_extras():
    assert {"dev", "plot", "distributed", "test", "docs", "bench"} <= set(EXTRAS)


def test_make_targets_are_described():
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    for target in phony.split():
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
        assert target == "help" or f"make {target}" in makefile, target


def test_threads_and_array_api():
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
    assert os.environ["SCIPY_ARRAY_API"] == "1"
    assert sys.version_info >= (3, 11)


def test_the_network_is_out_of_reach():
    with socket.socket() as s, pytest.raises(RuntimeError, match="tests use no network"):
        s.connect(("192.0.2.1", 80))  # an address reserved for documentation


def test_local_sockets_stay_open():
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())


def test_an_unexpected_warning_of_the_package_is_an_error():
    with pytest.raises(CapacityWarning, match="planted"):
        warnings.warn("planted", CapacityWarning, stacklevel=1)
