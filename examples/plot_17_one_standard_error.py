"""
Choosing by one standard error
==============================

Among the candidates whose accuracy is within one standard error of the best, select the one with the smallest capacity.
``capacity_refit`` implements this rule for the ``refit`` of a search.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_capacity import CapacityScorer, NetworkClassifier
from sklearn_capacity.model_selection import capacity_refit, capacity_table

X, y = load_breast_cancer(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)

WIDTH = "networkclassifier__hidden_layer_sizes"
search = GridSearchCV(
    make_pipeline(StandardScaler(), NetworkClassifier(max_epochs=20, random_state=0)),
    {WIDTH: [(2,), (4,), (16,), (64,), (256,)]},
    scoring=CapacityScorer(["accuracy", "parameter_count", "l2_path_norm"]),
    refit=capacity_refit(score="accuracy", capacity="neg_parameter_count"),
    return_train_score=True,
    cv=5,
).fit(X_train, y_train)
table = capacity_table(search.cv_results_)
print(table.to_string(index=False))

# %%
best = int(table["test_accuracy"].argmax())
threshold = table["test_accuracy"][best] - table["test_accuracy_se"][best]
figure, ax = plt.subplots(layout="constrained")
ax.errorbar(table["parameter_count"], table["test_accuracy"], table["test_accuracy_se"], marker="o", capsize=3)
ax.axhline(threshold, ls="--", color="grey", label="one standard error below the best")
ax.plot(table["parameter_count"][search.best_index_], table["test_accuracy"][search.best_index_], "r*", ms=15,
        zorder=3, label="chosen")  # fmt: skip
ax.set(xscale="log", xlabel="parameters", ylabel="accuracy on the test folds")
ax.legend()
plt.show()

print(f"chosen: {search.best_params_[WIDTH]}, accuracy on new samples {search.score(X_test, y_test):.3f}")
