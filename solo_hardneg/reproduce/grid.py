"""The grid of an experiment: a cell for each row and seed, with its overrides and fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from solo_hardneg.errors import bad_value
from solo_hardneg.reproduce.experiment import Experiment, Row, Scale
from solo_hardneg.reproduce.overrides import (
    IGNORED,
    Overrides,
    add_linear_prefix,
    drop_ignored,
    drop_overridden,
    override_key,
)
from solo_hardneg.reproduce.scaling import scale_config


@dataclass(frozen=True)
class Cell:
    """One row with one seed.

    Attributes:
        name: ``ROW-seedSEED``, also in the names of its files.
        row: Name of the row.
        seed: Seed of both runs.
        config: Hydra config of the pretraining.
        pretrain, linear: All overrides of the two runs.
        changed: Those that differ from the published settings: the scale's and the user's.
        fingerprint: Hash of the two configs and the images, without the seed.
    """

    name: str
    row: str
    seed: int
    config: str
    pretrain: tuple[str, ...]
    linear: tuple[str, ...]
    changed: tuple[str, ...]
    fingerprint: str


def make_cells(
    experiment: Experiment,
    scale: Scale,
    rows: Sequence[Row],
    seeds: Sequence[int],
    user: Overrides,
    images: int,
    images_digest: str = "",
) -> list[Cell]:
    """Makes the cells of a grid, seed by seed, so that every row has a number early.

    Args:
        experiment: Experiment with the published settings.
        scale: How it is shortened.
        rows: Rows of the experiment.
        seeds: Seeds.
        user: The user's overrides, which take precedence over the scale.
        images: Number of training images.
        images_digest: Hash of the names of the images, if they are the user's own files.

    Raises:
        ConfigError: A config can't be composed, or an override would undo a row.
    """
    cells = [_make_cell(experiment, scale, row, user, images, images_digest) for row in rows]
    return [
        replace(
            cell,
            name=f"{cell.row}-seed{seed}",
            seed=seed,
            pretrain=(*cell.pretrain, f"seed={seed}"),
            linear=(*cell.linear, f"seed={seed}"),
        )
        for seed in seeds
        for cell in cells
    ]


def _make_cell(
    experiment: Experiment,
    scale: Scale,
    row: Row,
    user: Overrides,
    images: int,
    images_digest: str,
) -> Cell:
    """Makes a row's cell, without a seed."""
    _refuse_undoing(row, user.pretrain)
    data = f"data={user.data or experiment.data}"
    base = [data, *experiment.pretrain, *row.overrides]
    cfg, changes = scale_config(row.config, base, user.pretrain, scale, images)

    linear_base = [data, *experiment.linear, f"backbone.name={cfg.backbone.name}"]
    linear_user = [o for o in user.linear if override_key(o) != "backbone.name"]
    linear_cfg, linear_changes = scale_config("linear", linear_base, linear_user, scale, images)
    changed = [*drop_ignored(user.pretrain), *changes]
    linear_changed = [*drop_ignored(linear_user), *linear_changes]
    return Cell(
        name=row.name,
        row=row.name,
        seed=-1,
        config=row.config,
        pretrain=(*base, *user.pretrain, *changes, *_validate_last(user.pretrain, cfg)),
        linear=(
            *(*linear_base, "knn_eval.enabled=False", *linear_user, *linear_changes),
            *_validate_last(linear_user, linear_cfg),
        ),
        changed=(
            *changed,
            *(add_linear_prefix(o) for o in linear_changed if o not in changed),
        ),
        fingerprint=_fingerprint(images_digest, cfg, linear_cfg),
    )


def _refuse_undoing(row: Row, user: Sequence[str]) -> None:
    """Raises ConfigError if an override would undo what distinguishes the row."""
    fixed = {override_key(override) for override in row.overrides}
    for override in user:
        key, _, value = override.partition("=")
        if override_key(override) in fixed:
            do = "Choose other rows (--rows), or write your own experiment."
            raise bad_value(key, value, f"the row {row.name} sets this key", do)


def _validate_last(user: Sequence[str], cfg: DictConfig) -> list[str]:
    """Validates after the last epoch only: a small scale has more test than training images."""
    return drop_overridden([f"++check_val_every_n_epoch={cfg.max_epochs}"], user)


def _fingerprint(images_digest: str, *configs: DictConfig) -> str:
    plain: list[Any] = [images_digest]
    for cfg in configs:
        content: Any = OmegaConf.to_container(cfg, resolve=True)
        for key in (*IGNORED, "seed"):
            parent, _, last = key.rpartition(".")
            (content.get(parent) or {} if parent else content).pop(last, None)
        plain.append(content)
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
