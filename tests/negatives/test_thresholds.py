"""Learned thresholds: the verb's condition, and the rule by which they move."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from solo_hardneg.errors import CheckpointError, ConfigError
from solo_hardneg.negatives import build, full_pool
from solo_hardneg.negatives.thresholds import LearnedThresholds, ThresholdRule

LEARNED = {"above": "learned", "share": 0.25}


def adam_by_hand(gradients: Sequence[float], rate: float) -> float:
    """A threshold that starts at 1, after these gradients."""
    value, mean, square = 1.0, 0.0, 0.0
    for step, gradient in enumerate(gradients, start=1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.98 * square + 0.02 * gradient**2
        move = (mean / (1 - 0.9**step)) / (math.sqrt(square / (1 - 0.98**step)) + 1e-8)
        value = min(max(value - rate * move, -1.0), 1.0)
    return value


def thresholds_of(images: int) -> LearnedThresholds:
    made = LearnedThresholds(nn.Module())
    made.fit(images)
    return made


shares = st.lists(st.sampled_from([0.0, 0.125, 0.5, 1.0]), min_size=3, max_size=3)
visits = st.tuples(st.lists(st.integers(0, 4), min_size=3, max_size=3), shares)


@given(st.lists(visits, max_size=6), st.sampled_from([0.05, 0.3]))
def test_thresholds_follow_the_written_out_rule(
    steps: list[tuple[list[int], list[float]]], rate: float
) -> None:
    thresholds = thresholds_of(5)
    gradients: dict[int, list[float]] = {image: [] for image in range(5)}
    for images, found in steps:
        thresholds.update(torch.tensor(images), torch.tensor(found), ThresholdRule(0.25, rate))
        for image in set(images):  # views of one image are averaged; others keep theirs
            own = [share for i, share in zip(images, found, strict=True) if i == image]
            gradients[image].append(0.25 - sum(own) / len(own))
    expected = torch.tensor([adam_by_hand(gradients[image], rate) for image in range(5)])
    torch.testing.assert_close(thresholds.of(torch.arange(5)), expected, rtol=0, atol=1e-5)
    visited = [float(len(gradients[image])) for image in range(5)]
    assert thresholds.module.get_buffer("threshold_moments")[2].tolist() == visited


def test_a_threshold_approaches_the_quantile() -> None:
    generator = torch.Generator().manual_seed(0)
    thresholds, rule = thresholds_of(2), ThresholdRule(0.1, 0.01)
    centre = torch.tensor([[0.0], [0.4]])
    for _ in range(2000):
        similarity = centre + 0.1 * torch.randn(2, 500, generator=generator)
        limits = thresholds.of(torch.arange(2))[:, None]
        thresholds.update(torch.arange(2), (similarity > limits).float().mean(dim=1), rule)
    # The 90 % quantile of a normal distribution is 1.2816 standard deviations above its mean.
    expected = centre[:, 0] + 0.12816
    torch.testing.assert_close(thresholds.of(torch.arange(2)), expected, rtol=0, atol=0.02)


def test_a_step_that_is_not_valid_changes_nothing() -> None:
    thresholds = thresholds_of(3)
    args = torch.tensor([1, 2]), torch.tensor([0.5, 0.0]), ThresholdRule(0.25)
    thresholds.update(*args, valid=torch.tensor(False))
    assert thresholds.of(torch.arange(3)).tolist() == [1.0, 1.0, 1.0]
    assert not thresholds.module.get_buffer("threshold_moments").any()
    thresholds.update(*args, valid=torch.tensor(True))
    assert thresholds.of(torch.arange(3)).tolist() == pytest.approx([1.0, 1.0, 0.95])


def left(config: dict, threshold: list[float], labels: Tensor | None = None) -> list[list[int]]:
    similarity = torch.tensor([[0.1, 0.9, 0.3, 0.7, 0.5], [1 + 1e-6, 0.2, -0.5, 1.0, 0.0]])
    classes = torch.zeros(2, dtype=torch.long)
    pool = full_pool(similarity, query_labels=classes, labels=labels)
    found = build(config)(replace(pool, threshold=torch.tensor(threshold)))
    return [row.nonzero().flatten().tolist() for row in found.present]


def test_what_is_above_the_querys_threshold_is_dropped_or_kept() -> None:
    assert left({"drop": LEARNED}, [0.5, 0.2]) == [[0, 2, 4], [1, 2, 4]]
    assert left({"keep": LEARNED}, [0.5, 0.2]) == [[1, 3], [0, 3]]
    assert left({"drop": LEARNED}, [0.8, 1.0]) == [[0, 2, 3, 4], [0, 1, 2, 3, 4]]
    same = torch.tensor([0, 0, 1, 1, 0])
    assert left({"drop": {**LEARNED, "label": "same"}}, [0.4, -1.0], same) == [[0, 2, 3], [2, 3]]


def test_the_share_is_that_of_the_negatives_which_the_verbs_above_leave() -> None:
    pool = full_pool(torch.tensor([[0.1, 0.9, 0.3, 0.7, 0.5]]), threshold=torch.tensor([0.4]))
    assert build({"drop": LEARNED})(pool).notes["above_threshold"].tolist() == [pytest.approx(0.6)]
    harder = {"keep": {"band": [0.6, 1.0]}, "drop": LEARNED}
    assert build(harder)(pool).notes["above_threshold"].tolist() == [1.0]


def test_a_policy_knows_when_thresholds_move() -> None:
    moving = {"from": 0.1, "to": 0.3, "epochs": [2, 4]}
    policy = build({"drop": {"above": "learned", "share": moving, "from_epoch": 2}})
    assert policy.learns
    assert policy.needs == {"indexes"}
    assert policy.threshold_rule is None
    assert policy.at(3).threshold_rule == ThresholdRule(pytest.approx(0.2), 0.05)
    assert not build({"drop": {"label": "same"}}).learns
    policy.check(1)  # nothing is above a threshold of 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"above": "learnt", "share": 0.1}, "drop.above=learnt: must be learned"),
        ({"above": 0.8, "share": 0.1}, r"above=0.8: .*similarity: \[0.8, 1.0\]"),
        ({"above": "learned"}, r"share=None: must be a share .* \(0, 1\)"),
        ({"above": "learned", "share": 0.0}, "share=0.0: must be a share"),
        ({"above": "learned", "share": 1}, "share=1: must be a share"),
        ({"above": "learned", "share": 0.1, "rate": 0}, r"rate=0: must lie in \(0, 1\]"),
        ({"label": "same", "share": 0.1}, "share=0.1: needs negatives.drop.above=learned"),
        ({"label": "same", "rate": 0.1}, "rate=0.1: needs negatives.drop.above=learned"),
    ],
)
def test_invalid_arguments_are_refused(config: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build({"drop": config})


def test_an_image_has_one_threshold() -> None:
    with pytest.raises(ConfigError, match="drop and keep both have above=learned"):
        build({"drop": LEARNED, "keep": LEARNED})


def test_unknown_thresholds_are_refused() -> None:
    with pytest.raises(ConfigError, match="Pass query_thresholds= to the loss"):
        build({"drop": LEARNED})(full_pool(torch.zeros(1, 3)))


def test_thresholds_of_another_dataset_are_refused() -> None:
    thresholds = thresholds_of(3)
    thresholds.fit(3)
    with pytest.raises(CheckpointError, match="thresholds of 3 images, and this dataset has 4"):
        thresholds.fit(4)
