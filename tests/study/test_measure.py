"""A study agrees with plain loops, finds planted structure, and survives saving."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats

from solo_hardneg.errors import DataError
from solo_hardneg.study import measure as module
from solo_hardneg.study.measure import Study, class_pairs, load_study, measure, t_tests
from solo_hardneg.study.significance import student

N, M, D, C, BINS = 7, 40, 5, 4, 8


def random_study(seed: int = 0, **more: Any) -> Study:
    generator = np.random.default_rng(seed)
    arguments: dict[str, Any] = {
        "query": generator.normal(size=(N, D)),
        "negative": generator.normal(size=(M, D)),
        "query_labels": generator.integers(-1, C, N),
        "negative_labels": generator.integers(-1, C, M),
        "percentiles": BINS,
        "depths": generator.integers(0, 9, (C, C)),
        "class_names": [f"class {c}" for c in range(C)],
        "seed": seed,
    }
    return measure(**{**arguments, **more})


def ranked(one: Study) -> list[list[int]]:
    """The negatives of each query, easiest first."""
    similarity = one.query_embeddings @ one.negative_embeddings.T
    return [sorted(range(M), key=lambda j: (row[j], j)) for row in similarity]


def loop_mean(one: Study, value: Any, place: Any) -> float:
    """Mean of ``value(i, j)`` over queries i and negatives j whose rank satisfies ``place``."""
    found = [
        value(i, j) for i, order in enumerate(ranked(one)) for r, j in enumerate(order) if place(r)
    ]
    return float(np.nanmean(found))


def test_means_agree_with_plain_loops() -> None:
    generator = np.random.default_rng(3)
    depths = generator.integers(0, 9, (C, C))
    one = random_study(depths=depths)
    query, negative = one.query_labels, one.negative_labels
    similarity = one.query_embeddings @ one.negative_embeddings.T

    def known(i: int, j: int) -> bool:
        return query[i] >= 0 and negative[j] >= 0

    values = {
        "similarity": lambda i, j: similarity[i, j],
        "same_class": lambda i, j: float(query[i] == negative[j]) if known(i, j) else np.nan,
        "depth": lambda i, j: float(depths[query[i], negative[j]]) if known(i, j) else np.nan,
    }
    for name, value in values.items():
        expected = [loop_mean(one, value, lambda r, b=b: r * BINS // M == b) for b in range(BINS)]
        np.testing.assert_allclose(getattr(one, name), expected, rtol=1e-5, err_msg=name)
        parts = {
            "hardest_5": lambda r: r >= 38,
            "easiest_95": lambda r: r < 38,
            "all": lambda r: True,
        }
        for part, place in parts.items():
            expected_mean = loop_mean(one, value, place)
            assert one.scalars[f"{name}/{part}"] == pytest.approx(expected_mean, rel=1e-5), part
    hard = [np.mean([j in order[38:] for order in ranked(one)]) for j in range(M)]
    np.testing.assert_allclose(one.hard_share, hard)
    for a in range(C):
        for b in range(C):
            some = similarity[np.ix_(query == a, negative == b)]
            assert one.class_number[a, b] == some.size
            expected_mean = some.mean() if some.size else np.nan
            np.testing.assert_allclose(one.class_mean[a, b], expected_mean, rtol=1e-4)


def test_of_orthogonal_classes_the_hardest_are_the_querys_own() -> None:
    labels = np.arange(100) % 10  # ten negatives of each class: the hardest tenth
    one = measure(np.eye(10), np.eye(10)[labels], np.arange(10), labels, percentiles=20)
    np.testing.assert_allclose(one.same_class, [0.0] * 18 + [1.0] * 2)
    np.testing.assert_allclose(one.similarity, [0.0] * 18 + [1.0] * 2)
    assert one.scalars["same_class/hardest_5"] == 1.0
    assert one.scalars["same_class/easiest_95"] == pytest.approx(5 / 95)
    assert one.scalars["same_class/all"] == pytest.approx(0.1)
    np.testing.assert_allclose(one.class_mean, np.eye(10))
    assert np.isnan(one.depth).all()  # no depths were given


def hard_negatives(spread: float, seed: int = 0) -> Study:
    """600 queries and negatives; with a spread, some negatives are near all queries."""
    generator = np.random.default_rng(seed)
    query, negative = generator.normal(size=(2, 600, 16))
    query[:, 0] += 4
    negative[:, 0] += spread * generator.normal(size=600)
    zeros = np.zeros(600, dtype=int)
    return measure(query, negative, zeros, zeros, 10, seed=seed)


def chi_square(shares: NDArray[Any], queries: int, rate: float) -> float:
    """p of the shares being binomial, with tails pooled so that each cell expects five."""
    counts = np.rint(shares * queries).astype(int)
    binomial = stats.binom(queries, rate)
    cuts = np.unique(binomial.ppf(np.linspace(0.05, 0.95, 11))).astype(int)
    expected = np.diff([0.0, *binomial.cdf(cuts), 1.0]) * len(counts)
    observed = np.bincount(np.searchsorted(cuts, counts), minlength=len(expected))
    return float(stats.chisquare(observed, expected).pvalue)


def test_shuffled_negatives_are_hard_binomially() -> None:
    one = hard_negatives(spread=3.0)
    assert one.hard_rate == pytest.approx(0.05)
    assert chi_square(one.shuffled_share, 600, one.hard_rate) > 1e-3
    assert chi_square(one.hard_share, 600, one.hard_rate) < 1e-9  # the test can fail
    assert one.shuffled_share.mean() == pytest.approx(0.05)
    assert one.hard_share.std() > 4 * one.shuffled_share.std()


def test_the_mean_of_hard_shares_is_exact_even_if_twenty_does_not_divide() -> None:
    one = random_study(
        negative=np.random.default_rng(0).normal(size=(33, D)), negative_labels=[0] * 33
    )
    assert one.hard_rate == pytest.approx(2 / 33)  # ranks 31 and 32: floor(0.95 · 33) = 31


def test_chunks_of_queries_give_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = random_study()
    monkeypatch.setattr(module, "CHUNK", 2 * M)  # two queries at a time
    parts = random_study()
    for name in ("similarity", "same_class", "depth", "hard_share", "class_mean"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-6)
    assert parts.scalars == pytest.approx(dict(whole.scalars))


def test_lengths_of_vectors_are_ignored() -> None:
    generator = np.random.default_rng(0)
    query, negative = generator.normal(size=(N, D)), generator.normal(size=(M, D))
    one = random_study(query=query, negative=negative)
    other = random_study(query=query * 7, negative=negative * generator.uniform(1, 9, (M, 1)))
    np.testing.assert_allclose(other.similarity, one.similarity, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(other.negative_embeddings, axis=1), 1, rtol=1e-6)


def test_without_labels_only_similarity_is_known() -> None:
    unknown = {"query_labels": [-1] * N, "negative_labels": [-1] * M, "class_names": ()}
    one = random_study(**unknown, depths=None)
    assert np.isfinite(one.similarity).all()
    assert np.isfinite(one.hard_share).all()
    assert np.isnan(one.same_class).all()
    assert np.isnan(one.scalars["same_class/hardest_5"])
    assert one.class_mean.shape == (0, 0)
    assert all(len(table) == 0 for table in class_pairs(one).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": np.empty((0, D))}, r"There are no queries: an array of shape \(0, 5\), not"),
        (
            {"negative": np.full((M, D), np.nan)},
            "of the negatives are not finite: training has diverged",
        ),
    ],
)
def test_empty_and_diverged_embeddings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        random_study(**change)


# ---------------------------------------------------------------------- tables


def with_means(mean: Any) -> Study:
    mean = np.asarray(mean, dtype=float)
    names = [f"c{i}" for i in range(len(mean))]
    return replace(random_study(), class_mean=mean, class_number=mean * 0 + 1, class_names=names)


def test_pairs_of_different_classes_are_sorted() -> None:
    nan = np.nan
    one = with_means([[1.0, 0.5, -0.2], [0.5, 0.9, nan], [0.01, -0.7, 1.0]])
    found = {
        name: [tuple(row) for row in table.drop(columns="similarities").itertuples(index=False)]
        for name, table in class_pairs(one, 3).items()
    }
    assert found == {  # mean similarity, class of the negative, class of the query
        "anti-correlated": [(-0.7, "c1", "c2"), (-0.2, "c2", "c0"), (0.01, "c0", "c2")],
        "correlated": [(0.5, "c1", "c0"), (0.5, "c0", "c1"), (0.01, "c0", "c2")],  # tie by index
        "orthogonal": [(0.01, "c0", "c2"), (-0.2, "c2", "c0"), (0.5, "c1", "c0")],
    }
    assert [*class_pairs(one)["correlated"].columns] == [
        "mean similarity",
        "similarities",
        "class of the negative",
        "class of the query",
    ]
    assert len(class_pairs(one, 99)["correlated"]) == 5


def seeds(hard: list[float], easy: list[float]) -> list[Study]:
    return [
        replace(random_study(), scalars={"same_class/hardest_5": h, "same_class/easiest_95": e})
        for h, e in zip(hard, easy, strict=True)
    ]


def test_t_tests_of_hard_and_easy_negatives() -> None:
    hard, easy = [0.5, 0.6, 0.55], [0.45, 0.5, 0.49]
    row = t_tests(seeds(hard, easy)).iloc[0]
    assert row["p"] == student(hard, easy)
    assert row["quantity"] == "share of the query's class"
    assert row["hardest 5 %"] == pytest.approx(0.55)
    assert row["std easiest 95 %"] == pytest.approx(np.std(easy, ddof=1))
    assert (row["seeds"], row["note"]) == (3, "")


def test_a_missing_t_test_is_explained() -> None:
    one, two = t_tests(seeds([0.5], [0.4])), t_tests(seeds([0.5] * 2, [0.4] * 2))
    assert [*one["note"]] == ["one seed: a t-test needs two or more", "not known"]
    assert two["note"][0] == "all seeds have the same values"
    assert np.isnan([*one["p"], *two["p"]]).all()
    assert one["hardest 5 %"][0] == 0.5
    assert pd.isna(one["std hardest 5 %"][0])


# ---------------------------------------------------------------------- files


def test_a_saved_study_is_read_unchanged(tmp_path: Path) -> None:
    one = random_study(
        info={"policy": {"keep": {"band": [0.95, 1.0]}}, "seed": 5},
        notes=["depth – missing"],
        tsne=np.ones((N, 2), np.float32),
        tsne_labels=np.zeros(N, np.int64),
        depths=None,
    )
    one.save(tmp_path / "deep" / "study.npz")
    again = load_study(tmp_path / "deep" / "study.npz")
    for item in fields(Study):
        before, after = getattr(one, item.name), getattr(again, item.name)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype, item.name
            np.testing.assert_array_equal(after, before, err_msg=item.name)
        else:
            np.testing.assert_equal(after, before, err_msg=item.name)  # NaN equals NaN here
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["study.npz"]
    assert (tmp_path / "deep" / "study.npz").stat().st_mode & 0o444 == 0o444


AGAIN = "Make it again with: solo-hardneg analyze CHECKPOINT."


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.npz"
    random_study().save(path)
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError) as error:
            load_study(path)
        assert f"{path}: this study can't be read; it is cut off or not an .npz file (" in str(
            error.value
        )
        assert str(error.value).endswith(AGAIN)


def save_changed(path: Path, **entries: Any) -> Path:
    random_study().save(path)
    with np.load(path) as file:
        stored = {name: file[name] for name in file.files}
    stored.update(entries)
    np.savez(path, **{name: value for name, value in stored.items() if value is not None})
    return path


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({module._MARK: None}, "not a study: it lacks the entry solo_hardneg.study"),
        ({module._MARK: [2]}, "this study has version [2], but only 1 can be read"),
        ({"json": None}, "this study is damaged ('json')"),
        ({"json": "{"}, "this study is damaged (Expecting property name"),
        ({"json": json.dumps({"nix": 1})}, "this study is damaged (Study.__init__() got an unexp"),
        ({"depth": None}, "this study is damaged (Study.__init__() missing 1 required"),
        ({"depth": np.zeros(3)}, "this study is damaged (depth has shape (3,), not (8,))"),
        ({"hard_share": np.zeros(3)}, "this study is damaged (hard_share has shape (3,), not (40"),
        (
            {"depth": np.array([{}], dtype=object)},
            "this study can't be read; it is cut off or not an .npz file (Object arrays cannot be",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, entries: Any, message: str) -> None:
    path = save_changed(tmp_path / "study.npz", **entries)
    with pytest.raises(DataError) as error:
        load_study(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert str(error.value).endswith(AGAIN)


def test_a_missing_or_unwritable_study(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="study.npz: no such study. Make it again"):
        load_study(tmp_path / "study.npz")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"can't be written .*Set out=... to a folder"):
        random_study().save(tmp_path / "file" / "study.npz")
