"""Runs pretraining and linear evaluation, by this package's runner or solo-learn's scripts."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from solo_hardneg.errors import CheckpointError, DataError
from solo_hardneg.reproduce.overrides import compose_config, quote

SCRIPTS = ("main_pretrain.py", "main_linear.py")


@dataclass(frozen=True)
class TrainedRun:
    """A run that has ended.

    Attributes:
        checkpoint: Newest checkpoint, if any.
        metrics: ``val_acc1`` and ``val_acc5`` in percent, if they were logged.
    """

    checkpoint: Path | None
    metrics: dict[str, float]


def check_scripts(scripts: Path) -> None:
    """Raises DataError unless the folder holds solo-learn's two scripts."""
    if missing := [name for name in SCRIPTS if not (scripts / name).is_file()]:
        do = "Give the folder of a solo-learn checkout."
        raise DataError(f"--scripts {scripts}: it has no {' and no '.join(missing)}. {do}")


def train(
    program: str, config: str, overrides: Sequence[str], scripts: Path | None = None
) -> TrainedRun:
    """Runs a program to its end.

    Args:
        program: ``pretrain`` or ``linear``.
        config: Name of its config.
        overrides: Hydra overrides.
        scripts: Folder of solo-learn's scripts; ``None`` uses this package's runner.

    Raises:
        HardnegError: The run raised it.
        DataError: solo-learn's script failed.
    """
    if scripts is not None:
        return _train_in_solo_learn(scripts, program, config, overrides)
    from solo_hardneg.standalone import run

    cfg = compose_config(config, overrides)
    result = run.pretrain(cfg) if program == "pretrain" else run.linear(cfg)
    return TrainedRun(result.checkpoint, _select_accuracies(result.metrics))


def _train_in_solo_learn(
    scripts: Path, program: str, config: str, overrides: Sequence[str]
) -> TrainedRun:
    """Runs solo-learn's script in its folder.

    The recorder is on because solo-learn logs accuracies to wandb only.
    """
    script = f"main_{program}.py"
    cfg = compose_config(config, overrides)
    added = ["hardness.enabled=True", "hardness.images=False"]
    for key in ("data.train_path", "data.val_path"):  # relative to here, not to the checkout
        if path := OmegaConf.select(cfg, key):
            added.append(f"{key}={quote(Path(path).expanduser().resolve())}")
    command = [sys.executable, script, "--config-name", config, *overrides, *added]
    environment = {k: v for k, v in os.environ.items() if k != "SOLO_HARDNEG_HOST"}
    code = subprocess.run(command, cwd=scripts, env=environment, check=False).returncode
    if code != 0:
        raise DataError(f"{script} of solo-learn in {scripts} ended with status {code}.")
    method = "linear" if program == "linear" else cfg.method
    return read_newest_run(Path(cfg.checkpoint.dir) / method)


def read_newest_run(folder: Path) -> TrainedRun:
    """Reads checkpoint and accuracies of the newest run in a folder.

    Raises:
        DataError: The folder holds no run.
    """
    from solo_hardneg.models.checkpoints import newest_checkpoint
    from solo_hardneg.recording import records
    from solo_hardneg.runs import find as runs

    args_files = list(folder.glob("*/args.json"))
    if not args_files:
        raise DataError(f"{folder}: it holds no run.")
    run = max(args_files, key=lambda file: file.stat().st_mtime).parent
    metrics: dict[str, float] = {}
    if (run / "hardness").is_dir():
        history = runs.history_of(records.read_records(run / "hardness"))
        metrics = history.sort_values("epoch").groupby("metric")["value"].last().to_dict()
    return TrainedRun(newest_checkpoint(run), _select_accuracies(metrics))


def _select_accuracies(metrics: dict[str, float]) -> dict[str, float]:
    found = {key: float(metrics.get(key, math.nan)) for key in ("val_acc1", "val_acc5")}
    return {key: value for key, value in found.items() if math.isfinite(value)}


def is_finished(checkpoint: Path, config: str, overrides: Sequence[str]) -> bool:
    """Whether a checkpoint is of the end of the last epoch; False if it can't be read."""
    from solo_hardneg.models.checkpoints import epochs_done, read_checkpoint

    try:
        _, content = read_checkpoint("checkpoint.dir", checkpoint)
    except CheckpointError:
        return False
    return bool(epochs_done(content) >= compose_config(config, overrides).max_epochs)
