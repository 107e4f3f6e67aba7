"""The standalone host's Hydra programs, pretrain and linear, with solo-learn's names and keys.

Importing this module tells the Hydra plug-in (``hydra_plugins/solo_hardneg_searchpath.py``) that
the process is a host's program.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from solo_hardneg.environment import prepare
from solo_hardneg.errors import ConfigError, HardnegError

# The command line as typed, if Hydra parses another one.
_command: list[str] | None = None


def config_names() -> list[str]:
    """Returns the names of this package's configs for pretraining and linear evaluation."""
    found = {file.name for file in files("solo_hardneg.configs").iterdir()}
    names = {name for name in found if name.endswith(".yaml")} - {"analyze.yaml", "reproduce.yaml"}
    return sorted(name.removesuffix(".yaml") for name in names)


def start(program: str, arguments: list[str] | None = None) -> None:
    """Runs ``pretrain`` or ``linear``; errors of this package end in one line, not a traceback.

    Args:
        program: Name of the program.
        arguments: Arguments for Hydra; ``None`` uses ``sys.argv``.
    """
    global _command
    prepare()
    if arguments is not None:
        _command, sys.argv = sys.argv, [f"solo-hardneg-{program}", *arguments]
    try:
        {"pretrain": pretrain, "linear": linear}[program]()
    except HardnegError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def _run(job: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    if _command is not None:
        sys.argv = _command  # Lightning starts its other processes with it
    OmegaConf.set_struct(cfg, False)  # as the host does, so that unknown keys pass through
    try:
        if not cfg:
            raise ConfigError(f"--config-name: is missing. Known: {', '.join(config_names())}.")
        return job(cfg)
    except HardnegError as error:
        # Hydra reports a sweep's failed job by its message; for a single run, with a traceback.
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        sys.exit(f"{type(error).__name__}: {error}")


@hydra.main(version_base="1.2", config_path=None)
def pretrain(cfg: DictConfig) -> None:
    """Pretrains the config's method."""
    from solo_hardneg.standalone.run import pretrain as job

    _run(job, cfg)


@hydra.main(version_base="1.2", config_path=None)
def linear(cfg: DictConfig) -> None:
    """Evaluates a pretrained backbone by linear classification and kNN."""
    from solo_hardneg.standalone.run import linear as job

    _run(job, cfg)
