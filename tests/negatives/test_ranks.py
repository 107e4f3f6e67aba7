"""Bands against the definition in plain Python."""

from __future__ import annotations

import itertools

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from solo_hardneg.errors import ConfigError
from solo_hardneg.negatives import EmptyBandError, full_pool
from solo_hardneg.negatives.ranks import band_count, band_mask, band_ranks, parse_band

percent = st.integers(0, 100).map(lambda p: p / 100)
two_percent = st.tuples(percent, percent).filter(lambda p: p[0] < p[1])
# Few distinct values give many ties.
coarse = st.integers(-3, 3).map(lambda v: v / 3)


@st.composite
def similarities(draw: st.DrawFn, max_columns: int = 67) -> torch.Tensor:
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, max_columns))
    values = draw(st.lists(coarse, min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(values).view(rows, columns)


def columns_of(mask: torch.Tensor) -> list[set[int]]:
    return [set(row.nonzero().flatten().tolist()) for row in mask]


@given(similarities(), two_percent)
def test_band_equals_the_definition(sims: torch.Tensor, band: tuple[float, float]) -> None:
    expected = [oracles.band(row.tolist(), *band) for row in sims]
    if not expected[0]:
        with pytest.raises(EmptyBandError, match=f"M={sims.shape[1]} "):
            band_mask(full_pool(sims), band, "key")
        return
    mask, count = band_mask(full_pool(sims), band, "key")
    assert columns_of(mask) == expected
    assert count == len(expected[0])


@given(similarities(), st.lists(percent, max_size=4), st.data())
def test_bands_partition_the_negatives_present(
    sims: torch.Tensor, cuts: list[float], data: st.DataObject
) -> None:
    flags = data.draw(st.lists(st.booleans(), min_size=sims.numel(), max_size=sims.numel()))
    pool = full_pool(sims)
    pool = pool.only(torch.tensor(flags).view_as(sims))
    edges = sorted({0.0, 1.0, *cuts})
    union = torch.zeros_like(pool.present)
    present = [row.nonzero().flatten().tolist() for row in pool.present]
    for lo, hi in itertools.pairwise(edges):
        expected = [
            oracles.band(row.tolist(), lo, hi, columns)
            for row, columns in zip(sims, present, strict=True)
        ]
        mask, count = band_mask(pool, (lo, hi), "key")
        assert columns_of(mask) == expected
        assert count is None  # it may differ between queries
        assert not (union & mask).any()
        union |= mask
    assert torch.equal(union, pool.present)


def test_ranks_equal_those_of_exact_fractions() -> None:
    for count, lo in itertools.product(
        (1, 2, 3, 37, 100, 1000, 65536, 131071), (0.0, 0.07, 0.29, 0.57, 0.58, 0.9, 0.95, 0.999)
    ):
        for hi in (round(lo + 0.001, 3), 1.0):
            expected = oracles.ranks(lo, hi, count)
            assert band_ranks((lo, hi), count) == (expected.start, expected.stop), (lo, hi, count)


def test_extreme_similarities_sort_correctly() -> None:
    sims = torch.tensor([[1.0, -1.0, 0.0, torch.finfo(torch.float32).min]])
    mask, _ = band_mask(full_pool(sims), (0.0, 0.5), "key")
    assert columns_of(mask) == [{1, 3}]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([0.5, 1.2], r"k=\[0.5, 1.2\]: lies outside \[0, 1\].*hardest 5 % are \[0.95, 1.0\]"),
        ([-0.1, 0.5], r"lies outside \[0, 1\]"),
        ([0.9, 0.1], "upside down"),
        ([0.5, 0.5], "upside down or empty"),
        ([0.1, 0.2, 0.3], "two numbers"),
        (0.5, "k=0.5: must be two numbers"),
        ("01", "k=01: must be two numbers"),
        (["a", 1], "two numbers"),
    ],
)
def test_invalid_bands_are_refused(value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_band(value, "k")


def test_empty_band_error_gives_the_least_width() -> None:
    with pytest.raises(EmptyBandError, match=r"k=\[0.5, 0.501\].*M=64 .*1/M = 0.016"):
        band_count((0.5, 0.501), 64, "k")
    assert band_count((0.5, 0.501), 0, "k") == 0  # no error without negatives
