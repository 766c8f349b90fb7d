"""Sections, theorems and equations that the package names exist in the papers, whose contents are listed here."""

from __future__ import annotations

import re

import pytest

from sklearn_capacity.measures import MEASURES
from structure import ROOT

#: What a citation may name, by paper: sections, statements, and the number of the last equation.
PAPERS: dict[str, tuple[set[str], set[str], int]] = {
    "EG": (
        {"1", "2", "2.1", "2.2", "2.3", "2.4", "3", "4", "5", "appendix A", "appendix B"},
        {"theorem 1", "lemma 1", "lemma 2", "lemma 3"},
        10,
    ),
    "FR": (
        {"1", "2", "3", "3.1", "3.2", "3.3", "4", "4.1", "4.2", "5", "6"},
        {
            *("lemma 2.1", "corollary 2.1", "corollary 2.2", "remark 2.1", "remark 2.2", "theorem 3.1", "remark 3.1"),
            *("corollary 3.1", "theorem 3.2", "remark 4.1", "remark 4.2", "remark 4.3", "remark 4.4", "remark 4.5"),
            *("lemma 4.1", "lemma 4.2", "theorem 4.1", "proposition 4.1"),
        },
        0,
    ),
    "MF": (
        {"1", "2", "2.1", "2.2", "3", "3.1", "3.2", "3.3", "4", "4.1", "4.2", "5"}
        | {f"appendix {letter}" for letter in ("A", "B", "C", "D", "E", "F", "G", "H")},
        {"theorem 1", "corollary 2", "theorem 3", "theorem 4", "lemma 5", "theorem 6", "theorem 7"},
        17,
    ),
    "GL": (
        {"1", "2", "3", "3.1", "3.2", "4", "4.1", "4.1.1", "4.2", "5", "6", "7", "appendix A", "appendix B"},
        {"proposition 3.1", "corollary 3.0.1"},
        32,
    ),
    "JR": (
        {"I", "II", "III", "IV", "V", "VI", "VI-A", "VI-B", "VI-B1", "VI-B2", "VI-C", "VI-C1", "VI-C2", "VII"}
        | {"II-A", "II-B", "II-C", "III-A", "III-B", "IV-A", "V-A", "V-B"},
        {f"theorem {number}" for number in range(1, 7)} | {"lemma 1", "corollary 1", "corollary 2", "corollary 3"},
        69,
    ),
}
NUMBER = r"(?:\d+(?:\.\d+)*|[IV]+(?:-[A-D]\d?)?)"
SECTION = re.compile(
    rf"\[({'|'.join(PAPERS)})\] (?:sections? ({NUMBER})(?: and ({NUMBER}))?|(appendix [A-Z])|(\d(?:\.\d)*))"
    r"(?!\d|\.\d| ?%)"
)
STATEMENT = re.compile(
    rf"\[({'|'.join(PAPERS)})\] ((?:theorem|lemma|corollary|proposition|remark) \d+(?:\.\d+)*)", re.IGNORECASE
)
EQUATION = re.compile(rf"\[({'|'.join(PAPERS)})\] eqs?\. (\d+)(?:(?:-| and | to )(\d+))?")
FILES = sorted((ROOT / "sklearn_capacity").rglob("*.py")) + sorted((ROOT / "docs").glob("*.rst"))


def missing(text: str) -> list[str]:
    """Every citation in the text that its paper does not hold."""
    text = " ".join(text.split())  # citations may run over the end of a line
    wrong = []
    for paper, *sections in SECTION.findall(text):
        wrong += [f"[{paper}] {name}" for name in sections if name and name not in PAPERS[paper][0]]
    for paper, name in STATEMENT.findall(text):
        wrong += [f"[{paper}] {name}"] * (name.lower() not in PAPERS[paper][1])
    for paper, *numbers in EQUATION.findall(text):
        wrong += [f"[{paper}] eq. {number}" for number in numbers if number and int(number) > PAPERS[paper][2]]
    return wrong


@pytest.mark.parametrize(
    "text",
    [
        *(
            "[FR] 5.2",
            "[FR] section 5.3",
            "[EG] 2.5",
            "[EG] section 6, [FR] 4.1",
            "[JR] section VIII",
            "[GL] section 4.3",
        ),
        *(
            "[GL] section 4.3",
            "[JR] sections III and VIII",
            "[MF]\n    section 3.4",
            "[JR] theorem 7",
            "[MF] theorem 5",
            "[FR] eq. 3",
        ),
        *("[GL] eqs. 9-33", "[GL] corollary 3.1", "[JR] VI-B2, [MF] appendix I", "[JR] Lemma 2", "[EG] eq. 11"),
    ],
)
def test_the_check_sees_a_planted_fault(text):
    assert len(missing(text)) == 1


def test_what_is_cited_exists():
    wrong = {path.name: missing(path.read_text()) for path in FILES}
    assert {name: citations for name, citations in wrong.items() if citations} == {}
    text = " ".join(" ".join(path.read_text().split()) for path in FILES)
    assert {match[0] for kind in (SECTION, STATEMENT, EQUATION) for match in kind.findall(text)} == set(PAPERS)
    cited = re.findall(r"AISTATS 2019, section (\d(?:\.\d)?)", text)
    assert cited and set(cited) <= PAPERS["FR"][0]


def test_what_the_papers_say_where():
    """Read in the papers: margins and norms in one section, normalised margins among the experiments."""
    sources = {name: measure.source for name, measure in MEASURES.items()}
    assert sources["margin"] == sources["min_margin"] == "[EG] 2.2"
    assert sources["parameter_count"] == "[EG] 2.1"
    assert sources["fisher_rao_normalized_margin"] == "[FR] section 5"
    assert "[EG]" not in sources["distance_from_initialization"]
    # The regularisers of the spectral and the Frobenius norm, the score, and the bounds of the classification margin.
    assert (sources["jacobian_spectral"], sources["jacobian_frobenius"]) == ("[JR] eq. 48", "[JR] eq. 49")
    assert sources["softmax_score"] == "[JR] eq. 33"
    # The Fisher matrix and the mean, second moment and maximum of its eigenvalues.
    assert [sources[f"fisher_{name}"] for name in ("trace", "mean_eigenvalue", "max_eigenvalue")] == [
        *("[MF] eq. 3", "[MF] theorem 1", "[MF] theorem 4"),
    ]
    assert sources["critical_learning_rate"] == "[MF] lemma 5"
