"""Any config ends in two steps with a finite loss, or in a HardnegError.

A case is a valid config with up to four edits; see ``fuzz_strategies``. ``FOUND`` lists cases that
once ended in a traceback.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from fuzz_harness import outcome
from fuzz_strategies import BASES, cases, composed, edited
from hypothesis import HealthCheck, event, given, settings

from solo_hardneg.standalone.run import linear, pretrain

LONG = "x" * 300


def end_of(name: str, edits: list[Any], files: dict[str, str], folder: Any) -> str:
    """Runs an edited config and returns its outcome."""
    job = linear if name == "linear" else pretrain
    return outcome(job, edited(composed(name), edits), folder, files)


@pytest.mark.full
@pytest.mark.parametrize("name", BASES)
def test_unedited_configs_train(name, trained, tmp_path):
    assert end_of(name, [], trained, tmp_path) == "trained"


def test_other_errors_and_infinite_losses_are_raised(tmp_path):
    def fails(cfg):
        raise KeyError("optimizer")

    def diverges(cfg):
        return SimpleNamespace(metrics={"train_nce_loss": math.nan})

    with pytest.raises(KeyError):
        outcome(fails, composed("simclr"), tmp_path)
    with pytest.raises(AssertionError, match="train_nce_loss"):
        outcome(diverges, composed("simclr"), tmp_path)


# (config, edit, part of the message)
FOUND: list[tuple[str, tuple[Any, ...], str]] = [
    ("simclr", ("set", "accelerator", ""), "accelerator="),
    ("simclr", ("set", "limit_train_batches", math.inf), "limit_train_batches"),
    ("simclr", ("set", "precision", "banana"), "precision=banana"),
    ("simclr", ("set", "devices", [None]), "devices=[None]"),
    ("mocov2_sscl", ("set", "limit_val_batches", 0.001), "limit_val_batches=0.001"),
    ("mocov2_sscl", ("add", "", "val_check_interval", 3), "val_check_interval=3"),
    ("mocov2plus", ("add", "", "val_check_interval", 0), "val_check_interval=0"),
    ("byol", ("add", "", "profiler", "???"), "profiler=???"),
    ("simclr", ("set", "augmentations.0.rrc.crop_max_scale", 0.5), "augmentations.0.rrc="),
    ("simclr", ("set", "augmentations.0.rrc.enabled", "yes"), "augmentations.0.rrc.enabled=yes"),
    ("simclr", ("set", "augmentations.0.color_jitter", 0.05), "augmentations.0.color_jitter="),
    ("simclr", ("set", "augmentations.0.color_jitter.hue", math.nan), "color_jitter.hue=nan"),
    ("folders", ("add", "augmentations.0", "std", [0, 1, 1]), "augmentations.0.std=[0, 1, 1]"),
    ("simclr_banded", ("set", "data.suggest.crop_size", 2**31), "crop_size=2147483648"),
    ("simclr", ("set", "method_kwargs.proj_hidden_dim", 2**31 - 8), "proj_hidden_dim=2147483640"),
    ("mocov2plus", ("set", "method_kwargs.queue_size", 2**31 - 8), "queue_size=2147483640"),
    ("simclr", ("set", "data.suggest", 0.2), "augmentations.0.crop_size="),
    ("simclr", ("delete", "data.suggest.flip_prob"), "augmentations.0.horizontal_flip.prob="),
    ("simclr", ("set", "performance", {"": "${oc.env:NO_SUCH_VARIABLE}"}), "performance."),
    ("simclr", ("set", "data.fraction", "${data}"), "data.fraction"),
    ("simclr_banded", ("set", "resume_from_checkpoint", 2), "resume_from_checkpoint=2"),
    ("simclr", ("set", "checkpoint.dir", "a\0b"), "checkpoint.dir=a"),
    ("simclr", ("set", "resume_from_checkpoint", LONG), f"resume_from_checkpoint={LONG}"),
    ("simclr", ("set", "checkpoint.dir", LONG), f"checkpoint.dir={LONG}"),
    ("simclr", ("set", "name", LONG), f"name={LONG}"),
    ("simclr", ("set", "name", ["a"]), "name=['a']"),
    ("recorded", ("set", "hardness.dir", LONG), f"hardness.dir={LONG}"),
    ("simclr", ("set", "backbone.kwargs.patch_size", 0), "backbone.kwargs="),
    ("simclr", ("delete", "backbone.kwargs.patch_size"), "backbone.kwargs="),
    ("simclr", ("add", "backbone.kwargs", "pretrained", True), "backbone.kwargs="),
    ("mocov2_banded", ("set", "optimizer.lr", 1e300), "optimizer.lr=1e+300"),
    ("folders", ("set", "data.num_workers", 10**9), "data.num_workers=1000000000"),
    ("simclr", ("set", "optimizer.kwargs", {"dampening": "x"}), "optimizer.kwargs="),
    ("simclr", ("set", "method_kwargs.temperature", 1e-300), "raise method_kwargs.temperature"),
    ("simclr_sscl", ("set", "negatives", {"reweight": {"beta": 1e300}}), "negatives.reweight.beta"),
    ("simclr_sscl", ("set", "negatives.mix.pairs", 10**9), "negatives.mix.pairs=1000000000"),
]


@pytest.mark.parametrize(("name", "edit", "named"), FOUND)
def test_cases_found_earlier_are_refused_by_key(files, tmp_path, name, edit, named):
    end = end_of(name, [edit], files, tmp_path)
    assert end.startswith("refused: ")
    assert named in end


@pytest.mark.full
@settings(suppress_health_check=list(HealthCheck))  # a run takes a while
@given(case=cases(*BASES))
def test_a_run_trains_or_is_refused(trained, tmp_path_factory, case):
    event(end_of(*case, trained, tmp_path_factory.mktemp("case")).partition(":")[0])
