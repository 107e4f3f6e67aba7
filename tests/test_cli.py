"""The command ``solo-hardneg``."""

from __future__ import annotations

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


@pytest.fixture
def listing(monkeypatch: pytest.MonkeyPatch) -> str:
    # Wide, so that no cell of the tables is broken.
    monkeypatch.setenv("COLUMNS", "300")
    result: Result = CliRunner().invoke(app, ["policies"], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def row(listing: str, name: str) -> str:
    rows = [line for line in listing.splitlines() if line[1:].strip().startswith(f"{name} ")]
    assert len(rows) == 1, f"{name} stands in {len(rows)} rows of\n{listing}"
    return rows[0]


@pytest.mark.parametrize(
    ("verb", "parts"),
    [
        ("keep", ["band, label, image", "all negatives but those", "labels", "Cai et al. 2020"]),
        ("drop", ["band, label, image", "takes away the negatives", "labels", "Cai et al. 2020"]),
        ("fill", ["kind, reserve", "older keys of the queue", "queue", "Cai et al. 2020"]),
    ],
)
def test_policies_lists_the_verbs(listing: str, verb: str, parts: list[str]) -> None:
    for part in parts:
        assert part in row(listing, verb)


def test_policies_lists_every_preset_with_what_it_does(listing: str) -> None:
    presets = sorted(file.stem for file in (PROJECT / "configs" / "negatives").glob("*.yaml"))
    assert "hardest_5" in presets
    for preset in presets:
        row(listing.partition("Presets")[2], preset)
    assert "Only the hardest 5 % of the negatives" in row(listing, "hardest_5")
    assert "that are of the query's class" in row(listing, "drop_hardest_0.1_same_class")


def test_run_names_the_script_that_is_not_there() -> None:
    result = CliRunner().invoke(app, ["run", "nosuch.py", "--dataset", "custom"])
    assert str(result.exception) == (
        "run nosuch.py: no such file. Give the path of a script of solo-learn."
    )


DIGITS = ["--config-name", "mocov2_banded", "data=digits"]


@pytest.mark.full
@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (
            [*DIGITS, "negatives.keep.band=[0.5,1.2]"],
            {},
            "ConfigError: negatives.keep.band=[0.5, 1.2]: ",
        ),
        (DIGITS, {"SOLO_HARDNEG_HOST": "nonsense"}, "HostError: SOLO_HARDNEG_HOST=nonsense: "),
        ([], {}, "ConfigError: --config-name: none is given. Known: byol, linear, mocov2_banded, "),
    ],
)
def test_a_mistake_ends_in_one_clean_line(
    tmp_path: Path, arguments: list[str], env: dict[str, str], message: str
) -> None:
    env = {"SOLO_HARDNEG_HOST": "standalone", **env}
    result = run_python("-m", "solo_hardneg", "pretrain", *arguments, cwd=tmp_path, env=env)
    assert result.code != 0
    assert "Traceback" not in result.text
    errors = [line for line in result.err.splitlines() if "Error" in line]
    assert len(errors) == 1
    assert errors[0].startswith(message)
    assert not (tmp_path / "trained_models").exists()


SMALL = ["method_kwargs.proj_hidden_dim=8", "method_kwargs.proj_output_dim=4", "max_epochs=1"]
ALONE = {"SOLO_HARDNEG_HOST": "standalone"}


@pytest.mark.full
def test_both_programs_start_more_processes(tmp_path: Path) -> None:
    two = ["strategy=ddp", "accelerator=cpu", "devices=2"]
    run_python(
        *("-m", "solo_hardneg", "pretrain", *DIGITS, *SMALL, *two, "+limit_train_batches=2"),
        *("optimizer.batch_size=8", "method_kwargs.queue_size=64", "+limit_val_batches=1"),
        "checkpoint.dir=pretrained",
        cwd=tmp_path,
        env=ALONE,
    ).ok()
    checkpoint = only_checkpoint(tmp_path / "pretrained")
    # Two batches of eight images in each of two processes, which agree on one queue.
    assert load_checkpoint(checkpoint)["state_dict"]["queue_filled"].tolist() == [32]

    run_python(
        *(Path(sys.executable).with_name("solo-hardneg"), "linear", "--config-name", "linear"),
        *("data=digits", f"pretrained_feature_extractor='{checkpoint}'", *two),
        *("optimizer.batch_size=256", "max_epochs=1", "checkpoint.dir=linear"),
        cwd=tmp_path,
        env=ALONE,
    ).ok()
    # Half of the 1437 images has two whole batches, all of them would have five.
    assert load_checkpoint(only_checkpoint(tmp_path / "linear"))["global_step"] == 2


@pytest.mark.full
def test_an_unreadable_image_is_named_in_one_line(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", PER_CLASS)
    broken = images / "class2" / "1.png"
    broken.write_bytes(broken.read_bytes()[:500])
    earlier = tmp_path / "trained_models" / "mocov2_banded" / "offline-earlier" / "earlier.ckpt"
    earlier.parent.mkdir(parents=True)
    earlier.write_bytes(b"weights")
    result = run_python(
        *("-m", "solo_hardneg", "pretrain", "--config-name", "mocov2_banded", *SMALL),
        *("data=custom", f"data.train_path={images}", "data.val_path=null", "data.num_workers=1"),
        *("data.suggest.crop_size=32", "optimizer.batch_size=8", "method_kwargs.queue_size=16"),
        "checkpoint.dir=trained_models",
        cwd=tmp_path,
        env=ALONE,
    )
    assert result.code != 0
    assert "Traceback" not in result.text
    errors = [line for line in result.err.splitlines() if "Error" in line]
    assert len(errors) == 1
    assert errors[0].startswith(f"DataError: {broken}: this image can't be read (")
    assert errors[0].endswith("). Replace or remove the file.")
    assert only_checkpoint(tmp_path / "trained_models") == earlier
    assert earlier.read_bytes() == b"weights"
    assert list(earlier.parent.iterdir()) == [earlier]


def test_folders_checks_and_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from solo_hardneg.folders import EXPECTED, Expected

    monkeypatch.setitem(EXPECTED, "tinyimagenet", Expected(6, PER_CLASS, PER_CLASS, PER_CLASS))
    for part in ("train", "val"):
        write_images(tmp_path / "tiny" / part, PER_CLASS)
    arguments = ["folders", "tinyimagenet", str(tmp_path / "tiny"), "--split", str(tmp_path / "s")]
    arguments += ["--held-out", "9", "--seed", "1"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "6 classes, 24 training and 24 validation images" in result.stdout
    assert "15 training and 9 validation images" in result.stdout
    assert len(list((tmp_path / "s" / "val").glob("*/*.png"))) == 9
    again = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "is there already" in again.stdout
    wrong = CliRunner().invoke(app, ["folders", "tinyimagenet", str(tmp_path / "nothing")])
    assert wrong.exit_code == 1
    assert "there is no such folder" in str(wrong.exception)


def test_reproduce_lists_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    listed = CliRunner().invoke(app, ["reproduce"], catch_exceptions=False)
    assert listed.exit_code == 0
    for name in ("cai_figure2", "sscl_table3", "Dong et al. 2023, Table 5", "minute"):
        assert name in listed.stdout
    unknown = CliRunner().invoke(app, ["reproduce", "cai_tabel1"])
    assert unknown.exit_code == 1
    assert "unknown experiment 'cai_tabel1'. Did you mean 'cai_table1'?" in str(unknown.exception)
