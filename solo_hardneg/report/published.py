"""The papers' published numbers, and those of the same experiment as a run.

``published.csv`` has a row per number in the tables of Cai et al. 2020 (ImageNet, ResNet-50) and
Dong et al. 2023 (CIFAR and TinyImageNet, ResNet-18): linear accuracy after 200 epochs of
pretraining. Our names are added: ``config`` is the family of methods (``mocov2``, ``simclr``,
``byol``), ``preset`` the policy: a preset's name, one with another band (``band[0.85,0.9]``), or a
mapping in JSON if there is no preset.
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

from solo_hardneg.errors import unknown_name
from solo_hardneg.files import resolved
from solo_hardneg.negatives import Policy, build
from solo_hardneg.runs.groups import family_of

PAPERS = {"cai2020": "Cai et al. 2020", "dong2023": "Dong et al. 2023"}
_WITHOUT_POLICY = ("mocov2plus", "simclr", "byol")  # the host's methods: all negatives
# These act on what all verbs leave, whatever their order.
_WEIGHING = ("reweight", "debias")
# The argument and value with which a verb does nothing.
_IDLE: dict[str, tuple[str, Any]] = {
    "keep": ("band", [0.0, 1.0]),
    "fill": ("kind", "none"),
    "reweight": ("beta", 0.0),
    "debias": ("tau_plus", 0.0),
    "retain": ("strength", 0.0),
}


@dataclass(frozen=True)
class PublishedNumber:
    """One number of a table.

    Attributes:
        paper: A key of ``PAPERS``.
        table: The paper's name for it, such as ``Table A1 (first half)``.
        dataset: ``cifar10``, ``cifar100``, ``tinyimagenet`` or ``imagenet``.
        method: The paper's name for it.
        negatives: What it does to the negatives, in words; empty if ``method`` says it.
        temperature: τ; None if the paper doesn't state it or the method has none.
        metric: ``top1`` or ``top5`` accuracy of the linear evaluation.
        value: In percent; the mean over seeds.
        std: Standard deviation over seeds in points, if published.
        seeds: Number of seeds, if published.
        config: Family of our methods: ``mocov2``, ``simclr`` or ``byol``.
        preset: Our policy, see above; empty for a method without negatives.
        note: Remark on the number.
        remark: How the run that it was matched with differs from the paper's.
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
        """Name of the row, such as ``MoCo v2, drop hardest 0.1%``."""
        return ", ".join(part for part in (self.method, self.negatives) if part)


@cache
def cells() -> tuple[PublishedNumber, ...]:
    """All cells, in the order of the papers' tables."""
    table = resources.files("solo_hardneg.report").joinpath("published.csv")
    rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    return tuple(_parse_cell(row) for row in rows)


def _parse_cell(row: Mapping[str, str]) -> PublishedNumber:
    numbers: dict[str, Any] = {
        "temperature": float(row["temperature"]) if row["temperature"] else None,
        "value": float(row["value"]),
        "std": float(row["std"]) if row["std"] else None,
        "seeds": int(row["seeds"]) if row["seeds"] else None,
    }
    return PublishedNumber(**{**row, **numbers})


@cache
def policy_of_preset(preset: str, dataset: str) -> Policy:
    """The policy of a cell's ``preset`` on a dataset.

    Args:
        preset: A value of that column.
        dataset: A name of the config group ``data``, which suggests τ⁺.

    Raises:
        ConfigError: The preset or dataset is unknown, or the mapping can't be used.
    """
    if preset.startswith("{"):
        return build(json.loads(preset))
    name, _, ends = preset.partition("[")
    root = OmegaConf.create(
        {"data": _load_config("data", dataset), "negatives": _load_config("negatives", name)}
    )
    if ends:
        root.negatives.keep.band = json.loads(f"[{ends}")
    return build(root.negatives)


def _load_config(group: str, name: str) -> Any:
    """A config of this package, with its references unresolved."""
    folder = resources.files("solo_hardneg.configs").joinpath(group)
    known = [f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")]
    if name not in known:
        raise unknown_name(group, name, known, "config")
    return OmegaConf.create(folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8"))


def matching(args: Mapping[str, Any]) -> list[PublishedNumber]:
    """The published numbers of the same experiment as a run, in the order of the papers' tables.

    Dataset, family of the method and policy are the same; and the temperature, if the paper
    compares several. Backbone, epochs and batch size may differ. A number that a paper prints in
    two tables occurs twice.

    Args:
        args: Content of a pretraining run's ``args.json``. Damaged, or of another program or
            version, it matches nothing.

    Returns:
        Cells whose ``remark`` says what else differs.
    """
    run = _resolve_args(args)
    if not isinstance(run, Mapping):
        return []
    family, dataset = family_of(run), _dataset(run)
    candidates = [c for c in cells() if (c.config, c.dataset) == (family, dataset)]
    if not candidates:
        return []
    verbs = None
    if family != "byol":  # which has no negatives
        verbs = _run_policy(run)
        if verbs is None:
            return []
    return [
        replace(cell, remark=_remark(run, cell))
        for cell in candidates
        if _same_temperature(run, cell) and verbs == _published_policy(cell)
    ]


def _resolve_args(args: Any) -> Any:
    if OmegaConf.is_config(args):
        args = OmegaConf.to_container(args)
    try:
        return resolved(args)
    except (ValueError, TypeError):  # not the config of a run
        return args


def _select(run: Any, key: str) -> Any:
    """The value of a dotted key, or None."""
    for part in key.split("."):
        run = run.get(part) if isinstance(run, Mapping) else None
    return run


def _dataset(run: Any) -> str:
    """The dataset's name; TinyImageNet is a ``custom`` folder, recognized by its path."""
    dataset = str(_select(run, "data.dataset"))
    path = str(_select(run, "data.train_path"))
    if dataset == "custom" and re.search("tiny[-_ ]?imagenet", path, re.IGNORECASE):
        return "tinyimagenet"
    return dataset


def _run_policy(run: Any) -> list[tuple[str, dict[str, Any]]] | None:
    """The normal form of a run's policy; None if it is missing or unknown."""
    if run["method"] in _WITHOUT_POLICY:
        return []  # the host ignores the key
    try:
        return _canonical(build(run["negatives"]).config)
    except Exception:  # a third party's verb may raise anything
        return None


def _published_policy(cell: PublishedNumber) -> list[tuple[str, dict[str, Any]]] | None:
    return _canonical(policy_of_preset(cell.preset, cell.dataset).config) if cell.preset else None


def _canonical(config: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Normal form of equivalent configs, such as ``drop: {band: [0.95, 1.0]}`` and ``keep``.

    The length of the reserve of ``fill`` is ignored: the papers say "slightly longer".
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
    """Dropping a band at one end keeps the band at the other."""
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
    found = [cell for cell in cells() if (cell.paper, cell.config) == (paper, config)]
    return frozenset(cell.temperature for cell in found if cell.temperature is not None)


def _temperature(run: Any) -> float:
    """The run's temperature, or NaN."""
    value = _select(run, "method_kwargs.temperature")
    return float(value) if isinstance(value, int | float) else math.nan


def _same_temperature(run: Any, cell: PublishedNumber) -> bool:
    """Whether the temperatures match; also if the paper has only one, which a remark compares."""
    if len(_stated(cell.paper, cell.config)) < 2:
        return True
    return cell.temperature is not None and math.isclose(_temperature(run), cell.temperature)


def _remark(run: Any, cell: PublishedNumber) -> str:
    remarks = []
    symmetric = (
        run["method"] == "mocov2plus" or _select(run, "method_kwargs.symmetric") is not False
    )
    if cell.config == "mocov2" and symmetric:
        remarks.append("this run is symmetric, with two queues; the paper's MoCo v2 has one")
    temperature = _temperature(run)
    if cell.temperature is not None and not math.isclose(temperature, cell.temperature):
        here = "unknown" if math.isnan(temperature) else f"{temperature:g}"
        remarks.append(f"temperature {here} here, {cell.temperature:g} in the paper")
    fraction = _select(run, "data.fraction")
    if isinstance(fraction, int | float) and 0 < fraction < 1:
        remarks.append(f"on {fraction:.0%} of the training images")
    return "; ".join(remarks)
