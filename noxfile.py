"""The version matrix: ``nox`` runs all of it, and writes the table in CONTRIBUTING.md.

    nox                                  everything, then the table
    nox -s "tests(pinned)" -- FILES      the tests on solo-learn's pinned stack; FILES go to pytest
    nox -s "install(wheel)"              the wheel in an empty environment
    nox -s table                         only the table, of the results that there are

The environments of the tests are those of scripts/test. Those of the installations are made anew,
take 6 GB each, and are removed when they are done with; KEEP=1 keeps them.
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
# solo-learn imports these, and we don't need them
OF_SOLO_LEARN = ("einops", "tqdm", "wandb", "setuptools<81")
_VERSIONS = (
    "import json, lightning, platform, torch; print(json.dumps(dict(python="
    "platform.python_version(), torch=torch.__version__, lightning=lightning.__version__)))"
)

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["matrix"]
nox.options.default_venv_backend = "venv"


# ---------------------------------------------------------------------- the sessions


@nox.session(venv_backend="none")
def matrix(session: nox.Session) -> None:
    """Everything, then the table."""
    shutil.rmtree(RESULTS, ignore_errors=True)
    for name in (*ALL, "table"):
        session.notify(name)


@nox.session(venv_backend="none")
@nox.parametrize("stack", list(STACKS), ids=list(STACKS))
def tests(session: nox.Session, stack: str) -> None:
    """All tests on one stack, those inside solo-learn among them."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    report = RESULTS / f"tests-{stack}.xml"
    report.unlink(missing_ok=True)
    arguments = [*(session.posargs or ["--all"]), f"--junitxml={report}"]
    python = PROJECT / STACKS[stack] / "bin" / "python"
    session.run(
        "scripts/test", *arguments, env={"STACK": stack}, external=True, success_codes=range(256)
    )
    if not report.is_file():
        session.error(f"{report} wasn't written: the tests didn't get to their end")
    found = counts(report.read_text(encoding="utf-8"))
    printed = session.run(str(python), "-c", _VERSIONS, external=True, silent=True)
    versions = json.loads(printed.splitlines()[-1])  # warnings come first
    record(f"tests({stack})", {**versions, **found}, bool(session.posargs))
    if found["failed"]:
        session.error(f"{found['failed']} tests failed")


@nox.session
def build(session: nox.Session) -> None:
    """The wheel and the sdist, of the files that git knows and doesn't ignore."""
    session.install("build")
    shutil.rmtree(DIST, ignore_errors=True)
    source = Path(session.create_tmp()) / "source"
    shutil.rmtree(source, ignore_errors=True)
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=PROJECT, capture_output=True, text=True, check=True)
    for name in names.stdout.splitlines():
        if (PROJECT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, source / name)
    session.run("python", "-m", "build", "--outdir", str(DIST), str(source))


@nox.session(reuse_venv=False, requires=["build"])
@nox.parametrize("kind", list(KINDS), ids=list(KINDS))
def install(session: nox.Session, kind: str) -> None:
    """The wheel or the sdist in an empty environment, far from the source tree."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    packed = next(DIST.glob(KINDS[kind]))
    work = Path(session.create_tmp()) / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    out = RESULTS / f"install-{kind}.json"
    script = str(PROJECT / "scripts" / "check_install.py")
    arguments = [script, str(out)]
    try:
        session.install(str(packed))
        checkout = solo_learn()
        if checkout is not None:
            session.install(*OF_SOLO_LEARN)
            arguments += ["--solo-learn", str(checkout)]
        session.chdir(work)
        out.unlink(missing_ok=True)
        session.run("python", *arguments, success_codes=range(256))
    finally:
        session.chdir(PROJECT)
        if not os.environ.get("KEEP"):
            shutil.rmtree(session.virtualenv.location, ignore_errors=True)
            shutil.rmtree(work, ignore_errors=True)
    if not out.is_file():
        session.error("the checks didn't get to their end")
    found = json.loads(out.read_text(encoding="utf-8"))
    record(f"install({kind})", found, False)
    if found["failed"]:
        session.error(f"{found['failed']} checks failed")


@nox.session(venv_backend="none")
def table(session: nox.Session) -> None:
    """Writes the results that there are into CONTRIBUTING.md, and prints them."""
    results = {}
    for name in ALL:
        file = result_file(name)
        if file.is_file():
            results[name] = json.loads(file.read_text(encoding="utf-8"))
    text = markdown(ALL, results)
    print(text)
    page = PROJECT / "CONTRIBUTING.md"
    page.write_text(between(page.read_text(encoding="utf-8"), text), encoding="utf-8")


# ---------------------------------------------------------------------- results


def solo_learn() -> Path | None:
    """The checkout to run in: the tests look for it in the same places."""
    asked = os.environ.get("SOLO_LEARN_DIR")
    places = [Path(asked)] if asked else []
    for place in (*places, PROJECT.parent / "solo-learn", Path.home() / "solo-learn"):
        if (place / "main_pretrain.py").is_file():
            return place.resolve()
    return None


def result_file(name: str) -> Path:
    """Where a session keeps its row of the table."""
    return RESULTS / f"{name.replace('(', '-').rstrip(')')}.row.json"


def record(name: str, found: Mapping[str, Any], partly: bool) -> None:
    """Keeps a session's row; not that of a few chosen tests, which tell nothing of the rest."""
    if partly:
        return
    content = {**found, "date": datetime.date.today().isoformat(), "commit": commit()}
    result_file(name).write_text(json.dumps(content), encoding="utf-8")


def commit() -> str:
    """What is checked out; with a + if it was changed since."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True).stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "unknown") + "+" * bool(
        git("status", "--porcelain")
    )


def counts(report: str) -> dict[str, int]:
    """How many tests passed, were skipped, and failed, of pytest's JUnit report.

    One that is expected to fail and does counts as skipped, as pytest writes it.
    """
    suites = list(ET.fromstring(report).iter("testsuite"))
    total = {key: sum(int(s.get(key, 0)) for s in suites) for key in ("tests", "skipped")}
    failed = sum(int(s.get(key, 0)) for s in suites for key in ("failures", "errors"))
    passed = max(total["tests"] - total["skipped"] - failed, 0)
    return {"passed": passed, "skipped": total["skipped"], "failed": failed}


def markdown(names: Iterable[str], results: Mapping[str, Mapping[str, Any]]) -> str:
    """The table; what has no result stands there, too."""
    lines = [COLUMNS, tuple("---" for _ in COLUMNS)]
    for name in names:
        found = results.get(name)
        cells = ["did not run"] if found is None else [str(found.get(c, "")) for c in COLUMNS[1:]]
        lines.append((name, *cells, *[""] * (len(COLUMNS) - 1 - len(cells))))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def between(text: str, new: str) -> str:
    """A text with something new between the two marks.

    Raises:
        ValueError: the marks are not there, once each and in this order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or text.count(BEGIN) > 1 or text.count(END) > 1:
        raise ValueError(f"CONTRIBUTING.md needs the lines {BEGIN} and {END}, once each.")
    return f"{before}{BEGIN}\n{new}{END}{after}"
