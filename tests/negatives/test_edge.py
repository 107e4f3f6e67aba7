"""Edges against sorting, as on a CPU and as on a GPU, where nothing may be read."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from solo_hardneg import sync
from solo_hardneg.negatives.edge import edge, top

coarse = st.one_of(st.integers(-2, 2).map(float), st.sampled_from([-torch.inf, torch.inf]))


@pytest.fixture(params=["cpu", "gpu"], autouse=True, scope="module")
def reads(request: pytest.FixtureRequest) -> Iterator[None]:
    with mock.patch.object(sync, "is_free", return_value=request.param == "cpu"):
        yield


@st.composite
def rows_of(draw: st.DrawFn) -> torch.Tensor:
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    values = draw(st.lists(coarse, min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(values).view(rows, columns)


@given(rows_of(), st.data())
def test_who_is_at_or_above_is_what_sorting_says(values: torch.Tensor, data: st.DataObject) -> None:
    rows, width = values.shape
    order = values.sort(dim=1, stable=True).indices.tolist()
    places = data.draw(st.lists(st.integers(1, width), min_size=rows, max_size=rows))
    most = max(places) + data.draw(st.integers(0, 2))
    for from_top in (places[0], torch.tensor(places)):
        found = edge(values, from_top, most).at_or_above(values)
        for row, place in enumerate([places[0]] * rows if from_top is places[0] else places):
            assert set(found[row].nonzero()[:, 0].tolist()) == set(order[row][width - place :])


@given(rows_of(), st.data())
def test_the_top_in_order(values: torch.Tensor, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, values.shape[1]))
    order = values.sort(dim=1, stable=True).indices.flip(1)[:, :number]
    assert top(values, number).tolist() == order.tolist()
    unordered = top(values, number, ordered=False)
    assert unordered.sort(dim=1).values.tolist() == order.sort(dim=1).values.tolist()


def test_one_row_with_many_equal_ones_doesnt_touch_the_others() -> None:
    values = torch.rand(3, 50)
    values[1] = 0.5
    expected = values.sort(dim=1, stable=True).indices[:, -7:].flip(1)
    assert torch.equal(top(values, 7), expected)


@pytest.mark.parametrize("number", [1, 40, 256, 400])
def test_nan_leads_to_no_place_outside(number: int) -> None:
    values = torch.rand(3, 400).round(decimals=1)
    values[1, 7:300] = torch.nan
    assert top(values, number).max() < 400
    assert torch.equal(top(values[::2], number), top(values, number)[::2])
