"""A cell: one row with one seed, the two configs that make its number, and their fingerprint."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from solo_hardneg.errors import ConfigError
from solo_hardneg.reproduce.experiment import Experiment, Row, Scale

# The sizes of ``mix`` are SSCL's, of a batch of 256 and a queue of 16,384 (sections 4.1.2 and 4.4).
MIX_BATCH, MIX_QUEUE = 256, 16384
_MIX_SIZES = {"hardest": 2, "pairs": 1, "queries": 1}  # and the least that each can be
# Groups of keys that both programs have.
_SHARED = (
    *("data", "backbone", "accelerator", "devices", "num_nodes", "strategy", "precision"),
    *("sync_batchnorm", "performance", "enable_progress_bar"),
)
# What a result doesn't depend on; the seed and the row are in the cell's name.
_IGNORED = (
    *("accelerator", "auto_resume", "backend", "check_val_every_n_epoch", "checkpoint"),
    *("enable_progress_bar", "hardness", "knn_eval", "log_every_n_steps", "name", "seed", "wandb"),
    *("data.download", "data.num_workers", "data.train_path", "data.val_path"),
    "pretrained_feature_extractor",
)


@dataclass(frozen=True)
class Arguments:
    """What was given on the command line, told apart.

    Attributes:
        pretrain, linear: overrides of the programs. Keys that both have are in both.
        hydra: those that are about the sweep, such as ``hydra/launcher=joblib``.
    """

    pretrain: tuple[str, ...]
    linear: tuple[str, ...]
    hydra: tuple[str, ...]


def told_apart(arguments: Sequence[str]) -> Arguments:
    """Sorts overrides: ``hydra…`` for the sweep, ``linear.…`` for the evaluation, others as above.

    Raises:
        ConfigError: one is no override.
    """
    pretrain, linear, sweep = [], [], []
    for argument in arguments:
        key = key_of(argument)
        if "=" not in argument and not argument.startswith("~"):
            do = "Options come with two dashes; settings of the runs are KEY=VALUE"
            raise ConfigError(f"{argument}: it is neither an option nor KEY=VALUE. {do}.")
        if key.split(".")[0].split("/")[0] == "hydra":
            sweep.append(argument)
        elif key.startswith("linear."):
            linear.append(argument.replace("linear.", "", 1))
        else:
            pretrain.append(argument)
            if key.split(".")[0] in _SHARED:
                linear.append(argument)
    return Arguments(tuple(pretrain), tuple(linear), tuple(sweep))


def key_of(override: str) -> str:
    """The key of an override: ``data`` of ``+data=cifar100``."""
    return override.partition("=")[0].lstrip("+~")


@dataclass(frozen=True)
class Cell:
    """One row with one seed.

    Attributes:
        name: what its files are named after.
        row, seed: of the experiment.
        config: the config of pretraining.
        pretrain, linear: all overrides of the two runs.
        changed: those among them that the scale, or the size of batch and queue, made.
        fingerprint: of all that its result depends on.
    """

    name: str
    row: str
    seed: int
    config: str
    pretrain: tuple[str, ...]
    linear: tuple[str, ...]
    changed: tuple[str, ...]
    fingerprint: str


def dataset_of(experiment: Experiment, arguments: Arguments) -> str:
    """The dataset that is asked for, or else the experiment's."""
    asked = [a for a in arguments.pretrain if key_of(a) == "data"]
    return asked[-1].partition("=")[2] if asked else experiment.data


def make_cells(
    experiment: Experiment,
    scale: Scale,
    rows: Sequence[Row],
    seeds: Sequence[int],
    arguments: Arguments,
    images: int,
) -> list[Cell]:
    """All cells of a grid, seed by seed, so that every row has a number early.

    Args:
        experiment: whose settings all cells have.
        scale: what is changed of them; what ``arguments`` say wins over it.
        rows: of the experiment.
        seeds: of everything random.
        arguments: the user's overrides.
        images: how many training images the dataset has.

    Raises:
        ConfigError: a config can't be composed of these overrides.
    """
    plans = [_plan(experiment, scale, row, arguments, images) for row in rows]
    return [_with_seed(plan, seed) for seed in seeds for plan in plans]


def _plan(
    experiment: Experiment, scale: Scale, row: Row, arguments: Arguments, images: int
) -> Cell:
    """A row's cell, still without a seed."""
    data = f"data={dataset_of(experiment, arguments)}"
    asked = _without_data(arguments.pretrain)
    pretrain = [data, *experiment.pretrain, *row.overrides, *asked]
    changed = _unless_asked(asked, _pretrain_changes(composed(row.config, pretrain), scale, images))
    pretrain += changed
    cfg = composed(row.config, pretrain)

    asked = _without_data(arguments.linear)
    linear = [data, *experiment.linear, f"backbone.name={cfg.backbone.name}", *asked]
    shared = [change for change in changed if key_of(change).startswith("data.")]
    linear += _unless_asked(asked, shared)
    fewer = _unless_asked(asked, _linear_changes(composed("linear", linear), scale))
    linear += fewer
    evaluation = composed("linear", linear)
    return Cell(
        name=row.name,
        row=row.name,
        seed=-1,
        config=row.config,
        # Only the end counts, and the test images are as many as the training images of a scale.
        pretrain=(*pretrain, *_unless_asked(asked, _validate_last(cfg))),
        linear=(
            *linear,
            "knn_eval.enabled=False",
            *_unless_asked(asked, _validate_last(evaluation)),
        ),
        changed=(*changed, *(f"linear.{change}" for change in fewer)),
        fingerprint=_fingerprint(cfg, evaluation),
    )


def _with_seed(plan: Cell, seed: int) -> Cell:
    own = f"seed={seed}"
    return replace(
        plan,
        name=f"{plan.row}-seed{seed}",
        seed=seed,
        pretrain=(*plan.pretrain, own),
        linear=(*plan.linear, own),
    )


def _without_data(overrides: Sequence[str]) -> list[str]:
    return [override for override in overrides if key_of(override) != "data"]


def _unless_asked(asked: Sequence[str], changes: Sequence[str]) -> list[str]:
    """The changes to keys that the user has not set."""
    taken = {key_of(override) for override in asked}
    return [change for change in changes if key_of(change) not in taken]


def _validate_last(cfg: DictConfig) -> list[str]:
    return [f"++check_val_every_n_epoch={cfg.max_epochs}"]


def composed(config: str, overrides: Sequence[str]) -> DictConfig:
    """The config of that name with these overrides, as a program of the hosts would have it.

    Raises:
        ConfigError: there is no such config, or an override can't be used.
    """
    return copy.deepcopy(_composed(config, tuple(overrides)))


@cache  # a fifth of a second each, and several cells ask for the same
def _composed(config: str, overrides: tuple[str, ...]) -> DictConfig:
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
            cfg = compose(config, list(overrides))
            OmegaConf.set_struct(cfg, False)
            return cfg
    except (HydraException, OmegaConfBaseException) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"--config-name {config} {' '.join(overrides)}: {text}") from error


def _pretrain_changes(cfg: DictConfig, scale: Scale, images: int) -> list[str]:
    """The overrides by which a scale changes a config of pretraining."""
    changes = []
    if scale.epochs is not None and cfg.max_epochs != scale.epochs:
        changes.append(f"max_epochs={scale.epochs}")
        warmup = round(cfg.scheduler.warmup_epochs * scale.epochs / cfg.max_epochs, 3)
        if warmup != cfg.scheduler.warmup_epochs:
            changes.append(f"scheduler.warmup_epochs={warmup:g}")
    if scale.images is not None and images > scale.images:
        changes.append(f"++data.fraction={scale.images / images:g}")
    if scale.backbone is not None and cfg.backbone.name != scale.backbone:
        changes.append(f"backbone.name={scale.backbone}")
    batch, queue = cfg.optimizer.batch_size, cfg.method_kwargs.get("queue_size")
    smaller = min(batch, scale.batch_size or batch)
    if smaller != batch:
        changes.append(f"optimizer.batch_size={smaller}")
    if queue is not None:
        shorter = min(queue, scale.queue_size or queue)
        if shorter != queue:
            changes.append(f"method_kwargs.queue_size={shorter}")
        share = min(1.0, shorter / MIX_QUEUE)
    else:
        share = min(1.0, smaller / MIX_BATCH)
    mix = (cfg.get("negatives") or {}).get("mix") or {}
    for size, least in _MIX_SIZES.items():
        value = mix.get(size)
        if share < 1 and isinstance(value, int) and value > 0:
            changes.append(f"negatives.mix.{size}={max(least, round(value * share))}")
    return changes


def _linear_changes(cfg: DictConfig, scale: Scale) -> list[str]:
    changes = []
    epochs = scale.linear_epochs
    if epochs is not None and epochs != cfg.max_epochs:
        changes.append(f"max_epochs={epochs}")
        steps = cfg.scheduler.get("lr_decay_steps")
        if steps:
            fewer = [max(1, round(step * epochs / cfg.max_epochs)) for step in steps]
            changes.append(f"++scheduler.lr_decay_steps={fewer}".replace(" ", ""))
    return changes


def _fingerprint(*configs: DictConfig) -> str:
    """Of all that the result depends on."""
    plain = []
    for cfg in configs:
        content: Any = OmegaConf.to_container(cfg, resolve=True)
        for key in _IGNORED:
            _take_out(content, key.split("."))
        plain.append(content)
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def what_counts(overrides: Sequence[str]) -> list[str]:
    """The overrides that a result depends on: no paths of one machine, and nothing of its speed."""
    return [
        override
        for override in overrides
        if not any(
            f"{key_of(override)}.".startswith(f"{key}.") for key in _IGNORED if key != "seed"
        )
    ]


def _take_out(content: dict[str, Any], path: Sequence[str]) -> None:
    for part in path[:-1]:
        inner = content.get(part)
        if not isinstance(inner, Mapping):
            return
        content = dict(inner) if not isinstance(inner, dict) else inner
    content.pop(path[-1], None)
