"""The recorder in an unmodified solo-learn, on its baselines and on our methods."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration_helpers import Images, Job, Result, run_in_one_process

from solo_hardneg.recording import records

pytestmark = [pytest.mark.full, pytest.mark.host, pytest.mark.timeout(900)]

ON = ["hardness.enabled=true", "hardness.every_n_steps=1", "max_epochs=4"]
# Config and overrides.
BASELINES = {
    "simclr": ("simclr", []),
    "supcon": ("simclr", ["method=supcon"]),
    "mocov3": (
        "mocov2plus",
        ["method=mocov3", "+method_kwargs.pred_hidden_dim=16", "~method_kwargs.queue_size"],
    ),
}
OTHERS = {
    "byol": ("byol", ["method_kwargs.pred_hidden_dim=16"]),
    "mocov2_banded": ("mocov2_banded", ["negatives=hardest_5", "method_kwargs.queue_size=24"]),
    "off": ("simclr", ["hardness.enabled=false"]),
}
OWN_CONFIG = [  # a user's config without our groups, here one of solo-learn's
    *("--config-path", "scripts/pretrain/cifar", "--config-name", "simclr"),
    *("auto_resume.enabled=False", "accelerator=cpu", "devices='1'", "strategy=auto"),
    *("sync_batchnorm=False", "precision=32", "wandb.enabled=False", "optimizer.batch_size=8"),
    *("method_kwargs.proj_output_dim=16", "max_epochs=4"),
    *("+hardness.enabled=true", "+hardness.every_n_steps=1"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("recorded")
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def programs(solo_learn: Path, small: list[str], images: Images, folder: Path) -> dict[str, Result]:
    main = solo_learn / "main_pretrain.py"
    jobs = {}
    for name, (config, overrides) in (BASELINES | OTHERS).items():
        arguments = ["--config-name", config, *small, *ON, *overrides]
        if name in BASELINES:
            watch = "+hydra.callbacks.watch"
            arguments += [f"{watch}._target_=watching.Watch", f"{watch}.file={folder / name}.jsonl"]
        jobs[name] = Job(main, [*arguments, f"checkpoint.dir={folder / name}"])
    own = [*OWN_CONFIG, *images.overrides(), f"checkpoint.dir={folder / 'own_config'}"]
    jobs["own_config"] = Job(main, own)
    return run_in_one_process(jobs, cwd=folder, env={"PYTHONPATH": str(Path(__file__).parent)})


def records_of(folder: Path) -> records.Records:
    (place,) = folder.rglob("hardness")
    return records.read_records(place)


@pytest.mark.parametrize("method", BASELINES)
def test_recorded_pools_of_a_baseline_have_its_loss(
    programs: dict[str, Result], folder: Path, method: str
) -> None:
    programs[method].ok()
    lines = [json.loads(line) for line in (folder / f"{method}.jsonl").read_text().splitlines()]
    # 24 images, 8 per step, 4 epochs; later programs of the same process append.
    directions = 1 if method in ("simclr", "supcon") else 2
    host, pools = (
        [line for line in lines if line["kind"] == kind][: 12 * directions]
        for kind in ("host", "pool")
    )
    assert len(host) == 12 * directions
    # MoCo v3 scales its loss by 2τ; SupCon's is not a function of the mean positive.
    scale = 2 * 0.2 if method == "mocov3" else 1
    quantities = {
        "simclr": ["loss", "positive", "negatives"],
        "supcon": ["positive", "negatives"],
    }.get(method, ["loss"])
    for name in quantities:
        expected = [line[name] / scale for line in host]
        assert [pool[name] for pool in pools] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("method", [*BASELINES, "mocov2_banded", "own_config"])
def test_content_of_the_records(programs: dict[str, Result], folder: Path, method: str) -> None:
    result = programs[method].ok()
    found = records_of(folder / method)
    assert "Hardness records: " in result.out
    assert {*found.table.epoch} == {0, 1, 2, 3}
    if method != "own_config":
        assert found.config["method"] == method
    quantities = {*found.table.quantity}
    assert {"mass/hardest_5", "similarity", "same_class", "met", "train_acc1_epoch"} <= quantities
    assert {"rankme", "alignment", "uniformity"} <= quantities
    assert {"age" in quantities} == {method.startswith("mocov2")}
    (note,) = found.notes
    assert note.startswith("the depth in WordNet is missing. ")
    images = found.table[(found.table.kind == "image") & (found.table.quantity == "met")]
    assert {*images.bin} == set(range(24))
    labels = found.table[found.table.quantity == "same_class/easiest_95"]
    assert labels.value.notna().all()


def test_method_without_negatives_records_its_embeddings(
    programs: dict[str, Result], folder: Path
) -> None:
    programs["byol"].ok()
    table = records_of(folder / "byol").table
    assert {*table.kind} == {"metric", "scalar", "histogram"}
    assert {"rankme", "alignment", "uniformity", "similarity/positive"} <= {*table.quantity}
    assert not table.quantity.str.contains("negative|mass").any()


def test_disabled_recorder_writes_nothing(programs: dict[str, Result], folder: Path) -> None:
    programs["off"].ok()
    assert not [*(folder / "off").rglob("hardness")]
