"""What the tests inside solo-learn share: its checkout, images, and one pretraining run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration_helpers import (
    CLASSES,
    NO_CHECKOUT,
    PER_CLASS,
    Images,
    Run,
    only_checkpoint,
    run_python,
    solo_learn_checkout,
    write_images,
)


@pytest.fixture(scope="session")
def solo_learn() -> Path:
    """The checkout of solo-learn, which no test changes: outputs go to temporary folders."""
    checkout = solo_learn_checkout()
    if checkout is None:
        pytest.skip(NO_CHECKOUT)
    return checkout


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
    """Overrides for a pretraining run of three steps with a config of ours."""
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
def pretrained(
    solo_learn: Path, small: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Run]:
    """The paper's MoCo v2 on the hardest 5 %, trained by solo-learn's script as users start it."""
    folder = tmp_path_factory.mktemp("pretrained")
    arguments = [
        "--config-name",
        "mocov2_banded",
        "negatives=hardest_5",
        *small,
        "method_kwargs.queue_size=32",
        "auto_resume.enabled=True",
        f"checkpoint.dir={folder / 'checkpoints'}",
    ]
    result = run_python(solo_learn / "main_pretrain.py", *arguments, cwd=folder).ok()
    yield Run(arguments, result, only_checkpoint(folder / "checkpoints"))
    shutil.rmtree(folder)  # hundreds of megabytes, of no use to anybody once the tests are over
