"""What holds for every test: few threads, no network, and no warning of the package that the test does not expect."""

from __future__ import annotations

import os

# Before anything imports scipy: without it one of scikit-learn's estimator checks is silently skipped.
os.environ["SCIPY_ARRAY_API"] = "1"
for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import ipaddress  # noqa: E402
import random  # noqa: E402
import socket  # noqa: E402

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from sklearn.datasets import load_iris  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402

from sklearn_capacity import NetworkClassifier  # noqa: E402

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # as many as numpy's; `make test-kernels` sets two

# Tests that use hypothesis draw the same cases every time; `make fuzz` draws new ones, and many.
hypothesis.settings.register_profile("bounded", max_examples=25, derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile(
    "fuzz",
    max_examples=int(os.environ.get("FUZZ_CASES", "2500")),
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("bounded")


class _SameRandomNumbers:
    """Every test and every page starts at the same random numbers, whichever of them ran before it in its process.

    What fixtures draw differs from what tests draw. `TEST_SEED=1 make test` finds a value that hangs on the seed.
    """

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._seed(0)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        self._seed(1)

    @staticmethod
    def _seed(phase: int) -> None:
        seed = 2 * int(os.environ.get("TEST_SEED", "0")) + phase
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


def pytest_configure(config: pytest.Config) -> None:
    """Add what holds for the pages, too: the package's own warnings are errors, and random numbers are the same."""
    config.addinivalue_line("filterwarnings", "error::sklearn_capacity._validation.CapacityWarning")
    config.pluginmanager.register(_SameRandomNumbers())


def _is_local(address: object) -> bool:
    """Whether a socket address stays on this machine."""
    if not isinstance(address, tuple):  # a Unix socket
        return True
    host = address[0]
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Let no test reach beyond this machine; sockets between local processes stay open."""
    patch = pytest.MonkeyPatch()
    for name in ("connect", "connect_ex"):
        real = getattr(socket.socket, name)

        def guarded(self, address, real=real):
            if not _is_local(address):
                raise RuntimeError(f"A test tried to reach {address!r}; tests use no network.")
            return real(self, address)

        patch.setattr(socket.socket, name, guarded)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def iris():
    """Iris with its labels by name, (150, 4) and (150,)."""
    X, y = load_iris(return_X_y=True)
    return X, np.array(["setosa", "versicolor", "virginica"])[y]


@pytest.fixture(scope="module")
def model(iris):
    """A small classifier of iris after a scaler."""
    return make_pipeline(StandardScaler(), NetworkClassifier((8,), max_epochs=10, random_state=0)).fit(*iris)
