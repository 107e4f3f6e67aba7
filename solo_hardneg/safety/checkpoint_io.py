"""Checkpoints that are whole: written atomically, and read without executing their content."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections import Counter
from glob import escape
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import CheckpointIO, TorchCheckpointIO
from omegaconf import DictConfig, OmegaConf

from solo_hardneg.distributed import all_or_none
from solo_hardneg.errors import CheckpointError
from solo_hardneg.files import write_atomically
from solo_hardneg.host import config_of, host_checkpointer
from solo_hardneg.models.checkpoints import newest_checkpoint, read_checkpoint, read_or_older
from solo_hardneg.safety.auto_resume import check_agreement

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


class SafeCheckpoints(Callback):
    """Replaces Lightning's checkpoint plug-in by :class:`SafeCheckpointIO`."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replaces the plug-in, and tests whether checkpoints can be written at all.

        Raises:
            CheckpointError: The host's checkpoint folder can't be created or written to, or
                auto-resume found a run on some ranks only. All ranks raise it.
        """
        cfg = config_of(trainer, pl_module)
        if stage == "fit" and _found_by_auto_resume(cfg):
            check_agreement()
        inner = trainer.strategy.checkpoint_io
        if isinstance(inner, SafeCheckpointIO):
            inner = inner.inner
        if type(inner) is TorchCheckpointIO:  # others write folders, asynchronously or remotely
            trainer.strategy.checkpoint_io = SafeCheckpointIO(inner, trainer, cfg)
        saver = host_checkpointer(trainer)
        folder = getattr(saver, "logdir", None) or getattr(saver, "folder", None)
        if stage == "fit" and folder is not None:
            error = _probe_writing(Path(folder)) if trainer.is_global_zero else None
            error = trainer.strategy.broadcast(error)
            if error is not None:
                raise CheckpointError(error)


class SafeCheckpointIO(CheckpointIO):
    """Reads and writes a trainer's checkpoints on local disks.

    Args:
        inner: Replaced plug-in, which still handles remote paths (``s3://...``).
        trainer: Trainer whose ranks must agree on the file to load.
        cfg: The run's config, if it has one.

    Attributes:
        newest: Checkpoint last written by this process.
    """

    def __init__(self, inner: CheckpointIO, trainer: Trainer, cfg: DictConfig | None) -> None:
        self.inner = inner
        self.newest: Path | None = None
        self._trainer, self._cfg = trainer, cfg
        self._chosen: dict[str, Path] = {}  # requested path -> file read instead

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Writes to a file beside ``path``, flushes it to disk, and renames it.

        Raises:
            CheckpointError: The file can't be written. It is removed; older ones stay.
        """
        if _is_remote(path) or storage_options is not None:
            self.inner.save_checkpoint(checkpoint, path, storage_options=storage_options)
            return
        path, content = Path(path), to_plain_containers(checkpoint)
        for leftover in path.parent.glob(f".{escape(path.name)}.*.part"):  # of a killed process
            leftover.unlink(missing_ok=True)
        try:
            # Given a path instead of a file, torch reports a full disk only as a failed writer.
            write_atomically(path, lambda file: torch.save(content, file), durable=True)
        except Exception as error:
            cause = _os_error(error)
            if cause is None:
                raise
            raise CheckpointError(self._save_error(checkpoint, path, cause)) from error
        _flush_folder(path.parent)
        self.newest = path

    def _save_error(self, checkpoint: dict[str, Any], path: Path, cause: OSError) -> str:
        folder = None if self._cfg is None else OmegaConf.select(self._cfg, "checkpoint.dir")
        step = f"epoch {checkpoint.get('epoch')}, step {checkpoint.get('global_step')}"
        last = self.newest or newest_checkpoint(path.parent)
        remedy = "This run has no complete checkpoint yet."
        if last is not None:
            remedy = f"The last complete one is {last}: resume it with {resume_override(last)}"
        return (
            f"checkpoint.dir={folder or path.parent}: the checkpoint of {step} can't be written to "
            f"{path} ({cause.strerror}). {_advice(cause)} {remedy}"
        )

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads tensors and plain values only, the same file on all ranks.

        If a checkpoint found by ``auto_resume`` is damaged, the run's previous one is read. All
        ranks must call it together.

        Raises:
            CheckpointError: The file can't be read. All ranks raise it.
        """
        if _is_remote(path):
            return dict(self.inner.load_checkpoint(path))
        content = None
        if str(path) not in self._chosen:
            self._chosen[str(path)], content = self._choose(Path(path))
        file = self._chosen[str(path)]
        # A rank may not see the disk that holds the file.
        return all_or_none(lambda: content or read_checkpoint(self._key, file)[1])

    def _choose(self, path: Path) -> tuple[Path, dict[str, Any] | None]:
        """Returns the file that rank 0 chose for all ranks, and on rank 0 its content."""
        answer: tuple[Path | None, str] = (None, "")
        content = error = None
        if self._trainer.is_global_zero:
            read: Any = read_checkpoint
            if _found_by_auto_resume(self._cfg):
                # With checkpoint.keep_prev, solo-learn picks any file in the folder.
                read, path = read_or_older, newest_checkpoint(path.parent) or path
            try:
                file, content = read(self._key, path)
                answer = file, ""
            except Exception as caught:  # of any kind: the other ranks wait for an answer
                answer, error = (None, str(caught)), caught
        chosen, text = self._trainer.strategy.broadcast(answer)
        if chosen is None:
            raise error or CheckpointError(text)
        return chosen, content

    @property
    def _key(self) -> str:
        automatic = _found_by_auto_resume(self._cfg)
        return "auto_resume.enabled=True found" if automatic else "resume_from_checkpoint"

    def source_of(self, path: Any) -> str:
        """Returns ``key=path`` for messages: the key that chose the checkpoint, and its file."""
        return f"{self._key}={self._chosen.get(str(path), path)}"

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a checkpoint."""
        self.inner.remove_checkpoint(path)

    def teardown(self) -> None:
        """Tears down the replaced plug-in."""
        self.inner.teardown()


def resume_source(trainer: Trainer) -> str:
    """Returns ``key=path`` of the checkpoint that a run resumes from, for messages."""
    checkpoint_io, path = trainer.strategy.checkpoint_io, trainer.ckpt_path
    if isinstance(checkpoint_io, SafeCheckpointIO):
        return checkpoint_io.source_of(path)
    return f"ckpt_path={path}"


def resume_override(path: Path) -> str:
    """Returns the override that resumes a checkpoint, quoted for a shell.

    The inner quotes are for Hydra: solo-learn's checkpoint names contain an =.
    """
    return f"\"++resume_from_checkpoint='{path.absolute()}'\""


def resume_command(trainer: Trainer, options: str = "with") -> str:
    """Returns how to resume from the newest checkpoint, for messages."""
    text = f"the same command {options} auto_resume.enabled=True"
    path = getattr(trainer.strategy.checkpoint_io, "newest", None)
    return text if path is None else f"{text} or {resume_override(path)}"  # None: foreign plug-in


def _found_by_auto_resume(cfg: DictConfig | None) -> bool:
    """Whether the host searched for the checkpoint.

    If the user names a checkpoint, solo-learn removes ``resume_from_checkpoint`` from the config.
    """
    if cfg is None or not OmegaConf.select(cfg, "auto_resume.enabled", default=False):
        return False
    return "resume_from_checkpoint" in cfg and cfg.resume_from_checkpoint is None


def to_plain_containers(value: Any) -> Any:
    """Converts a checkpoint's containers to types that load with ``weights_only=True``.

    solo-learn passes lists of its config to optimizers, and MultiStepLR keeps a Counter.
    """
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True)
    if type(value) in (dict, Counter):
        return {key: to_plain_containers(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(to_plain_containers(part) for part in value)
    return value


def unwritable(folder: Path, error: OSError) -> str:
    """Returns the message for a folder that can't be created or written to."""
    reason = error.strerror or type(error).__name__
    return f"checkpoint.dir={folder}: can't be written to ({reason}). {_advice(error)}"


def _probe_writing(folder: Path) -> str | None:
    """Writes to the folder, or to its first existing parent, and returns the error message.

    Leaves nothing behind: the run may still be refused for another reason.
    """
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".try-") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return unwritable(folder, error)
    return None


def _advice(error: OSError) -> str:
    if error.errno in _DISK_FULL:
        return "Make room, or set checkpoint.dir to another disk."
    if error.errno in _FORBIDDEN:
        return "Set checkpoint.dir to a folder that this user may write to."
    return "Check the disk, or set checkpoint.dir to another one."


def _os_error(error: BaseException | None) -> OSError | None:
    """The operating system's error; torch's writer raises its own on top of it."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _is_remote(path: Any) -> bool:
    return "://" in str(path)


def _flush_folder(folder: Path) -> None:
    """Makes the new name survive a power cut, where the file system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
