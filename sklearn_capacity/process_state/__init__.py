"""Everything that the package changes in the state of the process, and how it is restored.

`interrupts` undoes changes whatever the moment of a Ctrl-C; `random_numbers`, `attention` and `warning_filters` each
change and restore one setting. `traces` runs what changes many settings, `gates` keeps computations away meanwhile, and
`forks` waits for both. `computed_once` is a cached property without a lock. Read `traces` first.
"""

from sklearn_capacity.process_state import forks  # registers what is done around a fork
from sklearn_capacity.process_state.attention import math_attention
from sklearn_capacity.process_state.computed_once import computed_once
from sklearn_capacity.process_state.gates import computing
from sklearn_capacity.process_state.interrupts import keeps_modes, restored_at_the_end, surely, uninterrupted
from sklearn_capacity.process_state.random_numbers import RandomNumbers, keeps_random_numbers
from sklearn_capacity.process_state.traces import undisturbed
from sklearn_capacity.process_state.warning_filters import silenced, without_torch_warnings

__all__ = [
    "RandomNumbers",
    "computed_once",
    "computing",
    "forks",
    "keeps_modes",
    "keeps_random_numbers",
    "math_attention",
    "restored_at_the_end",
    "silenced",
    "surely",
    "undisturbed",
    "uninterrupted",
    "without_torch_warnings",
]
