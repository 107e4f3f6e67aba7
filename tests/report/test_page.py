"""The whole report: golden CSVs, the structure of its page, and missing parts.

After an intended change of the tables, run ``RENEW_GOLDEN=1 python -m pytest
tests/report/test_page.py``, and look at the difference before you commit it.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up_runs import (
    HARDEST,
    MOCO,
    SIMCLR,
    changed,
    make_runs,
    make_study,
    write_args,
    write_metrics,
)
from typer.testing import CliRunner

from solo_hardneg.cli import app
from solo_hardneg.errors import ConfigError, DataError
from solo_hardneg.report import page as module
from solo_hardneg.report.captions import CAPTIONS
from solo_hardneg.report.page import write_report

GOLDEN = Path(__file__).parent / "golden"
FILES = ("report.csv", "report.html", "runs.csv")


class Page(HTMLParser):
    """The elements of a page, the text of each section, and the cells of its tables."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.sections: dict[str, str] = {}
        self.tables: list[list[list[str]]] = []
        self.place, self.cell = "", False
        self.text = file.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("header", "section"):
            self.place = str(dict(attrs).get("id", tag))
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = True
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.sections[self.place] = self.sections.get(self.place, "") + data
        if self.cell:
            self.tables[-1][-1][-1] += data

    def all(self, *tags: str) -> list[dict[str, Any]]:
        return [attributes for tag, attributes in self.elements if tag in tags]

    def rows(self, place: int) -> list[dict[str, str]]:
        """The rows of a table by column."""
        names, *rows = self.tables[place]
        return [dict(zip(names, row, strict=True)) for row in rows]


@pytest.fixture(scope="module")  # 6 s: draws all figures, once for these tests
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report on eight runs in four groups."""
    root = tmp_path_factory.mktemp("golden")
    make_runs(root / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)  # keeps paths of this machine out of the report
        write_report(["runs"])
    return root / "report"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes figures without drawing them, which takes most of the time."""
    monkeypatch.setattr(module, "_svg_uri", lambda figure: "data:image/svg+xml;base64,")
    monkeypatch.setattr(module, "_png_uri", lambda figure: "data:image/png;base64,")


@pytest.mark.parametrize("name", ["report.csv", "runs.csv"])
def test_csvs_are_unchanged(made: Path, name: str) -> None:
    found = (made / name).read_text(encoding="utf-8")
    if os.environ.get("RENEW_GOLDEN"):
        (GOLDEN / name).write_text(found, encoding="utf-8", newline="\n")
    assert found == (GOLDEN / name).read_text(encoding="utf-8")


def test_the_page_has_the_numbers_of_the_csvs(made: Path) -> None:
    page = Page(made / "report.html")
    groups = pd.read_csv(made / "report.csv").set_index("group")
    for row in page.rows(0):
        expected = groups.loc[row["group"]]
        spread = f" ± {expected.linear_std:.1f}" if expected.seeds > 1 else ""
        assert row["linear"] == f"{expected.linear_mean:.1f}{spread}"
        assert row["seeds"] == str(expected.seeds)
        for title, name, factor in (
            ("dropped, recall (%)", "dropped_recall", 100),
            ("RankMe", "rankme", 1),
            ("uniformity", "uniformity", 1),
        ):
            mean = factor * expected[f"{name}_mean"]
            assert row[title].partition(" ±")[0] == ("" if pd.isna(mean) else f"{mean:.3g}")
        difference = row["linear, difference"].partition(" (")[0].replace("−", "-")
        known = "" if pd.isna(expected.baseline) else f"{expected.linear_difference:+.1f}"
        assert difference == known
    assert [row["group"] for row in page.rows(0)] == groups.index.tolist()
    published = [row["published"] for row in page.rows(1)]
    assert published == [one for several in groups.published for one in several.split("; ")]
    assert [row["linear"] for row in page.rows(-1)] == [
        f"{value:.1f}" for value in pd.read_csv(made / "runs.csv").linear_acc
    ]
    assert sorted(path.name for path in made.iterdir()) == sorted(FILES)


def test_the_page_stands_alone_and_is_accessible(made: Path) -> None:
    page = Page(made / "report.html")
    assert len(page.text) < 3e6
    assert page.all("html") == [{"lang": "en"}]
    assert not page.all("script")
    addresses = [str(a[name]) for _, a in page.elements for name in ("src", "href") if name in a]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    anchors = {a["id"] for _, a in page.elements if "id" in a}
    assert {str(a["href"])[1:] for a in page.all("a")} <= anchors
    assert not re.search(r"https?://", re.sub(r"base64,[^\"]*", "", page.text))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    pictures = page.all("img")
    assert len(pictures) == len(page.all("figcaption")) >= 10
    assert {picture["alt"] for picture in pictures} <= {
        caption.alt for caption in CAPTIONS.values()
    }
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(cell["scope"] in ("col", "row") for cell in page.all("th"))


def test_each_test_of_significance_is_named(made: Path) -> None:
    page = Page(made / "report.html")
    assert "Student's unpaired t-test" in page.sections["studies"]
    assert "Accuracies are compared by Welch's" in page.sections["terms"]
    assert "Welch's t-test, Holm-corrected" in page.sections["accuracy"]


def test_a_run_with_nothing_but_its_config(tmp_path: Path) -> None:
    write_args(tmp_path / "a" / "b", changed(MOCO, data__dataset="digits"))
    page = Page(write_report([tmp_path], tmp_path / "out").html)
    assert not page.all("img")
    sections = [a["id"] for a in page.all("section")]
    assert sections == ["accuracy", "runs", "terms", "notes", "made"]
    assert "Negatives in 1 run" in page.sections["header"]
    assert "1 run in 1 group." in page.sections["header"]
    assert "a/b: its negatives were not recorded; hardness.enabled=true" in page.sections["notes"]


@pytest.mark.full
@pytest.mark.usefixtures("undrawn")
def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    make_runs(tmp_path / "runs")
    reports = [write_report([tmp_path / "runs"], tmp_path / "out") for _ in range(2)]
    texts = [report.html.read_bytes() for report in reports]
    assert texts[0] == texts[1]


@pytest.mark.usefixtures("undrawn")
def test_damaged_studies_and_studies_of_several_seeds(tmp_path: Path) -> None:
    """Damaged parts are named, different studies left out, and class pairs are over all seeds."""
    folders = make_runs(tmp_path)
    (folders[0] / "hardness" / "epoch00001-rank0.parquet").write_bytes(b"PAR1 cut")
    (folders[0] / "analysis" / "study.npz").write_bytes(b"cut")
    (folders[2] / "args.json").write_text('{"method"')
    plain = make_study(seed=1, method="mocov2_banded", epoch=4)
    replace(plain, class_mean=np.full((3, 3), -0.9)).save(folders[4] / "analysis" / "study.npz")
    fewer = np.arange(5.0)
    odd = replace(plain, similarity=fewer / 10, same_class=fewer / 10, depth=fewer)
    replace(odd, info={**odd.info, "seed": 2}).save(folders[5] / "analysis" / "study.npz")
    made = write_report([tmp_path], tmp_path / "out")
    page = Page(made.html)
    assert made.comparison.rows[0].group.seeds == 2
    for text in (
        "left out, because it is damaged",
        "mocov2_banded/all0: its study is left out.",
        "mocov2_banded/all2: left out, because its args.json is damaged",
        "mocov2_banded/hard2: its study is left out, unlike other seeds:",
        "percentiles 5, not 10",
    ):
        assert text in page.sections["notes"]
    assert "Cai et al. 2020, figure 5a" in page.sections["studies"]
    # -0.125 in the first seed alone, -0.9 in the second.
    pairs = {cell for table in page.tables[-4:-1] for row in table for cell in row}
    assert "-0.512" in pairs
    assert "-0.125" not in pairs


@pytest.mark.usefixtures("undrawn")
def test_published_numbers_without_ours(tmp_path: Path) -> None:
    write_metrics(write_args(tmp_path / "a" / "b", MOCO), [1.0, 2.0])
    page = Page(write_report([tmp_path], tmp_path / "out").html)
    assert page.tables[1][0] == ["group", "published"]
    assert "None of these runs has a linear evaluation" in page.sections["published"]


@pytest.mark.parametrize(("classes", "some"), [(10, False), (11, True)])
@pytest.mark.usefixtures("undrawn")
def test_the_caption_of_a_tsne_names_the_coloured_classes(
    tmp_path: Path, classes: int, some: bool
) -> None:
    run = write_args(tmp_path / "a" / "b", MOCO)
    points = np.random.default_rng(0).random((40, 2)).astype(np.float32)
    study = make_study([f"class {number}" for number in range(classes)])
    study = replace(study, tsne=points, tsne_labels=np.arange(40) % classes)
    study.save(run / "analysis" / "study.npz")
    page = Page(write_report([tmp_path], tmp_path / "out").html)
    assert ("classes with most images are coloured" in page.sections["studies"]) is some


@pytest.mark.usefixtures("undrawn")
def test_a_chosen_baseline(tmp_path: Path) -> None:
    for number, negatives in enumerate(({}, HARDEST)):
        run = write_args(tmp_path / "m" / str(number), changed(MOCO, negatives=negatives))
        write_metrics(run, [50.0 + number])
    made = write_report([tmp_path], tmp_path / "out", baseline="MoCo v2: hardest_5")
    bases = {row.group.label: row.baseline and row.baseline.label for row in made.comparison.rows}
    assert bases == {"MoCo v2: all": "MoCo v2: hardest_5", "MoCo v2: hardest_5": None}
    page = Page(made.html)
    assert "Differences are to MoCo v2: hardest_5." in page.sections["accuracy"]
    assert "--baseline 'MoCo v2: hardest_5'" in page.sections["made"]
    with pytest.raises(ConfigError, match="--baseline=x: no such group"):
        write_report([tmp_path], tmp_path / "out", baseline="x")


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    write_args(tmp_path / "a" / "b", MOCO)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"--out=.*file: the report can't be written .* Choose a"):
        write_report([tmp_path / "a"], tmp_path / "file")


# ---------------------------------------------------------------------- the command


@pytest.mark.usefixtures("undrawn")
def test_the_command(tmp_path: Path) -> None:
    """It prints the table, notes and the page's path, whatever looks like rich's markup."""
    make_runs(tmp_path / "runs")
    for folder in ("simclr_sscl", "simclr"):
        shutil.rmtree(tmp_path / "runs" / folder)
    for name in ("[/red]x[bold]", "[link]"):
        args = changed(SIMCLR, negatives=HARDEST, data__dataset=name)
        write_args(tmp_path / "runs" / "s" / str(len(name)), args)
    out = tmp_path / "out"
    arguments = ["report", str(tmp_path / "runs"), "--out", str(out), "--title", "Mine [bold]"]
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "55.5 ± 0.5" in result.output
    assert "[/red]x[bold]" in result.output
    note = "- s/13, s/6: its negatives were not recorded; hardness.enabled=true records them."
    assert note in result.output.splitlines()
    assert f"The report: {out / 'report.html'}" in result.output
    assert "<title>Mine [bold]</title>" in (out / "report.html").read_text(encoding="utf-8")


def test_an_error_of_the_command_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(tmp_path / "nowhere")])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    text = str(result.exception.code)
    assert text.startswith("DataError: ")
    assert "no such folder. Give the folders of runs" in text
    assert "\n" not in text
