"""Sections that the records and docstrings name exist in the papers, whose tables of contents stand here."""

from __future__ import annotations

import re

import pytest

from sklearn_capacity.measures import MEASURES
from structure import ROOT

SECTIONS = {
    "EG": {"1", "2", "2.1", "2.2", "2.3", "2.4", "3", "4", "5"},
    "FR": {"1", "2", "3", "3.1", "3.2", "3.3", "4", "4.1", "4.2", "5", "6"},
}
SOURCE = re.compile(r"\[(EG|FR)\] (?:section )?(\d(?:\.\d)?)(?![\d.]*\w)")
FILES = sorted((ROOT / "sklearn_capacity").rglob("*.py"))


def missing(text: str) -> list[str]:
    return [f"[{paper}] {number}" for paper, number in SOURCE.findall(text) if number not in SECTIONS[paper]]


@pytest.mark.parametrize("text", ["[FR] 5.2", "[FR] section 5.3", "[EG] 2.5", "[EG] section 6, [FR] 4.1"])
def test_the_check_sees_a_planted_fault(text):
    assert len(missing(text)) == 1


def test_sections_exist():
    found = {path.name: missing(path.read_text()) for path in FILES}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}
    cited = re.findall(r"AISTATS 2019, section (\d(?:\.\d)?)", "".join(path.read_text() for path in FILES))
    assert cited and set(cited) <= SECTIONS["FR"]


def test_what_the_papers_say_where():
    """Read in the papers: margins and norms in one section, normalised margins among the experiments."""
    sources = {name: measure.source for name, measure in MEASURES.items()}
    assert sources["margin"] == sources["min_margin"] == "[EG] 2.2"
    assert sources["parameter_count"] == "[EG] 2.1"
    assert sources["fisher_rao_normalized_margin"] == "[FR] section 5"
    assert "[EG]" not in sources["distance_from_initialization"]
