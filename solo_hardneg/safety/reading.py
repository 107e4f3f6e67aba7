"""Reading checkpoints of either host without executing anything, and finding the one before."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from solo_hardneg.analysis.untrusted import read_json
from solo_hardneg.errors import CheckpointError

_SHOWN = 10  # so many folders a message names
# What of args.json may differ between a run and the one that goes on with it.
_OF_ONE_START = ("wandb_run_id", "resume_from_checkpoint", "auto_resume", "checkpoint")


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint in a run's folder that was written last."""
    return next(iter(_newest_first(folder)), None)


def read_checkpoint(key: str, path: Path) -> tuple[Path, dict[str, Any]]:
    """The content of a checkpoint: tensors and plain values; nothing in it is executed.

    Args:
        key: the key of the config that named it, for messages.
        path: the file, or the folder of a run, whose newest one is taken.

    Returns:
        the file, and what it holds.

    Raises:
        CheckpointError: it isn't there, is damaged, or is no Lightning checkpoint.
    """
    try:
        file = newest_checkpoint(path) if path.is_dir() else path
        there = file is not None and file.is_file()
    except OSError as error:  # too long a name, a folder that nobody may look into
        raise CheckpointError(f"{key}={path}: can't be looked at; {_reason(error)}") from error
    if file is None or not there:
        raise CheckpointError(f"{key}={path}: there is {_nothing(path)}")
    try:
        if tarfile.is_tarfile(file):  # torch before 2.6 would execute these, whatever it is told
            raise ValueError("GLOBAL torch's-oldest-format")
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch have an error each
        others = other_checkpoints(file)
        more = f" The newest other one of this run is {others[0]}" if others else ""
        raise CheckpointError(f"{key}={file}: can't be read; {_reason(error)}{more}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(
            f"{key}={file}: holds no 'state_dict', so it is no checkpoint of a training run. "
            "Take one that pretraining wrote."
        )
    state = checkpoint["state_dict"]
    named = isinstance(state, Mapping) and all(isinstance(name, str) for name in state)
    if not named or not all(isinstance(value, Tensor) for value in state.values()):
        text = f"{key}={file}: its 'state_dict' holds more than tensors"
        raise CheckpointError(f"{text}. Take one that pretraining wrote.")
    return file, checkpoint


def read_or_older(key: str, file: Path) -> tuple[Path, dict[str, Any]]:
    """The content of a checkpoint or, where it is damaged, of the run's one before, with a warning.

    Args:
        key: what has found the file, for messages.
        file: the newest checkpoint of a run.

    Returns:
        the file that was read, and what it holds.

    Raises:
        CheckpointError: neither it nor any other one of this run can be read.
    """
    try:
        return read_checkpoint(key, file)
    except CheckpointError as error:
        if "it asks for" in str(error):  # it is whole, and of somebody whom we don't trust blindly
            raise
        damaged = error
    for other in other_checkpoints(file):
        try:
            found = read_checkpoint(key, other)
        except CheckpointError:
            continue
        reason = str(damaged).partition("can't be read; ")[2].partition(". ")[0] or str(damaged)
        rank_zero_warn(f"{key}={file}: {reason}. The run goes on from the one before it: {other}")
        return found
    text = str(damaged).partition(" Take ")[0].partition(" The newest other ")[0]
    raise CheckpointError(
        f"{text} No other checkpoint of this run can be read. "
        "Start anew with auto_resume.enabled=False."
    ) from damaged


def other_checkpoints(file: Path) -> list[Path]:
    """All other checkpoints of the same run, newest first: its folder's, then its earlier starts'.

    A run that is resumed gets a new folder beside the old one. Both hold the same ``args.json``,
    but for what belongs to one start.
    """
    own = [other for other in _newest_first(file.parent) if other != file]
    mine = _args_of(file.parent)
    folders = [] if mine is None else file.parent.parent.glob("*/args.json")
    same = [
        args.parent
        for args in folders
        if args.parent != file.parent and _args_of(args.parent) == mine
    ]
    return own + sorted((f for folder in same for f in folder.glob("*.ckpt")), key=_age)


def epochs_done(checkpoint: dict[str, Any]) -> int:
    """How many epochs a checkpoint has trained to their ends.

    Its ``epoch`` doesn't tell: that is the same in the middle of an epoch and at its end.
    """
    try:
        return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
    except (KeyError, TypeError):  # not Lightning's, or without its progress
        return int(checkpoint.get("epoch", -1)) + 1


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.ckpt"), key=_age)


def _age(file: Path) -> float:
    try:
        return -file.stat().st_mtime
    except OSError:  # a run has just removed it
        return 0.0


def _args_of(folder: Path) -> dict[str, Any] | None:
    """What a folder's ``args.json`` says of the run, without what belongs to one start of it."""
    try:
        args = read_json(folder / "args.json")
    except (OSError, ValueError):
        return None
    if not isinstance(args, dict):
        return None
    return {key: value for key, value in args.items() if key not in _OF_ONE_START}


def _nothing(path: Path) -> str:
    """What is said where there is no checkpoint: those below a folder are named."""
    if not path.is_dir():
        return "no such file. Check the path."
    below = sorted({file.parent for file in path.rglob("*.ckpt")})
    text = "no checkpoint (*.ckpt) in this folder"
    if not below:
        return f"{text}. Check the path."
    shown = ", ".join(map(str, below[:_SHOWN])) + (", ..." if len(below) > _SHOWN else "")
    return f"{text}, but below it, in: {shown}. Give the folder of a run."


def _reason(error: Exception) -> str:
    """Why a file can't be read, and what to do; torch's own words advise to execute it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}. Check the path."
    found = re.search(r"Unsupported class (\S+)|GLOBAL (\S+)", str(error))  # torch 2.1, and later
    if found:
        text = f"it asks for {found[1] or found[2]}, and only tensors and plain values are read"
        return f"{text}. Take a checkpoint that pretraining wrote."
    return "it is cut off, or no checkpoint. Take another checkpoint of the run."
