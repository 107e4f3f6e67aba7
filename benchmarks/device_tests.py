"""The tests that need a GPU, reported one by one."""

from __future__ import annotations

import os
from typing import Any

import pytest

from benchmarks.provenance import HERE
from benchmarks.worker import OutOfTime, Report

DEVICE = "SOLO_HARDNEG_TEST_DEVICE"  # read by the tests; "cpu" makes them small


class ReportTests:
    """A pytest plug-in that reports each test, and stops when time is up."""

    def __init__(self, report: Report) -> None:
        self.report, self.outcomes = report, list[str]()
        self.stopped = False

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.report.start(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Adds a row for a test, or for a set-up or tear-down that didn't pass."""
        if report.when != "call" and report.outcome == "passed":
            return
        text = str(report.longrepr) if report.longrepr else ""
        self.outcomes.append(report.outcome)
        lines = [line for line in text.splitlines() if line.startswith("E ")] or text.splitlines()
        self.report.add_row(
            test=report.nodeid,
            outcome=report.outcome,
            seconds=round(report.duration, 3),
            error=" ".join(" ".join(lines).split())[:500],
        )

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, item: Any, nextitem: Any) -> None:
        if nextitem is not None and self.report.seconds_left() < 0:
            item.session.shouldstop, self.stopped = "time is up", True


def run_tests(file: str, gpu: bool, report: Report) -> None:
    """Runs a test file in this process.

    Raises:
        OutOfTime: Some tests were not run.
        RuntimeError: Some tests failed, or pytest did.
    """
    os.environ[DEVICE] = "cuda" if gpu else "cpu"
    plugin, tests = ReportTests(report), HERE.parent / "tests"
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(tests.parent)]
    code = pytest.main([*options, str(tests / file)], plugins=[plugin])
    failed, number = plugin.outcomes.count("failed"), len(plugin.outcomes)
    if failed or code not in (pytest.ExitCode.OK, pytest.ExitCode.INTERRUPTED):
        raise RuntimeError(f"{failed} of {number} tests failed (pytest: {code})")
    if plugin.stopped:
        raise OutOfTime(f"{number} tests have run")
