"""What the tests inside solo-learn share: its checkout, images, and pretraining runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration_helpers import (
    CLASSES,
    PER_CLASS,
    PROJECT,
    Images,
    Job,
    Result,
    Run,
    only_checkpoint,
    run_in_one_process,
    run_python,
    write_images,
)
from test_bad_input import BAD_INPUT


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


@pytest.fixture(scope="session")
def knn_arguments(pretrained: Run, images: Images) -> list[object]:
    """What evaluates that run's checkpoint by main_knn.py."""
    options: dict[str, object] = {
        "pretrained_checkpoint_dir": pretrained.checkpoint.parent,
        "dataset": "custom",
        "train_data_path": images.train,
        "val_data_path": images.val,
        "batch_size": 8,
        "num_workers": 0,
        "k": 3,
        "temperature": 0.1,
        "distance_function": "cosine",
        "feature_type": "backbone",
    }
    return [part for name, value in options.items() for part in (f"--{name}", value)]


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where each of the programs below has a folder of checkpoints, named like the program."""
    folder = tmp_path_factory.mktemp("programs")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def programs(
    solo_learn: Path,
    small: list[str],
    images: Images,
    pretrained: Run,
    knn_arguments: list[object],
    outputs: Path,
) -> dict[str, Result]:
    """How many of the host's programs end, which one process runs one after another."""
    main = solo_learn / "main_pretrain.py"
    size = "method_kwargs.queue_size=32"
    banded = ["--config-name", "mocov2_banded", *small, size]
    runs = {
        "symmetric": [*banded, "negatives=hardest_5", "method_kwargs.symmetric=true"],
        "mocov2plus": ["--config-name", "mocov2plus", *small, size],
        "simclr": ["--config-name", "simclr", *small],
        "unlabelled": [
            *(*banded, "negatives=hardest_5", "++data.no_labels=True"),
            f"data.train_path={images.unlabelled}",
        ],
        "own_config": [
            *("--config-path", "scripts/pretrain/cifar", "--config-name", "mocov2plus"),
            *("method=mocov2_banded", "+negatives=hardest_5", "auto_resume.enabled=False"),
            *("optimizer.batch_size=8", size, "method_kwargs.proj_output_dim=16", "max_epochs=1"),
            *("accelerator=cpu", "devices='1'", "strategy=auto", "sync_batchnorm=False"),
            *("precision=32", "wandb.enabled=False", *images.overrides()),
        ],
        "resumed": [
            *(a for a in pretrained.arguments if not a.startswith(("max_epochs", "checkpoint"))),
            *("max_epochs=2", f"+resume_from_checkpoint='{pretrained.checkpoint}'"),
        ],
        **{f"bad_{name}": [*banded, *wrong] for name, (wrong, _) in BAD_INPUT.items()},
    }
    jobs = {name: [*run, f"checkpoint.dir={outputs / name}"] for name, run in runs.items()}
    runner = [
        *("--config-name", "mocov2_banded", "data=digits", "max_epochs=1", size),
        *("optimizer.batch_size=8", "method_kwargs.proj_output_dim=16", "+limit_train_batches=3"),
        *("+limit_val_batches=1", f"checkpoint.dir={outputs / 'our_runner'}"),
    ]
    # Where the checkpoint of the hardest 5 % lies.
    jobs["other_policy"] = [*pretrained.arguments, "negatives=easiest_95"]
    return run_in_one_process(
        {
            # First of all, as what follows registers our methods in this process.
            "knn_alone": Job(solo_learn / "main_knn.py", knn_arguments),
            **{name: Job(main, arguments) for name, arguments in jobs.items()},
            "our_runner": Job(PROJECT / "scripts" / "main_pretrain.py", runner),
        },
        cwd=outputs,
    )
