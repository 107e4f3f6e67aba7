"""What an experiment is: rows of a paper's table, its claims, and how far it is scaled down.

Experiments are files in ``configs/paper``, or anybody's own file of the same form; scales are files
in ``configs/scale``. Both are checked here, before anything runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from solo_hardneg.analysis import published
from solo_hardneg.errors import ConfigError, bad_value, unknown_name

KINDS = ("greater", "at_least", "equal")
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_EXPERIMENT = ("title", "source", "config", "data", "seeds", "pretrain", "linear", "rows", "claims")
_ROW = ("title", "config", "overrides", "published", "published_temperature", "baseline")
_CLAIM = ("text", *KINDS, "margin", "source")


@dataclass(frozen=True)
class Row:
    """One line of a paper's table.

    Attributes:
        name: what files are named after.
        title: for a person.
        config: the config of pretraining.
        overrides: what differs from it, as on the command line.
        published: (table, label) of each line that the papers print of it, see
            ``analysis/published.csv``.
        temperature: of these lines, where a table has several; ``"config"``: that of the run.
        baseline: the name of the row that it is compared with; empty for none.
    """

    name: str
    title: str
    config: str
    overrides: tuple[str, ...]
    published: tuple[tuple[str, str], ...]
    temperature: float | str | None
    baseline: str


@dataclass(frozen=True)
class Claim:
    """What a paper says of two rows, as far as it can be tested.

    Attributes:
        text: the claim, as a sentence.
        kind: ``greater``: the first row is better; ``at_least``: it is not worse by ``margin``;
            ``equal``: they differ by less than ``margin``.
        first, second: the rows' names.
        margin: in points of top-1 accuracy.
        source: where the paper says so.
    """

    text: str
    kind: str
    first: str
    second: str
    margin: float
    source: str


@dataclass(frozen=True)
class Experiment:
    """A grid of rows and seeds, with the published settings.

    Attributes:
        name: the file's name.
        title, source: for a person.
        data: the dataset, a config of the group ``data``.
        seeds: how many.
        pretrain, linear: overrides of all pretraining runs and of all linear evaluations.
    """

    name: str
    title: str
    source: str
    data: str
    seeds: int
    pretrain: tuple[str, ...]
    linear: tuple[str, ...]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]

    def row(self, name: str) -> Row:
        """The row of that name.

        Raises:
            ConfigError: there is none.
        """
        rows = {row.name: row for row in self.rows}
        if name not in rows:
            raise unknown_name("rows", name, rows, f"row of {self.name}")
        return rows[name]

    def chosen(self, names: Sequence[str]) -> tuple[Row, ...]:
        """The rows of these names, in the table's order; all of them if none is given."""
        wanted = {self.row(name).name for name in names}
        return tuple(row for row in self.rows if not wanted or row.name in wanted)


@dataclass(frozen=True)
class Scale:
    """How much smaller than published; ``None`` leaves what the configs have.

    Attributes:
        name, title: the file's, and for a person.
        seeds: how many; ``None``: as many as the experiment has.
        epochs: of pretraining. Its warm-up shrinks in proportion.
        images: the most to train on, drawn class by class.
        batch_size: of pretraining, at the most.
        queue_size: at the most.
        backbone: a name.
        linear_epochs: of the linear evaluation. Its steps of decay shrink in proportion.
    """

    name: str
    title: str
    seeds: int | None
    epochs: int | None
    images: int | None
    batch_size: int | None
    queue_size: int | None
    backbone: str | None
    linear_epochs: int | None


def names(group: str) -> list[str]:
    """The names of the files in a group of this package's configs."""
    files = resources.files("solo_hardneg.configs").joinpath(group).iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def _load(group: str, name: str, what: str) -> tuple[str, dict[str, Any]]:
    """The name and the content of a file of a group, or of a file of the user's own."""
    own = Path(name).expanduser()
    if own.suffix in (".yaml", ".yml"):
        if not own.is_file():
            raise ConfigError(f"{what} {name}: there is no such file. Known: {_known(group)}.")
        name, text = own.stem, own.read_text(encoding="utf-8")
    elif name in names(group):
        file = resources.files("solo_hardneg.configs").joinpath(group, f"{name}.yaml")
        text = file.read_text(encoding="utf-8")
    else:
        raise unknown_name(what, name, names(group), what)
    try:
        content: Any = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigError(f"{what} {name}: it is no YAML that can be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{what} {name}: it must be a mapping. configs/{group} has examples.")
    return name, content


def _known(group: str) -> str:
    return ", ".join(names(group))


def load_scale(name: str) -> Scale:
    """A scale by its name, or from a file of one's own (``my.yaml``).

    Raises:
        ConfigError: there is none, or it holds what a scale can't have.
    """
    name, content = _load("scale", name, "scale")
    known = [field for field in Scale.__dataclass_fields__ if field != "name"]
    _only(f"scale {name}", content, known)
    for key in ("seeds", "epochs", "images", "batch_size", "queue_size", "linear_epochs"):
        value = content.get(key)
        if value is not None and not (type(value) is int and value > 0):
            raise bad_value(
                f"scale {name}: {key}", value, "must be a whole number above 0, or null"
            )
    for key in ("title", "backbone"):
        if not isinstance(content.get(key, ""), str | None):
            raise bad_value(f"scale {name}: {key}", content[key], "must be a name")
    return Scale(name, **{"title": name, **dict.fromkeys(known[1:]), **content})


def load_experiment(name: str) -> Experiment:
    """An experiment by its name, or from a file of one's own (``my.yaml``).

    Raises:
        ConfigError: there is none, or something in it can't be used.
    """
    name, content = _load("paper", name, "experiment")
    where = f"experiment {name}"
    _only(where, content, _EXPERIMENT)
    for key in ("config", "data", "rows"):
        if not content.get(key):
            raise ConfigError(f"{where}: {key} is missing. configs/paper has examples.")
    if not isinstance(content["rows"], Mapping):
        raise bad_value(f"{where}: rows", content["rows"], "must map names to rows")
    seeds = content.get("seeds", 1)
    if type(seeds) is not int or seeds < 1:
        raise bad_value(f"{where}: seeds", seeds, "must be a whole number above 0")
    rows = tuple(_row(where, str(key), row, content) for key, row in content["rows"].items())
    by_name = {row.name: row for row in rows}
    for row in rows:
        if row.baseline and row.baseline not in by_name:
            raise unknown_name(f"{where}: rows.{row.name}.baseline", row.baseline, by_name, "row")
    claims = content.get("claims") or []
    if not isinstance(claims, list):
        raise bad_value(f"{where}: claims", claims, "must be a list")
    return Experiment(
        name=name,
        title=str(content.get("title", name)),
        source=str(content.get("source", "")),
        data=str(content["data"]),
        seeds=seeds,
        pretrain=_strings(f"{where}: pretrain", content.get("pretrain")),
        linear=_strings(f"{where}: linear", content.get("linear")),
        rows=rows,
        claims=tuple(_claim(f"{where}: claims.{i}", c, by_name) for i, c in enumerate(claims)),
    )


def _row(where: str, name: str, row: Any, experiment: Mapping[str, Any]) -> Row:
    where = f"{where}: rows.{name}"
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: a row's name may hold letters, digits and _.- only.")
    _only(where, row, _ROW)
    references = row.get("published") or []
    if not isinstance(references, list) or any(
        not isinstance(r, list) or len(r) != 2 for r in references
    ):
        raise bad_value(f"{where}.published", references, "must be a list of [TABLE, LABEL]")
    tables = {(cell.table, cell.label) for cell in published.cells()}
    for reference in references:
        if tuple(reference) not in tables:
            do = "analysis/published.csv has them."
            raise bad_value(f"{where}.published", reference, "no paper prints such a line", do)
    return Row(
        name=name,
        title=str(row.get("title", name)),
        config=str(row.get("config", experiment["config"])),
        overrides=_strings(f"{where}.overrides", row.get("overrides")),
        published=tuple((str(table), str(label)) for table, label in references),
        temperature=row.get("published_temperature", "config"),
        baseline=str(row.get("baseline") or ""),
    )


def _claim(where: str, claim: Any, rows: Mapping[str, Row]) -> Claim:
    _only(where, claim, _CLAIM)
    kinds = [kind for kind in KINDS if kind in claim]
    if len(kinds) != 1:
        raise ConfigError(f"{where}: must have exactly one of {', '.join(KINDS)}.")
    pair, margin = claim[kinds[0]], claim.get("margin", 0.0)
    if not isinstance(pair, list) or len(pair) != 2:
        raise bad_value(f"{where}.{kinds[0]}", pair, "must be a list of two rows")
    for name in pair:
        if name not in rows:
            raise unknown_name(f"{where}.{kinds[0]}", str(name), rows, "row")
    if (
        type(margin) not in (int, float)
        or not 0 <= margin < 100
        or (margin == 0) != (kinds[0] == "greater")
    ):
        allowed = "must be a number of points above 0, and only `greater` goes without"
        raise bad_value(f"{where}.margin", margin, allowed)
    text, source = str(claim.get("text", "")), str(claim.get("source", ""))
    return Claim(text, kinds[0], pair[0], pair[1], float(margin), source)


def _only(where: str, content: Any, known: Sequence[str]) -> None:
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where}: must be a mapping. Known keys: {', '.join(known)}.")
    for key in content:
        if key not in known:
            raise unknown_name(where, str(key), known, "key")


def _strings(key: str, values: Any) -> tuple[str, ...]:
    values = [] if values is None else values
    if not isinstance(values, list) or not all(isinstance(v, str) and "=" in v for v in values):
        raise bad_value(key, values, "must be a list of KEY=VALUE, as on the command line")
    return tuple(values)
