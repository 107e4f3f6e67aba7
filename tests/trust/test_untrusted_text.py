"""Hostile texts in reports, figures and names of files stay plain text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from made_up_runs import EVIL, MOCO, make_evil_runs, make_evil_study

from solo_hardneg.files import LONGEST, file_name
from solo_hardneg.report import page
from solo_hardneg.study import plots
from solo_hardneg.study.output import CheckpointStudy, write_results


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report on evil runs, without its figures, which take most of the time."""
    place = tmp_path_factory.mktemp("evil")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "_svg_uri", lambda figure: "data:image/svg+xml;base64,")
        patch.setattr(page, "_png_uri", lambda figure: "data:image/png;base64,")
        page.write_report([make_evil_runs(place / "runs")], place / "out", title=EVIL[1])
    return place / "out"


def test_the_page_has_no_foreign_elements_and_addresses(written: Path) -> None:
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
    assert "{{ 7 * 7 }}" in text, "a template's syntax in a text is not executed"
    assert "&lt;script&gt;" in text


def test_the_csvs_hold_the_texts_unchanged(written: Path) -> None:
    groups, runs = (pd.read_csv(written / name) for name in ("report.csv", "runs.csv"))
    assert len(groups) == len(runs) == len(EVIL)
    assert set(runs["name"]) == set(EVIL)


def test_figures_are_well_formed_and_hold_no_scripts() -> None:
    for text in EVIL:
        with plots.style():
            figure, axes = plots.new_figure(text, text, text)
            axes.plot([0, 1], [0, 1], label=text)
            axes.legend()
        root = ET.fromstring(plots.to_svg(figure))
        tags = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert not {"script", "a", "image", "foreignObject", "img"} & tags
        for element in root.iter():
            for name, value in element.attrib.items():
                assert not name.lower().startswith("on")
                assert not name.endswith("href") or value.startswith("#")


def test_analyze_writes_to_its_folder_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config's ``seed`` is part of a folder's name."""
    monkeypatch.setattr(plots, "save_png", lambda figure, file: file.touch())
    done = []
    for number, text in enumerate(EVIL):
        config = {**MOCO, "method": text, "seed": f"/../../../{text}", "name": text}
        study = make_evil_study(text, method=text, epoch=1)
        file = tmp_path / "runs" / str(number) / "x.ckpt"
        done.append(CheckpointStudy(study, file, config))
    out = tmp_path / "a" / "b" / "out"
    made = write_results(done, out)
    outside = [file for file in tmp_path.rglob("*") if file.is_file() and out not in file.parents]
    assert outside == []
    assert len({file for file in made.written if file.name == "study.npz"}) == len(EVIL)


@pytest.mark.parametrize("text", [*EVIL[:1], "..", "", "/", "a/../b", "\0", "C:\\x", "x" * 5000])
def test_names_of_files(text: str) -> None:
    name = file_name(text)
    assert re.fullmatch(r"\w[\w.-]*", name)
    assert len(name) <= LONGEST
    assert Path(name).name == name


def test_long_names_stay_different() -> None:
    assert file_name("x" * 500 + "a") != file_name("x" * 500 + "b")
    assert file_name("MoCo v2: hardest_5") == "MoCo-v2-hardest_5"
