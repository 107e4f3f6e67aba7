"""solo-learn's DALI loaders on the CPU give true indexes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from integration_helpers import (
    Job,
    Result,
    load_checkpoint,
    run_in_one_process,
    run_python,
)
from marked_images import IMAGES, PER_CLASS, PLAIN, check_lines, read_lines, write_marked

from solo_hardneg.recording import records

pytest.importorskip("nvidia.dali")
pytestmark = [pytest.mark.full, pytest.mark.host, pytest.mark.timeout(900)]

RECORDED = ["hardness.enabled=true", "hardness.every_n_steps=1"]
MIXING = ["negatives.mix.hardest=4", "negatives.mix.pairs=2"]
QUEUE = "method_kwargs.queue_size=32"
RUNS = {
    "moco": ["mocov2_banded", QUEUE, "negatives=drop_own_image", *RECORDED],
    "sscl": ["simclr_sscl", *MIXING, *RECORDED],
    "baseline": ["mocov2plus", QUEUE, *RECORDED],
    "thresholds": ["simclr_banded", "negatives=glofnd", "negatives.drop.from_epoch=0"],
    "dummies": ["simclr_sscl", *MIXING, *RECORDED, "dali.encode_indexes_into_labels=false"],
}
REFUSED = {
    "own image of dummies": (
        [*RUNS["moco"], "dali.encode_indexes_into_labels=false"],
        "needs dataset indexes, and DALI's are dummies. Set ++dali.encode_indexes_into",
    ),
    "no validation": (
        [*RUNS["moco"], "data.val_path=null"],
        "ConfigError: data.val_path=None: ",
    ),
    "no GPU": ([*RUNS["baseline"], "dali.device=gpu"], "dali.device=gpu: there is no GPU"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("dali")
    images = write_marked(place / "images")
    # Other files must not shift the indexes of images.
    shutil.copytree(images / "class0", images / ".ipynb_checkpoints")
    shutil.copy(images / "class1" / "009.png", images / "class1" / ".000.png")
    (images / "class2" / "Thumbs.db").touch()
    yield place
    shutil.rmtree(place)


def arguments(folder: Path, name: str, run: list[str]) -> list[str]:
    config, *more = run
    images = folder / "images"
    watch = "+hydra.callbacks.watch"
    return [
        *("--config-name", config, "data=custom", *PLAIN, "accelerator=cpu"),
        *(f"data.train_path={images}", f"data.val_path={images}", "data.format=dali"),
        *("dali.device=cpu", "data.num_workers=1", "data.suggest.crop_size=32", "max_epochs=2"),
        *("optimizer.batch_size=8", "backbone.name=resnet18", "method_kwargs.proj_hidden_dim=16"),
        *("method_kwargs.proj_output_dim=16", f"checkpoint.dir={folder / name}"),
        *(f"{watch}._target_=marked_images.Watch", f"{watch}.file={folder / name}.lines"),
        *more,
    ]


@pytest.fixture(scope="module")
def programs(solo_learn: Path, folder: Path) -> dict[str, Result]:
    main = solo_learn / "main_pretrain.py"
    runs = RUNS | ({} if torch.cuda.is_available() else {n: r for n, (r, _) in REFUSED.items()})
    jobs = {name: Job(main, arguments(folder, name, run)) for name, run in runs.items()}
    jobs["linear"] = Job(
        solo_learn / "main_linear.py",
        [
            *("--config-name", "linear", "data=custom", "data.format=dali", "dali.device=cpu"),
            *(f"data.train_path={folder / 'images'}", f"data.val_path={folder / 'images'}"),
            *("data.num_workers=1", "optimizer.batch_size=8", "max_epochs=1", "accelerator=cpu"),
            *("backbone.name=resnet18", "checkpoint.enabled=false"),
            f"pretrained_feature_extractor='{folder / 'pretrained.ckpt'}'",
        ],
    )
    path = {"PYTHONPATH": str(Path(__file__).parent)}
    first = run_in_one_process({"moco": jobs.pop("moco")}, cwd=folder, env=path, timeout=400)
    (checkpoint,) = (folder / "moco").rglob("*.ckpt")
    (folder / "pretrained.ckpt").symlink_to(checkpoint)
    return first | run_in_one_process(jobs, cwd=folder, env=path, timeout=600)


@pytest.mark.parametrize("name", ["moco", "sscl", "baseline"])
def test_labels_and_indexes_belong_to_the_images(
    programs: dict[str, Result], folder: Path, name: str
) -> None:
    programs[name].ok()
    lines = read_lines(folder / f"{name}.lines.0")
    assert [line["epoch"] for line in lines] == [0] * 5 + [1] * 5
    check_lines(lines)
    assert len({index for line in lines for index in line["indexes"]}) >= 40


@pytest.mark.parametrize("name", ["moco", "sscl", "baseline"])
def test_recorder_counts_the_images(programs: dict[str, Result], folder: Path, name: str) -> None:
    programs[name].ok()
    (place,) = (folder / name).rglob("hardness")
    rows = records.read_records(place).table
    images = rows[(rows.kind == "image") & (rows.quantity == "met")]
    assert set(images.bin) <= set(range(IMAGES))
    assert len(set(images.bin)) > IMAGES / 2


def test_queue_holds_indexes_and_labels_of_its_images(
    programs: dict[str, Result], folder: Path
) -> None:
    programs["moco"].ok()
    state = load_checkpoint(folder / "pretrained.ckpt")["state_dict"]
    indexes = state["queue_indexes"]
    assert set(indexes.tolist()) <= set(range(IMAGES))
    assert torch.equal(state["queue_labels"], indexes // PER_CLASS)


def test_each_image_learns_its_own_threshold(programs: dict[str, Result], folder: Path) -> None:
    programs["thresholds"].ok()
    (checkpoint,) = (folder / "thresholds").rglob("*.ckpt")
    steps = load_checkpoint(checkpoint)["state_dict"]["threshold_moments"][2]
    assert len(steps) == IMAGES
    assert steps.sum() == 2 * 5 * 8  # each image of each batch once, not once a view


def test_dummies_are_not_recorded_as_images(programs: dict[str, Result], folder: Path) -> None:
    result = programs["dummies"].ok()
    assert "DALI's indexes are dummies" in result.text
    (place,) = (folder / "dummies").rglob("hardness")
    rows = records.read_records(place).table
    assert "image" not in set(rows.kind)
    assert "scalar" in set(rows.kind)
    lines = read_lines(folder / "dummies.lines.0")
    assert {tuple(line["indexes"]) for line in lines} == {tuple(range(8))}
    for line in lines:  # the labels are true
        assert [classes for _, classes in line["marks"]] == [line["targets"]] * 2


def test_linear_evaluation(programs: dict[str, Result]) -> None:
    assert "5/5" in programs["linear"].ok().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", REFUSED)
def test_impossible_settings_are_refused(programs: dict[str, Result], name: str) -> None:
    assert programs[name].code != 0
    assert REFUSED[name][1] in programs[name].text


def test_processes_split_the_images(solo_learn: Path, folder: Path) -> None:
    ddp = ["devices='2'", "strategy=ddp", "sync_batchnorm=False", "max_epochs=1"]
    result = run_python(
        solo_learn / "main_pretrain.py",
        *arguments(folder, "ddp", [*RUNS["moco"], *ddp]),
        cwd=folder,
        env={"PYTHONPATH": str(Path(__file__).parent)},
        timeout=400,
    ).ok()
    assert result.code == 0
    shares = []
    for rank in range(2):
        lines = read_lines(folder / f"ddp.lines.{rank}")
        check_lines(lines)
        assert len(lines) == 2
        shares.append({index for line in lines for index in line["indexes"]})
    assert not shares[0] & shares[1]
