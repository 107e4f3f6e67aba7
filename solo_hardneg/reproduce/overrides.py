"""Hydra overrides: sorted by program, quoted, and composed to configs."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from solo_hardneg.environment import nested_hydra
from solo_hardneg.errors import ConfigError, bad_value

# Top-level keys that pretraining and linear evaluation share.
_SHARED = (
    *("data", "backbone", "accelerator", "devices", "num_nodes", "strategy", "precision"),
    *("sync_batchnorm", "performance", "enable_progress_bar"),
)
# Keys that don't change a result.
IGNORED = (
    *("accelerator", "auto_resume", "backend", "check_val_every_n_epoch", "checkpoint"),
    *("enable_progress_bar", "hardness", "knn_eval", "log_every_n_steps", "name", "wandb"),
    *("data.download", "data.num_workers", "data.train_path", "data.val_path"),
    "pretrained_feature_extractor",
)


@dataclass(frozen=True)
class Overrides:
    """The command line's overrides, sorted by program.

    Attributes:
        data: Name of the dataset; empty if none was given.
        pretrain: Overrides of the pretraining.
        linear: Overrides of the linear evaluation. Shared keys are in both.
        hydra: Overrides of the multirun, such as ``hydra/launcher=joblib``.
    """

    data: str
    pretrain: tuple[str, ...]
    linear: tuple[str, ...]
    hydra: tuple[str, ...]


def sort_overrides(arguments: Sequence[str]) -> Overrides:
    """Sorts overrides: ``hydra…`` for the multirun, ``linear.…`` for the linear evaluation.

    Raises:
        ConfigError: An argument is no override, or sets the seed.
    """
    data, pretrain, linear, multirun = "", list[str](), list[str](), list[str]()
    for argument in arguments:
        key, value = override_key(argument), argument.partition("=")[2]
        if not re.match(r"~?[+]{0,2}[\w/@.:-]+=|~", argument) or argument.startswith("-"):
            do = "Options begin with two dashes; settings of the runs are KEY=VALUE."
            raise ConfigError(f"{argument}: must be an option or KEY=VALUE. {do}")
        if key in ("seed", "linear.seed"):
            do = "Give the number of seeds: --seeds N."
            raise bad_value(key, value, "each cell has its own seed", do)
        if key == "data":
            data = value.strip("'\"")
        elif re.split("[./]", key)[0] == "hydra":
            multirun.append(argument)
        elif key.startswith("linear."):
            linear.append(argument.replace("linear.", "", 1))
        else:
            pretrain.append(argument)
            if key.split(".")[0] in _SHARED:
                linear.append(argument)
    return Overrides(data, tuple(pretrain), tuple(linear), tuple(multirun))


def override_key(override: str) -> str:
    """Returns the key of an override: ``data`` of ``+data=cifar100``."""
    return override.partition("=")[0].lstrip("+~")


def drop_overridden(changes: Sequence[str], user: Sequence[str]) -> list[str]:
    """Returns the changes whose keys the user hasn't set."""
    taken = {override_key(override) for override in user}
    return [change for change in changes if override_key(change) not in taken]


def drop_ignored(overrides: Sequence[str]) -> list[str]:
    """Returns the overrides that can change a result."""
    return [
        override
        for override in overrides
        if not any(f"{override_key(override)}.".startswith(f"{key}.") for key in IGNORED)
    ]


def add_linear_prefix(override: str) -> str:
    """Turns an override of the linear evaluation into an argument of ``reproduce``."""
    return re.sub(r"^[+~]*", r"\g<0>linear.", override)


def quote(value: Path | str) -> str:
    """Quotes a value for Hydra's command line."""
    # Backslashes are literal except before an interpolation, before a quote, and at the end.
    text = re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + r"\${", str(value))
    text = re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{text}'"


def compose_config(config: str, overrides: Sequence[str]) -> DictConfig:
    """Composes a config of this package, as a Hydra program would.

    Raises:
        ConfigError: No config has this name, or an override can't be applied.
    """
    return copy.deepcopy(_compose_once(config, tuple(overrides)))


@cache  # composing takes 0.2 s, and cells share configs
def _compose_once(config: str, overrides: tuple[str, ...]) -> DictConfig:
    try:
        with nested_hydra(), initialize_config_module("solo_hardneg.configs", version_base="1.2"):
            cfg = compose(config, list(overrides))
            OmegaConf.set_struct(cfg, False)
            return cfg
    except (HydraException, OmegaConfBaseException) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"--config-name {config} {' '.join(overrides)}: {text}") from error
