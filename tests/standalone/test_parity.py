"""With equal weights and batches, the standalone host equals solo-learn.

A subprocess (``compare_hosts.py``) runs both, so solo-learn doesn't become importable for other
tests.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from integration_helpers import run_python

pytestmark = [pytest.mark.full, pytest.mark.host]


@pytest.fixture(scope="module")
def found(solo_learn: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("parity")
    tests = Path(__file__).parents[1]
    env = {"PYTHONPATH": f"{solo_learn}:{tests}", "SOLO_HARDNEG_HOST": "solo"}
    script = Path(__file__).with_name("compare_hosts.py")
    run_python(script, folder, cwd=folder, env=env).ok()
    found = json.loads((folder / "found.json").read_text())
    assert found["host"] == "solo"
    return found


@pytest.mark.parametrize("method", ["byol", "mocov2plus", "simclr"])
def test_methods_are_equal(found: dict[str, Any], method: str) -> None:
    result = found[method]
    assert result["config"] == []
    assert result["keys"] == []
    solo, standalone = result["loss"]
    assert standalone == pytest.approx(solo, abs=1e-6, rel=1e-6)
    assert solo > 1
    assert result["gradient"] < 1e-4
    assert result["state"] < 1e-5
    assert result.get("momentum", 0) <= 1e-6


def test_schedule_lars_and_views_are_equal(found: dict[str, Any]) -> None:
    assert found["schedule"] < 1e-9
    differences = {key: v for key, v in found.items() if key.startswith(("LARS", "view"))}
    assert len(differences) == 6
    assert max(differences.values()) < 1e-6, differences


@pytest.mark.parametrize(
    ("direction", "module"),
    [
        ("standalone to solo", "solo.methods.byol"),
        ("solo to standalone", "solo_hardneg.standalone.byol"),
    ],
)
def test_byol_checkpoints_load_in_the_other_host(
    found: dict[str, Any], direction: str, module: str
) -> None:
    same, where, accuracy = found["checkpoints"][direction]
    assert same is True
    assert where == module
    assert 0 <= accuracy <= 100


def test_solo_learn_resumes_a_standalone_run(found: dict[str, Any]) -> None:
    assert found["checkpoints"]["pointer"] == 0  # two batches of four filled the queue of eight
    assert found["checkpoints"]["resumer"] is True
