"""Run the tests as they would run on other processors: `python -m tests.kernels`, with pytest's arguments if wanted.

The libraries below the package choose their kernels by the processor's instruction set, and share a sum between
threads; each choice rounds otherwise. Here they are held to one set after the other, older than this processor's
newest, and to two threads under the newest; one thread under the newest is what `make test` runs. No test may hang on
which it was.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

ROOT = Path(__file__).resolve().parents[1]
# By torch's name of the set, from the oldest on: torch, MKL twice, oneDNN, OpenBLAS, and what numpy is denied.
SETS = {
    "DEFAULT": ("default", "SSE4_2", "COMPATIBLE", "SSE41", "Nehalem", ""),
    "AVX2": ("avx2", "AVX2", "AVX2", "AVX2", "Haswell", ("AVX512", "X86_V4")),
    "AVX512": ("avx512", "AVX512", "AVX512", "AVX512_CORE", "SkylakeX", ()),
}
VARIABLES = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE")
# What `--numerical` runs: the doctests, and the tests whose subject is a number.
FOLDERS = ("derivatives", "layers", "linalg", "measures", "penalties", "theory", "training")
NUMERICAL = ("sklearn_capacity", *(f"tests/{name}" for name in FOLDERS))


def environment(name: str, threads: int) -> dict[str, str]:
    """The variables of this process, with one instruction set and a number of threads."""
    *values, denied = SETS[name]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OPENBLAS_", "MKL_", "NPY_"))}
    refused = [f for f in __cpu_dispatch__ if __cpu_features__[f] and f.startswith(denied)]
    counts = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    # A thread that waits for its share of a product leaves the core to the other process.
    more = {"OMP_WAIT_POLICY": "PASSIVE", "NPY_DISABLE_CPU_FEATURES": " ".join(refused)}
    return kept | dict(zip(VARIABLES, values, strict=True)) | counts | more


def capability(variables: dict[str, str]) -> str:
    """The instruction set that torch takes under these variables."""
    command = (sys.executable, "-c", "import torch; print(torch.backends.cpu.get_cpu_capability())")
    return subprocess.run(command, env=variables, text=True, capture_output=True, check=True).stdout.strip()


def run(name: str, threads: int, arguments: list[str]) -> bool:
    """Whether the tests pass; prints one line after those of pytest."""
    variables = environment(name, threads)
    took = capability(variables)
    if took != name:
        raise SystemExit(f"torch was set to use the instruction set {name} and uses {took}.")
    command = [sys.executable, "-m", "pytest", "-q", "-n", str(os.cpu_count() or 1), *arguments]
    print(f"{name}, {threads} thread(s)", flush=True)
    start = time.monotonic()
    passed = subprocess.run(command, cwd=ROOT, env=variables | {"SCIPY_ARRAY_API": "1"}, check=False).returncode == 0
    print(f"{name}, {threads} thread(s): {'passed' if passed else 'FAILED'}, {time.monotonic() - start:.0f} s\n")
    return passed


def main(arguments: list[str]) -> None:
    """Run pytest under every combination, all of them even if one fails."""
    if "--numerical" in arguments:
        arguments = [*(argument for argument in arguments if argument != "--numerical"), *NUMERICAL]
    best = capability({key: value for key, value in os.environ.items() if key != "ATEN_CPU_CAPABILITY"})
    names = list(SETS)[: list(SETS).index(best) + 1] if best in SETS else ["DEFAULT"]
    print(f"torch {torch.__version__}; this processor has {', '.join(names)}", flush=True)
    combinations = [*((name, 1) for name in names[:-1]), (names[-1], 2)]
    failed = [f"{name} with {n} thread(s)" for name, n in combinations if not run(name, n, arguments)]
    if failed:
        raise SystemExit("Tests hang on the processor, or fail anyway: " + ", ".join(failed))


if __name__ == "__main__":
    main(sys.argv[1:])
