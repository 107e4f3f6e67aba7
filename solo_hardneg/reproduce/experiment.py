"""Experiments (``configs/paper``) and scales (``configs/scale``): YAML files, checked when read."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field
from yaml import YAMLError

from solo_hardneg.errors import ConfigError, bad_value, unknown_name
from solo_hardneg.report import published
from solo_hardneg.validate import Count, Settings, read_group

Pair = Annotated[list[str], Field(min_length=2, max_length=2)]
KINDS = ("greater", "at_least", "equal")


class Row(Settings):
    """One row of a paper's table.

    Attributes:
        name: Name in files and on the command line: the row's key.
        title: Name in the table; by default ``name``.
        config: Hydra config of the pretraining; by default the experiment's.
        overrides: What distinguishes the row, as Hydra overrides.
        published: [table, label] of the row's lines in ``report/published.csv``.
        published_temperature: Chooses among lines that differ in temperature: ``"config"`` takes
            the one of the run's temperature, ``None`` the one without.
        baseline: Name of the row to compare with; empty for none.
    """

    name: str = ""
    title: str = ""
    config: str = ""
    overrides: list[str] = Field(default=[])
    published: list[Pair] = Field(default=[])
    published_temperature: float | Literal["config"] | None = "config"
    baseline: str = ""


class Claim(Settings):
    """A paper's claim about the top-1 accuracies of two rows, under exactly one of three keys.

    Attributes:
        text: The claim, as a sentence.
        greater: The first row is better than the second.
        at_least: The first row is worse by less than ``margin``, if at all.
        equal: The rows differ by less than ``margin``.
        margin: In points.
        source: Where the paper makes the claim.
    """

    text: str = ""
    greater: Pair | None = None
    at_least: Pair | None = None
    equal: Pair | None = None
    margin: Annotated[float, Field(ge=0, lt=100)] = 0.0
    source: str = ""

    @property
    def kind(self) -> str:
        """The key in use."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def rows(self) -> list[str]:
        """Names of the two rows."""
        names: list[str] = getattr(self, self.kind)
        return names


class Experiment(Settings):
    """A paper's table: rows with the published settings, and claims.

    Attributes:
        name: Name of the file.
        title: The question that it answers.
        source: Paper and table.
        config: Hydra config of the pretraining.
        data: Dataset, a config of the group ``data``.
        seeds: Number of seeds.
        pretrain, linear: Overrides of all pretraining runs and of all linear evaluations.
        rows: Rows of the table, by name.
        claims: Claims of the paper.
    """

    name: str = ""
    title: str = ""
    source: str = ""
    config: str = ""
    data: str = ""
    seeds: Count = 1
    pretrain: list[str] = Field(default=[])
    linear: list[str] = Field(default=[])
    rows: dict[str, Row] = Field(default={})
    claims: list[Claim] = Field(default=[])

    def select_rows(self, names: Collection[str]) -> list[Row]:
        """Returns the rows of these names in the table's order; all rows if no name is given.

        Raises:
            ConfigError: A row doesn't exist.
        """
        for name in names:
            if name not in self.rows:
                raise unknown_name("rows", name, self.rows, f"row of {self.name}")
        return [row for row in self.rows.values() if not names or row.name in names]


class Scale(Settings):
    """How an experiment is shortened; ``None`` keeps the published setting.

    Attributes:
        name: Name of the file.
        title: Description.
        seeds: Number of seeds.
        epochs: Epochs of pretraining; the warm-up shrinks in proportion.
        images: Maximum number of training images, sampled class by class.
        batch_size, queue_size: Maxima of the pretraining.
        backbone: Name of the backbone.
        linear_epochs: Epochs of the linear evaluation; its decay steps shrink in proportion.
    """

    name: str = ""
    title: str = ""
    seeds: Count | None = None
    epochs: Count | None = None
    images: Count | None = None
    batch_size: Count | None = None
    queue_size: Count | None = None
    backbone: str | None = None
    linear_epochs: Count | None = None


def list_configs(group: str) -> list[str]:
    """Lists the files of a config group, without their suffix."""
    files = resources.files("solo_hardneg.configs").joinpath(group).iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def load_scale(name: str) -> Scale:
    """Loads a scale by name, or from a user's YAML file.

    Raises:
        ConfigError: It doesn't exist, or a key or value is invalid.
    """
    return _load_group(Scale, "scale", "scale", name)


def load_experiment(name: str) -> Experiment:
    """Loads an experiment by name, or from a user's YAML file.

    Raises:
        ConfigError: It doesn't exist, or a key or value is invalid.
    """
    experiment = _load_group(Experiment, "experiment", "paper", name)
    where, rows = f"experiment {experiment.name}", {}
    for key in ("config", "data", "rows"):
        if not getattr(experiment, key):
            raise ConfigError(f"{where}: {key} is missing. configs/paper has examples.")
    for key, row in experiment.rows.items():
        defaults = {"title": row.title or key, "config": row.config or experiment.config}
        rows[key] = row.model_copy(update={"name": key, **defaults})
        _check_row(f"{where}.rows.{key}", rows[key], experiment.rows)
    for number, claim in enumerate(experiment.claims):
        _check_claim(f"{where}.claims.{number}", claim, rows)
    return experiment.model_copy(update={"rows": rows})


Loaded = TypeVar("Loaded", Experiment, Scale)


def _load_group(schema: type[Loaded], what: str, group: str, name: str) -> Loaded:
    """Reads a YAML file of a config group, or a user's own."""
    own = Path(name).expanduser()
    if own.suffix in (".yaml", ".yml"):
        if not own.is_file():
            known = ", ".join(list_configs(group))
            raise ConfigError(f"{what} {name}: there is no such file. Known: {known}.")
        name, text = own.stem, own.read_text(encoding="utf-8")
    elif name in list_configs(group):
        file = resources.files("solo_hardneg.configs").joinpath(group, f"{name}.yaml")
        text = file.read_text(encoding="utf-8")
    else:
        raise unknown_name(what, name, list_configs(group), what)
    try:
        content = OmegaConf.create(text)
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigError(f"{what} {name}: invalid YAML: {error}") from error
    loaded = read_group(schema, f"{what} {name}", content)
    return loaded.model_copy(update={"name": name, "title": vars(loaded)["title"] or name})


def _check_row(key: str, row: Row, rows: Mapping[str, Row]) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", row.name):
        raise ConfigError(f"{key}: a row's name may hold letters, digits and _.- only.")
    lines = [[cell.table, cell.label] for cell in published.cells()]
    for line in row.published:
        if line not in lines:
            do = "Choose one of report/published.csv."
            raise bad_value(f"{key}.published", line, "must be [TABLE, LABEL] of a paper", do)
    if row.baseline and row.baseline not in rows:
        raise unknown_name(f"{key}.baseline", row.baseline, rows, "row")


def _check_claim(key: str, claim: Claim, rows: Mapping[str, Row]) -> None:
    if sum(getattr(claim, kind) is not None for kind in KINDS) != 1:
        raise ConfigError(f"{key}: must have exactly one of {', '.join(KINDS)}.")
    for name in claim.rows:
        if name not in rows:
            raise unknown_name(f"{key}.{claim.kind}", name, rows, "row")
    if (claim.margin > 0) == (claim.kind == "greater"):
        allowed = "must be above 0 for at_least and equal, and 0 for greater"
        raise bad_value(f"{key}.margin", claim.margin, allowed)
