"""The statistics of negatives, against plain loops, closed forms, autograd and NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from solo_hardneg.analysis import ranking, statistics, study
from solo_hardneg.analysis.ranking import Ranking, rank
from solo_hardneg.analysis.statistics import Summary, summarize
from solo_hardneg.losses import info_nce, mocov2plus_loss_func, simclr_loss_func
from solo_hardneg.negatives import Pool, build, full_pool

NAN = float("nan")


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


def ragged(rows: int = 5, width: int = 23, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Similarities with many ties, and negatives of differing number, of one query none."""
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.randint(-3, 4, (rows, width), generator=generator) / 4
    present = torch.rand(rows, width, generator=generator) < 0.7
    present[1] = False
    return similarity, present


def in_order(similarity: Tensor, present: Tensor, row: int) -> list[int]:
    columns = [j for j in range(similarity.shape[1]) if present[row, j]]
    return sorted(columns, key=lambda j: (float(similarity[row, j]), j))


# ---------------------------------------------------------------------- ranks and percentiles


def test_ranks_are_those_of_a_sort_by_similarity_and_index():
    similarity, present = ragged()
    ranks = rank(similarity, present)
    for row in range(len(similarity)):
        count = int(ranks.counts[row])
        assert count == int(present[row].sum())
        expected = in_order(similarity, present, row)
        assert ranks.columns[row, similarity.shape[1] - count :].tolist() == expected


@given(st.integers(0, 400), st.integers(1, 120))
def test_percentiles_share_out_all_ranks(count, bins):
    edges = ranking.edges(count, bins)
    assert edges[0] == 0
    assert edges[-1] == count
    assert len(edges) == bins + 1
    widths = np.diff(edges)
    assert widths.min() >= count // bins
    assert widths.max() <= math.ceil(count / bins)


@pytest.mark.parametrize("bins", [1, 4, 10, 50])
def test_means_by_percentile_are_those_of_plain_loops(bins):
    similarity, present = ragged()
    values = torch.randn(similarity.shape, generator=torch.Generator().manual_seed(1))
    values[values > 1] = NAN
    sums, numbers = ranking.by_percentile(rank(similarity, present).order(values), bins)
    expected: list[list[float]] = [[] for _ in range(bins)]
    for row in range(len(similarity)):
        columns = in_order(similarity, present, row)
        for b in range(bins):
            # floor(b·c / bins) in whole numbers, where no guard is needed
            some = columns[b * len(columns) // bins : (b + 1) * len(columns) // bins]
            expected[b] += [float(values[row, j]) for j in some if not math.isnan(values[row, j])]
    assert numbers.tolist() == [len(e) for e in expected]
    assert sums.tolist() == pytest.approx([sum(e) for e in expected], abs=1e-5)


def test_shares_of_hardest_are_those_of_plain_loops():
    similarity, present = ragged(width=100)
    weight = torch.rand(similarity.shape, generator=torch.Generator().manual_seed(3))
    percents = (5, 29, 50, 100)  # 0.71 · 100 is less than 71 in floating point
    ordered = rank(similarity, present).order(weight)
    shares = ranking.shares_of_hardest(ordered, weight.sum(1), [p / 100 for p in percents])
    for row in range(len(similarity)):
        columns = in_order(similarity, present, row)
        for number, percent in enumerate(percents):
            hardest = columns[(100 - percent) * len(columns) // 100 :]
            expected = sum(float(weight[row, j]) for j in hardest) / float(weight[row].sum())
            expected = expected if columns else NAN
            assert float(shares[row, number]) == pytest.approx(expected, nan_ok=True)


def test_hard_counts_are_those_of_plain_loops():
    similarity, present = ragged(rows=9, width=60)
    counts = ranking.hard_counts(rank(similarity, present))
    expected = [0] * 60
    for row in range(9):
        columns = in_order(similarity, present, row)
        for j in columns[95 * len(columns) // 100 :]:
            expected[j] += 1
    assert counts.tolist() == expected


def test_histogram_is_numpys():
    generator = torch.Generator().manual_seed(7)
    places = torch.randint(200, (777,), generator=generator)
    values = (places + 0.1 + 0.8 * torch.rand(777, generator=generator)) / 100 - 1
    expected, _ = np.histogram(values.numpy(), bins=200, range=(-1, 1))
    assert statistics.histogram(values).tolist() == expected.tolist()
    ends = statistics.histogram(torch.tensor([-1.0, 1.0, 1.0000001]))  # rounding goes beyond 1
    assert (ends[0], ends[-1], ends.sum()) == (1, 2, 3)


# ---------------------------------------------------------------------- what the loss makes of them


def test_orthogonal_negatives_share_everything_alike():
    """Closed form: all similarities are 0."""
    vectors = torch.eye(40)
    pool = full_pool(vectors[:8] @ vectors[8:].T)
    mass = statistics.softmax_mass(pool, 0.1)
    assert mass.numpy() == pytest.approx(1 / 32)
    assert statistics.effective_number(mass).tolist() == pytest.approx([32] * 8)
    alone = torch.eye(32)[:1]
    assert statistics.effective_number(alone).tolist() == pytest.approx([1])
    weight = statistics.gradient_weight(pool, 0.1)
    assert (weight / weight.sum(dim=1, keepdim=True)).numpy() == pytest.approx(1 / 32)


POLICIES: dict[str, dict[str, Any]] = {
    "all": {},
    "hardest 5 %": {"keep": {"band": [0.95, 1.0]}},
    "reweighted": {"reweight": {"beta": 0.7}},
    "debiased": {"debias": {"tau_plus": 0.05}},
    "mixed": {"mix": {"hardest": 8, "pairs": 4, "queries": 2}},
    "sscl": {
        "mix": {"hardest": 8, "pairs": 4},
        "reweight": {"beta": 1.0},
        "debias": {"tau_plus": 0.05},
    },
}


def left_by(config: dict[str, Any], seed: int = 0) -> Pool:
    torch.manual_seed(seed)
    query, negatives = unit(6, 16, seed=seed), unit(120, 16, seed=seed + 1)
    pool = full_pool(query @ negatives.T, query=query, vectors=negatives).offer()
    return build(config)(pool)


@pytest.mark.parametrize("config", POLICIES.values(), ids=POLICIES)
def test_mass_and_gradient_are_those_of_the_loss(config):
    """Against autograd: |∂L/∂s| times the length of ∂s/∂q."""
    pool = left_by(config)
    similarity = pool.similarity.double().requires_grad_()
    leaf = Pool(similarity, pool.present, beta=pool.beta, tau_plus=pool.tau_plus)
    positive = torch.full((6,), 0.3, dtype=torch.float64)
    losses, floored = info_nce(positive, leaf, 0.5)
    assert not floored.any()
    (gradient,) = torch.autograd.grad(losses.sum(), similarity)
    length = gradient.abs() * (1 - similarity.detach() ** 2).sqrt()
    expected = length / length.sum(dim=1, keepdim=True)
    weight = statistics.gradient_weight(pool, 0.5)
    found = weight / weight.sum(dim=1, keepdim=True)
    assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-5)
    mass = statistics.softmax_mass(pool, 0.5)
    assert mass.sum(dim=1).tolist() == pytest.approx([1] * 6)
    if pool.beta == 0:
        slope = gradient.abs() / gradient.abs().sum(dim=1, keepdim=True)
        assert mass.numpy() == pytest.approx(slope.numpy(), abs=1e-5)


def test_a_third_partys_weights_count():
    pool = left_by({"reweight": {"beta": 0.5}})
    weight = torch.rand(pool.similarity.shape, generator=torch.Generator().manual_seed(5)).log()
    weight[:, 7] = -torch.inf
    pool = Pool(pool.similarity, pool.present, log_weight=weight, beta=pool.beta)
    logits = weight.double() + 1.5 * pool.similarity.double() / 0.2
    expected = torch.softmax(logits, dim=1)
    assert statistics.softmax_mass(pool, 0.2).numpy() == pytest.approx(expected.numpy(), abs=1e-5)
    assert (statistics.gradient_weight(pool, 0.2)[:, 7] == 0).all()


def test_the_length_is_that_of_the_gradient_before_normalisation():
    """A single negative: all of the gradient beside the positive's comes from it."""
    vector = torch.tensor([0.3, 1.2, -0.5], requires_grad=True)
    negative = unit(1, 3)[0]
    similarity = F.normalize(vector, dim=0) @ negative
    (gradient,) = torch.autograd.grad(similarity, vector)
    expected = float(gradient.norm() * vector.norm().detach())
    pool = full_pool(similarity.detach()[None, None])
    assert float(statistics.gradient_weight(pool, 0.1)) == pytest.approx(expected, abs=1e-6)


def test_where_the_floor_binds_there_is_no_gradient_to_share():
    pool = left_by({"debias": {"tau_plus": 0.1}})
    pool = pool.note(floored=torch.tensor([1.0, 0, 0, 0, 0, 1]))
    weight = statistics.gradient_weight(pool, 0.2)
    assert weight.isnan().all(dim=1).tolist() == [True, False, False, False, False, True]
    summary = summarize(pool, 0.2)
    assert float(summary.numbers["scalar", "gradient/hardest_5"]) == 4
    assert float(summary.numbers["scalar", "mass/hardest_5"]) == 6
    assert float(means_of(summary)["scalar", "floored"]) == pytest.approx(2 / 6)


# ---------------------------------------------------------------------- all of it


def means_of(summary: Summary) -> dict[tuple[str, str], Tensor]:
    return {key: mean for key, (mean, _) in summary.means().items()}


def close(one: Summary, other: Summary) -> None:
    for name in ("sums", "numbers", "counts"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            assert value.numpy() == pytest.approx(theirs[key].numpy(), abs=1e-4), key
    assert torch.equal(one.met, other.met)
    assert torch.equal(one.hard, other.hard)
    assert torch.equal(one.positives, other.positives)


def labelled(config: dict[str, Any]) -> Pool:
    seen: list[Pool] = []
    torch.manual_seed(1)
    query, key = unit(12, 8), unit(12, 8, seed=1)
    mocov2plus_loss_func(
        query,
        key,
        unit(90, 8, seed=2).T.contiguous(),
        0.2,
        policy=build(config),
        query_labels=torch.arange(12) % 4,
        queue_labels=torch.arange(90) % 5 - 1,
        queue_age=torch.arange(90),
        queue_size=80,
        observe=seen.append,
    )
    return seen[0]


FILLED = {"drop": {"band": [0.9, 1.0], "label": "same"}, "fill": {"kind": "older"}}


@pytest.mark.parametrize("config", [*POLICIES.values(), FILLED])
def test_parts_add_up_to_the_whole(config, monkeypatch):
    pool = labelled(config)
    depths = torch.arange(16.0).reshape(4, 4)
    whole = summarize(pool, 0.2, 10, depths)
    halves = (summarize(pool.rows(part), 0.2, 10, depths) for part in (slice(5), slice(5, 12)))
    close(whole, next(halves) + next(halves))
    monkeypatch.setitem(statistics.CHUNK, "cpu", 1)  # a query at a time
    close(whole, summarize(pool, 0.2, 10, depths))


@pytest.mark.parametrize("config", [*POLICIES.values(), FILLED])
def test_percentiles_synthetic_and_filled_ones_share_out_the_mass(config):
    means = means_of(summarize(labelled(config), 0.2, 10))
    for name in ("mass", "gradient"):
        extra = means["scalar", f"{name}/synthetic"] + means["scalar", f"{name}/filled"]
        assert float(means["percentile", name].sum() + extra) == pytest.approx(1)


def counts(config: dict[str, Any]) -> dict[str, float]:
    means = means_of(summarize(labelled(config), 0.2, 10))
    return {q.removeprefix("count/"): float(v) for (_, q), v in means.items() if "count/" in q}


def test_counts_say_what_a_policy_did():
    nothing = {"offered": 80, "kept": 80, "dropped": 0, "synthetic": 0, "filled": 0}
    assert counts({}) == nothing
    assert counts({"keep": {"band": [0.95, 1.0]}}) == {**nothing, "kept": 4, "dropped": 76}
    assert counts({"mix": {"hardest": 8, "pairs": 4, "queries": 2}}) == {**nothing, "synthetic": 6}
    filled = counts(FILLED)
    assert filled["dropped"] > 0
    assert filled["kept"] == 80 - filled["dropped"]
    assert filled["filled"] == pytest.approx(filled["dropped"])  # the reserve sufficed


def test_difficulty_is_ranked_before_the_policy():
    """Of the hardest 5 % that were offered, all mass is theirs when they alone are kept."""
    means = means_of(summarize(labelled({"keep": {"band": [0.95, 1.0]}}), 0.2, 20))
    assert float(means["scalar", "mass/hardest_5"]) == pytest.approx(1)
    assert means["percentile", "mass"].tolist() == pytest.approx([0] * 19 + [1])
    everything = means_of(summarize(labelled({}), 0.2, 20))
    for key in [("percentile", "similarity"), ("scalar", "similarity/negative")]:
        assert torch.equal(means[key], everything[key])


def test_unknown_classes_count_nowhere_and_no_labels_leave_them_out():
    similarity = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    known = {"query_labels": torch.tensor([2]), "labels": torch.tensor([2, -1, 2, 0])}
    summary = summarize(full_pool(similarity, **known), 0.1, 2)
    assert means_of(summary)["percentile", "same_class"].tolist() == [1, 0.5]
    assert summary.numbers["percentile", "same_class"].tolist() == [1, 2]
    none = {"query_labels": torch.tensor([-1]), "labels": torch.tensor([2, -1, 2, 0])}
    for pool in (full_pool(similarity, **none), full_pool(similarity)):
        assert ("percentile", "same_class") not in summarize(pool, 0.1, 2).sums


def test_queries_without_negatives_count_nowhere():
    similarity, present = ragged()
    summary = summarize(Pool(similarity, present).offer(), 0.2, 5)
    for name in ("mass/hardest_5", "effective_negatives", "similarity/negative"):
        assert float(summary.numbers["scalar", name]) == 4, name
    assert float(summary.numbers["percentile", "mass"][0]) == 4
    assert all(bool(mean.isfinite().all()) for mean in means_of(summary).values())


def test_of_several_positives_the_similarity_is_the_mean():
    z = unit(12, 8)
    images = torch.arange(4).repeat(3)  # three views
    seen: list[Pool] = []
    simclr_loss_func(z, images, 0.5, observe=seen.append)
    similarity = z @ z.T
    for i, found in enumerate(seen[0].positive.tolist()):  # type: ignore[union-attr]
        others = [float(similarity[i, j]) for j in range(12) if j != i and images[j] == images[i]]
        assert len(others) == 2
        assert found == pytest.approx(sum(others) / 2, abs=1e-6)


def test_a_run_that_diverged_is_nowhere_in_the_histogram():
    pool = full_pool(torch.full((3, 50), NAN), positive=torch.full((3,), NAN))
    summary = summarize(pool, 0.2, 10)
    assert all(float(count.sum()) == 0 for count in summary.counts.values())
    assert ("scalar", "positive/p50") not in summary.means()
    assert float(summary.numbers["scalar", "similarity/positive"]) == 0


def test_positives_quantiles_are_numpys():
    z = unit(40, 8)
    seen: list[Pool] = []
    simclr_loss_func(z, torch.arange(20).repeat(2), 0.5, observe=seen.append)
    expected = (z[:20] * z[20:]).sum(dim=1).repeat(2).numpy()
    summary = summarize(seen[0], 0.5)
    means = means_of(summary)
    assert float(means["scalar", "similarity/positive"]) == pytest.approx(expected.mean(), abs=1e-6)
    for name, share in statistics.QUANTILES.items():
        assert float(means["scalar", f"positive/{name}"]) == pytest.approx(
            np.quantile(expected, share), abs=1e-6
        )
    assert summary.counts["histogram", "positive"].sum() == 40
    assert summary.counts["histogram", "negative"].sum() == 40 * 38


def test_the_recorders_numbers_are_those_of_a_study_of_the_same_batch():
    """What is recorded of a pool, and what ``analyze`` makes of the same vectors."""
    queries, negatives = unit(30, 8), unit(200, 8, seed=1)
    query_labels, labels = torch.arange(30) % 5, torch.arange(200) % 5
    depths = torch.arange(25.0).reshape(5, 5)
    depths = depths + depths.T
    pool = full_pool(queries @ negatives.T, query_labels=query_labels, labels=labels)
    means = means_of(summarize(pool, 0.1, 20, depths))
    vectors = (queries, negatives, query_labels, labels)
    offline = study.study(*vectors, percentiles=20, depths=depths)
    for name in ("similarity", "same_class", "depth"):
        assert means["percentile", name].numpy() == pytest.approx(getattr(offline, name), abs=1e-6)
    for name in ("same_class", "depth"):
        for part in ("hardest_5", "easiest_95"):
            found = float(means["scalar", f"{name}/{part}"])
            assert found == pytest.approx(offline.scalars[f"{name}/{part}"], abs=1e-6)
    hard = summarize(pool, 0.1, 20).hard.numpy() / 30
    assert hard == pytest.approx(offline.hard_share)


def test_ranking_of_groups_keeps_queries_apart():
    ranks = Ranking(torch.tensor([[2, 0, 1], [0, 1, 2]]), torch.tensor([1, 3]))
    found = {
        tuple(which.tolist()): rows.tolist()
        for which, rows in ranks.order(torch.tensor([[10, 11, 12], [20, 21, 22]]))
    }
    assert found == {(0,): [[11]], (1,): [[20, 21, 22]]}
