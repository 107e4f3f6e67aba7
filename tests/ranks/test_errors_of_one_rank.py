"""An error of one rank is raised on all ranks."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from gloo_pool import GlooPool
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from solo_hardneg.distributed import all_or_none
from solo_hardneg.errors import CheckpointError, ConfigError, DataError
from solo_hardneg.recording import records
from solo_hardneg.recording.recorder import Recorder
from solo_hardneg.safety import auto_resume, checkpoint_io

FAILING = 1  # rank


def error_of(rank: int, world: int, case: str, folder: Path) -> str:
    """Class and text of the error that a rank raises if one rank fails."""
    failing = rank == FAILING

    def fail(error: Exception, here: bool = failing) -> None:
        if here:
            raise error

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    absent = CheckpointError("resume_from_checkpoint=x: there is no such file.")
    none: Any = contextlib.nullcontext()
    patch = mock.patch.object
    replaced, work = {
        "nothing": (none, lambda: all_or_none(lambda: None)),
        "ours": (none, lambda: all_or_none(lambda: fail(ConfigError("a=1: too small")))),
        "a bug": (none, lambda: all_or_none(lambda: fail(ZeroDivisionError("1/0")))),
        "on all": (none, lambda: all_or_none(lambda: fail(DataError("b=2: does not exist"), True))),
        "synsets": (none, lambda: record(folder, world, "no-file" if failing else None)),
        "folder": (
            patch(records, "recorded_config", return_value='{"seed": 6}'),
            lambda: record(folder, world),
        ),
        "write": (patch(records.Rows, "write", side_effect=full), lambda: record(folder, world)),
        "checkpoint": (
            patch(checkpoint_io, "read_checkpoint", side_effect=absent),
            lambda: read(folder / "x.ckpt", rank),
        ),
        "auto_resume": (none, lambda: resume(folder / str(rank), rank)),
    }[case]
    try:
        with replaced if failing else none:
            work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("nothing", ""),
        ("ours", r"ConfigError: Rank 1: a=1: too small"),
        ("on all", r"DataError: b=2: does not exist"),
        ("synsets", r"ConfigError: Rank 1: hardness\.synsets=no-file: "),
        ("folder", r"ConfigError: Rank 1: hardness\.dir=.* another run"),
        ("write", r"DataError: Rank 1: hardness\.dir=.*\(No space left on device\)\. Make room"),
        ("checkpoint", r"CheckpointError: Rank 1: resume_from_checkpoint=x: "),
        ("auto_resume", r"CheckpointError: auto_resume\.enabled=True .*x\.ckpt, but not on .* 0"),
    ],
)
def test_error_of_one_rank_is_raised_on_all(
    pool: GlooPool, tmp_path: Path, case: str, expected: str
) -> None:
    (text,) = set(pool.run(error_of, case, tmp_path))
    assert re.match(expected, text) if expected else text == ""


def test_bug_on_one_rank_keeps_its_own_class_there(pool: GlooPool, tmp_path: Path) -> None:
    first, second, *_ = pool.run(error_of, "a bug", tmp_path)
    assert first == "HardnegError: Rank 1: ZeroDivisionError: 1/0"
    assert second == "ZeroDivisionError: 1/0"


class Tiny(LightningModule):
    """A module with one weight and recording enabled."""

    def __init__(self, folder: Path, synsets: str | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        settings = {"enabled": True, "dir": str(folder / "records"), "synsets": synsets}
        self.cfg = OmegaConf.create({"hardness": settings, "seed": 5})

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.weight * batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def record(folder: Path, world: int, synsets: str | None = None) -> None:
    """Trains for one step with the recorder."""
    trainer = Trainer(
        accelerator="cpu",
        devices=world,
        strategy=DDPStrategy(),
        plugins=[LightningEnvironment()],
        max_epochs=1,
        use_distributed_sampler=False,
        callbacks=[Recorder()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Tiny(folder, synsets), DataLoader([torch.ones(1)], batch_size=None))


def resume(folder: Path, rank: int) -> None:
    """Searches for a run that is visible to one rank only."""
    cfg = OmegaConf.create({"name": "n"})
    if rank == FAILING:
        folder.mkdir()
        (folder / "args.json").write_text(json.dumps({"name": "n"}))
        (folder / "x.ckpt").touch()
    auto_resume.find_checkpoint(folder, cfg, 36)
    auto_resume.check_agreement()


def read(path: Path, rank: int) -> None:
    """Reads a checkpoint as a resumed run does."""

    def broadcast(value: Any) -> Any:
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    if rank == 0:
        torch.save({"state_dict": {}}, path)
    strategy = SimpleNamespace(broadcast=broadcast)
    trainer: Any = SimpleNamespace(is_global_zero=rank == 0, strategy=strategy)
    checkpoint_io.SafeCheckpointIO(TorchCheckpointIO(), trainer, None).load_checkpoint(path)
