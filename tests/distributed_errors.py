"""What the ranks of test_distributed.py raise when one of them alone has an error."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from solo_hardneg.analysis import records
from solo_hardneg.analysis.recorder import Recorder
from solo_hardneg.distributed import all_or_none
from solo_hardneg.errors import CheckpointError, ConfigError, DataError
from solo_hardneg.safety import auto_resume, checkpoint_io

FAILS = 1  # the rank that does


def errors_of_one_rank(rank: int, world: int) -> dict[str, Any]:
    """The class and the text of what each rank raises, by what goes wrong on one of them."""
    alone = rank == FAILS
    found = {
        "nothing": said(lambda: all_or_none(lambda: None)),
        "ours": said(lambda: all_or_none(lambda: fail(ConfigError("a=1: too small"), alone))),
        "a bug": said(lambda: all_or_none(lambda: fail(ZeroDivisionError("1/0"), alone))),
        "on all": said(lambda: all_or_none(lambda: fail(DataError("b=2: is not there"), True))),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found["synsets"] = said(lambda: record(folder, world, synsets="no-file" if alone else None))
        with only(alone, records, "config_of", return_value='{"seed": 6}'):
            found["folder"] = said(lambda: record(folder, world))
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with only(alone, records.Rows, "write", side_effect=full):
            found["write"] = said(lambda: record(folder, world))
        cant = CheckpointError("resume_from_checkpoint=x: there is no such file.")
        with only(alone, checkpoint_io, "read_checkpoint", side_effect=cant):
            found["checkpoint"] = said(lambda: read(folder / "x.ckpt", rank))
        found["auto_resume"] = said(lambda: resume(folder / "runs", rank))
        dist.barrier()  # before the first rank's folder is gone
    return found


def said(work: Callable[[], Any]) -> str:
    """The class and the text of the error; empty if there is none."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def fail(error: Exception, alone: bool) -> None:
    if alone:
        raise error


def only(alone: bool, owner: Any, name: str, **how: Any) -> Any:
    """Replaces a function on the rank that fails, and leaves it as it is on the others."""
    original = getattr(owner, name)
    return mock.patch.object(owner, name, **how) if alone else mock.patch.object(
        owner, name, original
    )  # fmt: skip


class Tiny(LightningModule):
    """A weight, and a config that has its training recorded."""

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
    """Trains for one step, and records it."""
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
    """Looks for a run that lies on the disk of one rank only."""
    cfg = OmegaConf.create({"name": "n"})
    if rank == FAILS:
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
