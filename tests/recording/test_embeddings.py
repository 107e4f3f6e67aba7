"""RankMe, alignment and uniformity against closed forms and plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from loss_helpers import unit

from solo_hardneg.recording.embeddings import alignment, gram, rankme, uniformity


def test_rankme_of_known_spectra() -> None:
    axes = torch.eye(6)
    assert rankme(gram(axes[:4].repeat(3, 1))) == pytest.approx(4, abs=1e-4)
    assert rankme(gram(axes[:1].repeat(9, 1))) == pytest.approx(1, abs=1e-4)
    # Singular values 3 and 1: shares 3/4 and 1/4.
    vectors = torch.diag(torch.tensor([3.0, 1.0]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert rankme(gram(vectors)) == pytest.approx(math.exp(entropy), abs=1e-4)


def test_rankme_of_batches_is_that_of_all_rows() -> None:
    vectors = unit(50, 8)
    singular = torch.linalg.svdvals(vectors.double())
    share = singular / singular.sum()
    expected = math.exp(-float((share * share.log()).sum()))
    parts = gram(vectors[:20]) + gram(vectors[20:])
    assert rankme(parts) == pytest.approx(expected, rel=1e-5)


def test_uniformity_equals_plain_loops() -> None:
    vectors, images = unit(7, 3), [0, 1, 2, 0, 1, 2, -1]
    values = []
    for i in range(7):
        for j in range(i):
            if images[i] != images[j]:
                square = sum((x - y) ** 2 for x, y in zip(vectors[i], vectors[j], strict=True))
                values.append(math.exp(-2 * float(square)))
    expected = math.log(sum(values) / len(values))
    assert uniformity(vectors, torch.tensor(images)) == pytest.approx(expected, rel=1e-5)


def test_ends_of_alignment_and_uniformity() -> None:
    assert uniformity(torch.ones(5, 1)) == 0  # collapsed
    assert uniformity(torch.tensor([[1.0], [-1.0]])) == pytest.approx(-8)
    assert math.isnan(uniformity(torch.ones(1, 1)))
    assert math.isnan(uniformity(torch.ones(2, 1), torch.tensor([3, 3])))
    assert float(alignment(torch.tensor([1.0, 0.5, math.nan])).nanmean()) == pytest.approx(0.5)
