"""The tests that need a GPU, one row for each, as soon as it has run."""

from __future__ import annotations

import os
from typing import Any

import pytest

from benchmarks.provenance import HERE
from benchmarks.worker import OutOfTime, Report

DEVICE = "SOLO_HARDNEG_TEST_DEVICE"  # read by the tests; cpu is a rehearsal at small sizes


class Rows:
    """A plug-in of pytest that reports each test, and stops between tests when time is up."""

    def __init__(self, report: Report) -> None:
        self.report, self.outcomes = report, list[str]()
        self.stopped = False

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Notes which test begins."""
        self.report.at(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Writes a row: for the test itself, or for whatever kept it from running."""
        if report.when != "call" and report.outcome == "passed":
            return
        text = str(report.longrepr) if report.longrepr else ""
        self.outcomes.append(report.outcome)
        lines = [line for line in text.splitlines() if line.startswith("E ")] or text.splitlines()
        self.report.row(
            test=report.nodeid,
            outcome=report.outcome,
            seconds=round(report.duration, 3),
            error=" ".join(" ".join(lines).split())[:500],
        )

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, item: Any, nextitem: Any) -> None:
        """Asks pytest to stop if time is up."""
        if nextitem is not None and self.report.left() < 0:
            item.session.shouldstop, self.stopped = "time is up", True


def run_tests(file: str, gpu: bool, report: Report) -> None:
    """Runs a file of tests in this process.

    Raises:
        OutOfTime: not all of them have run.
        RuntimeError: some failed, or pytest couldn't run them.
    """
    os.environ[DEVICE] = "cuda" if gpu else "cpu"
    rows, tests = Rows(report), HERE.parent / "tests"
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(tests.parent)]
    code = pytest.main([*options, str(tests / file)], plugins=[rows])
    failed = rows.outcomes.count("failed")
    if failed or code not in (pytest.ExitCode.OK, pytest.ExitCode.INTERRUPTED):
        raise RuntimeError(f"{failed} of {len(rows.outcomes)} tests failed (pytest: {code})")
    if rows.stopped:
        raise OutOfTime(f"{len(rows.outcomes)} tests have run")
