"""A cell: one row with one seed, the two configs that make its number, and their fingerprint."""

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
    Arguments,
    key_of,
    of_linear,
    unless_asked,
    what_counts,
)
from solo_hardneg.reproduce.scaling import scaled


@dataclass(frozen=True)
class Cell:
    """One row with one seed.

    Attributes:
        name: what its files are named after.
        row, seed: of the experiment.
        config: the config of pretraining.
        pretrain, linear: all overrides of the two runs.
        changed: those among them that the experiment doesn't have: the scale's, what keeps its
            proportion to them, and the user's own.
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


@dataclass(frozen=True)
class Images:
    """A dataset, as far as it was looked at.

    Attributes:
        number: of training images.
        identity: a digest of the images' names where they are files of one's own, else empty.
    """

    number: int
    identity: str = ""


def dataset_of(experiment: Experiment, arguments: Arguments) -> str:
    """The dataset that is asked for, or else the experiment's."""
    return arguments.data or experiment.data


def make_cells(
    experiment: Experiment,
    scale: Scale,
    rows: Sequence[Row],
    seeds: Sequence[int],
    arguments: Arguments,
    images: Images,
) -> list[Cell]:
    """All cells of a grid, seed by seed, so that every row has a number early.

    Args:
        experiment: whose settings all cells have.
        scale: what is changed of them; what ``arguments`` say wins over it.
        rows: of the experiment.
        seeds: of everything random.
        arguments: the user's overrides.
        images: of the dataset.

    Raises:
        ConfigError: a config can't be composed of these overrides, or one would undo a row.
    """
    plans = [_plan(experiment, scale, row, arguments, images) for row in rows]
    return [_with_seed(plan, seed) for seed in seeds for plan in plans]


def _plan(
    experiment: Experiment, scale: Scale, row: Row, arguments: Arguments, images: Images
) -> Cell:
    """A row's cell, still without a seed."""
    _check_rows_stay(row, arguments.pretrain)
    data = f"data={dataset_of(experiment, arguments)}"
    base, asked = [data, *experiment.pretrain, *row.overrides], list(arguments.pretrain)
    cfg, changed = scaled(row.config, base, asked, scale, images.number)

    linear_base = [data, *experiment.linear, f"backbone.name={cfg.backbone.name}"]
    linear_asked = [a for a in arguments.linear if key_of(a) != "backbone.name"]
    evaluation, fewer = scaled("linear", linear_base, linear_asked, scale, images.number)
    told = [*what_counts(asked), *changed]
    told += [of_linear(o) for o in (*what_counts(linear_asked), *fewer) if o not in told]
    return Cell(
        name=row.name,
        row=row.name,
        seed=-1,
        config=row.config,
        pretrain=(*base, *asked, *changed, *_validate_last(asked, cfg)),
        linear=(
            *(*linear_base, "knn_eval.enabled=False", *linear_asked, *fewer),
            *_validate_last(linear_asked, evaluation),
        ),
        changed=tuple(told),
        fingerprint=_fingerprint(images.identity, cfg, evaluation),
    )


def _check_rows_stay(row: Row, asked: Sequence[str]) -> None:
    """Raises ConfigError if an override would undo what makes the row."""
    own = {key_of(override) for override in row.overrides}
    for override in asked:
        key, _, value = override.partition("=")
        if key_of(override) in own:
            do = "Choose other rows (--rows), or write an experiment of your own"
            raise bad_value(
                key, value, f"the row {row.name} sets it, and is named after it", f"{do}."
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


def _validate_last(asked: Sequence[str], cfg: DictConfig) -> list[str]:
    """Only the end counts, and there are more test images than a small scale trains on."""
    return unless_asked(asked, [f"++check_val_every_n_epoch={cfg.max_epochs}"])


def _fingerprint(identity: str, *configs: DictConfig) -> str:
    """Of all that the result depends on; the seed and the row are in the cell's name."""
    plain: list[Any] = [identity]
    for cfg in configs:
        content: Any = OmegaConf.to_container(cfg, resolve=True)
        for key in (*IGNORED, "seed"):
            _take_out(content, key.split("."))
        plain.append(content)
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _take_out(content: dict[str, Any], path: Sequence[str]) -> None:
    for part in path[:-1]:
        content = content.get(part) or {}
    content.pop(path[-1], None)
