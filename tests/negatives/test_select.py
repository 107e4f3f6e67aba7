"""``keep``, ``drop`` and ``fill``."""

from __future__ import annotations

from dataclasses import replace

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from solo_hardneg.errors import ConfigError
from solo_hardneg.kernels.candidates import QueueCandidates
from solo_hardneg.negatives import EmptyBandError, Pool, build, full_pool
from solo_hardneg.negatives.ranks import TooFewNegativesError


def pool_of(
    sims: list[list[float]],
    classes: list[int] | None = None,
    images: list[int] | None = None,
    query: tuple[int, int] = (0, 0),
) -> Pool:
    """A pool whose queries are all of class ``query[0]`` and image ``query[1]``."""
    similarity = torch.tensor(sims)
    rows = len(sims)
    return full_pool(
        similarity,
        query_labels=torch.full((rows,), query[0]),
        labels=None if classes is None else torch.tensor(classes),
        query_indexes=torch.full((rows,), query[1]),
        indexes=None if images is None else torch.tensor(images),
    )


def columns_left(pool: Pool) -> list[list[int]]:
    return [row.nonzero().flatten().tolist() for row in pool.present]


RAMP = [[0.1, 0.9, 0.3, 0.7, 0.5]]


def test_keep_and_drop_partition_the_negatives() -> None:
    kept = build({"keep": {"band": [0.6, 1.0]}})(pool_of(RAMP))
    dropped = build({"drop": {"band": [0.6, 1.0]}})(pool_of(RAMP))
    assert columns_left(kept) == [[1, 3]]
    assert columns_left(dropped) == [[0, 2, 4]]
    assert (kept.count, dropped.count) == (2, 3)
    assert (kept.dropped.tolist(), dropped.dropped.tolist()) == ([3], [2])


def test_conditions_are_joined_by_and_with_the_band_ranked_first() -> None:
    classes = [0, 1, 0, 0, 1]
    # The hardest 40 % are columns 1 and 3, of which only 3 is of the query's class.
    assert columns_left(
        build({"drop": {"band": [0.6, 1.0], "label": "same"}})(pool_of(RAMP, classes))
    ) == [[0, 1, 2, 4]]
    assert columns_left(
        build({"drop": {"band": [0.6, 1.0], "label": "different"}})(pool_of(RAMP, classes))
    ) == [[0, 2, 3, 4]]
    assert columns_left(build({"keep": {"label": "same"}})(pool_of(RAMP, classes))) == [[0, 2, 3]]


def test_drop_the_own_image() -> None:
    own = pool_of(RAMP, images=[7, 3, 7, 1, 2], query=(0, 7))
    assert columns_left(build({"drop": {"image": "same"}})(own)) == [[1, 3, 4]]


def test_unknown_class_and_image_equal_no_other() -> None:
    unknown = pool_of(RAMP, classes=[-1, 0, -1, 1, -1], images=[-1] * 5, query=(-1, -1))
    assert columns_left(build({"drop": {"label": "same"}})(unknown)) == [[0, 1, 2, 3, 4]]
    assert columns_left(build({"drop": {"image": "same"}})(unknown)) == [[0, 1, 2, 3, 4]]


def test_similarity_is_closed_below_and_open_above() -> None:
    sims = [[-1.0, -0.25, 0.25, 0.5, 0.75, 1.0]]

    def left(interval: list[float]) -> list[int]:
        return columns_left(build({"keep": {"similarity": interval}})(pool_of(sims)))[0]

    assert left([0.25, 0.75]) == [2, 3]
    assert left([0.25, 1.0]) == [2, 3, 4, 5]
    assert left([-1.0, 0.5]) == [0, 1, 2]
    rounded = [[1 + 2**-20, -1 - 2**-20]]
    for interval in ([0.9, 1.0], [-1.0, -0.9]):
        kept = build({"keep": {"similarity": interval}})(pool_of(rounded))
        assert kept.counts.tolist() == [1]


def test_margin_is_relative_to_the_positive() -> None:
    sims = [[-0.75, -0.5, -0.25, 0.25], [-0.75, -0.5, -0.25, 0.25]]
    policy = build({"drop": {"margin": [0.25, 2.0]}})
    # The second query's positive is dissimilar: the limits are 0.25 above -0.5 and above 0.
    pool = replace(pool_of(sims), positive=torch.tensor([-0.5, 0.0]))
    assert columns_left(policy(pool)) == [[0, 1], [0, 1, 2]]
    with pytest.raises(ConfigError, match=r"compares negatives with the positive \(margin\)"):
        policy(pool_of(sims))


def test_limits_may_move_during_training() -> None:
    moving = {"from": 0.8, "to": 0.4, "epochs": [0, 10]}
    policy = build({"drop": {"similarity": [moving, 1.0], "from_epoch": 2}})
    assert columns_left(policy.at(1)(pool_of(RAMP))) == [[0, 1, 2, 3, 4]]
    assert columns_left(policy.at(5)(pool_of(RAMP))) == [[0, 2, 4]]
    assert columns_left(policy.at(10)(pool_of(RAMP))) == [[0, 2]]


def test_impossible_limits_are_found_before_the_run() -> None:
    below, above = {"similarity": [-1.0, 0.2]}, {"similarity": [0.2, 1.0]}
    for config in (
        {"drop": {"similarity": [-1, 1]}},
        {"drop": {"margin": [-2, 2]}},
        {"keep": below, "drop": below},
        {"keep": below | {"margin": [1.2, 2.0]}},
    ):
        with pytest.raises(TooFewNegativesError, match="leaves none of M=64 negatives"):
            build(config).check(64)
    for config in (
        {"keep": below, "drop": above},
        {"keep": {"similarity": [0.999, 1.0]}},
        {"keep": below | {"margin": [1.19, 2.0]}},
        {"keep": {"similarity": [0.9, 0.95], "margin": [0.4, 0.41]}},
    ):
        build(config | {"mix": {"hardest": 64, "pairs": 1}}).check(64)


def test_verbs_apply_from_top_to_bottom() -> None:
    # Dropping the hardest fifth leaves 4, of which the hardest half are columns 3 and 4.
    both = {"drop": {"band": [0.8, 1.0]}, "keep": {"band": [0.5, 1.0]}}
    assert columns_left(build(both)(pool_of(RAMP))) == [[3, 4]]
    # Swapped, the hardest half of 5 are columns 4, 3, 1; the hardest fifth of these is rank 2.
    swapped = {"keep": {"band": [0.5, 1.0]}, "drop": {"band": [0.8, 1.0]}}
    assert columns_left(build(swapped)(pool_of(RAMP))) == [[3, 4]]
    with pytest.raises(EmptyBandError, match="M=3"):
        build({"keep": {"band": [0.5, 1.0]}, "drop": {"band": [0.4, 0.6]}})(pool_of(RAMP))


def test_drop_refuses_to_drop_all() -> None:
    with pytest.raises(EmptyBandError, match=r"drop.band=\[0.0, 1.0\]: drops all M=5"):
        build({"drop": {"band": [0, 1]}})(pool_of(RAMP))


def test_missing_labels_and_indexes_are_refused() -> None:
    assert build({"drop": {"image": "same"}, "keep": {"label": "same"}}).needs == {
        *("labels", "indexes")
    }
    with pytest.raises(ConfigError, match="queue_labels="):
        build({"drop": {"label": "same"}})(pool_of(RAMP))
    with pytest.raises(ConfigError, match="queue_indexes="):
        build({"drop": {"image": "same"}})(pool_of(RAMP))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"keep": {}}, "negatives.keep has no condition"),
        ({"keep": {"label": "sme"}}, "negatives.keep.label=sme: must be same or different"),
        ({"drop": {"image": "different"}}, "negatives.drop.image=different: must be same"),
        ({"drop": {"band": [0.9, 0.1]}}, "negatives.drop.band="),
        ({"drop": {"similarity": [0.5, 1.1]}}, r"similarity=.*outside \[-1, 1\]"),
        ({"keep": {"margin": [0.1, 0.1]}}, "keep.margin=.* upside down or empty"),
        ({"keep": {"margin": 0.1}}, "keep.margin=0.1: must be two numbers"),
        ({"drop": {"band": [0, 0.5]}, "fill": "newer"}, "negatives.fill=newer: must be none or"),
        ({"drop": {"label": "same"}, "fill": {"kind": "older", "reserve": 0}}, "reserve=0: must"),
        ({"drop": {"label": "same"}, "fill": {"kind": "older", "reserve": 1.5}}, "reserve=1.5"),
        ({"fill": "older", "drop": {"band": [0, 0.5]}}, "fill stands above .* Put fill below"),
    ],
)
def test_invalid_arguments_are_refused(config: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(config)


# ---------------------------------------------------------------- fill: older


def queue_pool(
    sims: list[list[float]],
    ages: list[int],
    size: int,
    classes: list[int] | None = None,
    query_class: int = 0,
) -> Pool:
    candidates = QueueCandidates(
        torch.zeros(len(sims), 1),
        torch.zeros(len(ages), 1),
        age=torch.tensor(ages),
        query_labels=torch.full((len(sims),), query_class),
        labels=None if classes is None else torch.tensor(classes),
        queue_size=size,
    )
    return candidates.pool(torch.tensor(sims))


def test_older_on_an_example() -> None:
    """K = 4 newest keys (ages 0-3), a reserve of three (ages 4-6); drops the hardest quarter.

    slot         0    1    2    3    4    5    6
    age          6    5    4    3    2    1    0
    similarity  .2   .9   .8   .1   .7   .3   .5
    The hardest of the newest is slot 4 with .7. At this threshold slots 1 (.9) and 2 (.8) of the
    reserve would be dropped, too, so slot 0 (.2) replaces slot 4.
    """
    sims = [[0.2, 0.9, 0.8, 0.1, 0.7, 0.3, 0.5]]
    policy = build({"drop": {"band": [0.75, 1.0]}, "fill": "older"})
    pool = policy(queue_pool(sims, [6, 5, 4, 3, 2, 1, 0], 4))
    assert columns_left(pool) == [[0, 3, 5, 6]]
    assert pool.notes["fill_short"].tolist() == [0.0]
    without = build({"drop": {"band": [0.75, 1.0]}})(queue_pool(sims, [6, 5, 4, 3, 2, 1, 0], 4))
    assert columns_left(without) == [[3, 5, 6]]


def test_older_notes_queries_without_enough_reserve() -> None:
    sims = [[0.9, 0.1, 0.2, 0.8, 0.9], [0.1, 0.1, 0.2, 0.8, 0.9]]
    policy = build({"drop": {"band": [0.5, 1.0]}, "fill": "older"})
    pool = policy(queue_pool(sims, [4, 3, 2, 1, 0], 4))
    assert columns_left(pool) == [[1, 2], [0, 1, 2]]
    assert pool.notes["fill_short"].tolist() == [1.0, 1.0]


def test_older_needs_a_queue() -> None:
    policy = build({"drop": {"band": [0.5, 1.0]}, "fill": "older"})
    assert policy.needs == {"queue"}
    with pytest.raises(ConfigError, match="Pass queue_age= and queue_size="):
        policy(pool_of(RAMP))


@st.composite
def queues(draw: st.DrawFn) -> tuple[list[float], list[int], list[int], int]:
    """Draws similarities with ties, ages of a ring buffer that may have wrapped, classes, and K."""
    length = draw(st.integers(2, 40))
    size = draw(st.integers(1, length))
    start = draw(st.integers(0, length - 1))
    sims = [v / 4 for v in draw(st.lists(st.integers(-4, 4), min_size=length, max_size=length))]
    classes = draw(st.lists(st.integers(0, 2), min_size=length, max_size=length))
    return sims, [(start - 1 - j) % length for j in range(length)], classes, size


@given(queues(), st.integers(0, 99), st.sampled_from([None, "same", "different"]))
def test_older_equals_plain_loops(
    queue: tuple[list[float], list[int], list[int], int], low: int, label: str | None
) -> None:
    sims, ages, classes, size = queue
    lo = low / 100
    newest = [j for j in range(len(sims)) if ages[j] < size]
    in_band = oracles.band(sims, lo, 1.0, newest)
    if label is None and len(in_band) == size:
        return  # drops all: an error, tested above

    def condition(j: int) -> bool:
        return label is None or (classes[j] == 0) == (label == "same")

    lost = {j for j in in_band if condition(j)}
    ordered = sorted(newest, key=lambda j: (sims[j], j))
    first = oracles.ranks(lo, 1.0, size).start
    threshold = sims[ordered[first]] if first > 0 else float("-inf")
    waiting = sorted((j for j in range(len(sims)) if ages[j] >= size), key=lambda j: ages[j])
    allowed = [j for j in waiting if not (sims[j] >= threshold and condition(j))]
    expected = sorted(set(newest) - lost | set(allowed[: len(lost)]))

    verb = {"band": [lo, 1.0]} | ({"label": label} if label else {})
    pool = build({"drop": verb, "fill": "older"})(queue_pool([sims], ages, size, classes))
    assert columns_left(pool) == [expected]
    if len(sims) > size:
        assert bool(pool.notes["fill_short"][0]) == (len(allowed) < len(lost))
