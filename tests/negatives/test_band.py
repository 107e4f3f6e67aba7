"""Bands against the definition in plain Python: exact counts, ties by index."""

from __future__ import annotations

import itertools

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from solo_hardneg.errors import ConfigError
from solo_hardneg.negatives import EmptyBandError, full_pool
from solo_hardneg.negatives import band as bands

percent = st.integers(0, 100).map(lambda p: p / 100)
two_percent = st.tuples(percent, percent).filter(lambda p: p[0] < p[1])
# Few distinct values, so that ties are the rule.
coarse = st.integers(-3, 3).map(lambda v: v / 3)


@st.composite
def similarities(draw: st.DrawFn, max_columns: int = 67) -> torch.Tensor:
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, max_columns))
    values = draw(st.lists(coarse, min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(values).view(rows, columns)


def chosen(mask: torch.Tensor) -> list[set[int]]:
    return [set(row.nonzero().flatten().tolist()) for row in mask]


@given(similarities(), two_percent)
def test_band_holds_what_the_definition_says(sims: torch.Tensor, band: tuple[float, float]) -> None:
    expected = [oracles.band(row.tolist(), *band) for row in sims]
    if not expected[0]:
        with pytest.raises(EmptyBandError, match=f"M={sims.shape[1]} "):
            bands.mask(full_pool(sims), band, "key")
        return
    mask, count = bands.mask(full_pool(sims), band, "key")
    assert chosen(mask) == expected
    assert count == len(expected[0])


@given(similarities(), st.lists(percent, max_size=4), st.data())
def test_band_ranks_only_the_present(
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
        mask, count = bands.mask(pool, (lo, hi), "key")
        assert chosen(mask) == expected
        assert count is None  # it differs from query to query
        assert not (union & mask).any()
        union |= mask
    assert torch.equal(union, pool.present)


def test_ranks_are_those_of_exact_fractions() -> None:
    for count, lo in itertools.product(
        (1, 2, 3, 37, 100, 1000, 65536, 131071), (0.0, 0.07, 0.29, 0.57, 0.58, 0.9, 0.95, 0.999)
    ):
        for hi in (round(lo + 0.001, 3), 1.0):
            expected = oracles.ranks(lo, hi, count)
            assert bands.ranks((lo, hi), count) == (expected.start, expected.stop), (lo, hi, count)


def test_extreme_similarities_stay_in_order() -> None:
    sims = torch.tensor([[1.0, -1.0, 0.0, torch.finfo(torch.float32).min]])
    mask, _ = bands.mask(full_pool(sims), (0.0, 0.5), "key")
    assert chosen(mask) == [{1, 3}]


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
def test_impossible_bands(value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bands.parse(value, "k")


def test_an_empty_band_says_how_wide_it_must_be() -> None:
    with pytest.raises(EmptyBandError, match=r"k=\[0.5, 0.501\].*M=64 .*1/M = 0.016"):
        bands.held((0.5, 0.501), 64, "k")
    assert bands.held((0.5, 0.501), 0, "k") == 0  # no negatives at all is not the band's fault
