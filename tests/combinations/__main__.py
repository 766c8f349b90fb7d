"""Run cases of one kind, and list the faults by their messages."""

from __future__ import annotations

import argparse
import collections
import time

from .kinds import KINDS, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("seed", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=100)
    args = parser.parse_args()
    start = time.perf_counter()
    faults, totals = run(args.kind, args.seed, range(args.first, args.first + args.cases))
    for number, choices, fault in faults:
        print(f"{args.kind} {args.seed} --first {number} --cases 1: {fault}\n    {choices}")
    print(f"{args.cases} cases, {dict(collections.Counter(totals))}, {len(faults)} faults,", end=" ")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
