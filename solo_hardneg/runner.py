"""``scripts/main_pretrain.py`` and ``scripts/main_linear.py``: the standalone host's programs.

The same config names and keys as inside solo-learn. Importing this module is what makes a process
a host's program for the Hydra plug-in (see ``hydra_plugins/solo_hardneg_searchpath.py``).
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

# The command line as it was typed, where it differs from the one that Hydra was given to parse.
_command: list[str] | None = None


def config_names() -> list[str]:
    """The configs of this package, for pretraining and linear evaluation."""
    found = {file.name for file in files("solo_hardneg.configs").iterdir()}
    ours = {name for name in found if name.endswith(".yaml")} - {"analyze.yaml", "reproduce.yaml"}
    return sorted(name.removesuffix(".yaml") for name in ours)


def start(program: str, arguments: list[str] | None = None) -> None:
    """Runs ``pretrain`` or ``linear``.

    What a user can mend ends in one line that says how, instead of a traceback.

    Args:
        program: which of the two.
        arguments: what Hydra is to parse; if ``None``, what ``sys.argv`` holds.
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
        sys.argv = _command  # from it Lightning makes up the command of its other processes
    OmegaConf.set_struct(cfg, False)  # as the host does: keys that it doesn't know pass through
    try:
        if not cfg:
            raise ConfigError(f"--config-name: none is given. Known: {', '.join(config_names())}.")
        return job(cfg)
    except HardnegError as error:
        # In a sweep Hydra reports the failed job and its message; alone, it would add a traceback.
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        sys.exit(f"{type(error).__name__}: {error}")


@hydra.main(version_base="1.2", config_path=None)
def pretrain(cfg: DictConfig) -> None:
    """Pretrains the method that the config names."""
    from solo_hardneg.standalone.run import pretrain as job

    _run(job, cfg)


@hydra.main(version_base="1.2", config_path=None)
def linear(cfg: DictConfig) -> None:
    """Evaluates a pretrained backbone with a linear classifier and kNN."""
    from solo_hardneg.standalone.run import linear as job

    _run(job, cfg)
