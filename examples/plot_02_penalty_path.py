"""
Choosing a network by accuracy and capacity
===========================================

A grid over the strength of a Jacobian penalty on scikit-learn's digits. The scorer adds capacity measures to the
accuracy, and the table shows their values on the training folds. Among the candidates within one standard error of the
best accuracy, the one with the smallest Jacobian is refitted.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_capacity import CapacityScorer, JacobianRegularizedClassifier
from sklearn_capacity.displays import CapacityPathDisplay
from sklearn_capacity.model_selection import capacity_refit, capacity_table

STRENGTH = "jacobianregularizedclassifier__jacobian_penalty"

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
pipe = make_pipeline(StandardScaler(), JacobianRegularizedClassifier(max_epochs=15, random_state=0))
search = GridSearchCV(
    pipe,
    {STRENGTH: [0.0, 0.001, 0.01, 0.1, 1.0]},
    scoring=CapacityScorer(["accuracy", "fisher_rao_norm", "jacobian_frobenius", "margin"]),
    refit=capacity_refit(score="accuracy", capacity="neg_jacobian_frobenius"),
    return_train_score=True,
    cv=3,
)
search.fit(X_train, y_train)
print(capacity_table(search.cv_results_).to_string())
print("chosen:", search.best_params_[STRENGTH])
print("accuracy on new digits:", search.best_estimator_.score(X_test, y_test))
CapacityPathDisplay.from_search(search).plot()
plt.show()
