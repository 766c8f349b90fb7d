"""Memory as a cap: budgets are read, kept, or measures refused beforehand."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_capacity import (
    CapacityCallback,
    CapacityScorer,
    Measure,
    NetworkClassifier,
    NotDefinedError,
    capacity_report,
    compare_capacity,
    measure_capacity,
)
from sklearn_capacity.measures import memory
from sklearn_capacity.measures.memory import Budget, Peak, _free_in_group, free_memory, parse_bytes, shown_bytes

SIZES = [(1, 1), (4096, 4096), ("1", 1), ("500MB", 5 * 10**8), ("1.5 GB", 15 * 10**8), (" 2gib ", 2**31)]
SIZES += [(np.int64(7), 7), (2**63 - 1, 2**63 - 1), ("3kb", 3000), (".5TB", 5 * 10**11), ("7KiB", 7168), ("12 b", 12)]


@pytest.mark.parametrize(("given", "size"), SIZES)
def test_bytes_are_read(given, size):
    assert parse_bytes(given) == size


@pytest.mark.parametrize(
    "given", ["", "GB", "-1GB", "1 XB", "1e9", "two GB", "0", "0.0MB", "1 000 MB", "nan", "9" * 400, "1" * 5000 + "TB"]
)
def test_text_that_is_no_size_is_refused(given):
    with pytest.raises(ValueError, match=r'`max_memory` must be a number of bytes, or text such as "500MB"'):
        measure_capacity(nn.Linear(2, 2), measures="parameter_count", max_memory=given)


@pytest.mark.parametrize("given", [1.5, True, b"1GB", [1], float("inf")])
def test_other_kinds_are_refused(given):
    with pytest.raises(TypeError, match="`max_memory` must be a number of bytes"):
        capacity_report(nn.Linear(2, 2), measures="parameter_count", max_memory=given)


@pytest.mark.parametrize("given", [0, -5, 2**63, 10**400, -(10**400), 10**5000], ids=lambda size: f"{len(hex(size))}")
def test_sizes_that_no_machine_has_are_refused(given):
    with pytest.raises(ValueError, match="`max_memory` must be between 1 and 9223372036854775807"):
        measure_capacity(nn.Linear(2, 2), measures="parameter_count", max_memory=given)


def test_sizes_are_shown_short():
    assert [shown_bytes(size) for size in (0, 999, 1500, 2.25e6, 1e9, 3.2e13)] == [
        "0 bytes",
        "999 bytes",
        "1.5 kB",
        "2.25 MB",
        "1 GB",
        "32 TB",
    ]


@pytest.mark.parametrize(
    "names",
    [
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_control_groups_leave_their_limit_less_what_they_cannot_drop(tmp_path, names):
    limit, usage, cache = names
    assert math.isinf(_free_in_group(tmp_path, *names))  # no such group
    (tmp_path / limit).write_text("1000\n")
    (tmp_path / usage).write_text("700\n")
    (tmp_path / "memory.stat").write_text(f"anon 500\n{cache} 150\n")
    assert _free_in_group(tmp_path, *names) == 450
    (tmp_path / usage).write_text("5000\n")
    assert _free_in_group(tmp_path, *names) == 0
    (tmp_path / limit).write_text("max\n")
    assert math.isinf(_free_in_group(tmp_path, *names))


def test_without_a_budget_four_fifths_of_what_is_free_may_be_taken():
    device = torch.device("cpu")
    budget = Budget(None, device)
    assert 2**20 < budget.limit < math.inf
    assert budget.limit == pytest.approx(0.8 * free_memory(device), rel=0.5)  # other processes come and go
    assert budget.refusal(budget.limit) is None
    assert budget.refusal(2**60).startswith("needs 1.15e+06 TB, and at most ")


def test_only_large_needs_ask_what_is_free(monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "free_memory", lambda device: asked.append(device) or 2.0**30)
    budget = Budget(None, torch.device("cpu"))
    budget.tidy()
    assert budget.refusal(1e6) is None and not asked
    assert budget.refusal(1e9) is not None and budget.refusal(5e8) is None and len(asked) == 1
    assert Budget("1kB", torch.device("cpu")).refusal(1e6) == "needs 1 MB, and `max_memory` is 1 kB"


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(60, 20, generator=generator)
    return X.numpy(), (X[:, 0] > 0).long().numpy()


@pytest.fixture(scope="module")
def model(digits):
    return NetworkClassifier((300,), max_epochs=1, random_state=0).fit(*digits)


REASON = "The measure 'kl_divergence' needs .* kB, and `max_memory` is 300 kB. Measure fewer samples, or allow it more."


def test_a_measure_that_is_named_is_refused_with_what_it_needs(model, digits):
    with pytest.raises(NotDefinedError, match=REASON):
        measure_capacity(model, *digits, ["margin", "kl_divergence"], max_memory="300kB")
    assert measure_capacity(model, *digits, ["kl_divergence"], max_memory="3MB")["kl_divergence"] > 0


@pytest.mark.filterwarnings("ignore::sklearn_capacity.CapacityWarning")
def test_of_a_group_it_is_left_out_and_the_report_says_why(model, digits):
    report = capacity_report(model, *digits, "all", max_seconds=60, max_memory=300_000).set_index("measure")
    assert "needs" in report.loc["kl_divergence", "reason"]
    assert "`max_memory` is 300 kB" in report.loc["kl_divergence", "reason"]
    assert report.loc["margin", "value"] < 1
    refused = report.index[report["reason"].str.contains("`max_memory` is 300 kB")]
    assert report.loc[refused, "value"].isna().all()
    values = measure_capacity(model, *digits, "cheap", max_memory=300_000)
    assert not set(values) & set(refused)


def test_scorers_comparisons_and_callbacks_keep_to_it_too(model, digits):
    scorer = CapacityScorer(["kl_divergence"], max_memory="300kB", on_error="raise")
    with pytest.raises(NotDefinedError, match=REASON):
        scorer(model, *digits)
    with pytest.warns(UserWarning, match="needs .* and `max_memory` is 300 kB"):
        table = compare_capacity([model], *digits, ["kl_divergence"], max_memory="300kB")
    assert table["kl_divergence"].isna().all()
    callback = CapacityCallback("kl_divergence", max_memory="300kB")
    with pytest.raises(ValueError, match=REASON):
        NetworkClassifier((300,), max_epochs=1, random_state=0, callbacks=[callback]).fit(*digits)


def test_a_user_s_measure_may_state_what_it_needs(model, digits):
    def largest(network, batch):
        return 1.0

    needy = Measure("needy", largest, memory=Peak(more=lambda network, batch: 10**9))
    with pytest.raises(NotDefinedError, match=r"'needy' needs 1 GB, and `max_memory` is 10 MB"):
        measure_capacity(model, *digits, needy, max_memory="10MB")
    assert measure_capacity(model, *digits, needy, max_memory="2GB") == {"needy": 1.0}
    with pytest.raises(TypeError, match="`memory` must be a `Peak`, got int"):
        Measure("other", largest, memory=10)


# -- the budget is kept ------------------------------------------------------------------------------------------------

SCRIPT = """
import os, sys
import torch
from torch import nn
from sklearn_capacity import measure_capacity

torch.set_num_threads(1)
torch.manual_seed(0)

def measured(width, name, params, **options):
    layers = (nn.Linear(500, width, bias=False), nn.ReLU(), nn.Linear(width, width, bias=False), nn.ReLU())
    net, X = nn.Sequential(*layers, nn.Linear(width, 20, bias=False)), torch.randn(300, 500)
    before = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    measure_capacity(net, X, torch.arange(300) % 20, {name: (name, params)}, **options)
    # of this program alone: getrusage has what the process held that started it
    (peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(peak) * 1024 - before

name, params = sys.argv[1], eval(sys.argv[2])
measured(16, name, params)  # libraries load what they need
print(measured(1000, name, params, max_memory="200MB"))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the resident memory is read from Linux")
@pytest.mark.parametrize(
    ("name", "params"), [("fisher_trace", {}), ("hessian_trace", {"n_products": 40}), ("sharpness_estimate", {})]
)
def test_the_budget_is_kept(name, params):
    """Without one the trace of the Hessian takes 0.9 GB here, and `sharpness_estimate` left 3.7 GB to the process."""
    command = [sys.executable, "-c", SCRIPT, name, repr(params)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 240e6
