"""The folder of a reproduction: plans, results and runs.

    FOLDER/plan.json                    the latest plan; each launch has its own in plans/
    FOLDER/cells/CELL-FINGERPRINT.json  the result of a cell
    FOLDER/cells/replaced/              unreadable results
    FOLDER/runs/CELL-FINGERPRINT/       checkpoints, configs, metrics and log.txt of a cell's runs

A cell whose config changes gets another fingerprint; its old result stays, and counts again if the
config is changed back.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from solo_hardneg.errors import DataError
from solo_hardneg.files import read_json, write_atomically
from solo_hardneg.reproduce.grid import Cell

VERSION = 1
DONE, FAILED = "done", "failed"


@dataclass(frozen=True)
class Result:
    """The outcome of a cell's runs.

    Attributes:
        cell: The cell.
        state: ``done`` or ``failed``.
        metrics: Accuracies in percent: ``top1`` and ``top5`` of the linear evaluation, ``online``
            of the classifier trained along with the encoder.
        seconds: Duration of both runs, without earlier attempts.
        error: Why it failed; empty if it didn't.
        ran_on: Device, host and versions.
    """

    cell: Cell
    state: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""
    ran_on: Mapping[str, str] = field(default_factory=dict)


def write_json(file: Path, content: Any) -> None:
    """Writes a JSON file atomically."""
    write_atomically(file, json.dumps(content, indent=1))


def result_file(folder: Path, cell: Cell) -> Path:
    """Returns the file of a cell's result."""
    return folder / "cells" / f"{cell.name}-{cell.fingerprint}.json"


def cell_folder(folder: Path, cell: Cell) -> Path:
    """Returns the folder of a cell's runs."""
    return folder / "runs" / f"{cell.name}-{cell.fingerprint}"


def write_result(folder: Path, result: Result) -> None:
    """Writes a cell's result, unless the cell is done."""
    file = result_file(folder, result.cell)
    if not is_done(file):
        content = asdict(result)
        cell = content.pop("cell")
        header = {"format": "solo-hardneg result", "version": VERSION, "cell": cell.pop("name")}
        write_json(file, {**header, **cell, **content})


def is_done(file: Path) -> bool:
    """Whether a file holds a result with an accuracy."""
    try:
        return read_result(file).state == DONE
    except DataError:
        return False


def read_result(file: Path) -> Result:
    """Reads a result.

    Raises:
        DataError: The file is damaged, no result, or of another version.
    """
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: it is cut short or damaged ({error}).") from error
    if not isinstance(content, dict) or content.get("format") != "solo-hardneg result":
        raise DataError(f"{file}: it is no result of `solo-hardneg reproduce`.")
    version = content.get("version")
    if version != VERSION:
        raise DataError(f"{file}: it has version {version}; this program reads version {VERSION}.")
    names = ("state", "metrics", "seconds", "error", "ran_on")
    try:
        cell = _to_cell({**content, "name": content["cell"]})
        result = Result(cell, **{name: content[name] for name in names if name in content})
        _check(result)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: a value is missing or invalid ({error}).") from error
    return result


def _check(result: Result) -> None:
    numbers = [result.seconds, *dict(result.metrics).values()]
    if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        raise ValueError("a number is expected")
    _check_texts([result.error, *dict(result.ran_on).values()])
    if result.state not in (DONE, FAILED):
        raise ValueError(f"state={result.state}")
    if result.state == DONE and "top1" not in result.metrics:
        raise ValueError("it is done, without an accuracy")


def _to_cell(content: Mapping[str, Any]) -> Cell:
    """Builds a cell from JSON; refuses names that lead to another folder."""
    lists: dict[str, Any] = {
        key: tuple(content.get(key, ())) for key in ("pretrain", "linear", "changed")
    }
    texts = {key: content[key] for key in ("name", "row", "fingerprint")}
    cell = Cell(**texts, **lists, seed=content["seed"], config=content.get("config", ""))
    _check_texts([*texts.values(), cell.config, *cell.pretrain, *cell.linear, *cell.changed])
    if not all(re.fullmatch(r"[^/\\\0]+", part) for part in (cell.name, cell.fingerprint)):
        raise ValueError(f"{cell.name} can't be a file's name")
    return cell


def _check_texts(values: Sequence[Any]) -> None:
    if not all(isinstance(value, str) for value in values):
        raise ValueError("a text is expected")


def archive_result(folder: Path, file: Path) -> Path:
    """Moves a result to ``cells/replaced``, under an unused name."""
    target = folder / "cells" / "replaced"
    target.mkdir(parents=True, exist_ok=True)
    names = (target / f"{file.stem}-{number}{file.suffix}" for number in count(1))
    return file.replace(next(name for name in names if not name.exists()))


def read_results(folder: Path, cells: Sequence[Cell]) -> tuple[dict[str, Result], list[str]]:
    """Reads the results of cells, and sets unreadable ones aside.

    Returns:
        The results by the cell's name, and a note on each cell whose old result doesn't count.
    """
    results, notes = {}, []
    for cell in cells:
        file = result_file(folder, cell)
        if file.is_file():
            try:
                results[cell.name] = read_result(file)
            except DataError as error:
                archived = archive_result(folder, file)
                notes.append(f"{error} It is kept in {archived}; the cell runs again.")
        elif others := sorted(file.parent.glob(f"{cell.name}-{'[0-9a-f]' * 12}.json")):
            shown = ", ".join(map(str, others))
            notes.append(
                f"{cell.name}: its config has changed, so it runs again. The result of the other "
                f"config is kept: {shown}"
            )
    return results, notes


def write_plan(folder: Path, cells: Sequence[Cell], settings: Mapping[str, Any]) -> Path:
    """Writes the plan of a launch; returns its file, which is named after its content."""
    content = {"version": VERSION, **settings, "cells": [asdict(cell) for cell in cells]}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    plan = folder / "plans" / f"{digest}.json"
    write_json(plan, content)
    write_json(folder / "plan.json", content)
    return plan


def read_plan(file: Path) -> tuple[dict[str, Cell], dict[str, Any]]:
    """Reads a plan: its cells by name, and its settings.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        content = read_json(file)
        cells = [_to_cell(cell) for cell in content.pop("cells")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        do = "Run `solo-hardneg reproduce` to write it."
        raise DataError(f"{file}: there is no plan that can be read ({error}). {do}") from error
    return {cell.name: cell for cell in cells}, content
