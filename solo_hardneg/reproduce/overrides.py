"""Overrides of Hydra's command line: telling them apart, quoting, and composing configs of them."""

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

from solo_hardneg.errors import ConfigError, bad_value
from solo_hardneg.nested_hydra import nested_hydra

# Groups of keys that both programs have.
_SHARED = (
    *("data", "backbone", "accelerator", "devices", "num_nodes", "strategy", "precision"),
    *("sync_batchnorm", "performance", "enable_progress_bar"),
)
# What a result doesn't depend on.
IGNORED = (
    *("accelerator", "auto_resume", "backend", "check_val_every_n_epoch", "checkpoint"),
    *("enable_progress_bar", "hardness", "knn_eval", "log_every_n_steps", "name", "wandb"),
    *("data.download", "data.num_workers", "data.train_path", "data.val_path"),
    "pretrained_feature_extractor",
)


@dataclass(frozen=True)
class Arguments:
    """What was given on the command line, told apart.

    Attributes:
        data: the dataset; empty if none was named.
        pretrain, linear: overrides of the programs. Keys that both have are in both.
        hydra: those that are about the sweep, such as ``hydra/launcher=joblib``.
    """

    data: str
    pretrain: tuple[str, ...]
    linear: tuple[str, ...]
    hydra: tuple[str, ...]


def told_apart(arguments: Sequence[str]) -> Arguments:
    """Sorts overrides: ``hydra…`` for the sweep, ``linear.…`` for the evaluation, others as above.

    Raises:
        ConfigError: one is no override, or sets what the experiment sets.
    """
    data, pretrain, linear, sweep = "", list[str](), list[str](), list[str]()
    for argument in arguments:
        key, value = key_of(argument), argument.partition("=")[2]
        if not re.match(r"~?[+]{0,2}[\w/@.:-]+=|~", argument) or argument.startswith("-"):
            do = "Options come with two dashes; settings of the runs are KEY=VALUE"
            raise ConfigError(f"{argument}: it is neither an option nor KEY=VALUE. {do}.")
        if key in ("seed", "linear.seed"):
            raise bad_value(key, value, "each cell has its own", "Say how many: --seeds N.")
        if key == "data":
            data = value.strip("'\"")
        elif key.split(".")[0].split("/")[0] == "hydra":
            sweep.append(argument)
        elif key.startswith("linear."):
            linear.append(argument.replace("linear.", "", 1))
        else:
            pretrain.append(argument)
            if key.split(".")[0] in _SHARED:
                linear.append(argument)
    return Arguments(data, tuple(pretrain), tuple(linear), tuple(sweep))


def key_of(override: str) -> str:
    """The key of an override: ``data`` of ``+data=cifar100``."""
    return override.partition("=")[0].lstrip("+~")


def unless_asked(asked: Sequence[str], changes: Sequence[str]) -> list[str]:
    """The changes to keys that the user has not set."""
    taken = {key_of(override) for override in asked}
    return [change for change in changes if key_of(change) not in taken]


def what_counts(overrides: Sequence[str]) -> list[str]:
    """The overrides that a result depends on: no paths of one machine, and nothing of its speed."""
    return [
        override
        for override in overrides
        if not any(f"{key_of(override)}.".startswith(f"{key}.") for key in IGNORED)
    ]


def of_linear(override: str) -> str:
    """An override of the linear evaluation as it is given to this command."""
    signs = re.match(r"[+~]*", override)
    start = signs.end() if signs else 0
    return f"{override[:start]}linear.{override[start:]}"


def quoted(path: Path | str) -> str:
    """A text as a value of Hydra's command line, whatever is in it."""
    # A backslash is one by itself, except before an interpolation, before a quote, and at the end.
    text = re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + r"\${", str(path))
    text = re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{text}'"


def composed(config: str, overrides: Sequence[str]) -> DictConfig:
    """The config of that name with these overrides, as a program of the hosts would have it.

    Raises:
        ConfigError: there is no such config, or an override can't be used.
    """
    return copy.deepcopy(_composed(config, tuple(overrides)))


@cache  # a fifth of a second each, and several cells ask for the same
def _composed(config: str, overrides: tuple[str, ...]) -> DictConfig:
    try:
        with nested_hydra(), initialize_config_module("solo_hardneg.configs", version_base="1.2"):
            cfg = compose(config, list(overrides))
            OmegaConf.set_struct(cfg, False)
            return cfg
    except (HydraException, OmegaConfBaseException) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"--config-name {config} {' '.join(overrides)}: {text}") from error
