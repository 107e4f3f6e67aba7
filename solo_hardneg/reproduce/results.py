"""The folder of a reproduction: its plan, and a file for each cell's result.

    FOLDER/plan.json              what is to be run
    FOLDER/cells/CELL.json        how it ended, written at once and whole
    FOLDER/cells/replaced/        results that don't hold any more: nothing is thrown away
    FOLDER/runs/CELL-FINGERPRINT/ checkpoints, config, metrics and log.txt of its two runs

All of it is JSON: reading executes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from solo_hardneg.errors import DataError
from solo_hardneg.reproduce.cells import Cell

VERSION = 1
DONE, FAILED = "done", "failed"


@dataclass(frozen=True)
class Result:
    """How a cell ended.

    Attributes:
        cell, row, seed, fingerprint: of the cell.
        state: ``done`` or ``failed``.
        metrics: accuracies in percent; of the linear evaluation ``top1`` and ``top5``, and
            ``online`` of the classifier that learns beside the pretraining.
        seconds: of both runs, as far as this process ran them.
        error: why it failed; empty if it didn't.
        config, pretrain, linear, changed: of the cell, for the record.
        ran_on: machine and versions.
    """

    cell: str
    row: str
    seed: int
    fingerprint: str
    state: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""
    config: str = ""
    pretrain: tuple[str, ...] = ()
    linear: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    ran_on: Mapping[str, str] = field(default_factory=dict)


def result_of(cell: Cell, state: str, **more: Any) -> Result:
    """A result with everything that the cell says of itself."""
    names = ("row", "seed", "fingerprint", "config", "pretrain", "linear", "changed")
    return Result(cell=cell.name, state=state, **{n: getattr(cell, n) for n in names}, **more)


def write_json(path: Path, content: Any) -> None:
    """Writes a file that is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    partial.replace(path)


def result_file(folder: Path, cell: str) -> Path:
    """Where a cell's result is written."""
    return folder / "cells" / f"{cell}.json"


def run_folder(folder: Path, cell: Cell) -> Path:
    """Where a cell's runs are; another one if its config changes."""
    return folder / "runs" / f"{cell.name}-{cell.fingerprint}"


def write_result(folder: Path, result: Result) -> None:
    """Writes a cell's result over the one that is there."""
    content = {"format": "solo-hardneg result", "version": VERSION, **asdict(result)}
    write_json(result_file(folder, result.cell), content)


def read_result(file: Path) -> Result:
    """Reads a result.

    Raises:
        DataError: it is cut short or no result, or was written by another version.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: it is cut short or damaged ({error}).") from error
    if not isinstance(content, dict) or content.pop("format", None) != "solo-hardneg result":
        raise DataError(f"{file}: it is no result of `solo-hardneg reproduce`.")
    version = content.pop("version", None)
    if version != VERSION:
        raise DataError(f"{file}: it has version {version}; this program reads version {VERSION}.")
    try:
        for key in ("pretrain", "linear", "changed"):
            content[key] = tuple(content.get(key, ()))
        known = {f.name for f in fields(Result)}
        result = Result(**{key: value for key, value in content.items() if key in known})
        _check(result)
    except (TypeError, ValueError) as error:
        raise DataError(f"{file}: something in it is missing or wrong ({error}).") from error
    return result


def _check(result: Result) -> None:
    numbers = [result.seconds, *dict(result.metrics).values()]
    if not all(isinstance(n, int | float) for n in numbers):
        raise ValueError("a number is none")
    if result.state not in (DONE, FAILED):
        raise ValueError(f"state={result.state}")
    if result.state == DONE and "top1" not in result.metrics:
        raise ValueError("it is done, without an accuracy")


def keep_aside(folder: Path, file: Path) -> Path:
    """Moves a result into ``cells/replaced``, under a name that is free."""
    aside = folder / "cells" / "replaced"
    aside.mkdir(parents=True, exist_ok=True)
    number = 1
    while (target := aside / f"{file.stem}-{number}{file.suffix}").exists():
        number += 1
    file.replace(target)
    return target


def standing(folder: Path, cells: list[Cell]) -> tuple[dict[str, Result], list[str]]:
    """The results that hold for these cells, and what is to be said of others.

    A result of another config, of another version, or a damaged one is moved aside, and its cell
    has none any more.
    """
    results, notes = {}, []
    for cell in cells:
        file = result_file(folder, cell.name)
        if not file.is_file():
            continue
        try:
            result = read_result(file)
        except DataError as error:
            notes.append(f"{error} It is kept in {keep_aside(folder, file)}; the cell runs again.")
            continue
        if result.fingerprint != cell.fingerprint:
            kept = keep_aside(folder, file)
            notes.append(
                f"{cell.name}: its config has changed since it was run. The result is kept in "
                f"{kept}; the cell runs again."
            )
            continue
        results[cell.name] = result
    return results, notes


def write_plan(folder: Path, cells: list[Cell], settings: Mapping[str, Any]) -> None:
    """Writes what is to be run, for the processes that run it."""
    content = {"version": VERSION, **settings, "cells": [asdict(cell) for cell in cells]}
    write_json(folder / "plan.json", content)


def read_plan(folder: Path) -> tuple[dict[str, Cell], dict[str, Any]]:
    """The cells of a plan by name, and its other settings.

    Raises:
        DataError: there is no plan that can be read.
    """
    file = folder / "plan.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        cells = {}
        for cell in content.pop("cells"):
            lists = {key: tuple(cell[key]) for key in ("pretrain", "linear", "changed")}
            cells[cell["name"]] = Cell(**{**cell, **lists})
    except (OSError, ValueError, KeyError, TypeError) as error:
        do = "`solo-hardneg reproduce` writes it; start that."
        raise DataError(f"{file}: there is no plan that can be read ({error}). {do}") from error
    return cells, content
