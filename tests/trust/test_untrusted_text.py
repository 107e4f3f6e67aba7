"""Texts of others in reports, tables, pictures and names of files: they are only texts there."""

from __future__ import annotations

import csv
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_up_runs import EVIL, MOCO, make_evil_runs, make_evil_study

from solo_hardneg.analysis import plots, report, results
from solo_hardneg.analysis.results import Studied
from solo_hardneg.analysis.untrusted import (
    LONGEST,
    file_name,
    for_spreadsheets,
    no_formula,
    no_links,
)
from solo_hardneg.reproduce import page, table
from solo_hardneg.reproduce.cells import Cell
from solo_hardneg.reproduce.experiment import load_experiment, load_scale
from solo_hardneg.reproduce.page import Outcome
from solo_hardneg.reproduce.results import FAILED, result_of

FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def rows_without_formulas(file: Path) -> list[list[str]]:
    """The cells of a CSV file; those that begin as a formula does are numbers."""
    rows = list(csv.reader(file.open(encoding="utf-8")))
    for cell in (cell for row in rows for cell in row):
        if cell.startswith(FORMULAS):
            float(cell)
    return rows


def without_code(file: Path) -> str:
    """The text of a Markdown file outside of backticks."""
    return re.sub(r"`[^`\n]*`", "", file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report on evil runs, without its pictures, which take most of the time."""
    place = tmp_path_factory.mktemp("evil")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_svg", lambda plot: "data:image/svg+xml;base64,")
        patch.setattr(report, "_png", lambda plot, dark: "data:image/png;base64,")
        report.write([make_evil_runs(place / "runs")], place / "out", title=EVIL[1])
    return place / "out"


def test_the_page_has_no_elements_and_addresses_of_others(written: Path) -> None:
    found: list[tuple[str, Mapping[str, str | None]]] = []

    class Elements(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, dict(attrs)))

    text = (written / "report.html").read_text(encoding="utf-8")
    Elements().feed(text)
    tags = {tag for tag, _ in found}
    assert "table" in tags
    assert not {"script", "svg", "iframe", "object", "embed", "form", "base"} & tags
    assert sum(tag == "style" for tag, _ in found) == text.count("<style>") == 1
    for _, attributes in found:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/", "data:,"))
    assert "{{ 7 * 7 }}" in text, "a template's text is a text"
    assert "&lt;script&gt;" in text


def test_the_markdown_has_neither_html_nor_links(written: Path) -> None:
    text = (written / "report.md").read_text(encoding="utf-8")
    assert "script" in text
    assert not re.search(r"(?<!\\)<", text)
    assert "](" not in text


def test_the_csv_files_have_no_formulas(written: Path) -> None:
    groups, runs = (rows_without_formulas(written / name) for name in ("report.csv", "runs.csv"))
    assert len(groups) == len(runs) == len(EVIL) + 1
    texts = {cell for row in runs for cell in row}
    assert {f"'{text}" for text in EVIL if text.startswith(FORMULAS)} <= texts


def test_pictures_are_well_formed_and_hold_no_scripts(tmp_path: Path) -> None:
    for text in EVIL:
        with plots.style():
            figure, axes = plots.new(text, text, text)
            axes.plot([0, 1], [0, 1], label=text)
            axes.legend()
        plots.save_svg(figure, tmp_path / "a.svg", text)
        drawn = ET.parse(tmp_path / "a.svg").getroot()
        tags = {element.tag.rpartition("}")[2] for element in drawn.iter()}
        assert not {"script", "a", "image", "foreignObject", "img"} & tags
        for element in drawn.iter():
            assert not [name for name in element.attrib if name.lower().startswith("on")]
            for name, value in element.attrib.items():
                if name.endswith("href"):
                    assert value.startswith("#")
        titles = [e.text for e in drawn.iter() if e.tag.endswith("}title")]
        assert text in titles, "it is told, as a text"


def test_analyze_writes_into_its_folder_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``seed`` of a config became a part of a folder's name."""
    monkeypatch.setattr(plots, "save_svg", lambda figure, file, alt: file.touch())
    monkeypatch.setattr(plots, "save_png", lambda figure, file, *_: file.touch())
    done = []
    for number, text in enumerate(EVIL):
        config = {**MOCO, "method": text, "seed": f"/../../../{text}", "name": text}
        study = make_evil_study(text, method=text, epoch=1)
        done.append(Studied(study, tmp_path / "runs" / str(number) / "x.ckpt", config))
    out = tmp_path / "a" / "b" / "out"
    made = results.write(done, out)
    outside = [file for file in tmp_path.rglob("*") if file.is_file() and out not in file.parents]
    assert outside == []
    assert len({file for file in made.written if file.name == "study.npz"}) == len(EVIL)
    text = without_code(out / "summary.md")
    assert not re.search(r"(?<!\\)<", text)
    for address in re.findall(r"\]\(([^)]*)\)", text):
        assert re.fullmatch(r"[\w.-]+\.png", address)
        assert (out / address).is_file()
    for file in out.glob("*.csv"):
        rows_without_formulas(file)


def test_reproductions(tmp_path: Path) -> None:
    experiment, scale = load_experiment("sscl_table3"), load_scale("minute")
    row = experiment.rows[0].name
    cells, found = [], {}
    sides: Any = ("simclr_sscl", ("data=digits",), ())
    for seed, text in enumerate(EVIL):
        cell = Cell(f"{row}-seed{seed}", row, seed, *sides, (text,), "0" * 12)
        cells.append(cell)
        found[cell.name] = result_of(cell, FAILED, error=text, ran_on={text: text})
    made = table.build(experiment, "digits", {c.name: c for c in cells}, found)
    page.write(tmp_path, Outcome(experiment, scale, EVIL[0], cells, found, made, []))
    text = without_code(tmp_path / "README.md")
    assert "script" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "](" not in text
    assert not re.search(r"<(?=[a-z/])", text)
    assert len(rows_without_formulas(tmp_path / "cells.csv")) == len(EVIL) + 1


# ---------------------------------------------------------------------- the parts


@pytest.mark.parametrize(
    ("value", "written_as"),
    [
        ("=1+1", "'=1+1"),
        ("@SUM(1)", "'@SUM(1)"),
        ("-2+3+cmd|' /C calc'!A0", "'-2+3+cmd|' /C calc'!A0"),
        ("\t=1", "'\t=1"),
        ("+4.7; -0.3", "+4.7; -0.3"),
        ("-1e-05", "-1e-05"),
        ("a=1", "a=1"),
        ("", ""),
        (-3, -3),
        (None, None),
    ],
)
def test_formulas(value: Any, written_as: Any) -> None:
    assert no_formula(value) == written_as


def test_tables_for_spreadsheets() -> None:
    given = pd.DataFrame({"a": ["=1", None, "x"], "b": [1.5, -2.0, 3.0], "c": [1, 2, -3]})
    made = for_spreadsheets(given)
    assert made["a"].tolist()[0] == "'=1"
    assert given["a"].tolist()[0] == "=1", "the given one stays"
    assert made["b"].equals(given["b"])
    assert made["c"].dtype == given["c"].dtype
    twice = pd.DataFrame([["=1", 2]], columns=["x", "x"])
    assert for_spreadsheets(twice).to_numpy().tolist() == [["'=1", 2]]


@pytest.mark.parametrize("text", [*EVIL[:1], "..", "", "/", "a/../b", "\0", "C:\\x", "x" * 5000])
def test_names_of_files(text: str) -> None:
    name = file_name(text)
    assert re.fullmatch(r"\w[\w.-]*", name)
    assert len(name) <= LONGEST
    assert Path(name).name == name


def test_long_names_stay_apart() -> None:
    assert file_name("x" * 500 + "a") != file_name("x" * 500 + "b")
    assert file_name("MoCo v2: hardest_5") == "MoCo-v2-hardest_5"


def test_links() -> None:
    assert no_links("![x](javascript:1) [y](z)") == "![x]\\(javascript:1) [y]\\(z)"
