"""How many cases are tried, and what they read.

``pytest tests/fuzz --hypothesis-profile=long`` tries thousands; ``--hypothesis-show-statistics``
says how they ended.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz_harness import harmless
from fuzz_strategies import composed
from hypothesis import settings
from integration_helpers import write_images
from omegaconf import OmegaConf

settings.register_profile("long", max_examples=3000, deadline=None, print_blob=True)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the configs refer to: a few small images of two classes, and a checkpoint."""
    from solo_hardneg import host
    from solo_hardneg.standalone.run import pretrain

    if host.NAME != "standalone":
        pytest.skip("solo-learn is importable, so these runs would be its own")
    folder = tmp_path_factory.mktemp("fuzz")
    write_images(folder / "train", per_class=10, classes=2, side=10)
    write_images(folder / "val", per_class=2, classes=2, side=10)
    with harmless(folder):
        result = pretrain(OmegaConf.create(composed("simclr")))
    return {"FUZZ_IMAGES": str(folder), "FUZZ_CHECKPOINT": str(folder / str(result.checkpoint))}


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of one test write."""
    return tmp_path_factory.mktemp("runs")
