"""The folder of a reproduction: its plan, and a file for each cell's result.

    FOLDER/plan.json                    what is to be run; each sweep has its own in plans/
    FOLDER/cells/CELL-FINGERPRINT.json  how a cell ended, written at once and whole
    FOLDER/cells/replaced/              results that can't be read: nothing is thrown away
    FOLDER/runs/CELL-FINGERPRINT/       checkpoints, config, metrics and log.txt of its two runs

A cell whose config changes gets another fingerprint, so that its old result stays, and holds again
if the config is changed back. All of it is JSON: reading executes nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from solo_hardneg.analysis.untrusted import read_json
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


def result_file(folder: Path, cell: Cell | Result) -> Path:
    """Where a cell's result is written; at another place for another config."""
    name = cell.cell if isinstance(cell, Result) else cell.name
    return folder / "cells" / f"{name}-{cell.fingerprint}.json"


def run_folder(folder: Path, cell: Cell) -> Path:
    """Where a cell's runs are; another one if its config changes."""
    return folder / "runs" / f"{cell.name}-{cell.fingerprint}"


def write_result(folder: Path, result: Result) -> None:
    """Writes a cell's result; over a failure, but never over a result that is done."""
    file = result_file(folder, result)
    if is_done(file):
        return
    content = {"format": "solo-hardneg result", "version": VERSION, **asdict(result)}
    write_json(file, content)


def is_done(file: Path) -> bool:
    """Whether there is a result with a number in it."""
    try:
        return read_result(file).state == DONE
    except DataError:
        return False


def read_result(file: Path) -> Result:
    """Reads a result.

    Raises:
        DataError: it is cut short or no result, or was written by another version.
    """
    try:
        content = read_json(file)
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
    if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        raise ValueError("a number is none")
    texts = [result.cell, result.row, result.fingerprint, result.error, result.config]
    texts += [*result.pretrain, *result.linear, *result.changed, *dict(result.ran_on).values()]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a text is none")
    if result.state not in (DONE, FAILED):
        raise ValueError(f"state={result.state}")
    if result.state == DONE and "top1" not in result.metrics:
        raise ValueError("it is done, without an accuracy")


def _check_cell(cell: Cell) -> None:
    """Raises ValueError unless a cell's files lie in its folder, and its lists hold texts."""
    if not all(re.fullmatch(r"[^/\\\0]+", part) for part in (cell.name, cell.fingerprint)):
        raise ValueError(f"{cell.name}: no name of a cell")
    texts = [cell.row, cell.config, *cell.pretrain, *cell.linear, *cell.changed]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{cell.name}: a text is none")


def keep_aside(folder: Path, file: Path) -> Path:
    """Moves a result into ``cells/replaced``, under a name that is free."""
    aside = folder / "cells" / "replaced"
    aside.mkdir(parents=True, exist_ok=True)
    number = 1
    while (target := aside / f"{file.stem}-{number}{file.suffix}").exists():
        number += 1
    file.replace(target)
    return target


def standing(folder: Path, cells: Sequence[Cell]) -> tuple[dict[str, Result], list[str]]:
    """The results of these cells, and what is to be said of others.

    One of another version, or a damaged one, is moved aside, and its cell has none any more.
    """
    results, notes = {}, []
    for cell in cells:
        file = result_file(folder, cell)
        if file.is_file():
            try:
                results[cell.name] = read_result(file)
            except DataError as error:
                kept = keep_aside(folder, file)
                notes.append(f"{error} It is kept in {kept}; the cell runs again.")
        elif others := _of_other_configs(folder, cell):
            shown = ", ".join(map(str, others))
            notes.append(
                f"{cell.name}: its config has changed since it was run, so it runs again. "
                f"The result of the other config is kept: {shown}"
            )
    return results, notes


def _of_other_configs(folder: Path, cell: Cell) -> list[Path]:
    name = re.compile(re.escape(cell.name) + r"-[0-9a-f]{12}\.json")
    files = (folder / "cells").glob(f"{cell.name}-*.json")
    return sorted(file for file in files if name.fullmatch(file.name))


def write_plan(folder: Path, cells: Sequence[Cell], settings: Mapping[str, Any]) -> Path:
    """Writes what is to be run, for the processes that run it, and for the table.

    Returns:
        a file that no other sweep writes to, named after what is in it.
    """
    content = {"version": VERSION, **settings, "cells": [asdict(cell) for cell in cells]}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    plan = folder / "plans" / f"{digest}.json"
    write_json(plan, content)
    write_json(folder / "plan.json", content)
    return plan


def read_plan(file: Path) -> tuple[dict[str, Cell], dict[str, Any]]:
    """The cells of a plan by name, and its other settings.

    Raises:
        DataError: there is no plan that can be read.
    """
    try:
        content, cells = read_json(file), {}
        for cell in content.pop("cells"):
            lists = {key: tuple(cell[key]) for key in ("pretrain", "linear", "changed")}
            found = Cell(**{**cell, **lists})
            _check_cell(found)
            cells[found.name] = found
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        do = "`solo-hardneg reproduce` writes it; start that."
        raise DataError(f"{file}: there is no plan that can be read ({error}). {do}") from error
    return cells, content
