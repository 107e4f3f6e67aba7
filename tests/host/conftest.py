"""Images, small settings and a pretraining run for the tests inside solo-learn."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration_helpers import (
    CLASSES,
    PER_CLASS,
    Images,
    Run,
    only_checkpoint,
    run_python,
    write_images,
)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    folder = tmp_path_factory.mktemp("images")
    train = write_images(folder / "train", PER_CLASS, CLASSES)
    (folder / "unlabelled").mkdir()
    for number, file in enumerate(sorted(train.rglob("*.png"))):
        shutil.copy(file, folder / "unlabelled" / f"{number}.png")
    return Images(train, write_images(folder / "val", 1, CLASSES), folder / "unlabelled")


@pytest.fixture(scope="session")
def small(images: Images) -> list[str]:
    """Overrides for a pretraining run of three steps with one of our configs."""
    return [
        "data=custom",
        *images.overrides(),
        "data.suggest.crop_size=32",
        "optimizer.batch_size=8",
        "method_kwargs.proj_hidden_dim=16",
        "method_kwargs.proj_output_dim=16",
        "max_epochs=1",
    ]


@pytest.fixture(scope="session")
def hardest(small: list[str]) -> list[str]:
    """The paper's MoCo v2 on the hardest 5 %."""
    banded = ["--config-name", "mocov2_banded", *small, "method_kwargs.queue_size=32"]
    return [*banded, "negatives=hardest_5"]


@pytest.fixture(scope="session")
def pretrained(
    solo_learn: Path, hardest: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Run]:
    """That run, trained by solo-learn's script."""
    folder = tmp_path_factory.mktemp("pretrained")
    arguments = [*hardest, f"checkpoint.dir={folder / 'checkpoints'}"]
    result = run_python(solo_learn / "main_pretrain.py", *arguments, cwd=folder).ok()
    yield Run(arguments, result, only_checkpoint(folder / "checkpoints"))
    shutil.rmtree(folder)  # hundreds of megabytes
