"""The same for our part of a config inside solo-learn: it passes, or is one of our errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import settings
from integration_helpers import NO_CHECKOUT, PROJECT, run_python, solo_learn_checkout

HERE = Path(__file__).parent
LONG = settings.get_current_profile_name() == "long"


@pytest.mark.full
@pytest.mark.host
def test_our_part_passes_or_is_refused(tmp_path: Path) -> None:
    checkout = solo_learn_checkout()
    if checkout is None:
        pytest.skip(NO_CHECKOUT)
    for name in ("cat", "dog"):  # solo-learn counts the classes of data.train_path
        (tmp_path / name).mkdir()
    examples = settings.default.max_examples if LONG else 150
    result = run_python(
        HERE / "fuzz_in_solo_learn.py",
        examples,
        cwd=tmp_path,
        env={"PYTHONPATH": ":".join(map(str, (checkout, PROJECT, PROJECT / "tests")))},
        timeout=3600 if LONG else 240,
    ).ok()
    counts = json.loads(result.out.strip().splitlines()[-1])
    print(counts)
    assert set(counts) == {"passed", "refused", "refused by solo-learn"}
    # One that says no to everything would pass the rest, too.
    assert counts["passed"] > examples / 20
    assert counts["refused"] > examples / 4
