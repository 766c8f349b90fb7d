"""The command line ``sklearn-capacity``: measure saved models without writing a script.

`parser` has the commands and their options, and turns mistakes into one line and an exit code; `commands` runs them.
`models` reads models and `data` reads samples, after `sizes` has limited what they take in memory; `tables` writes
results, and `demo` is the command of that name.

Data flow: arguments -> models, data -> capacity_report, compare_capacity, list_measures, model_card -> tables.
"""

from .parser import main

__all__ = ["main"]
