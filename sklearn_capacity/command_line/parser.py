"""The commands and their options, and how mistakes are reported: by one line on stderr and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from .._version import __version__
from ..losses import CLASSIFICATION, REGRESSION
from . import commands, demo
from .tables import FORMATS

__all__ = ["main"]

#: Exceptions that are a user's mistakes, reported without a traceback.
MISTAKES = (ValueError, TypeError, OSError, ImportError, MemoryError)
_MODEL = "a file of `save`, a torch.export archive (.pt2), or package.module:factory@weights.safetensors"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, default=None
        None: those of the process.

    Returns
    -------
    int
        0, or 1 if the command failed. Wrong options exit with 2, as argparse does.
    """
    options = _parser().parse_args(arguments)
    if options.command == "demo":
        demo.main(options.output, options.jobs)
        return 0
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warning  # type: ignore[assignment]
            text = options.run(options)
        if options.output is not None:
            options.output.write_text(text)
        else:
            print(text, end="", flush=True)
    except BrokenPipeError:  # a reader such as `head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MISTAKES as error:
        text = " ".join(str(error).split()) or "The memory does not suffice."
        print(f"sklearn-capacity {options.command}: {text}", file=sys.stderr)
        return 1
    return 0


def _warning(message: Warning | str, *_: object) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sklearn-capacity", description="Measure the capacity of saved networks.")
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., str], purpose: str) -> argparse.ArgumentParser:
        added = subparsers.add_parser(name, help=purpose, description=purpose)
        added.set_defaults(run=run)
        added.add_argument("--output", type=Path, help="write the result to this file instead of the screen")
        return added

    report = command("report", commands.report, "Measure one model, and show how each value was computed.")
    report.add_argument("model", metavar="MODEL", help=_MODEL)
    report.add_argument("data", metavar="DATA", help="an npz file with X and y, or a csv or parquet file")
    compare = command("compare", commands.compare, "Measure several models and show them in one table.")
    compare.add_argument("models", metavar="MODEL", nargs="+", help=_MODEL)
    compare.add_argument("data", metavar="DATA", help="the training data, as for `report`")
    compare.add_argument("--test", metavar="DATA", help="test data, on which the models are also scored")
    compare.add_argument(
        "--plot", type=Path, metavar="FILE", help="write a figure of the ranks to this file (needs matplotlib)"
    )
    listing = command("list", commands.list_all, "List all measures.")
    listing.add_argument("--family", help="list one family only")
    card = command("card", commands.card, "Write a model card in markdown.")
    card.add_argument("model", metavar="MODEL", help=_MODEL)
    card.add_argument("--data", metavar="DATA", help="the training data; without it, only the weights are measured")
    card.add_argument("--title", help="the card's title")
    for added in (report, compare, card):
        _add_measuring(added)
    for added in (report, compare, listing):
        added.add_argument("--format", choices=FORMATS, default="table")
    shown = subparsers.add_parser(
        "demo", help="Find the strength of a penalty on noisy digits.", description=demo.__doc__
    )
    shown.add_argument("--output", type=Path, default=Path("demo"), help="folder for the figure and the table")
    shown.add_argument("--jobs", type=int, default=None, help="number of networks to train at the same time")
    return parser


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", help="the target column, or array of an npz file (default there: y)")
    parser.add_argument("--measures", nargs="+", default=["essential"], metavar="NAME",
                        help="names, or one of: essential, cheap, all")  # fmt: skip
    parser.add_argument("--loss", choices=(*CLASSIFICATION, *REGRESSION))
    parser.add_argument("--classes", metavar="A,B,...", help="labels of the outputs of a plain module, in order")
    parser.add_argument("--max-samples", type=int, help="measure on at most this many samples, drawn at random")
    parser.add_argument("--max-seconds", type=float, help="leave out measures that would not finish within this time")
    parser.add_argument(
        "--trust", action="append", default=[], metavar="FILE", help="open this pickle, which can run any code"
    )
    parser.add_argument("--verbose", action="store_true", help="show the progress")
