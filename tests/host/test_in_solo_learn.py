"""Our methods in the scripts of an unmodified solo-learn, run in one process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import marked_images
import pytest
import torch
from integration_helpers import (
    CLASSES,
    PER_CLASS,
    PROJECT,
    Images,
    Job,
    Result,
    load_checkpoint,
    only_checkpoint,
    run_in_one_process,
    run_python,
)

from solo_hardneg.recording import records

# Needs the real host; elsewhere the standalone one stands for it.
pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]

HARDEST_5 = {"keep": {"band": [0.95, 1.0]}}
EASIEST_95 = {"keep": {"band": [0.0, 0.95]}}
IMAGES = CLASSES * PER_CLASS
RECORDED = ("hardness.enabled=true", "hardness.every_n_steps=1")
QUEUE = "method_kwargs.queue_size=32"
# Overrides, and parts of the message before the first step.
BAD_INPUT: dict[str, tuple[list[str], list[str]]] = {
    "preset": (
        ["negatives=typo"],
        ["Could not find 'negatives/typo'", "Available options in 'negatives'", "hardest_5"],
    ),
    "group": (
        ["+negativs.keep.band=[0.5,1.0]"],
        ["ConfigError: negativs: ", "Did you mean 'negatives'?"],
    ),
    "labels": (
        ["negatives=drop_same_class", "++data.no_labels=True"],
        ["ConfigError: negatives={'drop': {'label': 'same'}", "needs labels", "data.no_labels"],
    ),
    "images": (["optimizer.batch_size=32"], ["DataError: optimizer.batch_size=32: "]),
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder that holds a checkpoint folder named after each program."""
    folder = tmp_path_factory.mktemp("programs")
    yield folder
    shutil.rmtree(folder)


def pretraining(small: list[str], hardest: list[str], images: Images) -> dict[str, list[str]]:
    """Arguments of main_pretrain.py by run, without ``checkpoint.dir``."""
    resumable = [*hardest, "auto_resume.enabled=True"]
    watch = "+hydra.callbacks.watch"
    own_config = [
        *("--config-path", "scripts/pretrain/cifar", "--config-name", "mocov2plus"),
        *("method=mocov2_banded", "+negatives=hardest_5", "auto_resume.enabled=False"),
        *("optimizer.batch_size=8", QUEUE, "method_kwargs.proj_output_dim=16", "max_epochs=1"),
        *("accelerator=cpu", "devices='1'", "strategy=auto", "sync_batchnorm=False"),
        *("precision=32", "wandb.enabled=False", *images.overrides()),
    ]
    sscl = ["--config-name", "simclr_sscl", *small]
    return {
        "pretrained": resumable,
        "resumed": [
            *hardest,
            "max_epochs=2",
            "+resume_from_checkpoint='{checkpoint of pretrained}'",
        ],
        "other_policy": [*resumable, "negatives=easiest_95"],
        "own_config": own_config,
        "sscl": [*sscl, "negatives.mix.hardest=8", "negatives.mix.pairs=4"],
        "unlabelled": [
            *(*hardest, "++data.no_labels=True", f"data.train_path={images.unlabelled}"),
        ],
        **{f"bad_{name}": [*hardest, *wrong] for name, (wrong, _) in BAD_INPUT.items()},
        "baseline": [
            *("--config-name", "mocov2plus", *small, "method_kwargs.queue_size=16", *RECORDED),
            *("max_epochs=4", f"{watch}._target_=watching.Watch", f"{watch}.file=baseline.jsonl"),
        ],
    }


def dali(hardest: list[str], folder: Path) -> list[str]:
    """Arguments for a run on DALI's CPU pipeline, with images that encode their index."""
    images, watch = marked_images.write_marked(folder / "images"), "+hydra.callbacks.watch"
    return [
        *(*hardest, "negatives=drop_own_image", *marked_images.PLAIN, "accelerator=cpu"),
        *(f"data.train_path={images}", f"data.val_path={images}", "data.num_workers=1"),
        *("data.format=dali", "dali.device=cpu", f"{watch}._target_=marked_images.Watch"),
        f"{watch}.file=dali.lines",
    ]


@pytest.fixture(scope="module")  # 40 s: fifteen programs, and solo-learn's imports
def programs(
    solo_learn: Path, small: list[str], hardest: list[str], images: Images, outputs: Path
) -> dict[str, Result]:
    """Results of all programs, which run one after another in one process."""
    runs = pretraining(small, hardest, images)
    main = solo_learn / "main_pretrain.py"
    folder_of = {name: name for name in runs} | {"other_policy": "pretrained"}
    jobs = {n: Job(main, [*run, f"checkpoint.dir={folder_of[n]}"]) for n, run in runs.items()}
    runner = [
        *("--config-name", "mocov2_banded", "data=digits", "max_epochs=1", QUEUE),
        *("optimizer.batch_size=8", "method_kwargs.proj_output_dim=16", "+limit_train_batches=3"),
        *("+limit_val_batches=1", "checkpoint.dir=our_runner"),
    ]
    jobs["our_runner"] = Job(PROJECT / "scripts" / "main_pretrain.py", runner)
    linear = [
        *("--config-name", "linear", "data=custom", *images.overrides(val=True), RECORDED[0]),
        *("optimizer.batch_size=8", "max_epochs=1", "checkpoint.dir=linear"),
        # The quotes are for Hydra: solo-learn puts an = into the names of checkpoints.
        "pretrained_feature_extractor='{checkpoint of pretrained}'",
    ]
    jobs["linear"] = Job(solo_learn / "main_linear.py", linear)
    # These two come last, because they patch solo-learn and PyTorch.
    if marked_images.dali_is_installed():
        jobs["dali"] = Job(main, [*dali(hardest, outputs), "checkpoint.dir=dali"])
    knn = {
        "pretrained_checkpoint_dir": "{folder of pretrained}",
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
    options = [part for name, value in knn.items() for part in (f"--{name}", value)]
    here = Path(__file__).parent
    command = ["run", solo_learn / "main_knn.py", *options]
    jobs["knn"] = Job(here / "knn_on_the_cpu.py", command)
    path = {"PYTHONPATH": str(here)}
    return run_in_one_process(jobs, cwd=outputs, env=path, timeout=800)


def identity(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return json.loads(checkpoint["solo_hardneg"]["identity"])


def check_queue(state: dict[str, torch.Tensor], views: int, size: int = 32) -> None:
    """Checks that after three steps of eight images each key is there once, with its label."""
    assert state["queue"].shape == (views, 16, size)
    assert state["queue_filled"].tolist() == [IMAGES]
    assert state["queue_ptr"].tolist() == [IMAGES]
    norms = state["queue"].norm(dim=1)
    assert torch.allclose(norms[:, :IMAGES], torch.ones(views, IMAGES), atol=1e-5)
    assert (norms[:, IMAGES:] == 0).all()
    indexes = state["queue_indexes"][:IMAGES]
    assert sorted(indexes.tolist()) == list(range(IMAGES))
    # A folder of images is read class by class.
    assert torch.equal(state["queue_labels"][:IMAGES], indexes // PER_CLASS)
    assert (state["queue_labels"][IMAGES:] == -1).all()
    if views == 2:
        assert not torch.allclose(state["queue"][0], state["queue"][1])


def test_pretraining_on_the_hardest_5_percent(programs: dict[str, Result], outputs: Path) -> None:
    result = programs["pretrained"].ok()
    checkpoint = load_checkpoint(only_checkpoint(outputs / "pretrained"))
    assert identity(checkpoint) == {
        "method": "mocov2_banded",
        "negatives": HARDEST_5,
        "queue_size": 32,
        "symmetric": False,
        "temperature": 0.2,
    }
    check_queue(checkpoint["state_dict"], views=1)
    assert checkpoint["global_step"] == 3
    assert "solo-hardneg host: solo-learn in" in result.text


def test_preset_added_to_solo_learns_own_config(programs: dict[str, Result], outputs: Path) -> None:
    programs["own_config"].ok()
    checkpoint = load_checkpoint(only_checkpoint(outputs / "own_config"))
    assert identity(checkpoint)["negatives"] == HARDEST_5
    # Without the key, the loss is symmetric, as in solo-learn.
    assert identity(checkpoint)["symmetric"] is True
    check_queue(checkpoint["state_dict"], views=2)


def test_sscl_with_simclr(programs: dict[str, Result], outputs: Path) -> None:
    programs["sscl"].ok()
    checkpoint = load_checkpoint(only_checkpoint(outputs / "sscl"))
    assert identity(checkpoint)["negatives"].keys() == {"mix", "reweight", "debias"}
    assert checkpoint["global_step"] == 3


def test_our_script_trains_solo_learns_classes(programs: dict[str, Result], outputs: Path) -> None:
    programs["our_runner"].ok()
    checkpoint = load_checkpoint(only_checkpoint(outputs / "our_runner"))
    assert identity(checkpoint)["method"] == "mocov2_banded"
    assert checkpoint["state_dict"]["queue_filled"].tolist() == [24]


def test_images_without_labels(programs: dict[str, Result], outputs: Path) -> None:
    programs["unlabelled"].ok()
    state = load_checkpoint(only_checkpoint(outputs / "unlabelled"))["state_dict"]
    assert (state["queue_labels"] == -1).all()
    assert sorted(state["queue_indexes"][:IMAGES].tolist()) == list(range(IMAGES))


def test_linear_evaluation(programs: dict[str, Result], outputs: Path) -> None:
    programs["linear"].ok()
    # solo-learn silently skips weights that don't fit, so compare what it evaluated.
    evaluated = load_checkpoint(only_checkpoint(outputs / "linear"))["state_dict"]
    ours = load_checkpoint(only_checkpoint(outputs / "pretrained"))["state_dict"]
    backbone = [name for name in ours if name.startswith("backbone.")]
    assert len(backbone) > 100
    for name in backbone:
        assert torch.equal(evaluated[name], ours[name]), name
    (place,) = (outputs / "linear").rglob("hardness")
    found = records.read_records(place)
    assert {*found.table.kind} == {"metric"}
    assert "val_acc1" in {*found.table.quantity}


def test_knn_evaluation_through_run(programs: dict[str, Result]) -> None:
    result = programs["knn"].ok()
    assert "Running k-NN with params: distance_fx=cosine, k=3, T=0.1" in result.out
    assert "Result: acc@1=" in result.out


def test_same_policy_resumes(programs: dict[str, Result], outputs: Path) -> None:
    programs["resumed"].ok()
    resumed = load_checkpoint(only_checkpoint(outputs / "resumed"))
    first = load_checkpoint(only_checkpoint(outputs / "pretrained"))
    assert (first["epoch"], first["global_step"]) == (0, 3)
    assert (resumed["epoch"], resumed["global_step"]) == (1, 6)
    state = resumed["state_dict"]
    assert state["queue_filled"].tolist() == [32]
    assert state["queue_ptr"].tolist() == [2 * IMAGES - 32]
    # 48 keys went into 32 slots: those not overwritten are the first run's.
    kept = slice(2 * IMAGES - 32, IMAGES)
    assert torch.equal(state["queue"][:, :, kept], first["state_dict"]["queue"][:, :, kept])
    assert torch.equal(state["queue_indexes"][kept], first["state_dict"]["queue_indexes"][kept])


def test_auto_resume_into_another_policy_is_refused(
    programs: dict[str, Result], outputs: Path
) -> None:
    refused = programs["other_policy"]
    assert refused.code != 0
    # solo-learn has chosen this checkpoint.
    assert "Resuming from previous checkpoint that matches specifications" in refused.out
    assert "CheckpointError: This checkpoint belongs to another policy" in refused.err
    for policy, place in ((HARDEST_5, "there"), (EASIEST_95, "here")):
        assert f"{json.dumps(policy)} {place}" in refused.err
    for remedy in ("name=", "auto_resume.enabled=False", "resume_from_checkpoint"):
        assert remedy in refused.err
    only_checkpoint(outputs / "pretrained")  # no other was written


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_refused_before_training(
    programs: dict[str, Result], outputs: Path, name: str
) -> None:
    result = programs[f"bad_{name}"]
    assert result.code != 0
    for part in BAD_INPUT[name][1]:
        assert part in result.text
    # solo-learn makes this folder when training starts.
    assert not (outputs / f"bad_{name}").exists()


def test_recorded_pools_of_a_baseline_have_its_loss(
    programs: dict[str, Result], outputs: Path
) -> None:
    assert "Hardness records: " in programs["baseline"].ok().out
    lines = [json.loads(line) for line in (outputs / "baseline.jsonl").read_text().splitlines()]
    host, pools = ([line for line in lines if line["kind"] == k][:24] for k in ("host", "pool"))
    assert len(host) == 24  # 24 images, 8 at a time, four times, in two directions
    # The queue holds random vectors in the first two steps.
    pools = [pool["loss"] for pool in pools if pool["size"] == 16][: len(host) - 4]
    assert pools == pytest.approx([line["loss"] for line in host[4:]], abs=1e-4)
    (place,) = (outputs / "baseline").rglob("hardness")
    table = records.read_records(place).table
    assert {*table.epoch} == {0, 1, 2, 3}
    assert {"mass/hardest_5", "similarity", "same_class", "met", "age"} <= {*table.quantity}
    assert "solo_hardneg" not in load_checkpoint(only_checkpoint(outputs / "baseline"))


def test_dali_on_the_cpu_has_true_indexes(programs: dict[str, Result], outputs: Path) -> None:
    if not marked_images.dali_is_installed():
        pytest.skip("DALI isn't installed")
    programs["dali"].ok()
    marked_images.check_lines(marked_images.read_lines(outputs / "dali.lines.0"))
    state = load_checkpoint(only_checkpoint(outputs / "dali"))["state_dict"]
    assert torch.equal(state["queue_labels"], state["queue_indexes"] // marked_images.PER_CLASS)


# ---------------------------------------------------------------------- worker processes

RECORDER = """
import json, os, sys
from pathlib import Path
from hydra.experimental.callback import Callback

class Recorder(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_job_start(self, config, **kwargs):
        methods = sys.modules["solo.methods"].METHODS
        found = {"pid": os.getpid(), "parent": os.getppid(), "ours": "mocov2_banded" in methods}
        Path(self.folder, f"{config.negatives.keep.band[0]}.json").write_text(json.dumps(found))
"""


@pytest.mark.full
def test_sweep_in_worker_processes(solo_learn: Path, hardest: list[str], tmp_path: Path) -> None:
    # The launcher sends the program's own dict of methods, which contains ours. The worker's dict,
    # which its imports use, must contain them too.
    (tmp_path / "recorder.py").write_text(RECORDER)
    run_python(
        *(solo_learn / "main_pretrain.py", "--multirun", *hardest, *RECORDED),
        *("negatives=hardest_5,easiest_95", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
        "+hydra.callbacks.recorder._target_=recorder.Recorder",
        f"+hydra.callbacks.recorder.folder={tmp_path}",
        f"checkpoint.dir={tmp_path / 'checkpoints'}",
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
    ).ok()
    files = [*(tmp_path / "checkpoints").rglob("*.ckpt")]
    policies = [identity(load_checkpoint(file))["negatives"] for file in files]
    assert sorted(policies, key=str) == sorted([HARDEST_5, EASIEST_95], key=str)
    found = [json.loads((tmp_path / f"{band}.json").read_text()) for band in (0.95, 0.0)]
    assert all(process["ours"] for process in found)
    # Both ran in children of the program that was started.
    assert found[0]["parent"] == found[1]["parent"]
    assert found[0]["parent"] not in {process["pid"] for process in found}
    # Our callbacks run in the workers, too.
    recorded = [
        records.read_records(place).config["negatives"] for place in tmp_path.rglob("hardness")
    ]
    assert sorted(recorded, key=str) == sorted(policies, key=str)
    for file in files:
        file.unlink()
