"""Which run auto-resume takes, why it leaves others, and what neighbours' files can't do to it."""

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
MINE = {
    "name": "moco-digits",
    "method": "mocov2_banded",
    "backbone": {"name": "resnet18", "kwargs": {}},
    "data": {"dataset": "digits"},
    "max_epochs": 3,
    "optimizer": {"name": "sgd", "batch_size": 16, "lr": 0.1, "weight_decay": 1e-4},
    "wandb": {"project": "p", "entity": None},
    "wandb_run_id": "abc",
}


def made(folder: Path, args: object, age: float = 60) -> Path:
    """The checkpoint of a run whose ``args.json`` holds ``args``, bytes as they are."""
    folder.mkdir(parents=True)
    content = args if isinstance(args, bytes) else json.dumps(args).encode()
    (folder / "args.json").write_bytes(content)
    file = folder / "x.ckpt"
    file.touch()
    os.utime(file, (time.time() - age,) * 2)
    return file


def find(folder: Path, hours: float = 36, **changes: Any) -> tuple[Path | None, str | None]:
    return find_checkpoint(folder, OmegaConf.create({**MINE, **changes}), hours)


def test_the_newest_run_with_these_settings_is_taken(tmp_path: Path, capsys: Any) -> None:
    made(tmp_path / "a", MINE, age=90)
    newest = made(tmp_path / "deep" / "b", {**MINE, "wandb_run_id": "new"}, age=60)
    made(tmp_path / "c", {**MINE, "name": "another"}, age=30)
    assert find(tmp_path) == (newest, "new")
    out = capsys.readouterr().out
    assert f"{newest} is resumed, the newest of 2 runs" in out


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("optimizer.lr", 0.2, "optimizer.lr is 0.2 there, 0.1 here"),
        ("max_epochs", 4, "max_epochs is 4 there, 3 here"),
        ("backbone.kwargs", {"a": 1}, '"a": 1'),
        ("wandb", None, "wandb.project is null there, p here"),
    ],
)
def test_why_a_run_is_left_is_said(
    tmp_path: Path, capsys: Any, key: str, value: Any, reason: str
) -> None:
    theirs = OmegaConf.create(MINE)
    OmegaConf.update(theirs, key, value, merge=False)
    path = made(tmp_path / "a", OmegaConf.to_container(theirs))
    assert find(tmp_path) == (None, None)
    out = capsys.readouterr().out
    assert f"auto_resume: {path} is left: " in out
    assert reason in out
    assert "starts from scratch" in out
    assert "+resume_from_checkpoint=" in out


def test_an_old_checkpoint_is_left(tmp_path: Path, capsys: Any) -> None:
    made(tmp_path / "a", MINE, age=7200)
    assert find(tmp_path, hours=1) == (None, None)
    assert "older than auto_resume.max_hours=1." in capsys.readouterr().out


def test_many_runs_are_no_flood(tmp_path: Path, capsys: Any) -> None:
    for number in range(30):
        made(tmp_path / f"a{number}", {**MINE, "max_epochs": 9}, age=number)
        made(tmp_path / f"b{number}", {**MINE, "name": "another"})
    find(tmp_path)
    out = capsys.readouterr().out
    assert out.count("is left") == 10
    assert "20 older ones are left" in out
    assert "(30 of other names)" in out


HOSTILE: dict[str, object] = {
    "no JSON": b"",
    "no mapping": b"[1, 2]",
    "no text": b"\xff\xfe\x00",
    "deep list": b"[" * 100_000,
    "deep mapping": b'{"a":' * 1000 + b"1" + b"}" * 1000,
    "secret": {**MINE, "name": "${oc.env:SOLO_HARDNEG_SECRET}"},
    "itself": {**MINE, "name": "${name}"},
    "half a reference": {**MINE, "name": "${"},
    "other kinds": {**MINE, "optimizer": "sgd", "backbone": [1], "data": None},
    "kinds of names": {**MINE, "name": ["a"], "method": {"b": 1}},
}


def test_neighbours_files_change_nothing(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOLO_HARDNEG_SECRET", MINE["name"])  # type: ignore[arg-type]
    files = {name: made(tmp_path / name, args, age=1) for name, args in HOSTILE.items()}
    (made(tmp_path / "folder", MINE).parent / "args.json").unlink()
    (tmp_path / "folder" / "args.json").mkdir()
    assert find(tmp_path) == (None, None)
    said = capsys.readouterr().out
    for name, args in HOSTILE.items():
        if isinstance(args, bytes):
            assert f"{files[name]} is left: its args.json can't be read" in said
    mine = made(tmp_path / "mine", MINE)
    assert find(tmp_path) == (mine, "abc")


def test_references_to_the_same_file_are_filled_in(tmp_path: Path) -> None:
    """solo-learn writes the config as it stands."""
    theirs = {**MINE, "name": "moco-${data.dataset}"}
    path = made(tmp_path / "a", theirs)
    assert find(tmp_path)[0] == path
    assert find(tmp_path, name="moco-${data.dataset}")[0] == path
    assert find(tmp_path, data={"dataset": "cifar10"}) == (None, None)


@pytest.mark.parametrize("key", ["name", "backbone.kwargs.part"])
def test_a_reference_to_the_environment_must_be_the_same_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("SOLO_HARDNEG_ENTITY", "me")
    cfg = OmegaConf.create({**MINE, "wandb": {"project": "p-${data.dataset}", "entity": None}})
    OmegaConf.update(cfg, key, "${oc.env:SOLO_HARDNEG_ENTITY}")
    theirs = OmegaConf.to_container(cfg)
    path = made(tmp_path / "a", theirs)
    assert find_checkpoint(tmp_path, cfg, 36)[0] == path
    OmegaConf.update(cfg, key, "me")
    assert find_checkpoint(tmp_path, cfg, 36)[0] is None


def test_nothing_in_a_name_reaches_the_terminal(tmp_path: Path, capsys: Any) -> None:
    made(tmp_path / "a\x1b[2J", {**MINE, "method": "\x1b]0;x\x07"})
    find(tmp_path)
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.usefixtures("tiny")
def test_a_run_beside_a_hostile_one_goes_on(config: Config, tmp_path: Path, capsys: Any) -> None:
    first = pretrain(config("simclr", "max_epochs=2", "+max_steps=4"))
    made(first.folder.parent / "neighbour", {**MINE, "name": "${oc.env:SOLO_HARDNEG_NOT_SET}"})
    made(first.folder.parent / "nonsense", b"\xff")
    pretrain(config("simclr", "max_epochs=2", "auto_resume.enabled=true"))
    out = capsys.readouterr().out
    assert f"auto_resume: {first.checkpoint} is resumed" in out
    assert "(step 8, epoch 2)." in out
