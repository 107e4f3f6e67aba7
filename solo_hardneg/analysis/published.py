"""What the papers published, and which of it a run can be compared with.

``published.csv`` holds a row for each number in the tables of Cai et al. 2020 (ImageNet, ResNet-50)
and Dong et al. 2023 (CIFAR and TinyImageNet, ResNet-18), all of them linear accuracy after 200
epochs of pre-training. Beside the papers' words stand ours: ``config`` is the family of methods
(``mocov2``, ``simclr``, ``byol``), and ``preset`` the negatives: a preset's name, such a name with
the ends of another band (``band[0.85,0.9]``), or a mapping in JSON where there is no preset.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from omegaconf import OmegaConf

from solo_hardneg.analysis.untrusted import resolved
from solo_hardneg.errors import unknown_name
from solo_hardneg.negatives import Policy, build

PAPERS = {"cai2020": "Cai et al. 2020", "dong2023": "Dong et al. 2023"}
# The host's own methods, on all negatives, and how the names of ours begin.
BASELINES = {"mocov2plus": "mocov2", "simclr": "simclr", "byol": "byol"}
OURS = {"mocov2_": "mocov2", "simclr_": "simclr"}
# They act on what all verbs leave, wherever they stand among them.
_WEIGHING = ("reweight", "debias")
# The value of an argument with which a verb does nothing.
_IDLE: dict[str, tuple[str, Any]] = {
    "keep": ("band", [0.0, 1.0]),
    "fill": ("kind", "none"),
    "reweight": ("beta", 0.0),
    "debias": ("tau_plus", 0.0),
    "retain": ("strength", 0.0),
}


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        paper: a key of ``PAPERS``.
        table: as the paper counts it, such as ``Table A1 (first half)``.
        dataset: ``cifar10``, ``cifar100``, ``tinyimagenet`` or ``imagenet``.
        method: as the paper calls it.
        negatives: what it does to the negatives, in words; empty where ``method`` says it.
        temperature: τ; ``None`` where the paper doesn't state it, or the method has none.
        metric: ``top1`` or ``top5``, accuracy of the linear evaluation.
        value: in percent; the mean where there are several seeds.
        std: its standard deviation over seeds, in points; ``None`` where the paper has none.
        seeds: over how many; ``None`` where the paper doesn't say.
        config: the family of our methods that it is, ``mocov2``, ``simclr`` or ``byol``.
        preset: the policy that it is, see above; empty for a method without negatives.
        note: what to know of the number.
        remark: how the run that it was matched with differs from the paper's.
    """

    paper: str
    table: str
    dataset: str
    method: str
    negatives: str
    temperature: float | None
    metric: str
    value: float
    std: float | None
    seeds: int | None
    config: str
    preset: str
    note: str
    remark: str = ""

    @property
    def source(self) -> str:
        """Paper and table, such as ``Cai et al. 2020, Table 1``."""
        return f"{PAPERS[self.paper]}, {self.table}"

    @property
    def label(self) -> str:
        """The row's name, such as ``MoCo v2, drop hardest 0.1%``."""
        return ", ".join(part for part in (self.method, self.negatives) if part)


def cells() -> list[Cell]:
    """All cells, in the order of the papers' tables."""
    return list(_read())


@cache
def _read() -> tuple[Cell, ...]:
    table = resources.files("solo_hardneg.analysis").joinpath("published.csv")
    rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    return tuple(_cell(row) for row in rows)


def _cell(row: Mapping[str, str]) -> Cell:
    numbers: dict[str, Any] = {
        "temperature": float(row["temperature"]) if row["temperature"] else None,
        "value": float(row["value"]),
        "std": float(row["std"]) if row["std"] else None,
        "seeds": int(row["seeds"]) if row["seeds"] else None,
    }
    return Cell(**{**row, **numbers})


@cache
def policy(preset: str, dataset: str) -> Policy:
    """The policy that a cell's ``preset`` means on a dataset.

    Args:
        preset: as in the column of that name.
        dataset: a name of the config group ``data``: what it suggests fills in τ⁺.

    Raises:
        ConfigError: there is no such preset or dataset, or the mapping can't be used.
    """
    if preset.startswith("{"):
        return build(json.loads(preset))
    name, _, ends = preset.partition("[")
    root = OmegaConf.create(
        {"data": _config("data", dataset), "negatives": _config("negatives", name)}
    )
    if ends:
        root.negatives.keep.band = json.loads(f"[{ends}")
    return build(root.negatives)


def _config(group: str, name: str) -> Any:
    """A config of this package, its interpolations left as they are."""
    folder = resources.files("solo_hardneg.configs").joinpath(group)
    known = [f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")]
    if name not in known:
        raise unknown_name(group, name, known, "config")
    return OmegaConf.create(folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8"))


def matching(args: Mapping[str, Any]) -> list[Cell]:
    """The published numbers of the same experiment as a run, in the order of the papers' tables.

    The same are the dataset, the family of the method, and what is done to the negatives; and the
    temperature, where the paper compares several. Backbone, epochs and batch may differ, so what
    is shown beside these numbers must say that the papers' are ResNet-50 on ImageNet and ResNet-18
    elsewhere, 200 epochs. A number that a paper prints in two tables comes twice.

    Args:
        args: what a pretraining run's ``args.json`` holds. Of another program, of another version,
            or damaged, it matches nothing.

    Returns:
        cells whose ``remark`` says what else of this run differs.
    """
    run = _plain(args)
    family, dataset = _family(run), _dataset(run)
    candidates = [c for c in _read() if (c.config, c.dataset) == (family, dataset)]
    if not candidates:
        return []
    ours: Any = None
    if family != "byol":  # it has no negatives
        ours = _policy_of_run(run)
        if ours is None:
            return []
    return [
        replace(cell, remark=_remark(run, cell))
        for cell in candidates
        if _same_temperature(run, cell) and ours == _published_policy(cell)
    ]


def _plain(args: Any) -> Any:
    if OmegaConf.is_config(args):
        args = OmegaConf.to_container(args)
    try:
        return resolved(args)
    except (ValueError, TypeError):  # nothing that a host writes
        return args


def _look(run: Any, key: str) -> Any:
    """What stands at a dotted key; ``None`` where nothing does."""
    for part in key.split("."):
        run = run.get(part) if isinstance(run, Mapping) else None
    return run


def _family(run: Any) -> str:
    method = str(_look(run, "method"))
    ours = [family for start, family in OURS.items() if method.startswith(start)]
    return BASELINES.get(method) or (ours[0] if ours else "")


def _dataset(run: Any) -> str:
    """The dataset's name; TinyImageNet is a ``custom`` folder, known by the name in its path."""
    dataset = str(_look(run, "data.dataset"))
    path = str(_look(run, "data.train_path"))
    if dataset == "custom" and re.search("tiny[-_ ]?imagenet", path, re.IGNORECASE):
        return "tinyimagenet"
    return dataset


def _policy_of_run(run: Any) -> list[tuple[str, dict[str, Any]]] | None:
    """What a run does to its negatives; ``None`` where it doesn't say, or nobody can tell."""
    if run["method"] in BASELINES:
        return []  # whatever else its config holds: the host reads no negatives
    try:
        return _canonical(build(run["negatives"]).config)
    except Exception:  # not there; or not known here: verbs may be anybody's, and raise anything
        return None


def _published_policy(cell: Cell) -> list[tuple[str, dict[str, Any]]] | None:
    return _canonical(policy(cell.preset, cell.dataset).config) if cell.preset else None


def _canonical(config: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """One form for configs that mean the same, such as ``drop: {band: [0.95, 1.0]}`` and ``keep``.

    How long the reserve of ``fill`` is doesn't count: the papers call it "slightly" longer.
    """
    verbs = []
    for name, arguments in config.items():
        verb, values = _as_keep(name, arguments)
        if verb == "fill":
            values.pop("reserve")
        if not _idles(verb, values):
            verbs.append((verb, values))
    return sorted(verbs, key=lambda verb: verb[0] if verb[0] in _WEIGHING else "")


def _as_keep(verb: str, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """To drop a band that reaches an end is to keep the one that reaches the other."""
    values = dict(arguments)
    if verb == "drop" and not {"label", "image"} & set(values):
        low, high = values["band"]
        if high == 1.0:
            return "keep", {**values, "band": [0.0, low]}
        if low == 0.0:
            return "keep", {**values, "band": [high, 1.0]}
    return verb, values


def _idles(verb: str, values: Mapping[str, Any]) -> bool:
    if verb not in _IDLE or {"label", "image"} & set(values):
        return False
    name, value = _IDLE[verb]
    return bool(values[name] == value)


@cache
def _stated(paper: str, config: str) -> frozenset[float]:
    """The temperatures that a paper states for a family of methods."""
    mine = [cell for cell in _read() if (cell.paper, cell.config) == (paper, config)]
    return frozenset(cell.temperature for cell in mine if cell.temperature is not None)


def _temperature(run: Any) -> float:
    """NaN where there is none."""
    value = _look(run, "method_kwargs.temperature")
    return float(value) if isinstance(value, int | float) else math.nan


def _same_temperature(run: Any, cell: Cell) -> bool:
    """True, too, where the paper has only one: then the remark tells of another."""
    if len(_stated(cell.paper, cell.config)) < 2:
        return True
    return cell.temperature is not None and math.isclose(_temperature(run), cell.temperature)


def _remark(run: Any, cell: Cell) -> str:
    remarks = []
    symmetric = run["method"] == "mocov2plus" or _look(run, "method_kwargs.symmetric") is not False
    if cell.config == "mocov2" and symmetric:
        remarks.append("this run is symmetric, with two queues; the paper's MoCo v2 has one")
    temperature = _temperature(run)
    if cell.temperature is not None and not math.isclose(temperature, cell.temperature):
        ours = "unknown" if math.isnan(temperature) else f"{temperature:g}"
        remarks.append(f"temperature {ours} here, {cell.temperature:g} in the paper")
    fraction = _look(run, "data.fraction")
    if isinstance(fraction, int | float) and 0 < fraction < 1:
        remarks.append(f"on {fraction:.0%} of the training images")
    return "; ".join(remarks)
