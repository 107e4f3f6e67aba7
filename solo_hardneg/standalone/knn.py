"""kNN accuracy: the quality of features without training a classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

DISTANCES = ("cosine", "euclidean")
TEMPERATURE = 0.07  # of cosine votes, as in solo-learn


def knn_accuracy(
    train_features: NDArray[Any],
    train_targets: NDArray[Any],
    features: NDArray[Any],
    targets: NDArray[Any],
    k: int = 20,
    distance: str = "cosine",
) -> tuple[float, float]:
    """Classifies each row by a weighted vote of its k nearest training rows.

    Args:
        train_features: (N, D).
        train_targets: (N,) classes; rows with -1 (unlabelled) are left out.
        features: (M, D).
        targets: (M,) classes.
        k: Number of neighbours, capped at the number of labelled training rows.
        distance: ``cosine`` (weights exp(similarity / 0.07)) or ``euclidean`` (1 / distance).

    Returns:
        Percentages of rows whose class got the most votes, and whose class is among the best
        min(5, k). Both are NaN if features aren't finite or no row is labelled.
    """
    from sklearn.neighbors import KNeighborsClassifier  # takes a second to import

    labelled = train_targets != -1
    train_features, train_targets = train_features[labelled], train_targets[labelled]
    finite = np.isfinite(train_features).all() and np.isfinite(features).all()
    if not (finite and len(train_features) and len(features)):
        return float("nan"), float("nan")

    def weights(distances: NDArray[Any]) -> NDArray[Any]:
        if distance == "cosine":
            return np.exp((1 - distances) / TEMPERATURE)
        return 1 / (distances + 1e-5)

    k = min(k, len(train_features))
    knn = KNeighborsClassifier(k, metric=distance, weights=weights, algorithm="brute")
    votes = knn.fit(train_features, train_targets).predict_proba(features)
    ranked = knn.classes_[np.argsort(-votes, axis=1, kind="stable")]
    hits = ranked[:, : min(5, k)] == targets[:, None]
    return 100 * float(hits[:, 0].mean()), 100 * float(hits.any(axis=1).mean())
