"""Every config and preset composes inside solo-learn and passes its parsers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from integration_helpers import PROJECT, Images, run_python
from presets import PRESETS, WITH_A_QUEUE

pytestmark = [pytest.mark.full, pytest.mark.host]


def test_every_config_composes_and_parses(solo_learn: Path, images: Images) -> None:
    script = Path(__file__).with_name("walk_configs.py")
    result = run_python(
        *(script, PROJECT / "configs", images.train),
        cwd=solo_learn,
        env={"PYTHONPATH": str(solo_learn)},
    ).ok()
    found = json.loads(result.out.splitlines()[-1])
    assert len(found) >= 8 + 5 + 2 * len(PRESETS)
    refused = {case: error for case, error in found.items() if error}
    # Only presets that need a queue, in SimCLR.
    assert set(refused) == {
        f"simclr_banded negatives={preset} data=imagenet" for preset in WITH_A_QUEUE
    }
    for error in refused.values():
        assert re.match(r"ConfigError: negatives=.*needs a queue", error)
