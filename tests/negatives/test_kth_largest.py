"""The k-th largest value against sorting, on the code paths of a CPU and of a GPU (no reads)."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from solo_hardneg import devices
from solo_hardneg.negatives.ranks import kth_largest, kth_largest_per_row, top_columns

coarse = st.one_of(st.integers(-2, 2).map(float), st.sampled_from([-torch.inf, torch.inf]))


@pytest.fixture(params=["cpu", "gpu"], autouse=True, scope="module")
def device_kind(request: pytest.FixtureRequest) -> Iterator[None]:
    with mock.patch.object(devices, "reads_are_free", return_value=request.param == "cpu"):
        yield


@st.composite
def rows_of(draw: st.DrawFn) -> torch.Tensor:
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    values = draw(st.lists(coarse, min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(values).view(rows, columns)


@given(rows_of(), st.data())
def test_at_or_above_equals_sorting(values: torch.Tensor, data: st.DataObject) -> None:
    rows, width = values.shape
    order = values.sort(dim=1, stable=True).indices.tolist()
    ks = data.draw(st.lists(st.integers(1, width), min_size=rows, max_size=rows))
    bound = max(ks) + data.draw(st.integers(0, 2))
    same = kth_largest(values, ks[0]).at_or_above(values)
    per_row = kth_largest_per_row(values, torch.tensor(ks), bound).at_or_above(values)
    for row, k in enumerate(ks):
        assert set(same[row].nonzero()[:, 0].tolist()) == set(order[row][width - ks[0] :])
        assert set(per_row[row].nonzero()[:, 0].tolist()) == set(order[row][width - k :])


@given(rows_of(), st.data())
def test_top_columns_equal_sorting(values: torch.Tensor, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, values.shape[1]))
    order = values.sort(dim=1, stable=True).indices.flip(1)[:, :number]
    assert top_columns(values, number).tolist() == order.tolist()
    unordered = top_columns(values, number, ordered=False)
    assert unordered.sort(dim=1).values.tolist() == order.sort(dim=1).values.tolist()


def test_ties_in_one_row_leave_the_others_correct() -> None:
    values = torch.rand(3, 50)
    values[1] = 0.5
    expected = values.sort(dim=1, stable=True).indices[:, -7:].flip(1)
    assert torch.equal(top_columns(values, 7), expected)


@pytest.mark.parametrize("number", [1, 40, 256, 400])
def test_nan_gives_valid_columns(number: int) -> None:
    values = torch.rand(3, 400).round(decimals=1)
    values[1, 7:300] = torch.nan
    assert top_columns(values, number).max() < 400
    assert torch.equal(top_columns(values[::2], number), top_columns(values, number)[::2])
