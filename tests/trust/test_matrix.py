"""``noxfile.py``: its sessions are there, and its table is written into CONTRIBUTING.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from integration_helpers import PROJECT

noxfile = pytest.importorskip("noxfile", reason="nox is not installed")


def test_the_sessions_are_there() -> None:
    wanted = [*noxfile.ALL, "build", "table", "matrix"]
    listed = subprocess.run(
        [sys.executable, "-m", "nox", "--list-sessions", "--json", "--session", *wanted],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = {session["session"] for session in json.loads(listed.stdout)}
    assert {*wanted} <= found


def test_the_stacks_are_those_of_the_test_script() -> None:
    script = (PROJECT / "scripts" / "test").read_text()
    for stack, place in noxfile.STACKS.items():
        assert f"{stack})" in script
        assert f"environment {place} " in script


def test_tests_are_counted() -> None:
    suite = '<testsuite tests="{}" skipped="{}" failures="{}" errors="{}"/>'.format
    report = f"<testsuites>{suite(10, 2, 1, 1)}{suite(5, 0, 0, 0)}</testsuites>"
    assert noxfile.counts(report) == {"passed": 11, "skipped": 2, "failed": 2}


def test_the_table_has_what_did_not_run() -> None:
    row = {"python": "3.11.7", "torch": "2.1.2", "lightning": "2.1.2", "passed": 3}
    row |= {"skipped": 0, "failed": 1, "date": "2026-11-25", "commit": "abc1234"}
    lines = noxfile.markdown(["tests(pinned)", "install(wheel)"], {"tests(pinned)": row})
    assert lines.splitlines() == [
        "| stack | python | torch | lightning | passed | skipped | failed | date | commit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| tests(pinned) | 3.11.7 | 2.1.2 | 2.1.2 | 3 | 0 | 1 | 2026-11-25 | abc1234 |",
        "| install(wheel) | did not run |  |  |  |  |  |  |  |",
    ]


def test_only_what_is_between_the_marks_is_replaced() -> None:
    assert noxfile.between((PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8"), "") != ""
    text = f"before\n{noxfile.BEGIN}\nold\n{noxfile.END}\nafter\n"
    new = noxfile.between(text, "| new |\n")
    assert new == f"before\n{noxfile.BEGIN}\n| new |\n{noxfile.END}\nafter\n"
    assert noxfile.between(new, "| new |\n") == new
    for wrong in ("", noxfile.BEGIN, f"{noxfile.END}{noxfile.BEGIN}", text + text):
        with pytest.raises(ValueError, match="once each"):
            noxfile.between(wrong, "")


def test_some_chosen_tests_leave_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noxfile, "RESULTS", tmp_path)
    noxfile.record("tests(pinned)", {"passed": 1}, partly=True)
    assert not noxfile.result_file("tests(pinned)").exists()
    noxfile.record("tests(pinned)", {"passed": 1}, partly=False)
    content = json.loads(noxfile.result_file("tests(pinned)").read_text())
    assert content["passed"] == 1
    assert {"date", "commit"} <= set(content)
