"""Statistics of negatives, against plain loops, closed forms, autograd and NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from plain_rankings import hardest_last, ragged
from torch import Tensor

from solo_hardneg.losses import info_nce, mocov2plus_loss_func, simclr_loss_func
from solo_hardneg.negatives import Pool, build, full_pool
from solo_hardneg.recording import statistics
from solo_hardneg.recording.statistics import Summary, summarize
from solo_hardneg.study import measure as study

NAN = float("nan")


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


def test_histogram_equals_numpys():
    generator = torch.Generator().manual_seed(7)
    places = torch.randint(200, (777,), generator=generator)
    values = (places + 0.1 + 0.8 * torch.rand(777, generator=generator)) / 100 - 1
    expected, _ = np.histogram(values.numpy(), bins=200, range=(-1, 1))
    assert statistics.histogram(values).tolist() == expected.tolist()
    ends = statistics.histogram(torch.tensor([-1.0, 1.0, 1.0000001]))  # rounding goes beyond 1
    assert (ends[0], ends[-1], ends.sum()) == (1, 2, 3)


# ---------------------------------------------------------------------- shares of the loss


def test_orthogonal_negatives_have_equal_shares():
    """Closed form: all similarities are 0."""
    vectors = torch.eye(40)
    pool = full_pool(vectors[:8] @ vectors[8:].T)
    mass = statistics.softmax_mass(pool, 0.1)
    assert mass.numpy() == pytest.approx(1 / 32)
    assert statistics.effective_number(mass).tolist() == pytest.approx([32] * 8)
    alone = torch.eye(32)[:1]
    assert statistics.effective_number(alone).tolist() == pytest.approx([1])
    weight = gradient_weight(pool, 0.1)
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


def gradient_weight(pool: Pool, temperature: float) -> Tensor:
    mass = statistics.softmax_mass(pool, temperature)
    return statistics.gradient_weight(pool, mass, temperature)


def left_by(config: dict[str, Any], seed: int = 0) -> Pool:
    torch.manual_seed(seed)
    query, negatives = unit(6, 16, seed=seed), unit(120, 16, seed=seed + 1)
    pool = full_pool(query @ negatives.T, query=query, vectors=negatives).offer()
    return build(config)(pool)


@pytest.mark.parametrize("config", POLICIES.values(), ids=POLICIES)
def test_mass_and_gradient_equal_those_of_the_loss(config):
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
    weight = gradient_weight(pool, 0.5)
    found = weight / weight.sum(dim=1, keepdim=True)
    assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-5)
    mass = statistics.softmax_mass(pool, 0.5)
    assert mass.sum(dim=1).tolist() == pytest.approx([1] * 6)
    if pool.beta == 0:
        slope = gradient.abs() / gradient.abs().sum(dim=1, keepdim=True)
        assert mass.numpy() == pytest.approx(slope.numpy(), abs=1e-5)


def test_log_weights_of_a_third_party_are_included():
    pool = left_by({"reweight": {"beta": 0.5}})
    weight = torch.rand(pool.similarity.shape, generator=torch.Generator().manual_seed(5)).log()
    weight[:, 7] = -torch.inf
    pool = Pool(pool.similarity, pool.present, log_weight=weight, beta=pool.beta)
    logits = weight.double() + 1.5 * pool.similarity.double() / 0.2
    expected = torch.softmax(logits, dim=1)
    assert statistics.softmax_mass(pool, 0.2).numpy() == pytest.approx(expected.numpy(), abs=1e-5)
    assert (gradient_weight(pool, 0.2)[:, 7] == 0).all()


def test_the_weight_is_a_norm_before_normalisation():
    """A single negative has all of the gradient."""
    vector = torch.tensor([0.3, 1.2, -0.5], requires_grad=True)
    negative = unit(1, 3)[0]
    similarity = F.normalize(vector, dim=0) @ negative
    (gradient,) = torch.autograd.grad(similarity, vector)
    expected = float(gradient.norm() * vector.norm().detach())
    pool = full_pool(similarity.detach()[None, None])
    assert float(gradient_weight(pool, 0.1)) == pytest.approx(expected, abs=1e-6)


def test_floored_queries_have_no_gradient():
    pool = left_by({"debias": {"tau_plus": 0.1}})
    pool = pool.note(floored=torch.tensor([1.0, 0, 0, 0, 0, 1]))
    weight = gradient_weight(pool, 0.2)
    assert weight.isnan().all(dim=1).tolist() == [True, False, False, False, False, True]
    summary = summarize(pool, 0.2)
    assert float(numbers_of(summary)["scalar", "gradient/hardest_5"]) == 4
    assert float(numbers_of(summary)["scalar", "mass/hardest_5"]) == 6
    assert float(means_of(summary)["scalar", "floored"]) == pytest.approx(2 / 6)


# ---------------------------------------------------------------------- the summary


def means_of(summary: Summary) -> dict[tuple[str, str], Tensor]:
    return {key: mean for key, (mean, _) in summary.means().items()}


def numbers_of(summary: Summary) -> dict[tuple[str, str], Tensor]:
    return {key: number for key, (_, number) in summary.means().items()}


def close(one: Summary, other: Summary) -> None:
    for name in ("sums", "histograms"):
        left, right = getattr(one, name), getattr(other, name)
        assert left.keys() == right.keys()
        for key, value in left.items():
            assert value.numpy() == pytest.approx(right[key].numpy(), abs=1e-4), key
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
def test_shares_of_percentiles_and_added_negatives_sum_to_one(config):
    means = means_of(summarize(labelled(config), 0.2, 10))
    for name in ("mass", "gradient"):
        extra = means["scalar", f"{name}/synthetic"] + means["scalar", f"{name}/filled"]
        assert float(means["percentile", name].sum() + extra) == pytest.approx(1)


def counts(config: dict[str, Any]) -> dict[str, float]:
    means = means_of(summarize(labelled(config), 0.2, 10))
    return {q.removeprefix("count/"): float(v) for (_, q), v in means.items() if "count/" in q}


@pytest.mark.parametrize(
    "config", [FILLED, {"keep": {"band": [0.7, 1.0]}}, {"drop": {"label": "same"}}]
)
def test_precision_and_recall_of_what_was_dropped(config):
    """Against plain loops: precision and recall of the class, in all and by percentile."""
    pool = labelled(config)
    means, bins = means_of(summarize(pool, 0.2, 10)), 10
    for b in [*range(bins), None]:
        lost, same = [], []
        for row in range(12):
            columns = hardest_last(pool.similarity, pool.offered, row)
            chosen = columns if b is None else columns[8 * b : 8 * (b + 1)]  # of 80
            for j in chosen:
                if pool.labels[j] >= 0:
                    lost.append(not pool.present[row, j])
                    same.append(int(pool.labels[j]) == int(pool.query_labels[row]))
        both = sum(x and y for x, y in zip(lost, same, strict=True))
        precision = both / sum(lost) if sum(lost) else math.nan
        recall = both / sum(same) if sum(same) else math.nan
        kind, place = ("scalar", 0) if b is None else ("percentile", b)
        for name, expected in (("precision", precision), ("recall", recall)):
            found = float(means[kind, f"dropped/{name}"][place])
            assert found == pytest.approx(expected, nan_ok=True), (b, name)


def test_the_oracle_is_right_and_complete():
    means = means_of(summarize(labelled({"drop": {"label": "same"}}), 0.2))
    assert float(means["scalar", "dropped/precision"]) == 1
    assert float(means["scalar", "dropped/recall"]) == 1


@pytest.mark.parametrize("config", [{}, {"reweight": 1.0}])
def test_a_policy_that_drops_nothing_has_no_precision(config):
    names = [name for _, name in means_of(summarize(labelled(config), 0.2))]
    assert not [name for name in names if "dropped/" in name]


def test_counts_describe_the_policy():
    nothing = {"offered": 80, "kept": 80, "dropped": 0, "synthetic": 0, "filled": 0}
    assert counts({}) == nothing
    assert counts({"keep": {"band": [0.95, 1.0]}}) == {**nothing, "kept": 4, "dropped": 76}
    assert counts({"mix": {"hardest": 8, "pairs": 4, "queries": 2}}) == {**nothing, "synthetic": 6}
    filled = counts(FILLED)
    assert filled["dropped"] > 0
    assert filled["kept"] == 80 - filled["dropped"]
    assert filled["filled"] == pytest.approx(filled["dropped"])  # the reserve is large enough


def test_difficulty_is_ranked_before_the_policy():
    """The hardest 5 % before the policy have all mass if only they are kept."""
    means = means_of(summarize(labelled({"keep": {"band": [0.95, 1.0]}}), 0.2, 20))
    assert float(means["scalar", "mass/hardest_5"]) == pytest.approx(1)
    assert means["percentile", "mass"].tolist() == pytest.approx([0] * 19 + [1])
    everything = means_of(summarize(labelled({}), 0.2, 20))
    for key in [("percentile", "similarity"), ("scalar", "similarity/negative")]:
        assert torch.equal(means[key], everything[key])


def test_unknown_classes_are_left_out():
    similarity = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    known = {"query_labels": torch.tensor([2]), "labels": torch.tensor([2, -1, 2, 0])}
    summary = summarize(full_pool(similarity, **known), 0.1, 2)
    assert means_of(summary)["percentile", "same_class"].tolist() == [1, 0.5]
    assert numbers_of(summary)["percentile", "same_class"].tolist() == [1, 2]
    none = {"query_labels": torch.tensor([-1]), "labels": torch.tensor([2, -1, 2, 0])}
    for pool in (full_pool(similarity, **none), full_pool(similarity)):
        assert ("percentile", "same_class") not in summarize(pool, 0.1, 2).sums


def test_queries_without_negatives_are_left_out():
    similarity, present = ragged()
    summary = summarize(Pool(similarity, present).offer(), 0.2, 5)
    for name in ("mass/hardest_5", "effective_negatives", "similarity/negative"):
        assert float(numbers_of(summary)["scalar", name]) == 4, name
    assert float(numbers_of(summary)["percentile", "mass"][0]) == 4
    assert all(bool(mean.isfinite().all()) for mean in means_of(summary).values())


def test_several_positives_are_averaged():
    z = unit(12, 8)
    images = torch.arange(4).repeat(3)  # three views
    seen: list[Pool] = []
    simclr_loss_func(z, images, 0.5, observe=seen.append)
    similarity = z @ z.T
    for i, found in enumerate(seen[0].positive.tolist()):  # type: ignore[union-attr]
        others = [float(similarity[i, j]) for j in range(12) if j != i and images[j] == images[i]]
        assert len(others) == 2
        assert found == pytest.approx(sum(others) / 2, abs=1e-6)


def test_nan_is_left_out_of_histograms():
    pool = full_pool(torch.full((3, 50), NAN), positive=torch.full((3,), NAN))
    summary = summarize(pool, 0.2, 10)
    assert all(float(count.sum()) == 0 for count in summary.histograms.values())
    assert ("scalar", "positive/p50") not in summary.means()
    assert float(numbers_of(summary)["scalar", "similarity/positive"]) == 0


def test_quantiles_of_positives_equal_numpys():
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
    assert summary.histograms["positive"].sum() == 40
    assert summary.histograms["negative"].sum() == 40 * 38


def test_the_recorder_and_a_study_agree_on_the_same_batch():
    """The recorder sees a pool, ``analyze`` the same vectors."""
    queries, negatives = unit(30, 8), unit(200, 8, seed=1)
    query_labels, labels = torch.arange(30) % 5, torch.arange(200) % 5
    depths = torch.arange(25.0).reshape(5, 5)
    depths = depths + depths.T
    pool = full_pool(queries @ negatives.T, query_labels=query_labels, labels=labels)
    means = means_of(summarize(pool, 0.1, 20, depths))
    vectors = (queries, negatives, query_labels, labels)
    offline = study.measure(*vectors, percentiles=20, depths=depths)
    for name in ("similarity", "same_class", "depth"):
        assert means["percentile", name].numpy() == pytest.approx(getattr(offline, name), abs=1e-6)
    for name in ("same_class", "depth"):
        for part in ("hardest_5", "easiest_95"):
            found = float(means["scalar", f"{name}/{part}"])
            assert found == pytest.approx(offline.scalars[f"{name}/{part}"], abs=1e-6)
    hard = summarize(pool, 0.1, 20).hard.numpy() / 30
    assert hard == pytest.approx(offline.hard_share)
