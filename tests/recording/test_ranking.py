"""Ranks and sums by percentile, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_rankings import hardest_last, ragged

from solo_hardneg.recording import ranking
from solo_hardneg.recording.ranking import Ranking, rank

NAN = float("nan")


def test_ranks_sort_by_similarity_and_index():
    similarity, present = ragged()
    ranks = rank(similarity, present)
    for row in range(len(similarity)):
        count = int(ranks.counts[row])
        assert count == int(present[row].sum())
        expected = hardest_last(similarity, present, row)
        assert ranks.columns[row, similarity.shape[1] - count :].tolist() == expected


@given(st.integers(0, 400), st.integers(1, 120))
def test_percentiles_partition_all_ranks(count, bins):
    edges = ranking.edges(count, bins)
    assert edges[0] == 0
    assert edges[-1] == count
    assert len(edges) == bins + 1
    widths = np.diff(edges)
    assert widths.min() >= count // bins
    assert widths.max() <= math.ceil(count / bins)


@pytest.mark.parametrize("bins", [1, 4, 10, 50])
def test_sums_by_percentile_equal_plain_loops(bins):
    similarity, present = ragged()
    values = torch.randn(similarity.shape, generator=torch.Generator().manual_seed(1))
    values[values > 1] = NAN
    sums, numbers = ranking.by_percentile(rank(similarity, present).order(values), bins)
    expected: list[list[float]] = [[] for _ in range(bins)]
    for row in range(len(similarity)):
        columns = hardest_last(similarity, present, row)
        for b in range(bins):
            # integer division is exact
            some = columns[b * len(columns) // bins : (b + 1) * len(columns) // bins]
            expected[b] += [float(values[row, j]) for j in some if not math.isnan(values[row, j])]
    assert numbers.tolist() == [len(e) for e in expected]
    assert sums.tolist() == pytest.approx([sum(e) for e in expected], abs=1e-5)


def test_shares_of_hardest_equal_plain_loops():
    similarity, present = ragged(width=100)
    weight = torch.rand(similarity.shape, generator=torch.Generator().manual_seed(3))
    percents = (5, 29, 50, 100)  # 0.71 · 100 is less than 71 in floating point
    ordered = rank(similarity, present).order(weight)
    shares = ranking.shares_of_hardest(ordered, weight.sum(1), [p / 100 for p in percents])
    for row in range(len(similarity)):
        columns = hardest_last(similarity, present, row)
        for number, percent in enumerate(percents):
            hardest = columns[(100 - percent) * len(columns) // 100 :]
            expected = sum(float(weight[row, j]) for j in hardest) / float(weight[row].sum())
            expected = expected if columns else NAN
            assert float(shares[row, number]) == pytest.approx(expected, nan_ok=True)


def test_hard_counts_equal_plain_loops():
    similarity, present = ragged(rows=9, width=60)
    counts = ranking.hard_counts(rank(similarity, present))
    expected = [0] * 60
    for row in range(9):
        columns = hardest_last(similarity, present, row)
        for j in columns[95 * len(columns) // 100 :]:
            expected[j] += 1
    assert counts.tolist() == expected


def test_values_are_ordered_per_number_of_negatives():
    ranks = Ranking(torch.tensor([[2, 0, 1], [0, 1, 2]]), torch.tensor([1, 3]))
    found = {
        tuple(which.tolist()): rows.tolist()
        for which, rows in ranks.order(torch.tensor([[10, 11, 12], [20, 21, 22]]))
    }
    assert found == {(0,): [[11]], (1,): [[20, 21, 22]]}
