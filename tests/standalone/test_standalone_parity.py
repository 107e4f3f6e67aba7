"""The standalone host beside solo-learn: equal weights and batches give equal results.

Both run in one process of their own (``beside_solo_learn.py``), so that solo-learn doesn't become
importable for the other tests.
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
    script = Path(__file__).with_name("beside_solo_learn.py")
    run_python(script, folder, cwd=folder, env=env).ok()
    found = json.loads((folder / "found.json").read_text())
    assert found["host"] == "solo"
    return found


@pytest.mark.parametrize("method", ["byol", "mocov2plus", "simclr"])
def test_methods_are_equal(found: dict[str, Any], method: str) -> None:
    of = found[method]
    assert of["config"] == []
    assert of["keys"] == []
    theirs, ours = of["loss"]
    assert ours == pytest.approx(theirs, abs=1e-6, rel=1e-6)
    assert theirs > 1
    assert of["gradient"] < 1e-4
    assert of["state"] < 1e-5
    assert of.get("momentum", 0) <= 1e-6


def test_schedule_lars_and_views_are_equal(found: dict[str, Any]) -> None:
    assert found["schedule"] < 1e-9
    apart = {key: v for key, v in found.items() if key.startswith(("LARS", "view"))}
    assert len(apart) == 6
    assert max(apart.values()) < 1e-6, apart


@pytest.mark.parametrize(
    ("place", "module"),
    [("ours in theirs", "solo.methods.byol"), ("theirs in ours", "solo_hardneg.standalone.byol")],
)
def test_byols_checkpoints_move_both_ways(found: dict[str, Any], place: str, module: str) -> None:
    same, where, accuracy = found["checkpoints"][place]
    assert same is True
    assert where == module
    assert 0 <= accuracy <= 100


def test_solo_learn_takes_up_a_run_of_ours(found: dict[str, Any]) -> None:
    assert found["checkpoints"]["pointer"] == 0  # two batches of four filled the queue of eight
    assert found["checkpoints"]["resumer"] is True
