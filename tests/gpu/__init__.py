"""What only a machine with a GPU can show, as one command: `python -m tests.gpu --wheels FOLDER`.

It needs the package's dependencies and a GPU that torch sees, but neither pytest nor a network; skorch may come as a
wheel in FOLDER. Each check prints one line with what it measured. The exit status is 0 if every check that applies to
the device passed within the time. `--device cpu` and `--device pretend` run what applies to a machine without a GPU.

`runner` runs and reports, `training`, `agreement` and `resources` hold the checks, `speed` the ratios.
"""
