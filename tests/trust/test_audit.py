"""``scripts/audit.py``: what pip-audit and packages' metadata say, as warnings."""

from __future__ import annotations

import importlib.util
import json
import sys
from email.message import Message
from pathlib import Path
from types import ModuleType

import pytest
from integration_helpers import PROJECT


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", PROJECT / "scripts" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["audit"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def answer(*packages: dict[str, object]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


def test_advisories_are_warnings(audit: ModuleType) -> None:
    known = {"id": "PYSEC-2023-238", "aliases": ["CVE-2023-47248"], "fix_versions": ["14.0.1"]}
    unfixed = {"id": "X-1", "aliases": [], "fix_versions": []}
    old = {"name": "pyarrow", "version": "14.0.0", "vulns": [known, unfixed]}
    fine = {"name": "rich", "version": "13.0", "vulns": []}
    skipped = {"name": "torch", "skip_reason": "Dependency not found on PyPI"}
    assert audit.advisory_lines(answer(old, fine, skipped)) == [
        "WARNING: pyarrow 14.0.0: PYSEC-2023-238, CVE-2023-47248; fixed in 14.0.1",
        "WARNING: pyarrow 14.0.0: X-1; fixed in no version yet",
        "WARNING: not in the database: torch",
        "2 packages were looked up; 1 have advisories.",
    ]
    with pytest.raises(RuntimeError, match="none of the packages is known"):
        audit.advisory_lines(answer(skipped))
    for text in ("", "[]", '{"dependencies": [3]}'):
        with pytest.raises(RuntimeError, match="can't be read"):
            audit.advisory_lines(text)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "import sys; sys.stderr.write('x\\nno route to host\\n'); sys.exit(1)",
            "no route to host",
        ),
        ("import time; time.sleep(60)", "no answer within 0.2 seconds"),
        (None, "pip-audit isn't installed"),
    ],
)
def test_whatever_happens_it_is_a_warning(
    audit: ModuleType,
    script: str | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another program in the place of pip-audit, so that nothing is asked for."""
    (tmp_path / "pip_audit.py").write_text(script or "")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(audit, "SECONDS", 0.2 if "sleep" in str(script) else 60)
    monkeypatch.setattr(audit.importlib.util, "find_spec", lambda name: script)
    assert audit.main() == 0
    out = capsys.readouterr().out.partition("== advisories")[2]
    assert f"WARNING: advisories were not looked up: {message}" in out


@pytest.mark.parametrize(
    ("name", "text", "verdict"),
    [
        ("a", "BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0", "allowed"),
        ("a", "Apache-2.0 WITH LLVM-exception", "allowed"),
        ("a", "Apache Software License; BSD License", "allowed"),
        ("a", "GNU Lesser General Public License v3 (LGPLv3)", "allowed"),
        ("a", "GPL-3.0-only OR MIT", "allowed"),
        ("a", "MIT AND GPL-2.0-only", "copyleft"),
        ("a", "GNU Affero General Public License v3", "copyleft"),
        ("a", "", "unknown"),
        ("a", "Other/Proprietary License", "unknown"),
        ("nvidia-cublas", "Other/Proprietary License", "known"),
    ],
)
def test_verdicts(audit: ModuleType, name: str, text: str, verdict: str) -> None:
    assert audit.judge(name, text) == verdict


def test_the_best_statement_of_a_licence_counts(audit: ModuleType) -> None:
    about = Message()
    about["License"] = "The licence\nin all its length"
    assert audit.licence_text(about) == "The licence"
    about["Classifier"] = "License :: OSI Approved :: MIT License"
    assert audit.licence_text(about) == "MIT License"
    about["License-Expression"] = "BSD-3-Clause"
    assert audit.licence_text(about) == "BSD-3-Clause"
    unknown = audit.Licence("b", "2", "", "unknown")
    assert "licence of b is unknown" in audit.licence_lines([unknown])[-1]


def test_dependencies_of_dependencies_are_listed(audit: ModuleType) -> None:
    names = audit.dependencies("solo-hardneg")
    assert {"torch", "numpy", "jinja2", "markupsafe"} <= set(names)
    assert not {"solo-hardneg", "pytest", "ruff"} & set(names), "those of extras aren't"
