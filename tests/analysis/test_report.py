"""The report as a whole: against golden files, with parts missing, and with hostile names.

The golden files hold the HTML without its pictures and versions, the Markdown and the CSV. After a
change that is meant: ``RENEW_GOLDEN=1 python -m pytest tests/analysis/test_report.py``, and look
at the difference before you commit it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

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
    write_linear,
    write_metrics,
    write_records,
)
from typer.testing import CliRunner

from solo_hardneg.analysis import report as module
from solo_hardneg.analysis.report import report, write
from solo_hardneg.cli import app
from solo_hardneg.errors import ConfigError, DataError

GOLDEN = Path(__file__).parent / "golden"
FILES = ("report.html", "report.md", "report.csv", "runs.csv")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``runs`` and the ``report`` of them."""
    root = tmp_path_factory.mktemp("golden")
    make_runs(root / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)  # so that no paths of this machine get into the report
        report(["runs"])
    return root / "report"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, but not drawn, which takes most of the time."""
    monkeypatch.setattr(module, "_svg", lambda plot: "data:image/svg+xml;base64,")


def bare(text: str) -> str:
    """A page without what may differ between machines: pictures and versions."""
    text = re.sub(r"data:image/(png|svg\+xml);base64,[A-Za-z0-9+/=]+", r"data:image/\1", text)
    return re.sub(r'<p class="small">Python .*? The same', '<p class="small">The same', text)


@pytest.mark.parametrize("name", FILES)
def test_the_report_is_as_it_was(made: Path, name: str) -> None:
    found = bare((made / name).read_text(encoding="utf-8"))
    file = GOLDEN / name
    if os.environ.get("RENEW_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(found, encoding="utf-8", newline="\n")
    assert found == file.read_text(encoding="utf-8")


def test_the_golden_test_can_fail(made: Path) -> None:
    html = (made / "report.html").read_text(encoding="utf-8")
    assert bare(html.replace("60.5", "60.6")) != bare(html)
    assert len(bare(html)) < len(html) / 10


class Page(HTMLParser):
    """What the tests ask of a page: tags, texts and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_stands_alone_and_can_be_read_by_all(made: Path) -> None:
    text = (made / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.all("html") == [{"lang": "en"}]
    assert not page.all("script")
    addresses = [
        str(value)
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset")
    ]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    anchors = {a["id"] for _, a in page.tags if "id" in a}
    assert {str(a["href"])[1:] for a in page.all("a")} <= anchors
    assert not re.search(r"https?://", re.sub(r"base64,[^\"]*", "", text))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    pictures = page.all("img")
    assert len(pictures) == len(page.all("source")) == len(page.all("figcaption")) >= 10
    assert all(len(str(picture["alt"])) > 40 for picture in pictures)
    assert all(re.search(r"\d", str(picture["alt"])) for picture in pictures)
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(cell["scope"] in ("col", "row") for cell in page.all("th"))


def test_the_size_of_a_report(made: Path) -> None:
    assert (made / "report.html").stat().st_size < 3e6


def test_the_csv_files_can_be_read_back(made: Path) -> None:
    groups = pd.read_csv(made / "report.csv").set_index("group")
    runs = pd.read_csv(made / "runs.csv")
    for label, rows in runs.groupby("group"):
        expected = rows["linear_acc"].mean()
        assert groups.loc[label, "linear_mean"] == pytest.approx(expected)
    assert groups.loc["MoCo v2: hardest_5", "linear_difference"] == pytest.approx(-5.0)


@pytest.mark.usefixtures("undrawn")
def test_whatever_comes_from_outside_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    args = changed(
        MOCO, name=evil, data__dataset=evil, negatives={evil: {"a": evil}}, backbone__name=evil
    )
    run = write_args(tmp_path / "<b>bold" / "<img src=x>", args)
    other = write_args(tmp_path / "a" / "b", changed(args, max_epochs=evil, negatives={}))
    write_records(run, args)
    write_metrics(other, [1.0, 2.0])
    make_study([evil, "cat & dog", '"quoted"']).save(run / "analysis" / "study.npz")
    write_linear(tmp_path, f"/x/{evil}", 1.0, evil, name="it")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "args.json").write_text(f"{evil}")
    file = report([tmp_path], tmp_path / "out", title=f"{evil} & more")
    page = Page(file.read_text(encoding="utf-8"))
    assert not page.all("script")
    assert not page.all("b")
    assert all(str(picture["src"]).startswith("data:") for picture in page.all("img"))
    assert f"{evil} & more" in page.texts
    assert any(evil in text for text in page.texts)
    assert "cat & dog" in page.texts
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<img" not in text


def test_with_nothing_but_configs(tmp_path: Path) -> None:
    write_args(tmp_path / "a" / "b", changed(MOCO, data__dataset="digits"))
    file = report([tmp_path], tmp_path / "out")
    page = Page(file.read_text(encoding="utf-8"))
    assert not page.all("img")
    assert "Negatives in 1 run" in page.texts
    assert {a["id"] for a in page.all("section")} == {
        "accuracy",
        "runs",
        "words",
        "missing",
        "made",
    }
    text = file.read_text(encoding="utf-8")
    assert "a/b: its negatives were not recorded; hardness.enabled=true records them." in text
    assert "No accuracy is known of any of them." in text


@pytest.mark.full
def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    make_runs(tmp_path / "runs")
    texts = [report([tmp_path / "runs"], tmp_path / "out").read_bytes() for _ in range(2)]
    assert texts[0] == texts[1]


@pytest.mark.usefixtures("undrawn")
def test_damaged_parts_are_named_on_the_page(tmp_path: Path) -> None:
    make_runs(tmp_path)
    broken = tmp_path / "mocov2_banded" / "all1"
    (broken / "hardness" / "epoch00001-rank0.parquet").write_bytes(b"PAR1 cut")
    (broken / "analysis" / "study.npz").write_bytes(b"cut")
    (tmp_path / "mocov2_banded" / "hard2" / "args.json").write_text('{"method"')
    made = write([tmp_path], tmp_path / "out")
    text = made.html.read_text(encoding="utf-8")
    assert "left out, because it is damaged" in text
    assert "mocov2_banded/all1: its study is left out." in text
    assert "mocov2_banded/hard2: left out, because its args.json is damaged" in text
    assert made.summary.rows[1].group.seeds == 2


@pytest.mark.usefixtures("undrawn")
def test_a_study_of_other_percentiles_does_not_stop_the_report(tmp_path: Path) -> None:
    from dataclasses import replace

    folders = make_runs(tmp_path)
    fewer = np.arange(5.0)
    odd = make_study(seed=1, method="mocov2_banded", epoch=4)
    odd = replace(odd, similarity=fewer / 10, same_class=fewer / 10, depth=fewer)
    odd.save(folders[1] / "analysis" / "study.npz")
    text = report([tmp_path], tmp_path / "out").read_text(encoding="utf-8")
    why = "its study is left out, because it differs from those of other seeds: percentiles 5, not"
    assert f"mocov2_banded/all1: {why} 10." in text
    assert "Cai et al. 2020, figure 5a" in text


@pytest.mark.usefixtures("undrawn")
def test_classes_are_paired_over_all_seeds(tmp_path: Path) -> None:
    from dataclasses import replace

    folders = make_runs(tmp_path)
    other = make_study(seed=1, method="mocov2_banded", epoch=4)
    other = replace(other, class_mean=np.full((3, 3), -0.9))
    other.save(folders[1] / "analysis" / "study.npz")
    text = report([tmp_path], tmp_path / "out").read_text(encoding="utf-8")
    # Of the first seed alone -0.125, of the second -0.9.
    assert "<td>-0.512</td>" in text
    assert "<td>-0.125</td>" in text.partition("MoCo v2: hardest_5</summary>")[2]


@pytest.mark.usefixtures("undrawn")
def test_published_numbers_without_ours(tmp_path: Path) -> None:
    write_metrics(write_args(tmp_path / "a" / "b", MOCO), [1.0, 2.0])
    file = report([tmp_path], tmp_path / "out")
    text = file.read_text(encoding="utf-8").partition('id="published"')[2].partition("</section>")
    assert Page(text[0]).all("th")
    assert "here minus published" not in text[0]
    assert "difference here" not in text[0]
    assert text[0].count("None of these runs has a linear evaluation") == 1
    make_runs(tmp_path / "more")
    text_of_all = report([tmp_path], tmp_path / "out").read_text(encoding="utf-8")
    assert "here minus published" in text_of_all
    assert "None of these runs has a linear evaluation" not in text_of_all


@pytest.mark.parametrize(("classes", "coloured"), [(10, False), (11, True)])
def test_the_caption_of_a_tsne_says_who_is_coloured(
    tmp_path: Path, classes: int, coloured: bool
) -> None:
    from dataclasses import replace

    run = write_args(tmp_path / "a" / "b", MOCO)
    points = np.random.default_rng(0).random((40, 2)).astype(np.float32)
    one = make_study([f"class {number}" for number in range(classes)])
    replace(one, tsne=points, tsne_labels=np.arange(40) % classes).save(
        run / "analysis" / "study.npz"
    )
    text = report([tmp_path], tmp_path / "out").read_text(encoding="utf-8")
    assert ("The ten classes with most images are coloured" in text) is coloured


def test_each_test_is_named_where_it_stands(made: Path) -> None:
    text = (made / "report.html").read_text(encoding="utf-8").replace("&#39;", "'")
    (caption,) = re.findall(r"<caption>(Means over seeds[^<]*)", text)
    assert "Student's unpaired t-test" in caption
    (meaning,) = re.findall(r"<dt>± and p</dt><dd>([^<]*)", text)
    assert "Accuracies are compared by Welch's" in meaning
    assert "hard and easy negatives by Student's" in meaning


def test_what_stands_out_is_a_list(made: Path) -> None:
    text = (made / "report.html").read_text(encoding="utf-8")
    items = text.partition('<ul class="lead">')[2].partition("</ul>")[0]
    assert items.count("<li>") >= 5
    assert "\n- The one difference" in (made / "report.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("undrawn")
def test_another_baseline(tmp_path: Path) -> None:
    make_runs(tmp_path)
    made = write([tmp_path], tmp_path / "out", baseline="SimCLR: sscl")
    bases = [row.baseline and row.baseline.label for row in made.summary.rows]
    assert bases == ["SimCLR: sscl"] * 3 + [None]
    text = made.html.read_text(encoding="utf-8")
    assert "Differences are to SimCLR: sscl." in text
    assert "--baseline &#39;SimCLR: sscl&#39;" in text
    with pytest.raises(ConfigError, match="--baseline=x: there is no such group"):
        write([tmp_path], tmp_path / "out", baseline="x")


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    write_args(tmp_path / "a" / "b", MOCO)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"--out=.*file: the report can't be written .* Choose a"):
        report([tmp_path / "a"], tmp_path / "file")


# ---------------------------------------------------------------------- the command


@pytest.mark.usefixtures("undrawn")
def test_the_command(tmp_path: Path) -> None:
    make_runs(tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "simclr_sscl")
    out = tmp_path / "out"
    arguments = ["report", str(tmp_path / "runs"), "--out", str(out), "--title", "Mine [bold]"]
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "55.5 ± 0.5" in result.output
    note = "- simclr/one: its negatives were not recorded; hardness.enabled=true records them."
    assert note in result.output.splitlines()
    assert f"The report: {out / 'report.html'}" in result.output
    assert "<title>Mine [bold]</title>" in (out / "report.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)


@pytest.mark.full
def test_errors_end_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "solo_hardneg", "report", str(tmp_path / "nowhere")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("DataError: ")
    assert "there is no such folder. Give the folders of runs" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_names_that_rich_takes_for_markup(tmp_path: Path) -> None:
    args = changed(SIMCLR, negatives=HARDEST, data__dataset="[/red]x[bold]")
    write_args(tmp_path / "runs" / "one", args)
    write_args(tmp_path / "runs" / "two", changed(args, data__dataset="[link]"))
    arguments = ["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "[/red]x[bold]" in result.output
