"""scripts/quickstart.py at its smallest: its output, its files, and what it doesn't repeat."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import typer
from integration_helpers import PROJECT, run_python
from typer.testing import CliRunner

pytestmark = pytest.mark.timeout(900)
SCRIPT = PROJECT / "scripts" / "quickstart.py"


def quickstart(folder: Path, *arguments: str) -> str:
    small = ("--out", "runs", "--epochs", "1", "--linear-epochs", "1")
    env = {"HF_HUB_OFFLINE": "0", "NLTK_DATA": "nowhere"}  # a user's, not the tests'
    return run_python(SCRIPT, *small, *arguments, cwd=folder, env=env, timeout=600).ok().out


def read_rows(table: Path) -> dict[str, list[str]]:
    """Returns the cells of each row, by its title."""
    lines = table.read_text().splitlines()[2:]
    rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]
    return {row[0]: row[1:] for row in rows}


def assert_reported(page: Path, policies: list[str]) -> None:
    """The page has a row for each policy, sections for all parts, and nothing is missing."""
    text = page.read_text()
    for policy in policies:
        assert f"MoCo v2: {policy}</th>" in text
    for section in ("training", "studies"):
        assert f'<section id="{section}">' in text
    for missing in ("None of these runs has a linear evaluation", "no study in analysis/"):
        assert missing not in text


@pytest.mark.parametrize(
    "arguments", [["--epochs", "0"], ["--linear-epochs", "0"], ["--seed", "some"], ["--nosuch"]]
)
def test_bad_arguments_are_refused_before_anything_runs(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command()(runpy.run_path(str(SCRIPT))["main"])
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 2
    assert arguments[0] in found.output
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def bands(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of the README's command, at its smallest."""
    folder = tmp_path_factory.mktemp("bands")
    return folder, quickstart(folder)


@pytest.mark.full
def test_three_policies_in_one_table(bands: tuple[Path, str]) -> None:
    folder, out = bands
    runs = folder / "runs"
    rows = read_rows(runs / "table.md")
    assert list(rows) == ["all (MoCo v2)", "hardest 5 %", "easiest 95 %"]
    # 22 steps of 64 keys fill the queue of 1,024.
    assert [row[-2] for row in rows.values()] == ["1024", "52", "972"]
    for policy, row in zip(("all", "hardest_5", "easiest_95"), rows.values(), strict=True):
        pretrained = json.loads((runs / policy / "pretrain.json").read_text())
        linear = json.loads((runs / policy / "linear.json").read_text())
        assert row[0] == f"{linear['metrics']['val_acc1']:.1f}"
        assert 0 < linear["metrics"]["val_knn_acc1"] <= 100
        for outcome in (pretrained, linear):
            assert Path(outcome["checkpoint"]).is_file()
            assert Path(outcome["folder"]).name in out
    page = runs / "report-table" / "report.html"
    assert f"The report: {page.resolve()}" in out
    assert_reported(page, ["hardest_5", "easiest_95"])


@pytest.mark.full
def test_finished_steps_are_not_repeated(bands: tuple[Path, str]) -> None:
    folder, _ = bands
    runs = folder / "runs"
    rows = read_rows(runs / "table.md")

    def modified(pattern: str) -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in folder.rglob(pattern)}

    studies, before = modified("study.npz"), modified("*.ckpt")
    assert (len(studies), len(before)) == (3, 6)
    (runs / "easiest_95" / "linear.json").unlink()  # as if killed there
    assert quickstart(folder).count("there already") == 5
    assert before.items() < modified("*.ckpt").items()
    assert len(modified("*.ckpt")) == 7
    assert read_rows(runs / "table.md") == rows
    assert modified("study.npz") == studies


@pytest.mark.full
def test_methods_of_the_papers_in_one_table(
    bands: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(bands[0])
    monkeypatch.setenv("SOLO_HARDNEG_HOST", "standalone")
    main = runpy.run_path(str(SCRIPT))["main"]
    # SSCL takes the path of DCL and HCL and more; two of the others ran as bands.
    chosen = tuple(c for c in main.__globals__["METHODS"] if c.name not in ("dcl", "hcl"))
    monkeypatch.setitem(main.__globals__, "METHODS", chosen)
    main(methods=True, out=Path("runs"), epochs=1, linear_epochs=1, seed=5)
    out = capsys.readouterr().out
    assert out.count("there already") == 4
    found = read_rows(Path("runs/methods.md"))
    kept = {name: tuple(cells[-2:]) for name, cells in found.items()}
    curriculum = kept.pop("curriculum")
    # Of 2·64 - 2 negatives, or a queue of 1,024; the synthetic ones included.
    assert kept == {
        "SimCLR": ("all", ""),
        "SSCL": ("128", "2"),
        "MoCo v2": ("1024", ""),
        "MoCHi": ("1096", "72"),
        "banded, hardest 5 %": ("52", ""),
    }
    assert 52 <= int(curriculum[0]) < 1024
    for name, cells in found.items():
        assert (cells[1] == "") == (name in ("SimCLR", "MoCo v2"))  # baselines
        assert name in out
    page = Path("runs/report-methods/report.html")
    assert_reported(page, ["hardest_5", "curriculum", "mix(hardest=64, pairs=64, queries=8)"])
    difference = float(found["MoCHi"][0]) - float(found["MoCo v2"][0])
    assert float(found["MoCHi"][1]) == pytest.approx(difference, abs=0.11)
