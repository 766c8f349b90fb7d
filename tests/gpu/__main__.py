"""Command line of the GPU checks; see the package's docstring."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve()


def _import_paths(wheels: Path | None) -> None:
    """Let this process and its workers import the package, the tests' helpers and pure-Python wheels."""
    paths = [str(HERE.parents[2]), str(HERE.parents[1])]
    if wheels is not None:
        result = sorted(wheels.glob("*.whl"))
        if not result:
            raise SystemExit(f"`--wheels` must be a folder that holds wheels, got {wheels}.")
        paths += map(str, result)
    sys.path[:0] = paths
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])


def main(arguments: list[str] | None = None) -> int:
    """Run the requested checks; 0 if none failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help='"cuda" (default), "cuda:1", "cpu" or "pretend"')
    parser.add_argument("--wheels", type=Path, help="folder of pure-Python wheels to import from, such as skorch's")
    parser.add_argument("--minutes", type=float, default=8.0, help="no check is begun after this time (default 8)")
    parser.add_argument("--only", action="append", metavar="NAME", help="run this check (may be repeated)")
    options = parser.parse_args(arguments)
    _import_paths(options.wheels)

    from tests.gpu import agreement, resources, runner, speed, training  # noqa: F401 (each enters its checks)

    unknown = sorted(set(options.only or ()) - set(runner.CHECKS))
    if unknown:
        parser.error(f"no check is called {', '.join(unknown)}; there are {', '.join(runner.CHECKS)}")
    chosen = [entry for name, entry in runner.CHECKS.items() if not options.only or name in options.only]
    return 1 if runner.run(chosen, options.device, options.minutes) else 0


if __name__ == "__main__":
    sys.exit(main())
