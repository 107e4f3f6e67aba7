"""Texts of others in reports, tables, pictures and names of files: they are only texts there."""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hostile_files import EVIL
from test_hostile_files import MOCO

from solo_hardneg.analysis import plots, results
from solo_hardneg.analysis.records import Rows
from solo_hardneg.analysis.report import write
from solo_hardneg.analysis.results import Studied
from solo_hardneg.analysis.study import Study
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


def make_study(text: str, **info: Any) -> Study:
    """A small study, in which every text is this one."""
    import numpy as np

    names = [text, f"{text}2", "cat"]
    return Study(
        query_embeddings=np.eye(4, 8, dtype=np.float32),
        negative_embeddings=np.eye(20, 8, dtype=np.float32),
        query_labels=np.arange(4) % 3,
        negative_labels=np.arange(20) % 3,
        query_indexes=np.arange(4),
        negative_indexes=np.arange(4, 24),
        similarity=np.linspace(-0.2, 0.7, 10),
        same_class=np.linspace(0, 0.5, 10),
        depth=np.full(10, np.nan),
        hard_share=np.array([0.25] * 4 + [0.0] * 16),
        shuffled_share=np.array([0.25] * 4 + [0.0] * 16),
        class_mean=np.linspace(-0.2, 0.4, 9).reshape(3, 3),
        class_number=np.ones((3, 3)),
        tsne=np.stack([np.arange(12.0), np.arange(12.0) % 5], axis=1).astype(np.float32),
        tsne_labels=np.arange(12) % 3,
        scalars={"similarity/easiest_95": 0.1, "similarity/hardest_5": 0.7},
        class_names=names,
        info={"queries": 4, "negatives": 20, "dataset": text, "checkpoint": text, **info},
        notes=[f"{text} is missing."],
    )


def make_runs(root: Path) -> Path:
    """A run for each evil text, which is its dataset, method, name, policy, metric and classes."""
    for number, text in enumerate(EVIL):
        method = text if number % 2 else "mocov2_banded"
        args = {
            **MOCO,
            "method": method,
            "name": text,
            "data": {"dataset": text, "train_path": text},
            "negatives": {text: {text: text}, "keep": {"band": [0.9, 1.0]}},
            "optimizer": {"name": text},
            text: text,
        }
        folder = root / f"r{number}" / re.sub(r"[/\0]", "_", text)[:60]
        folder.mkdir(parents=True)
        (folder / "args.json").write_text(json.dumps(args))
        rows = Rows()
        for name in ("val_acc1", f"train_{text}"):
            rows.add(0, 0, 0, "metric", name, [-1], [50.0])
        rows.add(0, 0, 0, "scalar", "mass/hardest_5", [-1], [0.5])
        rows.write(folder / "hardness", 0, 0, json.dumps(args), notes=[f"{text} wasn't recorded"])
        make_study(text, method=method, seed=5, epoch=1).save(folder / "analysis" / "study.npz")
    return root


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report on all of them."""
    place = tmp_path_factory.mktemp("evil")
    write([make_runs(place / "runs")], place / "out", title=EVIL[1])
    return place / "out"


# ---------------------------------------------------------------------- reports


def test_the_page_has_no_elements_and_addresses_of_others(written: Path) -> None:
    from html.parser import HTMLParser

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


@pytest.mark.parametrize("name", ["report.csv", "runs.csv"])
def test_the_csv_files_have_no_formulas(written: Path, name: str) -> None:
    rows = list(csv.reader(io.StringIO((written / name).read_text(encoding="utf-8"))))
    assert len(rows) == len(EVIL) + 1
    for cell in (cell for row in rows for cell in row):
        assert not cell.startswith(FORMULAS) or _is_number(cell), cell
    if name == "runs.csv":
        texts = {cell for row in rows for cell in row}
        assert {f"'{text}" for text in EVIL if text.startswith(FORMULAS)} <= texts


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_pictures_are_well_formed_and_hold_no_scripts(tmp_path: Path) -> None:
    for number, text in enumerate(EVIL):
        with plots.style():
            figure, axes = plots.new(text, text, text)
            axes.plot([0, 1], [0, 1], label=text)
            axes.legend()
        plots.save_svg(figure, tmp_path / f"{number}.svg", text)
        drawn = ET.parse(tmp_path / f"{number}.svg").getroot()
        tags = {element.tag.rpartition("}")[2] for element in drawn.iter()}
        assert not {"script", "a", "image", "foreignObject", "img"} & tags
        for element in drawn.iter():
            assert not [name for name in element.attrib if name.lower().startswith("on")]
            for name, value in element.attrib.items():
                if name.endswith("href"):
                    assert value.startswith("#")
        titles = [e.text for e in drawn.iter() if e.tag.endswith("}title")]
        assert text in titles, "it is told, as a text"


def test_analyze_writes_into_its_folder_only(tmp_path: Path) -> None:
    """``seed`` of a config became a part of a folder's name."""
    done = []
    for number, text in enumerate(EVIL):
        config = {**MOCO, "method": text, "seed": f"/../../../{text}", "name": text}
        study = make_study(text, method=text, epoch=1)
        done.append(Studied(study, tmp_path / "runs" / str(number) / "x.ckpt", config))
    out = tmp_path / "a" / "b" / "out"
    made = results.write(done, out)
    outside = [file for file in tmp_path.rglob("*") if file.is_file() and out not in file.parents]
    assert outside == []
    assert len({file for file in made.written if file.name == "study.npz"}) == len(EVIL)
    text = re.sub(r"`[^`\n]*`", "", (out / "summary.md").read_text(encoding="utf-8"))
    assert not re.search(r"(?<!\\)<", text)
    for address in re.findall(r"\]\(([^)]*)\)", text):
        assert re.fullmatch(r"[\w.-]+\.png", address)
        assert (out / address).is_file()
    for file in out.glob("*.csv"):
        for cell in (cell for row in csv.reader(file.open(encoding="utf-8")) for cell in row):
            assert not cell.startswith(FORMULAS) or _is_number(cell), (file, cell)


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
    outcome = Outcome(experiment, scale, EVIL[0], cells, found, made, [])
    page.write(tmp_path, outcome)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "script" in text
    assert "](" not in re.sub(r"`[^`\n]*`", "", text)
    assert not re.search(r"<(?=[a-z/])", re.sub(r"`[^`\n]*`", "", text))
    rows = list(csv.reader((tmp_path / "cells.csv").open(encoding="utf-8")))
    assert len(rows) == len(EVIL) + 1
    for cell_text in (cell for line in rows for cell in line):
        assert not cell_text.startswith(FORMULAS) or _is_number(cell_text), cell_text


# ---------------------------------------------------------------------- the parts


@pytest.mark.parametrize(
    ("value", "written_as"),
    [
        ("=1+1", "'=1+1"),
        ("@SUM(1)", "'@SUM(1)"),
        ("+1+cmd|' /C calc'!A0", "'+1+cmd|' /C calc'!A0"),
        ("-2+3+cmd|' /C calc'!A0", "'-2+3+cmd|' /C calc'!A0"),
        ("\t=1", "'\t=1"),
        ("+4.7; -0.3", "+4.7; -0.3"),
        ("-1e-05", "-1e-05"),
        ("hardest 5 %", "hardest 5 %"),
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


@pytest.mark.parametrize("text", [*EVIL, "..", ".", "", "/", "a/../b", "\0", "C:\\x", "x" * 5000])
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
