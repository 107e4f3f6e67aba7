"""Whatever stands in a config: two steps with a finite loss, or one of our errors.

Each case is a valid config with up to four edits; see ``fuzz_strategies``. What was found so is
below, as examples that are tried each time.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fuzz_harness import outcome
from fuzz_strategies import METHODS, cases, composed, edited
from hypothesis import HealthCheck, event, given, settings

from solo_hardneg.standalone.run import linear, pretrain

pytestmark = pytest.mark.full

LONG = settings.get_current_profile_name() == "long"


def tries(few: int) -> settings:
    """Some examples, or as many as the profile ``long`` says."""
    return settings(
        max_examples=settings.default.max_examples if LONG else few,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),  # a run takes a while
    )


def end_of(name: str, edits: list[Any], files: dict[str, str], folder: Path) -> str:
    """How the run of an edited config ends; raises whatever is neither of ours nor a success."""
    job = linear if name == "linear" else pretrain
    place = folder / "case"
    place.mkdir()
    try:
        return outcome(job, edited(composed(name), edits), place, files)
    finally:
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.parametrize("name", [*METHODS, "linear"])
def test_what_the_cases_start_from_trains(name, files, folder):
    assert end_of(name, [], files, folder) == "trained"


def test_what_is_neither_shows(folder):
    """Otherwise the tests below would say nothing."""

    def fails(cfg):
        raise KeyError("optimizer")

    def diverges(cfg):
        return SimpleNamespace(metrics={"train_nce_loss": math.nan})

    with pytest.raises(KeyError):
        outcome(fails, composed("simclr"), folder)
    with pytest.raises(AssertionError, match="train_nce_loss"):
        outcome(diverges, composed("simclr"), folder)


# What was found, each of which ended in somebody else's traceback.
FOUND: dict[str, tuple[str, list[Any]]] = {
    "accelerator": ("simclr", [("set", "accelerator", "")]),
    "accelerator of a kind": ("simclr", [("set", "accelerator", {})]),
    "precision": ("simclr", [("set", "precision", "banana")]),
    "precision as a share": ("simclr", [("set", "precision", 1.0)]),
    "strategy": ("simclr", [("set", "strategy", "banana")]),
    "devices": ("simclr", [("set", "devices", [None])]),
    "batches": ("simclr", [("set", "limit_train_batches", math.inf)]),
    "batches as words": ("mocov2plus", [("set", "limit_train_batches", {"name": "sgd"})]),
    "less than a batch": ("mocov2_sscl", [("set", "limit_val_batches", 0.001)]),
    "validation": ("simclr", [("add", "", "check_val_every_n_epoch", math.nan)]),
    "validation after the end": ("mocov2_sscl", [("add", "", "val_check_interval", 3)]),
    "steps": ("simclr_sscl", [("set", "max_steps", -(10**9))]),
    "steps as a word": ("simclr_sscl", [("set", "max_steps", "ddp")]),
    "least epochs": ("mocov2_banded", [("add", "", "min_epochs", [[]])]),
    "logging": ("byol", [("set", "log_every_n_steps", "often")]),
    "clipping": ("mocov2_banded", [("add", "", "gradient_clip_algorithm", 0.5)]),
    "benchmark": ("simclr", [("add", "", "benchmark", 1e30)]),
    "anomalies": ("simclr", [("add", "", "detect_anomaly", 1)]),
    "plugins": ("simclr", [("add", "", "plugins", 2**31)]),
    "profiler": ("simclr", [("add", "", "profiler", {"name": "sgd"})]),
    "profiler not set": ("byol", [("add", "", "profiler", "???")]),
    "barebones": ("simclr", [("add", "", "barebones", True)]),
    "root": ("simclr", [("add", "", "default_root_dir", 0.5)]),
    "crop upside down": ("simclr", [("set", "augmentations.0.rrc.crop_max_scale", 0.5)]),
    "crop below zero": ("simclr", [("set", "data.suggest.crop_min_scale", -0.5)]),
    "crop as a word": ("simclr", [("set", "augmentations.0.rrc.enabled", "yes")]),
    "crop as a number": ("simclr", [("set", "augmentations.0.rrc", 0.2)]),
    "jitter as a number": ("simclr", [("set", "augmentations.0.color_jitter", 0.05)]),
    "jitter": ("simclr", [("set", "augmentations.0.color_jitter.hue", math.nan)]),
    "blur as a number": ("mocov2_sscl", [("set", "augmentations.0.gaussian_blur", -1)]),
    "deviation": ("folders", [("add", "augmentations.0", "std", [0, 1, 1])]),
    "side": ("simclr_banded", [("set", "data.suggest.crop_size", 2**31)]),
    "suggestions": ("simclr", [("set", "data.suggest", 0.2)]),
    "no suggestion": ("simclr", [("delete", "data.suggest.flip_prob")]),
    "reference": ("simclr", [("add", "", "limit_train_batches", "${nowhere.at.all}")]),
    "environment": ("simclr", [("set", "performance", {"": "${oc.env:NO_SUCH_VARIABLE}"})]),
    "into itself": ("simclr", [("set", "data.fraction", "${data}")]),
    "resume": ("simclr_banded", [("set", "resume_from_checkpoint", 2)]),
    "resume too long": ("simclr", [("set", "resume_from_checkpoint", "x" * 300)]),
    "checkpoint too long": ("linear", [("set", "pretrained_feature_extractor", "x" * 300)]),
    "folder": ("simclr_sscl", [("set", "checkpoint.dir", -(10**9))]),
    "folder too long": ("simclr", [("set", "checkpoint.dir", "x" * 300)]),
    "folder's name": ("simclr", [("set", "checkpoint.dir", "a\0b")]),
    "name too long": ("simclr", [("set", "name", "x" * 300)]),
    "name": ("simclr", [("set", "name", ["a"])]),
    "recorder's folder": ("recorded", [("set", "hardness.dir", "x" * 300)]),
    "patches": ("simclr", [("set", "backbone.kwargs.patch_size", 0)]),
    "no patches": ("simclr", [("delete", "backbone.kwargs.patch_size")]),
    "heads": ("simclr", [("delete", "backbone.kwargs.num_heads")]),
    "another side": ("mocov2_banded", [("delete", "backbone.kwargs")]),
    "no side": ("byol", [("set", "backbone.kwargs.img_size", 0)]),
    "download": ("simclr", [("add", "backbone.kwargs", "pretrained", True)]),
    "rate": ("mocov2_banded", [("set", "optimizer.lr", 1e300)]),
    "rate that diverges": (
        "simclr",
        [("set", "optimizer.lr", 1e9), ("set", "optimizer.weight_decay", 1e9)],
    ),
    "temperature": ("simclr", [("set", "method_kwargs.temperature", 1e-300)]),
    "weights": ("simclr_sscl", [("set", "negatives", {"reweight": {"beta": 1e300}})]),
    "optimizer": ("simclr", [("set", "optimizer.kwargs", {"momentum": 0.9, "dampening": "x"})]),
    "head": ("simclr", [("set", "method_kwargs.proj_hidden_dim", 2**31 - 8)]),
    "queue": ("mocov2plus", [("set", "method_kwargs.queue_size", 2**31 - 8)]),
    "queue of ours": ("mocov2_banded", [("set", "method_kwargs.queue_size", 2**31 - 8)]),
    "mixed": ("simclr_sscl", [("set", "negatives", {"mix": {"hardest": 4, "pairs": 10**9}})]),
    "percentiles": ("recorded", [("set", "hardness.percentiles", 10**9)]),
    "epochs": ("simclr", [("set", "accumulate_grad_batches", 10**30)]),
    "backbone": ("simclr", [("set", "backbone.name", 0.27)]),
    "validation never": ("mocov2plus", [("add", "", "val_check_interval", 0)]),
    "overfitting": ("simclr_banded", [("add", "", "overfit_batches", 0.001)]),
    "workers": ("folders", [("set", "data.num_workers", 10**9)]),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_is_refused(files, folder, name):
    assert end_of(*FOUND[name], files, folder) == "refused"


@tries(50)
@given(case=cases(*METHODS))
def test_a_pretraining_run_trains_or_is_refused(files, folder, case):
    event(end_of(*case, files, folder))


@tries(15)
@given(case=cases("linear"))
def test_a_linear_evaluation_trains_or_is_refused(files, folder, case):
    event(end_of(*case, files, folder))
