"""The version matrix: ``nox`` runs it and writes the table in CONTRIBUTING.md.

    nox                                  everything, then the table
    nox -s "tests(pinned)" -- FILES      the tests on solo-learn's pinned stack; FILES go to pytest
    nox -s "install(wheel)"              the wheel in an empty environment
    nox -s table                         the table of the results so far

Tests run in the environments of scripts/test. Installations get new ones of 6 GB each, which are
removed afterwards; KEEP=1 keeps them.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nox

PROJECT = Path(__file__).resolve().parent
RESULTS = PROJECT / ".nox" / "results"
DIST = PROJECT / ".nox" / "dist"
STACKS = {"newest": ".venv-test", "pinned": ".venv-pinned"}
KINDS = {"wheel": "*.whl", "sdist": "*.tar.gz"}
ALL = [*(f"tests({stack})" for stack in STACKS), *(f"install({kind})" for kind in KINDS)]
COLUMNS = ("stack", "python", "torch", "lightning", "passed", "skipped", "failed", "date", "commit")
BEGIN, END = "<!-- versions: written by nox -->", "<!-- versions: end -->"
SOLO_LEARNS_IMPORTS = ("einops", "tqdm", "wandb", "setuptools<81")  # beyond our own dependencies
PRINT_VERSIONS = (
    "import json, lightning, platform, torch; print(json.dumps(dict(python="
    "platform.python_version(), torch=torch.__version__, lightning=lightning.__version__)))"
)

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["matrix"]
nox.options.default_venv_backend = "venv"


# ---------------------------------------------------------------------- sessions


@nox.session(venv_backend="none")
def matrix(session: nox.Session) -> None:
    """Everything, then the table."""
    shutil.rmtree(RESULTS, ignore_errors=True)
    stacks, installations = ALL[: len(STACKS)], ALL[len(STACKS) :]
    # nox runs what a session requires only if that session is named on the command line.
    for name in (*stacks, "build", *installations, "table"):
        session.notify(name)


@nox.session(venv_backend="none")
@nox.parametrize("stack", list(STACKS), ids=list(STACKS))
def tests(session: nox.Session, stack: str) -> None:
    """All tests on one stack, including those inside solo-learn."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    report = RESULTS / f"tests-{stack}.xml"
    report.unlink(missing_ok=True)
    arguments = [*(session.posargs or ["--all"]), f"--junitxml={report}"]
    python = PROJECT / STACKS[stack] / "bin" / "python"
    session.run(
        "scripts/test", *arguments, env={"STACK": stack}, external=True, success_codes=range(256)
    )
    if not report.is_file():
        session.error(f"the tests did not finish: {report} is missing")
    counts = count_tests(report.read_text(encoding="utf-8"))
    printed = session.run(str(python), "-c", PRINT_VERSIONS, external=True, silent=True)
    versions = json.loads(printed.splitlines()[-1])  # warnings come first
    if not session.posargs:  # some chosen tests are not a row
        save_row(f"tests({stack})", {**versions, **counts})
    if counts["failed"]:
        session.error(f"{counts['failed']} tests failed")


@nox.session
def build(session: nox.Session) -> None:
    """The wheel and the sdist of the files that git doesn't ignore."""
    session.install("build")
    shutil.rmtree(DIST, ignore_errors=True)
    source = Path(session.create_tmp()) / "source"
    shutil.rmtree(source, ignore_errors=True)
    for name in git("ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (PROJECT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, source / name)
    session.run("python", "-m", "build", "--outdir", str(DIST), str(source))


@nox.session(reuse_venv=False, requires=["build"])
@nox.parametrize("kind", list(KINDS), ids=list(KINDS))
def install(session: nox.Session, kind: str) -> None:
    """The wheel or the sdist in an empty environment, far from the source."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = RESULTS / f"install-{kind}.json"
    result.unlink(missing_ok=True)
    folder = Path(session.create_tmp()) / "work"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    arguments = [str(PROJECT / "scripts" / "check_install.py"), str(result)]
    try:
        session.install(str(next(DIST.glob(KINDS[kind]))))
        checkout = find_solo_learn()
        if checkout is not None:
            session.install(*SOLO_LEARNS_IMPORTS)
            arguments += ["--solo-learn", str(checkout)]
        session.chdir(folder)
        session.run("python", *arguments, success_codes=range(256))
    finally:
        session.chdir(PROJECT)
        if not os.environ.get("KEEP"):
            shutil.rmtree(session.virtualenv.location, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
    if not result.is_file():
        session.error(f"the checks did not finish: {result} is missing")
    row = json.loads(result.read_text(encoding="utf-8"))
    save_row(f"install({kind})", row)
    if row["failed"]:
        session.error(f"{row['failed']} checks failed")


@nox.session(venv_backend="none")
def table(session: nox.Session) -> None:
    """Writes the results so far into CONTRIBUTING.md, and prints them."""
    files = {name: row_file(name) for name in ALL}
    rows = {n: json.loads(f.read_text(encoding="utf-8")) for n, f in files.items() if f.is_file()}
    text = format_table(ALL, rows)
    print(text)
    page = PROJECT / "CONTRIBUTING.md"
    page.write_text(replace_table(page.read_text(encoding="utf-8"), text), encoding="utf-8")


# ---------------------------------------------------------------------- results


def find_solo_learn() -> Path | None:
    """The checkout of solo-learn, looked for where the tests look for it."""
    given = os.environ.get("SOLO_LEARN_DIR")
    places = [Path(given)] if given else []
    for place in (*places, PROJECT.parent / "solo-learn", Path.home() / "solo-learn"):
        if (place / "main_pretrain.py").is_file():
            return place.resolve()
    return None


def git(*arguments: str) -> str:
    """Returns what git prints in this project."""
    command = ["git", *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True).stdout.strip()


def row_file(name: str) -> Path:
    """The file of a session's row of the table."""
    return RESULTS / f"{name.replace('(', '-').rstrip(')')}.row.json"


def save_row(name: str, row: Mapping[str, Any]) -> None:
    """Saves a session's row with date and commit, a ``+`` for changes since the commit."""
    commit = git("rev-parse", "--short", "HEAD") or "unknown"
    commit += "+" * bool(git("status", "--porcelain"))
    content = {**row, "date": datetime.date.today().isoformat(), "commit": commit}
    row_file(name).write_text(json.dumps(content), encoding="utf-8")


def count_tests(report: str) -> dict[str, int]:
    """Counts passed, skipped and failed tests in pytest's JUnit report (XML).

    An expected failure counts as skipped, as in the report.
    """
    suites = list(ET.fromstring(report).iter("testsuite"))
    keys = ("tests", "skipped", "failures", "errors")
    total = {key: sum(int(suite.get(key, 0)) for suite in suites) for key in keys}
    failed = total["failures"] + total["errors"]
    # A test that fails and whose tear-down fails too counts twice as failed.
    passed = max(total["tests"] - total["skipped"] - failed, 0)
    return {"passed": passed, "skipped": total["skipped"], "failed": failed}


def format_table(names: Iterable[str], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats the table in Markdown; a session without a row "did not run"."""
    lines = [COLUMNS, tuple("---" for _ in COLUMNS)]
    for name in names:
        row = rows.get(name, {"python": "did not run"})
        lines.append((name, *(str(row.get(column, "")) for column in COLUMNS[1:])))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def replace_table(text: str, table: str) -> str:
    """Replaces what is between the two marks.

    Raises:
        ValueError: The marks are not there, once each and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or text.count(BEGIN) > 1 or text.count(END) > 1:
        raise ValueError(f"CONTRIBUTING.md needs the lines {BEGIN} and {END}, once each.")
    return f"{before}{BEGIN}\n{table}{END}{after}"
