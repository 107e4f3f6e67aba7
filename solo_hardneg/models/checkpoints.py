"""Reads checkpoints of either host without executing anything, and finds a run's older ones."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from solo_hardneg.errors import CheckpointError
from solo_hardneg.files import read_json
from solo_hardneg.models import foreign

_WANTED = "Take one that pretraining wrote."
_SHOWN = 10  # folders that a message lists
# Keys of args.json that differ between a run and its resumption.
_PER_START = ("wandb_run_id", "resume_from_checkpoint", "auto_resume", "checkpoint")


class _Unreadable(Exception):
    """A file is no checkpoint of a training run."""

    def __init__(self, problem: str, remedy: str, unsafe: bool = False) -> None:
        super().__init__(problem)
        self.problem, self.remedy, self.unsafe = problem, remedy, unsafe


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint in a run's folder that was written last."""
    return next(iter(_newest_first(folder)), None)


def read_checkpoint(key: str, path: Path) -> tuple[Path, dict[str, Any]]:
    """Reads a checkpoint's tensors and plain values; nothing in it is executed.

    Args:
        key: Config key that named it, for messages.
        path: Checkpoint file, or folder of a run, whose newest one is read.

    Returns:
        The file and its content.

    Raises:
        CheckpointError: It isn't there, is damaged, or is no Lightning checkpoint.
    """
    return _read(key, path, _read_checkpoint)


def read_encoder(key: str, path: Path) -> tuple[Path, dict[str, Any]]:
    """Reads the weights of a trained encoder, ours or others'; nothing in it is executed.

    Args:
        key: Config key that named it, for messages.
        path: As for :func:`read_checkpoint`; or a checkpoint that :mod:`.foreign` knows, also in a
            ``.safetensors`` file.

    Returns:
        The file and its content; the names in its ``state_dict`` are ours.

    Raises:
        CheckpointError: It isn't there, is damaged, or holds no weights.
    """
    return _read(key, path, _read_weights)


def _read(
    key: str, path: Path, read: Callable[[Path], dict[str, Any]]
) -> tuple[Path, dict[str, Any]]:
    file = _find(key, path)
    try:
        return file, read(file)
    except _Unreadable as error:
        others = other_checkpoints(file)
        hint = f" The newest other one of this run is {others[0]}" if others else ""
        text = f"{key}={file}: {error.problem}. {error.remedy}{hint}"
        raise CheckpointError(text) from error


def read_or_older(key: str, file: Path) -> tuple[Path, dict[str, Any]]:
    """Reads a checkpoint or, if it is damaged, the run's previous one, with a warning.

    Args:
        key: What found the file, for messages.
        file: Newest checkpoint of a run.

    Returns:
        The file that was read, and its content.

    Raises:
        CheckpointError: No checkpoint of this run can be read, or this one isn't safe to read.
    """
    file = _find(key, file)
    try:
        return file, _read_checkpoint(file)
    except _Unreadable as error:
        damaged = error
    if damaged.unsafe:
        raise CheckpointError(f"{key}={file}: {damaged.problem}. {damaged.remedy}") from damaged
    for other in other_checkpoints(file):
        try:
            content = _read_checkpoint(other)
        except _Unreadable:
            continue
        reason = damaged.problem.removeprefix("can't be read; ")
        rank_zero_warn(f"{key}={file}: {reason}. The run goes on from the one before it: {other}")
        return other, content
    raise CheckpointError(
        f"{key}={file}: {damaged.problem}. No other checkpoint of this run can be read. "
        "Start anew with auto_resume.enabled=False."
    ) from damaged


def other_checkpoints(file: Path) -> list[Path]:
    """All other checkpoints of the same run, newest first: of its folder, then of earlier starts.

    A resumed run gets a new folder beside the old one, with the same ``args.json`` except for keys
    that belong to one start.
    """
    own = [other for other in _newest_first(file.parent) if other != file]
    args = _read_lasting_args(file.parent)
    if args is None:
        return own
    folders = {path.parent for path in file.parent.parent.glob("*/args.json")} - {file.parent}
    earlier = [folder for folder in folders if _read_lasting_args(folder) == args]
    return own + sorted((f for folder in earlier for f in folder.glob("*.ckpt")), key=_age)


def epochs_done(checkpoint: dict[str, Any]) -> int:
    """Number of completed epochs.

    The checkpoint's ``epoch`` is the same in the middle of an epoch and at its end.
    """
    try:
        return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
    except (KeyError, TypeError):  # not Lightning's, or without its progress
        return int(checkpoint.get("epoch", -1)) + 1


def _find(key: str, path: Path) -> Path:
    """The file itself, or the newest checkpoint of a folder."""
    try:
        file = newest_checkpoint(path) if path.is_dir() else path
        if file is not None and file.is_file():
            return file
    except OSError as error:  # too long a name, or no permission
        raise CheckpointError(f"{key}={path}: {error.strerror}. Check the path.") from error
    if not path.is_dir():
        raise CheckpointError(f"{key}={path}: there is no such file. Check the path.")
    text = f"{key}={path}: there is no checkpoint (*.ckpt) in this folder"
    below = sorted({file.parent for file in path.rglob("*.ckpt")})
    if not below:
        raise CheckpointError(f"{text}. Check the path.")
    shown = ", ".join(map(str, below[:_SHOWN])) + (", ..." if len(below) > _SHOWN else "")
    raise CheckpointError(f"{text}, but below it, in: {shown}. Give the folder of a run.")


def _read_weights(file: Path) -> dict[str, Any]:
    if file.suffix == ".safetensors":
        try:
            return {"state_dict": foreign.rename(load_file(file))}
        except (OSError, SafetensorError) as error:
            problem = "can't be read; it is cut off, or no safetensors file"
            raise _Unreadable(problem, "Take another file.") from error
    content = _load(file)
    state = foreign.weights_of(content)
    if state is None:
        problem = "holds no weights (names of tensors, perhaps under 'state_dict' or 'model')"
        raise _Unreadable(problem, _WANTED)
    rest = content if "state_dict" in content else {}
    return {**rest, "state_dict": foreign.rename(state)}


def _read_checkpoint(file: Path) -> dict[str, Any]:
    checkpoint = _load(file)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        problem = "holds no 'state_dict', so it is no checkpoint of a training run"
        raise _Unreadable(problem, _WANTED)
    state = checkpoint["state_dict"]
    named = isinstance(state, Mapping) and all(isinstance(name, str) for name in state)
    if not named or not all(isinstance(value, Tensor) for value in state.values()):
        raise _Unreadable("its 'state_dict' holds more than tensors", _WANTED)
    return checkpoint


def _load(file: Path) -> Any:
    try:
        if tarfile.is_tarfile(file):  # torch before 2.6 executes these in spite of weights_only
            raise ValueError("GLOBAL torch's-oldest-format")
        return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise _Unreadable(f"can't be read; {error.strerror}", "Check the path.") from error
    except Exception as error:  # of zip, pickle or torch
        # torch's own message advises to execute the file. (torch 2.1, and later)
        found = re.search(r"Unsupported class (\S+)|GLOBAL (\S+)", str(error))
        if found is None:
            problem = "can't be read; it is cut off, or no checkpoint"
            raise _Unreadable(problem, "Take another checkpoint of the run.") from error
        problem = f"can't be read; it asks for {found[1] or found[2]}, and only tensors and plain"
        raise _Unreadable(f"{problem} values are read", _WANTED, unsafe=True) from error


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.ckpt"), key=_age)


def _age(file: Path) -> float:
    try:
        return -file.stat().st_mtime
    except OSError:  # a run has just removed it
        return 0.0


def _read_lasting_args(folder: Path) -> dict[str, Any] | None:
    """A run's ``args.json`` without the keys that belong to one start."""
    try:
        args = read_json(folder / "args.json")
    except (OSError, ValueError):
        return None
    if not isinstance(args, dict):
        return None
    return {key: value for key, value in args.items() if key not in _PER_START}
