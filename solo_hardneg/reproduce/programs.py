"""What trains and evaluates a cell: this package's runner, or solo-learn's own programs."""

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
from solo_hardneg.reproduce.overrides import composed, quoted

SCRIPTS = ("main_pretrain.py", "main_linear.py")


@dataclass(frozen=True)
class Trained:
    """What a run left behind.

    Attributes:
        checkpoint: the newest one, if there is any.
        metrics: ``val_acc1`` and ``val_acc5`` in percent, as far as they were logged.
    """

    checkpoint: Path | None
    metrics: dict[str, float]


def check_scripts(scripts: Path) -> None:
    """Raises DataError unless solo-learn's two programs lie in the folder."""
    missing = [name for name in SCRIPTS if not (scripts / name).is_file()]
    if missing:
        do = "Give the folder of a solo-learn checkout."
        raise DataError(f"--scripts {scripts}: there is no {' and no '.join(missing)} in it. {do}")


def train(
    program: str, config: str, overrides: Sequence[str], scripts: Path | None = None
) -> Trained:
    """Runs ``pretrain`` or ``linear`` to its end.

    Args:
        program: which of the two.
        config, overrides: as on the command line.
        scripts: the folder of solo-learn's programs; ``None``: this package's runner.

    Raises:
        HardnegError: whatever the run raises.
        DataError: solo-learn's program failed.
    """
    if scripts is not None:
        return _in_solo_learn(scripts, program, config, overrides)
    from solo_hardneg.standalone import run

    cfg = composed(config, overrides)
    result = run.pretrain(cfg) if program == "pretrain" else run.linear(cfg)
    return Trained(result.checkpoint, _accuracies(result.metrics))


def _in_solo_learn(scripts: Path, program: str, config: str, overrides: Sequence[str]) -> Trained:
    """solo-learn's own program, in its folder, with the recorder on: it keeps the accuracies.

    Without it they would go to wandb alone.
    """
    name = f"main_{program}.py"
    cfg = composed(config, overrides)
    keep = ["hardness.enabled=True", "hardness.images=False"]
    for part in ("train_path", "val_path"):  # as seen from here, not from the checkout
        if path := OmegaConf.select(cfg, f"data.{part}"):
            keep.append(f"data.{part}={quoted(Path(path).expanduser().resolve())}")
    command = [sys.executable, name, "--config-name", config, *overrides, *keep]
    environment = {k: v for k, v in os.environ.items() if k != "SOLO_HARDNEG_HOST"}
    code = subprocess.run(command, cwd=scripts, env=environment, check=False).returncode
    if code != 0:
        raise DataError(f"{name} of solo-learn in {scripts} ended with status {code}.")
    kind = "linear" if program == "linear" else cfg.method
    return newest(Path(cfg.checkpoint.dir) / kind)


def newest(folder: Path) -> Trained:
    """The run below a folder that was written last, with the accuracies that it logged.

    Raises:
        DataError: there is none.
    """
    from solo_hardneg.analysis import records, runs
    from solo_hardneg.safety.reading import newest_checkpoint

    folders = [args.parent for args in folder.glob("*/args.json")]
    if not folders:
        raise DataError(f"{folder}: no run was written to it.")
    place = max(folders, key=lambda run: (run / "args.json").stat().st_mtime)
    metrics: dict[str, float] = {}
    if (place / "hardness").is_dir():
        history = runs.history_of(records.read(place / "hardness"))
        last = history.sort_values("epoch").groupby("metric")["value"].last()
        metrics = {str(name): float(value) for name, value in last.items()}
    return Trained(newest_checkpoint(place), _accuracies(metrics))


def _accuracies(metrics: dict[str, float]) -> dict[str, float]:
    found = {key: metrics.get(key, math.nan) for key in ("val_acc1", "val_acc5")}
    return {key: float(value) for key, value in found.items() if math.isfinite(value)}


def is_finished(checkpoint: Path, config: str, overrides: Sequence[str]) -> bool:
    """Whether a checkpoint is of the end of a run's last epoch; a damaged one is not."""
    from solo_hardneg.safety.reading import epochs_done, read_checkpoint

    try:
        _, content = read_checkpoint("checkpoint.dir", checkpoint)
    except CheckpointError:
        return False
    return bool(epochs_done(content) >= composed(config, overrides).max_epochs)
