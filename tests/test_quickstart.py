"""scripts/quickstart.py at its smallest: what it prints and leaves, and what it does not repeat."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.full
SCRIPT = Path(__file__).parent.parent / "scripts" / "quickstart.py"
POLICIES = ("all", "hardest_5", "easiest_95")


def quickstart(folder: Path, *arguments: str) -> str:
    command = [sys.executable, str(SCRIPT), "--out", "runs", "--epochs", "1", *arguments]
    done = subprocess.run(
        [*command, "--linear-epochs", "1"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def assert_reported(page: Path, policies: list[str]) -> None:
    """The page has a row for each policy, with its linear accuracy, and pictures of all parts."""
    text = page.read_text()
    for policy in policies:
        assert f"MoCo v2: {policy}</th>" in text
    for section in ("training", "studies"):
        assert f'<section id="{section}">' in text
    assert "there is no linear evaluation" not in text
    assert "was not studied" not in text
    assert "were not recorded" not in text


def test_three_policies_one_table_and_no_work_twice(tmp_path: Path) -> None:
    first = quickstart(tmp_path)
    table = (tmp_path / "runs" / "table.md").read_text()
    rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in table.splitlines()]
    assert [row[0] for row in rows[2:]] == [
        "all (MoCo v2)",
        "hardest 5 %",
        "easiest 95 %",
    ]
    # 22 steps of 64 keys have filled the queue of 1,024: all of it, 52 and 972 of it.
    assert [row[-2] for row in rows[2:]] == ["1024", "52", "972"]
    for policy, row in zip(POLICIES, rows[2:], strict=True):
        home = tmp_path / "runs" / policy
        linear = json.loads((home / "linear.json").read_text())
        assert row[1] == f"{linear['metrics']['val_acc1']:.1f}"
        assert 0 < linear["metrics"]["val_knn_acc1"] <= 100
        pretrained = json.loads((home / "pretrain.json").read_text())
        for outcome in (pretrained, linear):
            assert Path(outcome["checkpoint"]).is_file()
            assert Path(outcome["folder"]).name in first.replace("\n", "")
    page = tmp_path / "runs" / "report-table" / "report.html"
    assert f"The report: {page.resolve()}" in first
    assert_reported(page, ["hardest_5", "easiest_95"])
    studies = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("study.npz")}
    assert len(studies) == 3
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.ckpt")}
    assert len(before) == 6

    (tmp_path / "runs" / "easiest_95" / "linear.json").unlink()  # as if it had been killed there
    second = quickstart(tmp_path)
    assert second.count("there already") == 5
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.ckpt")}
    assert before.items() < after.items()
    assert len(after) == 7
    assert (tmp_path / "runs" / "table.md").read_text() == table
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("study.npz")} == studies


def test_all_methods_of_the_papers_in_one_table(tmp_path: Path) -> None:
    shown = quickstart(tmp_path, "--methods")
    table = (tmp_path / "runs" / "methods.md").read_text()
    rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in table.splitlines()]
    found = {row[0]: row[1:] for row in rows[2:]}
    assert list(found) == [
        *("SimCLR", "DCL", "HCL", "SSCL"),
        *("MoCo v2", "MoCHi", "banded, hardest 5 %", "curriculum"),
    ]
    # Of 2 * 64 - 2 negatives and a queue of 1,024, and with those that are made of them.
    kept = {name: tuple(cells[-2:]) for name, cells in found.items()}
    assert kept["SimCLR"] == ("all", "")
    assert kept["DCL"] == kept["HCL"] == ("126", "")
    assert kept["SSCL"] == ("128", "2")
    assert kept["MoCo v2"] == ("1024", "")
    assert kept["MoCHi"] == ("1096", "72")
    assert kept["banded, hardest 5 %"] == ("52", "")
    assert 52 <= int(kept["curriculum"][0]) < 1024
    for name, cells in found.items():
        assert (cells[1] == "") == (name in ("SimCLR", "MoCo v2"))
        assert name in shown
    page = tmp_path / "runs" / "report-methods" / "report.html"
    assert_reported(page, ["hardest_5", "curriculum", "mix(hardest=64, pairs=64, queries=8)"])
    differences = {name: float(c[0]) - float(found["MoCo v2"][0]) for name, c in found.items()}
    assert float(found["MoCHi"][1]) == pytest.approx(differences["MoCHi"], abs=0.11)
