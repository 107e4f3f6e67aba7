"""The version matrix: nox lists its sessions, and its table is written into CONTRIBUTING.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from integration_helpers import PROJECT

noxfile = pytest.importorskip("noxfile", reason="nox is not installed")


def test_nox_lists_all_sessions() -> None:
    names = [*noxfile.ALL, "build", "table", "matrix"]
    listed = subprocess.run(
        [sys.executable, "-m", "nox", "--list-sessions", "--json", "--session", *names],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {*names} <= {session["session"] for session in json.loads(listed.stdout)}


def test_the_stacks_are_those_of_the_test_script() -> None:
    script = (PROJECT / "scripts" / "test").read_text()
    for stack, folder in noxfile.STACKS.items():
        assert f"{stack})" in script
        assert f"environment {folder} " in script


def test_the_matrix_builds_before_it_installs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noxfile, "RESULTS", tmp_path)

    class Session:
        notified: ClassVar[list[str]] = []

        def notify(self, name: str) -> None:
            self.notified.append(name)

    noxfile.matrix(Session())
    assert {*noxfile.ALL, "build", "table"} == {*Session.notified}
    order = Session.notified.index
    assert order("build") < min(order(f"install({kind})") for kind in noxfile.KINDS)
    assert Session.notified[-1] == "table"


def test_tests_are_counted() -> None:
    suite = '<testsuite tests="{}" skipped="{}" failures="{}" errors="{}"/>'.format
    report = f"<testsuites>{suite(10, 2, 1, 1)}{suite(5, 0, 0, 0)}</testsuites>"
    assert noxfile.count_tests(report) == {"passed": 11, "skipped": 2, "failed": 2}


def test_the_table_names_what_did_not_run() -> None:
    row = {"python": "3.11.7", "torch": "2.1.2", "lightning": "2.1.2", "passed": 3}
    row |= {"skipped": 0, "failed": 1, "date": "2026-11-25", "commit": "abc1234"}
    table = noxfile.format_table(["tests(pinned)", "install(wheel)"], {"tests(pinned)": row})
    assert table.splitlines() == [
        "| stack | python | torch | lightning | passed | skipped | failed | date | commit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| tests(pinned) | 3.11.7 | 2.1.2 | 2.1.2 | 3 | 0 | 1 | 2026-11-25 | abc1234 |",
        "| install(wheel) | did not run |  |  |  |  |  |  |  |",
    ]


def test_only_the_text_between_the_marks_is_replaced() -> None:
    assert noxfile.replace_table((PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8"), "")
    text = f"before\n{noxfile.BEGIN}\nold\n{noxfile.END}\nafter\n"
    new = noxfile.replace_table(text, "| new |\n")
    assert new == f"before\n{noxfile.BEGIN}\n| new |\n{noxfile.END}\nafter\n"
    assert noxfile.replace_table(new, "| new |\n") == new
    for wrong in ("", noxfile.BEGIN, f"{noxfile.END}{noxfile.BEGIN}", text + text):
        with pytest.raises(ValueError, match="once each"):
            noxfile.replace_table(wrong, "")


@pytest.mark.parametrize("files", [(), ("tests/test_cli.py",)])
def test_only_a_run_of_all_tests_leaves_a_row(
    files: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Session:
        posargs = files

        def run(self, program: str, *arguments: str, **options: object) -> str:
            if program == "scripts/test":
                report = Path(arguments[-1].removeprefix("--junitxml="))
                report.write_text('<testsuite tests="1" skipped="0" failures="0" errors="0"/>')
            return '{"torch": "2.1.2"}\n'

    monkeypatch.setattr(noxfile, "RESULTS", tmp_path)
    noxfile.tests(Session(), "pinned")
    file = noxfile.row_file("tests(pinned)")
    assert file.exists() == (not files)
    if not files:
        row = json.loads(file.read_text())
        assert (row["torch"], row["passed"]) == ("2.1.2", 1)
        assert {"date", "commit"} <= set(row)
