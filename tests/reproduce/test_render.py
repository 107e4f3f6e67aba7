"""The page, the CSV files, and the terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pandas as pd
from rich.console import Console
from test_table import make_outcome

from solo_hardneg.reproduce.render import make_page, print_outcome, write_outcome


def test_page_and_csv_files(tmp_path: Path) -> None:
    numbers = {"simclr": [52.0, 52.5], "byol": [], "dcl": [50.0], "sscl": [60.0, 60.5]}
    errors = {"byol-seed0": "ConfigError: x | <b>\ny"}
    outcome = make_outcome("sscl_table3", "cifar100", numbers, ("max_epochs=5",), errors)
    text = write_outcome(tmp_path, outcome).read_text()
    assert "on cifar100, at the scale *minute*" in text
    assert "5 of 8 cells have a result" in text
    assert "Seeds per row: 2. Changes to the published settings:" in text
    assert "- `max_epochs=5`\n" in text
    assert "- `negatives.mix.pairs=4` (byol, sscl)" in text
    assert "- SSCL is better than SimCLR. CONFIRMED (+8.00 points" in text
    assert "- DCL is better than SimCLR. UNDECIDED (-2.25 points; a row has one seed" in text
    assert "- byol-seed0: ConfigError: x \\| &lt;b> y\n" in text
    assert "- not run yet: byol-seed1, dcl-seed1" in text
    assert "Ran on: device CPU, 2 threads. Total: 5 minutes." in text
    cells = pd.read_csv(tmp_path / "cells.csv").set_index("cell")
    assert list(cells["top1"].dropna()) == [52.0, 52.5, 50.0, 60.0, 60.5]
    assert cells.loc["byol-seed0", "state"] == "failed"
    assert "negatives=sscl" in cells.loc["sscl-seed0", "pretrain"]
    assert len(pd.read_csv(tmp_path / "claims.csv")) == 6
    assert len(pd.read_csv(tmp_path / "table.csv")) == 7

    unchanged = replace(outcome, cells=[replace(cell, changed=()) for cell in outcome.cells])
    assert "Published settings; seeds per row: 2." in make_page(unchanged)


def test_another_dataset_of_the_published_numbers_is_named() -> None:
    outcome = make_outcome("cai_figure2", "cifar100", {"all": [50.0, 51.0]})
    assert "The published numbers are of imagenet" in make_page(outcome)
    console = Console(width=120, file=io.StringIO())
    print_outcome(outcome, Path("page.md"), console)
    text = " ".join(console.file.getvalue().split())
    assert "on cifar100, scale minute: top-1, %; published on imagenet" in text
    assert "The hardest 5 % suffice: they come near all negatives. UNDECIDED (hardest_5 has" in text
