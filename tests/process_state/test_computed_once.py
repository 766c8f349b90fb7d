"""A property that is computed once."""

from __future__ import annotations

from sklearn_capacity.process_state import computed_once


def test_a_value_is_computed_once():
    class Thing:
        def __init__(self):
            self.calls = 0

        @computed_once
        def value(self):
            """Its value."""
            self.calls += 1
            return 7

    thing = Thing()
    assert thing.value == thing.value == 7 and thing.calls == 1
    assert Thing.value.__doc__ == "Its value."
