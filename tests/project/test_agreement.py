"""The table of agreement with other packages says what its rows compute."""

from __future__ import annotations

import csv

import pytest

from benchmarks import agreement

with agreement.TABLE.open() as file:
    SHOWN = list(csv.DictReader(file))
#: Fewer digits than the table shows may agree on another processor, and never fewer than these.
LOWEST = {"weightwatcher": 4}


def shown(peer):
    rows = [row for row in SHOWN if row["peer"].split()[0] == peer]
    return {(row["measure"], name): float(row[name]) for row in rows for name in agreement.COLUMNS[2:] if row[name]}


@pytest.mark.parametrize("peer", agreement.PEERS)
def test_a_peer_agrees(peer):
    try:
        rows = agreement.comparisons(peer)
    except ImportError as error:
        pytest.skip(f"{error.name} is not installed")
    assert {(row.measure, row.network) for row in rows} == set(shown(peer))
    for row in rows:
        assert row.digits > min(LOWEST.get(peer, 6), shown(peer)[row.measure, row.network] - 1), row


def test_every_peer_is_shown_with_its_version():
    assert {row["peer"].split()[0] for row in SHOWN} == set(agreement.PEERS)
    assert all(row["peer"].split()[1][0].isdigit() for row in SHOWN)


def test_digits_of_a_difference():
    row = agreement.Comparison("margin", "perceptron", "torch", "2", 1.001, 1.0)
    assert row.digits == pytest.approx(3)
    assert row._replace(ours=1.0).digits == 16
    assert row._replace(ours=-1.0).digits < 0
