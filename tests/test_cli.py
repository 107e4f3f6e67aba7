"""The command ``solo-hardneg``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from integration_helpers import (
    PER_CLASS,
    PROJECT,
    load_checkpoint,
    only_checkpoint,
    run_python,
    write_images,
)
from typer.testing import CliRunner, Result

from solo_hardneg.cli import app
from solo_hardneg.negatives import available


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents line breaks in tables."""
    monkeypatch.setenv("COLUMNS", "300")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_policies_lists_every_verb_and_preset() -> None:
    # A name begins a line, and what follows it is indented.
    listings = [re.split(r"\n(?=\S)", part) for part in invoke("policies").stdout.split("Presets")]
    verbs, presets = (
        {name: " ".join(text.split()) for name, _, text in (row.partition(" ") for row in rows)}
        for rows in listings
    )
    for verb, info in available().items():
        for part in (info.summary, *info.arguments, *info.needs, info.source, info.example):
            assert part in verbs[verb]
    for file in (PROJECT / "configs" / "negatives").glob("*.yaml"):
        assert presets[file.stem]
    assert presets["hardest_5"].startswith("Only the hardest 5 % of the negatives")
    assert "not the decoupled loss" in presets["dcl"]


def test_run_names_a_missing_script() -> None:
    result = invoke("run", "nosuch.py", "--dataset", "custom")
    assert str(result.exception) == (
        "run nosuch.py: no such file. Give the path of a script of solo-learn."
    )


DIGITS = ["--config-name", "mocov2_banded", "data=digits"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*DIGITS, "negatives.keep.band=[0.5,1.2]"], "ConfigError: negatives.keep.band=[0.5, 1.2]"),
        ([], "ConfigError: --config-name: is missing. Known: byol, linear, mocov2_banded, "),
    ],
)
def test_error_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", sys.argv)
    monkeypatch.setattr("solo_hardneg.runner._command", None)
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none"]
    result = invoke("pretrain", *arguments, *quiet)
    assert result.exit_code == 1
    assert str(result.exception).startswith(message)
    assert "\n" not in str(result.exception)
    assert "Traceback" not in result.output
    assert not (tmp_path / "trained_models").exists()


@pytest.mark.full
def test_unknown_host_is_one_line(tmp_path: Path) -> None:
    nonsense = {"SOLO_HARDNEG_HOST": "nonsense"}
    ended = run_python("-m", "solo_hardneg", "pretrain", *DIGITS, cwd=tmp_path, env=nonsense)
    assert ended.code == 1
    assert "Traceback" not in ended.text
    assert ended.err.splitlines()[-1].startswith("HostError: SOLO_HARDNEG_HOST=nonsense: must be ")


SMALL = ["method_kwargs.proj_hidden_dim=8", "method_kwargs.proj_output_dim=4", "max_epochs=1"]
ALONE = {"SOLO_HARDNEG_HOST": "standalone"}


@pytest.mark.full
def test_both_programs_run_with_two_processes(tmp_path: Path) -> None:
    two = ["strategy=ddp", "accelerator=cpu", "devices=2"]
    run_python(
        *("-m", "solo_hardneg", "pretrain", *DIGITS, *SMALL, *two, "+limit_train_batches=2"),
        *("optimizer.batch_size=8", "method_kwargs.queue_size=64", "+limit_val_batches=1"),
        "checkpoint.dir=pretrained",
        cwd=tmp_path,
        env=ALONE,
    ).ok()
    checkpoint = only_checkpoint(tmp_path / "pretrained")
    # Two batches of eight images in each of two processes.
    assert load_checkpoint(checkpoint)["state_dict"]["queue_filled"].tolist() == [32]

    run_python(
        *(Path(sys.executable).with_name("solo-hardneg"), "linear", "--config-name", "linear"),
        *("data=digits", f"pretrained_feature_extractor='{checkpoint}'", *two),
        *("optimizer.batch_size=256", "max_epochs=1", "checkpoint.dir=linear"),
        cwd=tmp_path,
        env=ALONE,
    ).ok()
    # Each process has half of the 1437 images, two whole batches; all would be five.
    assert load_checkpoint(only_checkpoint(tmp_path / "linear"))["global_step"] == 2


def test_folders_counts_and_splits(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_images(tmp_path / "tiny" / part, PER_CLASS)
    arguments = ["folders", "tinyimagenet", str(tmp_path / "tiny"), "--split", str(tmp_path / "s")]
    arguments += ["--held-out", "9", "--seed", "1"]
    result = invoke(*arguments)
    assert result.exit_code == 0
    assert "6 classes, 24 training and 24 validation images" in result.stdout
    assert "15 training and 9 validation images" in result.stdout
    assert len(list((tmp_path / "s" / "val").glob("*/*.png"))) == 9
    assert "exists already" in invoke(*arguments).stdout
    missing = invoke("folders", "tinyimagenet", str(tmp_path / "nothing"))
    assert missing.exit_code == 1
    assert "there is no such folder" in str(missing.exception)
    unknown = invoke("folders", "tinyimagnet", str(tmp_path / "tiny"))
    assert "unknown dataset 'tinyimagnet'. Did you mean 'tinyimagenet'" in str(unknown.exception)


def test_reproduce_lists_experiments() -> None:
    listed = invoke("reproduce")
    assert listed.exit_code == 0
    for name in ("cai_figure2", "sscl_table3", "Dong et al. 2023, Table 5", "minute"):
        assert name in listed.stdout
    unknown = invoke("reproduce", "cai_tabel1")
    assert unknown.exit_code == 1
    assert "unknown experiment 'cai_tabel1'. Did you mean 'cai_table1'?" in str(unknown.exception)
