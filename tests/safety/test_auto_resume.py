"""The run auto-resume chooses, why it skips others, and hostile files of other users."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from solo_hardneg.safety.auto_resume import find_checkpoint
from solo_hardneg.standalone.run import pretrain

Config = Callable[..., DictConfig]
SETTINGS = {
    "name": "moco-digits",
    "method": "mocov2_banded",
    "backbone": {"name": "resnet18", "kwargs": {}},
    "data": {"dataset": "digits"},
    "max_epochs": 3,
    "optimizer": {"name": "sgd", "batch_size": 16, "lr": 0.1, "weight_decay": 1e-4},
    "wandb": {"project": "p", "entity": None},
    "wandb_run_id": "abc",
}


def make_run(folder: Path, args: object, age: float = 60) -> Path:
    """Writes a run's ``args.json``, from a mapping or from bytes, and a checkpoint; returns it."""
    folder.mkdir(parents=True)
    content = args if isinstance(args, bytes) else json.dumps(args).encode()
    (folder / "args.json").write_bytes(content)
    file = folder / "x.ckpt"
    file.touch()
    os.utime(file, (time.time() - age,) * 2)
    return file


def find_in(folder: Path, hours: float = 36, **changes: Any) -> tuple[Path | None, str | None]:
    return find_checkpoint(folder, OmegaConf.create({**SETTINGS, **changes}), hours)


def test_newest_matching_run_is_resumed(tmp_path: Path, capsys: Any) -> None:
    make_run(tmp_path / "a", SETTINGS, age=90)
    newest = make_run(tmp_path / "deep" / "b", {**SETTINGS, "wandb_run_id": "new"}, age=60)
    make_run(tmp_path / "c", {**SETTINGS, "name": "another"}, age=30)
    assert find_in(tmp_path) == (newest, "new")
    out = capsys.readouterr().out
    assert f"resuming {newest}, the newest of 2 matching runs" in out


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("optimizer.lr", 0.2, "optimizer.lr is 0.2 there, 0.1 here"),
        ("max_epochs", 4, "max_epochs is 4 there, 3 here"),
        ("backbone.kwargs", {"a": 1}, '"a": 1'),
        ("wandb", None, "wandb.project is null there, p here"),
    ],
)
def test_mismatches_are_printed(
    tmp_path: Path, capsys: Any, key: str, value: Any, reason: str
) -> None:
    other = OmegaConf.create(SETTINGS)
    OmegaConf.update(other, key, value, merge=False)
    path = make_run(tmp_path / "a", OmegaConf.to_container(other))
    assert find_in(tmp_path) == (None, None)
    out = capsys.readouterr().out
    assert f"auto_resume: skipped {path}: " in out
    assert reason in out
    assert "starting from scratch" in out
    assert "+resume_from_checkpoint=" in out


def test_old_checkpoint_is_skipped(tmp_path: Path, capsys: Any) -> None:
    make_run(tmp_path / "a", SETTINGS, age=7200)
    assert find_in(tmp_path, hours=1) == (None, None)
    assert "older than auto_resume.max_hours=1." in capsys.readouterr().out


def test_few_of_many_skipped_runs_are_listed(tmp_path: Path, capsys: Any) -> None:
    for number in range(30):
        make_run(tmp_path / f"a{number}", {**SETTINGS, "max_epochs": 9}, age=number)
        make_run(tmp_path / f"b{number}", {**SETTINGS, "name": "another"})
    find_in(tmp_path)
    out = capsys.readouterr().out
    assert out.count("skipped /") == 10
    assert "skipped 20 older ones" in out
    assert "(30 of other names)" in out


HOSTILE: dict[str, object] = {
    "no JSON": b"",
    "no mapping": b"[1, 2]",
    "no text": b"\xff\xfe\x00",
    "deep list": b"[" * 100_000,
    "deep mapping": b'{"a":' * 1000 + b"1" + b"}" * 1000,
    "secret": {**SETTINGS, "name": "${oc.env:SOLO_HARDNEG_SECRET}"},
    "itself": {**SETTINGS, "name": "${name}"},
    "half a reference": {**SETTINGS, "name": "${"},
    "other kinds": {**SETTINGS, "optimizer": "sgd", "backbone": [1], "data": None},
    "kinds of names": {**SETTINGS, "name": ["a"], "method": {"b": 1}},
}


def test_hostile_files_are_skipped(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOLO_HARDNEG_SECRET", SETTINGS["name"])  # type: ignore[arg-type]
    files = {name: make_run(tmp_path / name, args, age=1) for name, args in HOSTILE.items()}
    (make_run(tmp_path / "folder", SETTINGS).parent / "args.json").unlink()
    (tmp_path / "folder" / "args.json").mkdir()
    assert find_in(tmp_path) == (None, None)
    out = capsys.readouterr().out
    for name, args in HOSTILE.items():
        if isinstance(args, bytes):
            assert f"skipped {files[name]}: its args.json can't be read" in out
    own = make_run(tmp_path / "own", SETTINGS)
    assert find_in(tmp_path) == (own, "abc")


def test_references_to_the_same_file_are_resolved(tmp_path: Path) -> None:
    """solo-learn writes the config unresolved."""
    path = make_run(tmp_path / "a", {**SETTINGS, "name": "moco-${data.dataset}"})
    assert find_in(tmp_path)[0] == path
    assert find_in(tmp_path, name="moco-${data.dataset}")[0] == path
    assert find_in(tmp_path, data={"dataset": "cifar10"}) == (None, None)


@pytest.mark.parametrize("key", ["name", "backbone.kwargs.part"])
def test_environment_reference_must_be_the_same_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("SOLO_HARDNEG_ENTITY", "me")
    cfg = OmegaConf.create({**SETTINGS, "wandb": {"project": "p-${data.dataset}", "entity": None}})
    OmegaConf.update(cfg, key, "${oc.env:SOLO_HARDNEG_ENTITY}")
    path = make_run(tmp_path / "a", OmegaConf.to_container(cfg))
    assert find_checkpoint(tmp_path, cfg, 36)[0] == path
    OmegaConf.update(cfg, key, "me")
    assert find_checkpoint(tmp_path, cfg, 36)[0] is None


def test_control_characters_in_names_are_escaped(tmp_path: Path, capsys: Any) -> None:
    make_run(tmp_path / "a\x1b[2J", {**SETTINGS, "method": "\x1b]0;x\x07"})
    find_in(tmp_path)
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.usefixtures("tiny")
def test_run_beside_hostile_one_resumes(config: Config, tmp_path: Path, capsys: Any) -> None:
    first = pretrain(config("simclr", "max_epochs=2", "+max_steps=4"))
    make_run(first.folder.parent / "other", {**SETTINGS, "name": "${oc.env:SOLO_HARDNEG_NOT_SET}"})
    make_run(first.folder.parent / "nonsense", b"\xff")
    pretrain(config("simclr", "max_epochs=2", "auto_resume.enabled=true"))
    out = capsys.readouterr().out
    assert f"auto_resume: resuming {first.checkpoint}" in out
    assert "(step 8, epoch 2)." in out
