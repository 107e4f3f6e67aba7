"""Files that the fuzzed configs name.

``pytest tests/fuzz --all --hypothesis-profile=long --timeout=0`` tries thousands of cases;
``--hypothesis-show-statistics`` counts their outcomes.
"""

from __future__ import annotations

import pytest
from fuzz_harness import harmless
from fuzz_strategies import composed
from integration_helpers import write_images
from omegaconf import OmegaConf


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small images of two classes."""
    folder = tmp_path_factory.mktemp("fuzz")
    write_images(folder / "train", per_class=10, classes=2, side=10)
    write_images(folder / "val", per_class=2, classes=2, side=10)
    return {"FUZZ_IMAGES": str(folder)}


@pytest.fixture(scope="session")
def trained(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The images and a checkpoint for linear evaluation."""
    from solo_hardneg.standalone.run import pretrain

    folder = tmp_path_factory.mktemp("trained")
    with harmless(folder):
        result = pretrain(OmegaConf.create(composed("simclr")))
    return {**files, "FUZZ_CHECKPOINT": str(folder / str(result.checkpoint))}
