"""`python -m benchmarks.zoo`: measure networks of other libraries, and write the support table of the documentation.

Each network is measured in a process of its own, so that its memory is known and a crash ends no other. The table has
one row per network: how many of the measures have a value, which are refused and why, seconds, and memory.
"""

from __future__ import annotations

import argparse
import copy
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from benchmarks.zoo_networks import CLASSES, Build, networks
from sklearn_capacity import capacity_report
from sklearn_capacity.scoring.outcomes import by_reason

TABLE = Path(__file__).parents[1] / "docs" / "support.csv"
#: One or several measures of each family, with every kind of need.
MEASURES = (
    "parameter_count parameter_norm vc_dimension distance_from_initialization frobenius_norm spectral_norm l1_inf_norm "
    "stable_rank l2_path_norm path_activity fisher_rao_norm fisher_trace fisher_max_eigenvalue ntk_alignment margin "
    "softmax_score spectrally_normalized_margin hidden_margin_median jacobian_frobenius jacobian_spectral lipschitz_l2 "
    "lipschitz_linf input_margin_bound pullback_trace loss_gradient_norm relative_flatness adaptive_sharpness "
    "kl_divergence log_spec_init_main davies_bouldin"
).split()
#: Measures whose definition does not cover the network, by words of the reason.
UNDEFINED = (
    "not positively homogeneous",
    "count the input twice",
    "not a sum over paths",
    "divides by the size",
    "has no bound",
    "whole numbers",
    "differ between the samples",
    "needs a linear layer",
    "one vector per sample",
)
MEMORY_LIMIT = 16 * 1024**3


def measure(name: str, build: Build) -> dict[str, object]:
    """A row of the table."""
    torch.manual_seed(0)
    module, X = build()
    start = copy.deepcopy(module)
    with torch.no_grad():  # as after some training
        for parameter in module.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    y = torch.arange(len(X)) % CLASSES
    begun = time.perf_counter()
    report = capacity_report(module.eval(), X, y, MEASURES, loss="cross_entropy", initial_state=start)
    seconds, refused = time.perf_counter() - begun, by_reason(report)
    undefined = sum(len(m) for reason, m in refused.items() if any(words in reason for words in UNDEFINED))
    return {
        "network": name,
        "parameters": sum(p.numel() for p in module.parameters()),
        "values": int(report["value"].notna().sum()),
        "not defined": undefined,
        "missing": sum(map(len, refused.values())) - undefined,
        "seconds": round(seconds, 1),
        "MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "refused": "; ".join(f"{', '.join(measures)}: {reason}" for reason, measures in refused.items()),
    }


def in_a_process(name: str, build: Build, row: Callable[[str, Build], dict[str, object]] = measure) -> pd.DataFrame:
    """The row from a forked process with limited memory; one that tells of the failure if the process ends early."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.csv"
        child = os.fork()
        if child == 0:
            try:
                warnings.simplefilter("ignore")
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
                pd.DataFrame([row(name, build)]).to_csv(path, index=False)
                os._exit(0)
            except BaseException as error:
                print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if path.exists():
            return pd.read_csv(path)
    return pd.DataFrame([{"network": name, "refused": f"failed with status {os.waitstatus_to_exitcode(status)}"}])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="parts of the names of networks; all if there are none")
    parser.add_argument("--out", type=Path, default=TABLE, help="the table to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.parent.mkdir(exist_ok=True)
    rows = []
    for name, build in networks().items():
        if not options.names or any(part in name for part in options.names):
            rows.append(in_a_process(name, build))
            print(rows[-1].drop(columns="refused").to_string(index=False, header=len(rows) == 1), flush=True)
            pd.concat(rows).to_csv(options.out, index=False)
    table = pd.concat(rows)
    defined = table["values"].sum() + table["missing"].sum()
    print(f"{table['values'].sum() / defined:.1%} of the defined values, {table['values'].isna().sum()} failures")
    return int(table["values"].isna().any())


if __name__ == "__main__":
    raise SystemExit(main())
