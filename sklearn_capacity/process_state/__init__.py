"""Everything that the package changes in the state of the process, and how it is restored.

`interrupts` undoes changes whatever the moment of a Ctrl-C; `random_numbers`, `attention` and `warning_filters` each
change and restore one setting. `traces` runs what changes many settings, `gates` keeps computations away meanwhile, and
`forks` waits for both. `module_hooks` finds the user's hooks, and `computed_once` is a cached property without a lock.
Read `traces` first.
"""

from sklearn_capacity.process_state import forks  # registers what is done around a fork
from sklearn_capacity.process_state.attention import math_attention
from sklearn_capacity.process_state.computed_once import computed_once
from sklearn_capacity.process_state.gates import computing
from sklearn_capacity.process_state.interrupts import keeps_modes, restored_at_the_end, surely, uninterrupted
from sklearn_capacity.process_state.module_hooks import FORWARD_HOOKS, HOOKS, has_own_hooks, has_process_hooks
from sklearn_capacity.process_state.random_numbers import RandomNumbers, keeps_random_numbers
from sklearn_capacity.process_state.traces import undisturbed
from sklearn_capacity.process_state.warning_filters import silenced, without_torch_warnings

__all__ = [
    "FORWARD_HOOKS",
    "HOOKS",
    "RandomNumbers",
    "computed_once",
    "computing",
    "forks",
    "has_own_hooks",
    "has_process_hooks",
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
