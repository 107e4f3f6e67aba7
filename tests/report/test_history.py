"""Records by epoch and over seeds, against plain loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from recorded_histories import made_up_history, recorded_history

from solo_hardneg.report import distributions
from solo_hardneg.report.history import differing_percentiles, over_epochs


def test_means_are_weighted_and_counts_summed(tmp_path: Path) -> None:
    nan = float("nan")
    found = recorded_history(
        tmp_path / "a" / "b",
        (0, "scalar", "x", -1, 1.0, 30.0),
        (0, "scalar", "x", -1, 5.0, 10.0),
        (0, "scalar", "x", -1, nan, 7.0),
        (0, "scalar", "x", -1, 99.0, 0.0),
        (1, "scalar", "x", -1, nan, 0.0),
        (2, "scalar", "x", -1, 3.0, 1.0),
        (0, "histogram", "negative", 7, 2.0, 1.0),
        (0, "histogram", "negative", 7, 3.0, 1.0),
        (2, "histogram", "negative", 7, 10.0, 1.0),
        (0, "image", "met", 7, 2.0, 1.0),
        (2, "image", "met", 7, 4.0, 1.0),
        (2, "image", "met", 7, 5.0, 1.0),
    )
    assert found.scalar("x").to_dict() == {0: (1.0 * 30 + 5.0 * 10) / 40, 2: 3.0}
    assert found.histogram("negative")[7].to_dict() == {0: 5.0, 2: 10.0}
    rows = found.counts[found.counts["quantity"] == "met"]
    assert dict(zip(rows["epoch"], rows["value"], strict=True)) == {2: 9.0}, "late ones only"
    assert len(found.scalar("y")) == 0


def test_the_last_quarter_of_the_epochs_is_late(tmp_path: Path) -> None:
    rows = [(e, "percentile", "p", b, float(10 * e + b), 1.0) for e in range(8) for b in range(3)]
    rows += [(e, "image", "met", 0, 1.0, 1.0) for e in range(8)]
    found = recorded_history(tmp_path / "a" / "b", *rows)
    assert found.late("percentile", "p").tolist() == [65.0, 66.0, 67.0]
    assert found.late("image", "met").tolist() == [2.0]
    assert len(found.late("percentile", "q")) == 0


def test_mean_and_deviation_between_seeds(tmp_path: Path) -> None:
    seeds = [made_up_history(tmp_path / "m" / str(s), seed=s, hard=0.2 + 0.1 * s) for s in range(3)]
    line = over_epochs(seeds, "mass/hardest_5", 100)
    assert line is not None
    assert line.x.tolist() == [1, 2, 3, 4]
    # The second rank has two thirds of the queries, and values lower by a tenth.
    expected = [
        [100 * (0.2 + 0.1 * s + 0.05 * e) * (1 + 2 * 0.9) / 3 for s in range(3)] for e in range(4)
    ]
    assert line.mean == pytest.approx([sum(row) / 3 for row in expected])
    assert line.std == pytest.approx([np.std(row, ddof=1) for row in expected])
    assert over_epochs(seeds, "floored") is None


def test_seeds_of_different_length(tmp_path: Path) -> None:
    seeds = [made_up_history(tmp_path / "m" / str(s), seed=s, epochs=2 + s) for s in range(2)]
    line = over_epochs(seeds, "similarity/negative")
    assert line is not None
    assert line.x.tolist() == [1, 2, 3]
    assert np.isnan(line.std).tolist() == [False, False, True]


def test_seeds_with_different_percentiles_are_noted(tmp_path: Path) -> None:
    one = made_up_history(tmp_path / "m" / "one")
    other = made_up_history(tmp_path / "m" / "two", seed=1, percentiles=20)
    assert differing_percentiles({"it": [one, one]}) == []
    (note,) = differing_percentiles({"fine": [one], "it": [one, other]})
    assert note.where == "it"
    assert note.text.startswith("its seeds were recorded with 10 and 20 percentiles (hardness.perc")
    assert distributions.same_class({"it": [one, other]}) is None
