"""Our methods inside an unmodified checkout of solo-learn, run by its own scripts."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from integration_helpers import (
    CLASSES,
    PER_CLASS,
    Images,
    Result,
    Run,
    load_checkpoint,
    only_checkpoint,
    run_python,
)

from solo_hardneg.analysis import records

pytestmark = [pytest.mark.full, pytest.mark.host]

HARDEST_5 = {"keep": {"band": [0.95, 1.0]}}
EASIEST_95 = {"keep": {"band": [0.0, 0.95]}}
IMAGES = CLASSES * PER_CLASS
RECORDED = ("hardness.enabled=true", "hardness.every_n_steps=1")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder that is removed afterwards: checkpoints are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def identity(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return json.loads(checkpoint["solo_hardneg"]["identity"])


def check_queue(state: dict[str, torch.Tensor], views: int, size: int = 32) -> None:
    """After three steps of eight images: each image's key is there once, with its own label."""
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


# ---------------------------------------------------------------------- programs of their own


def test_pretraining_on_the_hardest_5_percent(pretrained: Run) -> None:
    checkpoint = load_checkpoint(pretrained.checkpoint)
    assert identity(checkpoint) == {
        "method": "mocov2_banded",
        "negatives": HARDEST_5,
        "queue_size": 32,
        "symmetric": False,
        "temperature": 0.2,
    }
    check_queue(checkpoint["state_dict"], views=1)
    assert checkpoint["global_step"] == 3
    assert "solo-hardneg host: solo-learn in" in pretrained.result.text


def test_linear_evaluation_by_solo_learn(
    solo_learn: Path, pretrained: Run, images: Images, folder: Path
) -> None:
    run_python(
        solo_learn / "main_linear.py",
        "--config-name",
        "linear",
        "data=custom",
        *images.overrides(val=True),
        "optimizer.batch_size=8",
        "max_epochs=1",
        f"checkpoint.dir={folder / 'linear'}",
        # The quotes are for Hydra: solo-learn puts an = into the names of checkpoints.
        f"pretrained_feature_extractor='{pretrained.checkpoint}'",
        cwd=folder,
    ).ok()
    # solo-learn loads whatever fits and says nothing of the rest, so look at what it evaluated.
    evaluated = load_checkpoint(only_checkpoint(folder / "linear"))["state_dict"]
    ours = load_checkpoint(pretrained.checkpoint)["state_dict"]
    backbone = [name for name in ours if name.startswith("backbone.")]
    assert len(backbone) > 100
    for name in backbone:
        assert torch.equal(evaluated[name], ours[name]), name


# main_knn.py moves everything to a GPU, and its classifier hands torchmetrics an argument that
# newer versions refuse. Python runs a module of this name before the program.
SHIM = """
import torch
import torchmetrics

torch.Tensor.cuda = lambda self, *args, **kwargs: self
_init = torchmetrics.Metric.__init__

def _without_compute_on_step(self, *args, compute_on_step=None, **kwargs):
    _init(self, *args, **kwargs)

torchmetrics.Metric.__init__ = _without_compute_on_step

import network_guard  # in place of the sitecustomize of all other tests
network_guard.install()
"""


def test_knn_evaluation_through_run(
    solo_learn: Path, knn_arguments: list[object], folder: Path
) -> None:
    (folder / "shim").mkdir()
    (folder / "shim" / "sitecustomize.py").write_text(SHIM)
    command = ["-m", "solo_hardneg", "run", solo_learn / "main_knn.py"]
    result = run_python(
        *command,
        *knn_arguments,
        cwd=folder,
        env={"PYTHONPATH": str(folder / "shim")},
    ).ok()
    assert "Running k-NN with params: distance_fx=cosine, k=3, T=0.1" in result.out
    assert "Result: acc@1=" in result.out


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


def test_a_sweep_in_worker_processes(solo_learn: Path, small: list[str], folder: Path) -> None:
    # The launcher sends the program's own dictionary of methods along, in which ours are. The
    # worker's, which whatever the worker imports looks into, must have them too.
    (folder / "recorder.py").write_text(RECORDER)
    run_python(
        solo_learn / "main_pretrain.py",
        "--multirun",
        "--config-name",
        "mocov2_banded",
        *small,
        "method_kwargs.queue_size=32",
        "negatives=hardest_5,easiest_95",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        f"hydra.sweep.dir={folder / 'sweep'}",
        "+hydra.callbacks.recorder._target_=recorder.Recorder",
        f"+hydra.callbacks.recorder.folder={folder}",
        *RECORDED,
        f"checkpoint.dir={folder / 'checkpoints'}",
        cwd=folder,
        env={"PYTHONPATH": str(folder)},
    ).ok()
    checkpoints = map(load_checkpoint, (folder / "checkpoints").rglob("*.ckpt"))
    policies = [identity(checkpoint)["negatives"] for checkpoint in checkpoints]
    assert sorted(policies, key=str) == sorted([HARDEST_5, EASIEST_95], key=str)
    found = [json.loads((folder / f"{band}.json").read_text()) for band in (0.95, 0.0)]
    assert all(process["ours"] for process in found)
    # Both ran in children of the program that was started.
    assert found[0]["parent"] == found[1]["parent"]
    assert found[0]["parent"] not in {process["pid"] for process in found}
    # Our callback is in the workers, too.
    recorded = [records.read(place).config["negatives"] for place in folder.rglob("hardness")]
    assert sorted(recorded, key=str) == sorted(policies, key=str)


def test_two_processes_share_one_queue(solo_learn: Path, small: list[str], folder: Path) -> None:
    run_python(
        solo_learn / "main_pretrain.py",
        "--config-name",
        "mocov2_banded",
        "negatives=hardest_5",
        *small,
        "optimizer.batch_size=4",
        "method_kwargs.queue_size=32",
        "method_kwargs.symmetric=true",
        "strategy=ddp",
        "accelerator=cpu",
        "devices='2'",  # two processes for Lightning; solo-learn takes the length, which is 1
        *RECORDED,
        f"checkpoint.dir={folder / 'checkpoints'}",
        cwd=folder,
    ).ok()
    checkpoint = load_checkpoint(only_checkpoint(folder / "checkpoints"))
    # The keys of all images, and each process sees only half of them.
    check_queue(checkpoint["state_dict"], views=2)
    assert checkpoint["global_step"] == 3
    assert len(checkpoint["solo_hardneg_rng"]) == 2
    # solo-learn's processes make up a folder each; the records are in that of the checkpoint.
    (place,) = folder.rglob("hardness")
    assert place.parent == only_checkpoint(folder / "checkpoints").parent
    table = records.read(place).table
    assert {*table["rank"]} == {0, 1}
    offered = table[table.quantity == "count/offered"]
    assert offered[["rank", "step", "value"]].values.tolist() == [
        [rank, step, 8 * step] for rank in (0, 1) for step in (1, 2)
    ]


# ---------------------------------------------------------------------- many runs, one process


def test_the_knn_script_alone_does_not_know_our_methods(programs: dict[str, Result]) -> None:
    assert programs["knn_alone"].code != 0
    assert "KeyError: 'mocov2_banded'" in programs["knn_alone"].err


def test_pretraining_in_both_directions(programs: dict[str, Result], outputs: Path) -> None:
    programs["symmetric"].ok()
    checkpoint = load_checkpoint(only_checkpoint(outputs / "symmetric"))
    assert identity(checkpoint)["symmetric"] is True
    assert identity(checkpoint)["negatives"] == HARDEST_5
    check_queue(checkpoint["state_dict"], views=2)


def test_a_preset_is_added_to_solo_learns_own_config(
    programs: dict[str, Result], outputs: Path
) -> None:
    programs["own_config"].ok()
    checkpoint = load_checkpoint(only_checkpoint(outputs / "own_config"))
    assert identity(checkpoint)["negatives"] == HARDEST_5
    # Nobody asked for one direction there, so it is MoCo as solo-learn has it.
    assert identity(checkpoint)["symmetric"] is True
    check_queue(checkpoint["state_dict"], views=2)


def test_our_own_script_trains_solo_learns_classes(
    programs: dict[str, Result], outputs: Path
) -> None:
    programs["our_runner"].ok()
    checkpoint = load_checkpoint(only_checkpoint(outputs / "our_runner"))
    assert identity(checkpoint)["negatives"] == HARDEST_5
    assert checkpoint["state_dict"]["queue_filled"].tolist() == [24]


def test_images_without_labels(programs: dict[str, Result], outputs: Path) -> None:
    programs["unlabelled"].ok()
    state = load_checkpoint(only_checkpoint(outputs / "unlabelled"))["state_dict"]
    assert (state["queue_labels"] == -1).all()
    assert sorted(state["queue_indexes"][:IMAGES].tolist()) == list(range(IMAGES))


@pytest.mark.parametrize("method", ["mocov2plus", "simclr"])
def test_our_configs_run_the_baselines(
    programs: dict[str, Result], outputs: Path, method: str
) -> None:
    programs[method].ok()
    file = only_checkpoint(outputs / method)
    assert json.loads((file.parent / "args.json").read_text())["method"] == method
    checkpoint = load_checkpoint(file)
    assert checkpoint["global_step"] == 3
    assert "solo_hardneg" not in checkpoint
    assert "queue_labels" not in checkpoint["state_dict"]


def test_auto_resume_into_another_policy_is_refused(
    programs: dict[str, Result], pretrained: Run
) -> None:
    before = hashlib.sha256(pretrained.checkpoint.read_bytes()).hexdigest()
    refused = programs["other_policy"]
    assert refused.code != 0
    # It is solo-learn that picked this checkpoint.
    assert "Resuming from previous checkpoint that matches specifications" in refused.out
    assert "CheckpointError: This checkpoint belongs to another policy" in refused.err
    for policy, place in ((HARDEST_5, "there"), (EASIEST_95, "here")):
        assert f"{json.dumps(policy)} {place}" in refused.err
    for way_out in ("name=", "auto_resume.enabled=False", "resume_from_checkpoint"):
        assert way_out in refused.err
    assert only_checkpoint(pretrained.checkpoint.parents[2]) == pretrained.checkpoint
    after = hashlib.sha256(pretrained.checkpoint.read_bytes()).hexdigest()
    assert after == before


def test_the_same_policy_resumes(
    programs: dict[str, Result], outputs: Path, pretrained: Run
) -> None:
    programs["resumed"].ok()
    resumed = load_checkpoint(only_checkpoint(outputs / "resumed"))
    first = load_checkpoint(pretrained.checkpoint)
    assert (first["epoch"], first["global_step"]) == (0, 3)
    assert (resumed["epoch"], resumed["global_step"]) == (1, 6)
    state = resumed["state_dict"]
    assert state["queue_filled"].tolist() == [32]
    assert state["queue_ptr"].tolist() == [2 * IMAGES - 32]
    # 48 keys went into 32 slots: those that nothing has overwritten are the first run's.
    kept = slice(2 * IMAGES - 32, IMAGES)
    assert torch.equal(state["queue"][:, :, kept], first["state_dict"]["queue"][:, :, kept])
    assert torch.equal(state["queue_indexes"][kept], first["state_dict"]["queue_indexes"][kept])
