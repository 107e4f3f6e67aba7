"""kNN accuracy against a loop that follows the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from solo_hardneg.standalone.knn import knn_accuracy


def by_hand(train, train_y, rows, y, k, distance):
    """Counts the votes row by row."""
    hits1 = hits5 = 0
    for row, label in zip(rows, y, strict=True):
        scored = []
        for other, other_label in zip(train, train_y, strict=True):
            if distance == "cosine":
                dot = sum(a * b for a, b in zip(row, other, strict=True))
                sim = dot / math.sqrt(sum(a * a for a in row) * sum(b * b for b in other))
                scored.append((sim, math.exp(sim / 0.07), other_label))
            else:
                gap = math.sqrt(sum((a - b) ** 2 for a, b in zip(row, other, strict=True)))
                scored.append((-gap, 1 / (gap + 1e-5), other_label))
        votes = dict.fromkeys(sorted(set(train_y)), 0.0)
        for _, weight, other_label in sorted(scored, reverse=True)[:k]:
            votes[other_label] += weight
        ranked = sorted(votes, key=lambda c: -votes[c])  # stable: ties in the order of classes
        hits1 += ranked[0] == label
        hits5 += label in ranked[: min(5, k)]
    return 100 * hits1 / len(y), 100 * hits5 / len(y)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 20, 1000])
def test_knn_accuracy_equals_the_definition(distance, k):
    rng = np.random.default_rng(k)
    centres = rng.normal(size=(7, 5))
    train_y, y = rng.integers(0, 7, 61), rng.integers(0, 7, 23)
    train = centres[train_y] + rng.normal(size=(61, 5))
    rows = centres[y] + rng.normal(size=(23, 5))
    expected = by_hand(train.tolist(), train_y.tolist(), rows.tolist(), y.tolist(), k, distance)
    assert knn_accuracy(train, train_y, rows, y, k, distance) == pytest.approx(expected)
    assert 20 < expected[0] < 100  # neither trivial nor by chance


def test_unlabelled_rows_have_no_vote():
    train, labels = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), np.array([-1, -1, 2])
    assert knn_accuracy(train, labels, np.array([[1.0, 0.0]]), np.array([2]), 2) == (100, 100)


@pytest.mark.parametrize("case", ["nan", "unlabelled"])
def test_accuracy_is_nan_without_finite_labelled_features(case):
    train = np.array([[np.nan if case == "nan" else 1.0, 0.0]])
    labels = np.array([0 if case == "nan" else -1])
    accuracies = knn_accuracy(train, labels, np.array([[1.0, 0.0]]), np.array([0]))
    assert all(math.isnan(value) for value in accuracies)
