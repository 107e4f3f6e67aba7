"""Checkpoints are written whole or not at all, and read without executing their content."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import SingleDeviceStrategy
from omegaconf import OmegaConf

from solo_hardneg.errors import CheckpointError
from solo_hardneg.models.checkpoints import epochs_done, other_checkpoints, read_checkpoint
from solo_hardneg.safety.checkpoint_io import SafeCheckpointIO, SafeCheckpoints

AUTO = {"auto_resume": {"enabled": True}, "resume_from_checkpoint": None}
SIZE = 200_000  # bytes of a checkpoint


class Strategy:
    def __init__(self) -> None:
        self.broadcasts: list[Any] = []

    def broadcast(self, answer: Any) -> Any:
        self.broadcasts.append(answer)
        return answer


class ReadingTrainer:
    """The part of a trainer that reading uses."""

    def __init__(self, is_global_zero: bool = True) -> None:
        self.strategy, self.is_global_zero, self.callbacks = Strategy(), is_global_zero, []


def plugin(cfg: Any = None, trainer: Any = None) -> SafeCheckpointIO:
    config = None if cfg is None else OmegaConf.create(cfg)
    return SafeCheckpointIO(TorchCheckpointIO(), trainer or ReadingTrainer(), config)


def content(step: int) -> dict[str, Any]:
    weights = torch.full((SIZE // 4,), float(step))
    return {"epoch": step // 4, "global_step": step, "state_dict": {"weights": weights}}


def write(file: Path, step: int, args: Any = None) -> Path:
    """Writes a checkpoint whose modification time is its step, and the run's ``args.json``."""
    plugin().save_checkpoint(content(step), file)
    os.utime(file, (step, step))
    if args is not None:
        (file.parent / "args.json").write_text(json.dumps(args))
    return file


def damage(file: Path, step: int = 99) -> Path:
    file.write_bytes(file.read_bytes()[: SIZE // 2])
    os.utime(file, (step, step))
    return file


# ---------------------------------------------------------------------- writing


def test_file_is_flushed_and_then_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, calls = tmp_path / "run" / "x.ckpt", []
    file.parent.mkdir()
    (file.parent / ".x.ckpt.99.part").touch()  # left by a process that was killed
    replace, flush = os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: calls.append("flushed") or flush(number))

    def watch(part: Path, whole: Path) -> None:
        calls.append("renamed")
        assert not whole.exists()
        assert torch.load(part, weights_only=True)["global_step"] == 4
        replace(part, whole)

    monkeypatch.setattr(os, "replace", watch)
    safe = plugin()
    safe.save_checkpoint(content(4), file)
    assert calls == ["flushed", "renamed", "flushed"]  # the file, then its folder
    assert safe.newest == file
    assert safe.load_checkpoint(file)["global_step"] == 4
    assert os.listdir(file.parent) == ["x.ckpt"]


@pytest.mark.parametrize(
    ("when", "number", "advice"),
    [
        ("open", errno.EROFS, r"\(Read-only file system\)\. Set checkpoint\.dir to a folder that"),
        ("open", errno.EACCES, r"\(Permission denied\)\. Set checkpoint\.dir to a folder"),
        ("fsync", errno.EDQUOT, r"\(Disk quota exceeded\)\. Make room, or set checkpoint\.dir"),
        ("fsync", errno.EIO, r"\(Input/output error\)\. Check the disk"),
        ("replace", errno.ENOSPC, r"\(No space left on device\)\. Make room"),
    ],
)
def test_write_error_names_reason_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, number: int, advice: str
) -> None:
    safe = plugin({"checkpoint": {"dir": "my/dir"}})
    safe.save_checkpoint(content(4), tmp_path / "old.ckpt")
    owner: Any = Path if when == "open" else os
    monkeypatch.setattr(owner, when, Mock(side_effect=OSError(number, os.strerror(number))))
    text = (
        rf"checkpoint\.dir=my/dir: the checkpoint of epoch 2, step 8 can't be written to .*"
        rf"new\.ckpt {advice}.* The last complete one is .*old\.ckpt: resume it with "
        rf"\"\+\+resume_from_checkpoint='.*old\.ckpt'\"$"
    )
    with pytest.raises(CheckpointError, match=text):
        safe.save_checkpoint(content(8), tmp_path / "new.ckpt")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["old.ckpt"]
    assert safe.load_checkpoint(tmp_path / "old.ckpt")["global_step"] == 4


@pytest.mark.parametrize("error", [KeyboardInterrupt, pickle.PicklingError])
def test_other_errors_pass_through_and_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    monkeypatch.setattr(os, "fsync", Mock(side_effect=error))
    with pytest.raises(error):
        plugin().save_checkpoint(content(4), tmp_path / "x.ckpt")
    assert not os.listdir(tmp_path)


@pytest.fixture
def small_files() -> Iterator[None]:
    """Limits files to the size of two checkpoints, as a full disk would."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * SIZE, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_files")
def test_full_disk_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    safe = plugin()
    safe.save_checkpoint(content(4), tmp_path / "old.ckpt")
    for name in ("new.ckpt", "old.ckpt"):
        with pytest.raises(CheckpointError, match=r"step 8 can't .*Make room.*one is .*old"):
            safe.save_checkpoint({**content(8), "more": torch.zeros(SIZE)}, tmp_path / name)
    assert os.listdir(tmp_path) == ["old.ckpt"]
    assert safe.load_checkpoint(tmp_path / "old.ckpt")["global_step"] == 4


# ---------------------------------------------------------------------- before the first step


class Saver:
    def __init__(self, folder: Path) -> None:
        self.cfg, self.logdir = OmegaConf.create({}), folder

    def save(self, trainer: Trainer) -> None:
        """Never called."""


class SettingUpTrainer:
    """The part of a trainer that the callback's setup uses."""

    def __init__(self, folder: Path) -> None:
        self.strategy = SingleDeviceStrategy()
        self.is_global_zero, self.callbacks = True, [Saver(folder)]


def test_unwritable_folder_is_found_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    text = r"checkpoint\.dir=.*file/runs: can't be written to \(Not a directory\)"
    trainer: Any = SettingUpTrainer(tmp_path / "file" / "runs")
    with pytest.raises(CheckpointError, match=text):
        SafeCheckpoints().setup(trainer, None, "fit")  # type: ignore[arg-type]


def test_only_lightnings_plugin_is_replaced_and_only_once(tmp_path: Path) -> None:
    trainer: Any = SettingUpTrainer(tmp_path / "runs")
    for _ in range(2):
        SafeCheckpoints().setup(trainer, None, "fit")  # type: ignore[arg-type]
        assert type(trainer.strategy.checkpoint_io) is SafeCheckpointIO
        assert type(trainer.strategy.checkpoint_io.inner) is TorchCheckpointIO
    assert not (tmp_path / "runs").exists()  # the probe leaves nothing behind

    class Foreign(TorchCheckpointIO):
        """A plug-in of another package."""

    trainer.strategy.checkpoint_io = Foreign()
    SafeCheckpoints().setup(trainer, None, "fit")  # type: ignore[arg-type]
    assert type(trainer.strategy.checkpoint_io) is Foreign


# ---------------------------------------------------------------------- reading


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    file, trace = tmp_path / "x.ckpt", tmp_path / "executed"
    torch.save({"state_dict": {}, "evil": Malicious(trace)}, file)
    for weights_only in (None, False):
        with pytest.raises(CheckpointError, match=r"resume_from_checkpoint=.*only tensors and pla"):
            plugin().load_checkpoint(file, weights_only=weights_only)
    assert not trace.exists()


def test_auto_resume_replaces_a_damaged_checkpoint_by_the_previous_one(
    tmp_path: Path,
) -> None:
    files = [write(tmp_path / f"{step}.ckpt", step) for step in (4, 8, 12)]
    damage(files[2])
    trainer = ReadingTrainer()
    safe = plugin(AUTO, trainer)
    text = (
        r"auto_resume.enabled=True found=.*12\.ckpt: it is cut off, or no checkpoint\. The run "
        r"goes on from the one before it: .*8\.ckpt"
    )
    with pytest.warns(UserWarning, match=text):
        assert safe.load_checkpoint(files[2])["global_step"] == 8
    write(files[0], 99)
    for _ in range(2):  # the choice is kept, although another one is newer now
        assert safe.load_checkpoint(files[2])["global_step"] == 8
    assert trainer.strategy.broadcasts == [(files[1], "")]


def test_other_ranks_read_the_file_that_rank_0_chose(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{step}.ckpt", step) for step in (4, 8)]
    trainer = ReadingTrainer(is_global_zero=False)
    trainer.strategy.broadcast = lambda _: (files[0], "")  # type: ignore[method-assign]
    assert plugin(AUTO, trainer).load_checkpoint(files[1])["global_step"] == 4
    trainer.strategy.broadcast = lambda _: (None, "the reason")  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match="the reason"):
        plugin(AUTO, trainer).load_checkpoint(files[1])


def test_previous_checkpoints_include_earlier_starts_of_the_run_only(tmp_path: Path) -> None:
    args = {"method": "simclr", "seed": 5, "wandb_run_id": None, "resume_from_checkpoint": None}
    starts = {"seed": 6}, {"wandb_run_id": "x", "auto_resume": {"enabled": True}}, {}
    steps = (20, 4, 8)
    files = [
        write(tmp_path / f"start{step}" / "x.ckpt", step, {**args, **more})
        for step, more in zip(steps, starts, strict=True)
    ]
    own = write(tmp_path / "last" / "own.ckpt", 2, args)
    newest = damage(write(tmp_path / "last" / "x.ckpt", 30, args))
    write(tmp_path / "unknown" / "x.ckpt", 40)
    write(tmp_path / "broken" / "x.ckpt", 40)
    (tmp_path / "broken" / "args.json").write_text('{"method"')
    assert other_checkpoints(newest) == [own, files[2], files[1]]
    damage(own)
    with pytest.warns(UserWarning, match="goes on from the one before it: .*start8"):
        assert plugin(AUTO).load_checkpoint(newest)["global_step"] == 8


@pytest.mark.parametrize(
    "cfg",
    [
        None,
        {"auto_resume": {"enabled": True}},  # solo-learn removes the other key if it was given
        {**AUTO, "resume_from_checkpoint": "x"},
    ],
)
def test_damaged_checkpoint_given_by_the_user_is_an_error(tmp_path: Path, cfg: Any) -> None:
    files = [write(tmp_path / f"{step}.ckpt", step) for step in (4, 8, 12)]
    text = (
        r"resume_from_checkpoint=.*12\.ckpt: can't be read; it is cut off.*other one .* is .*8\.c"
    )
    with pytest.raises(CheckpointError, match=text):
        plugin(cfg).load_checkpoint(damage(files[2]))


def test_all_checkpoints_damaged(tmp_path: Path) -> None:
    files = [damage(write(tmp_path / f"{step}.ckpt", step)) for step in (4, 8)]
    text = (
        r"found=.*8\.ckpt: can't be read; it is cut off, or no checkpoint\. No other checkpoint of "
        r"this run can be read\. Start anew with auto_resume\.enabled=False\.$"
    )
    with pytest.raises(CheckpointError, match=text):
        plugin(AUTO).load_checkpoint(files[1])


def test_epochs_done() -> None:
    progress = {"epoch_progress": {"current": {"processed": 3}}}
    assert epochs_done({"epoch": 3, "loops": {"fit_loop": progress}}) == 3
    assert epochs_done({"epoch": 3}) == 4
    assert epochs_done({}) == 0


def test_containers_are_converted_to_plain_ones(tmp_path: Path) -> None:
    """solo-learn's adamw stores a ListConfig, PyTorch's MultiStepLR a Counter."""
    groups = [{"betas": OmegaConf.create([0.9, 0.999]), "lr": 0.1}]
    given = {
        "state_dict": {"weight": torch.zeros(2)},
        "optimizer_states": [{"param_groups": groups, "state": {0: torch.ones(1)}}],
        "lr_schedulers": [{"milestones": Counter({60: 1, 80: 1})}],
    }
    plugin().save_checkpoint(given, tmp_path / "one.ckpt")
    _, found = read_checkpoint("key", tmp_path / "one.ckpt")
    (group,) = found["optimizer_states"][0]["param_groups"]
    assert group == {"betas": [0.9, 0.999], "lr": 0.1}
    assert found["lr_schedulers"] == [{"milestones": {60: 1, 80: 1}}]


def test_newest_checkpoint_of_the_folder_is_read(tmp_path: Path) -> None:
    """With keep_prev, solo-learn picks the first one listed."""
    safe = plugin(AUTO)
    for epoch in range(3):
        file = tmp_path / f"x-ep={epoch}.ckpt"
        safe.save_checkpoint({"state_dict": {}, "epoch": epoch}, file)
        os.utime(file, (epoch, epoch))
    assert safe.load_checkpoint(tmp_path / "x-ep=0.ckpt")["epoch"] == 2
