"""
A search on Dask
================

The same search on a cluster: here with two local workers, elsewhere any that a ``dask.distributed`` client connects to.
Without the extra ``distributed`` the search runs in two processes of this machine.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler

from sklearn_capacity import CapacityScorer, JacobianRegularizedClassifier
from sklearn_capacity.displays import CapacityPathDisplay
from sklearn_capacity.model_selection import dask_backend

X, y = load_digits(return_X_y=True)
X = StandardScaler().fit_transform(X).astype("float32")
search = GridSearchCV(
    JacobianRegularizedClassifier(max_epochs=10, random_state=0),
    {"jacobian_penalty": [0.0, 0.001, 0.01, 0.1, 1.0]},
    scoring=CapacityScorer(["accuracy", "jacobian_frobenius"]),
    refit="accuracy",
    return_train_score=True,
    cv=3,
    n_jobs=2,
)

try:
    from dask.distributed import Client, LocalCluster
except ImportError:
    search.fit(X, y)
else:
    # Workers in threads of this process: a script whose workers are processes needs a main guard.
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        with Client(cluster) as client, dask_backend(client):
            search.fit(X, y)

print("best strength:", search.best_params_["jacobian_penalty"])
CapacityPathDisplay.from_search(search).plot()
plt.show()
