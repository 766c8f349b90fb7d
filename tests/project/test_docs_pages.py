"""The API pages written at a docs build: every public name is on one of them, once."""

from __future__ import annotations

import sys

import sklearn_capacity
from structure import ROOT

sys.path.insert(0, str(ROOT / "docs" / "_ext"))
try:
    import written_pages
finally:
    sys.path.pop(0)


def listed(page):
    """The qualified names in the tables of a page."""
    names, module = [], ""
    for line in page.splitlines():
        if line.startswith(".. currentmodule:: "):
            module = line.removeprefix(".. currentmodule:: ")
        elif line.startswith("   ") and line.strip()[0] != ":":
            names.append(f"{module}.{line.strip()}")
    return names


def test_every_public_name_is_on_the_first_page():
    names = listed(written_pages.api_page())
    assert len(names) == len(set(names))
    for part in ("", *written_pages.PUBLIC):
        module = f"sklearn_capacity.{part}".rstrip(".")
        assert {f"{module}.{name}" for name in written_pages.exported(module)} <= set(names)


def test_internals_are_on_the_other():
    first, second = listed(written_pages.api_page()), listed(written_pages.internals_page())
    assert "sklearn_capacity.graph.Network" in second
    assert not {name.rpartition(".")[2] for name in second} & set(sklearn_capacity.__all__)
    assert not set(first) & set(second)


def test_names_stand_under_their_subjects():
    page = written_pages.api_page()
    places = [page.index(text) for text in ("Estimators\n", "   NetworkClassifier\n", "Measuring and scoring\n")]
    assert places == sorted(places)
    assert page.index("Errors and warnings\n") < page.index("   NotDefinedError\n")
