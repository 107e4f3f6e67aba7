"""Checkpoints that are whole: written at once or not at all, read without executing anything."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import CheckpointIO, TorchCheckpointIO
from omegaconf import DictConfig, OmegaConf

from solo_hardneg.distributed import all_or_none
from solo_hardneg.errors import CheckpointError
from solo_hardneg.safety.auto_resume import check_agreement
from solo_hardneg.safety.reading import newest_checkpoint, read_checkpoint, read_or_older
from solo_hardneg.trainers import config_of, host_checkpointer

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


class SafeCheckpoints(Callback):
    """Puts :class:`SafeCheckpointIO` in the place of Lightning's, before a checkpoint is loaded."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replaces the plug-in, and tries whether checkpoints can be written at all.

        Raises:
            CheckpointError: the host's folder for checkpoints can't be made or written to, or
                auto-resume has found a run on some ranks only. All ranks raise it.
        """
        cfg = config_of(trainer, pl_module)
        if stage == "fit" and cfg is not None and _found_by_itself(cfg):
            check_agreement()
        inner = trainer.strategy.checkpoint_io
        if isinstance(inner, SafeCheckpointIO):
            inner = inner.inner
        if type(inner) is TorchCheckpointIO:  # others write folders, or later, or elsewhere
            trainer.strategy.checkpoint_io = SafeCheckpointIO(inner, trainer, cfg)
        saver = host_checkpointer(trainer)
        home = getattr(saver, "logdir", None) or getattr(saver, "folder", None)
        if stage == "fit" and home is not None:
            error = _try_writing(Path(home)) if trainer.is_global_zero else None
            error = trainer.strategy.broadcast(error)
            if error is not None:
                raise CheckpointError(error)


class SafeCheckpointIO(CheckpointIO):
    """Reads and writes the checkpoints of a trainer on local disks.

    Args:
        inner: what it stands in for, and what does paths that are no files (``s3://...``).
        trainer: whose processes must agree on what is loaded.
        cfg: the run's config, if it has one: says who has chosen the checkpoint to resume.

    Attributes:
        newest: the last checkpoint that this process has written.
    """

    def __init__(self, inner: CheckpointIO, trainer: Trainer, cfg: DictConfig | None) -> None:
        self.inner = inner
        self.newest: Path | None = None
        self._trainer, self._cfg = trainer, cfg
        self._chosen: dict[str, Path] = {}  # what is read in the place of what was asked for

    # ------------------------------------------------------------------ writing

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Writes a file beside ``path``, flushes it to the disk, and renames it.

        Raises:
            CheckpointError: it can't be written. Nothing of it stays, older ones do.
        """
        if _elsewhere(path) or storage_options is not None:
            self.inner.save_checkpoint(checkpoint, path, storage_options=storage_options)
            return
        path = Path(path)
        part = path.with_name(f"{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # By a name instead of a file, torch says of a full disk only that its writer failed.
            with part.open("wb") as file:
                torch.save(plain(checkpoint), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            cause = _os_error(error)
            if cause is None or not isinstance(error, Exception):
                raise
            raise CheckpointError(self._unwritten(checkpoint, path, cause)) from error
        _flush_folder(path.parent)
        self.newest = path

    def _unwritten(self, checkpoint: dict[str, Any], path: Path, cause: OSError) -> str:
        """What is said of a checkpoint that can't be written."""
        place = None if self._cfg is None else OmegaConf.select(self._cfg, "checkpoint.dir")
        which = f"epoch {checkpoint.get('epoch')}, step {checkpoint.get('global_step')}"
        last = self.newest or newest_checkpoint(path.parent)
        text = "There is no complete one of this run yet."
        if last is not None:
            text = f"The last complete one is {last}: go on with {resume_words(last)}"
        return (
            f"checkpoint.dir={place or path.parent}: the checkpoint of {which} can't be written to "
            f"{path} ({cause.strerror}). {_advice(cause)} {text}"
        )

    # ------------------------------------------------------------------ reading

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads tensors and plain values, in all versions of Lightning and on all ranks the same.

        A checkpoint that ``auto_resume`` has found may be damaged: then the run's one before it is
        read. All processes of the run must call it together.

        Raises:
            CheckpointError: it can't be read. All ranks raise it.
        """
        if _elsewhere(path):
            return dict(self.inner.load_checkpoint(path))
        asked, content = str(path), None
        if asked not in self._chosen:
            self._chosen[asked], content = self._choose(Path(path))

        def read() -> dict[str, Any]:
            file = self._chosen[asked]
            return read_checkpoint(self._key, file)[1] if content is None else content

        return all_or_none(read)  # not all may see the disk on which it lies

    def _choose(self, path: Path) -> tuple[Path, dict[str, Any] | None]:
        """The file that all ranks read, by the first one's word, and what that one has read."""
        answer: tuple[Path | None, str] = (None, "")
        content = error = None
        if self._trainer.is_global_zero:
            read: Any = read_checkpoint
            if _found_by_itself(self._cfg):
                # With checkpoint.keep_prev, solo-learn takes any one of its folder.
                read, path = read_or_older, newest_checkpoint(path.parent) or path
            try:
                file, content = read(self._key, path)
                answer = file, ""
            except Exception as unreadable:  # whatever it is, the other ranks wait for an answer
                answer, error = (None, str(unreadable)), unreadable
        chosen, text = self._trainer.strategy.broadcast(answer)
        if chosen is None:
            raise error or CheckpointError(text)
        return chosen, content

    @property
    def _key(self) -> str:
        found = "auto_resume.enabled=True found"
        return found if _found_by_itself(self._cfg) else "resume_from_checkpoint"

    def named(self, path: Any) -> str:
        """``key=path`` for messages: what has chosen the checkpoint, and the file that was read."""
        return f"{self._key}={self._chosen.get(str(path), path)}"

    # ------------------------------------------------------------------ the rest

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a checkpoint."""
        self.inner.remove_checkpoint(path)

    def teardown(self) -> None:
        """Ends what it stands in for."""
        self.inner.teardown()


def resumed_from(trainer: Trainer) -> str:
    """``key=path`` of the checkpoint that a run is resumed from, for messages."""
    checkpoint_io, path = trainer.strategy.checkpoint_io, trainer.ckpt_path
    if isinstance(checkpoint_io, SafeCheckpointIO):
        return checkpoint_io.named(path)
    return f"ckpt_path={path}"


def _found_by_itself(cfg: DictConfig | None) -> bool:
    """Whether the host has looked for the checkpoint.

    Of one that the user names, solo-learn takes the key out of the config.
    """
    if cfg is None or not OmegaConf.select(cfg, "auto_resume.enabled", default=False):
        return False
    return "resume_from_checkpoint" in cfg and cfg.resume_from_checkpoint is None


def plain(value: Any) -> Any:
    """A checkpoint's content in containers that can be read without executing anything.

    solo-learn hands lists of its config to optimizers, and PyTorch counts milestones in a Counter.
    """
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True)
    if type(value) in (dict, Counter):
        return {key: plain(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(part) for part in value)
    return value


def resume_words(path: Path) -> str:
    """What to add to the command so that it goes on from a checkpoint, as a shell takes it.

    The inner quotes are for Hydra: solo-learn puts an = into the names of checkpoints.
    """
    return f"\"++resume_from_checkpoint='{path.absolute()}'\""


def unwritable(place: Path, error: OSError) -> str:
    """What is said of a folder that can't be made or written to."""
    reason = error.strerror or type(error).__name__
    return f"checkpoint.dir={place}: can't be written to ({reason}). {_advice(error)}"


def _try_writing(home: Path) -> str | None:
    """Writes to the folder, or to the one in which it will be made, and says what was wrong.

    Nothing stays: a run that is refused later leaves no folder behind.
    """
    place = home.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".try-") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return unwritable(home, error)
    return None


def _advice(error: OSError) -> str:
    if error.errno in _FULL:
        return "Make room, or set checkpoint.dir to another disk."
    if error.errno in _FORBIDDEN:
        return "Set checkpoint.dir to a folder that this user may write to."
    return "Look after the disk, or set checkpoint.dir to another one."


def _os_error(error: BaseException | None) -> OSError | None:
    """What the operating system has said; torch's writer puts an error of its own over it."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _elsewhere(path: Any) -> bool:
    return "://" in str(path)


def _flush_folder(folder: Path) -> None:
    """So that the new name, too, outlives a power cut; not all file systems can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
