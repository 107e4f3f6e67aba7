"""Finds and reads the folders of runs of either host.

A run's folder holds ``args.json`` and, optionally, ``hardness/`` (Parquet) and ``metrics.csv``.
Nothing in it is executed, and what can't be read is left out with a note.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from solo_hardneg.errors import DataError, HardnegError
from solo_hardneg.files import read_json, resolved
from solo_hardneg.recording import records as recorded
from solo_hardneg.recording.records import Records

SOURCE = "pretrained_feature_extractor"  # key by which a linear evaluation names its run
LATE = 0.25  # "late in training": this share of the recorded epochs, the last ones
_METRICS = ("train_", "val_", "negatives/")  # prefixes of the logged metrics that are read
_COLUMNS = ["epoch", "metric", "value"]


@dataclass(frozen=True)
class Note:
    """Something missing or unexpected: where, and what."""

    where: str
    text: str


@dataclass(frozen=True)
class Run:
    """One run of pretraining or of linear evaluation.

    Attributes:
        folder: Its folder.
        args: Its config, as the host wrote it.
        history: Metrics per epoch, with the columns ``epoch``, ``metric``, ``value``.
        records: What the recorder wrote, if anything.
        linear: The linear evaluation of this run.
    """

    folder: Path
    args: Mapping[str, Any]
    history: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=_COLUMNS))
    records: Records | None = None
    linear: Run | None = None

    @property
    def title(self) -> str:
        """The last two parts of its folder, such as ``mocov2_banded/offline-1a2b3c4d``."""
        return "/".join(self.folder.parts[-2:])

    @property
    def seed(self) -> int | None:
        """The seed, if the config holds one."""
        seed = self.args.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return not section(self.args, "data").get("no_labels", False)

    @property
    def epochs(self) -> int:
        """Number of epochs trained, by the last one in the records or metrics."""
        last = [] if self.records is None else [self.records.table["epoch"].max()]
        last += [self.history["epoch"].max()] if len(self.history) else []
        return int(max(last)) + 1 if last else 0

    @property
    def unfinished(self) -> str:
        """``3 of 4 epochs`` if the config asks for more than were trained; else empty."""
        planned, epochs = self.args.get("max_epochs"), self.epochs
        stopped = isinstance(planned, int) and 0 < epochs < planned
        return f"{epochs} of {planned} epochs" if stopped else ""

    def last(self, metric: str) -> float:
        """The last value of a metric; NaN if it was never logged or needs missing labels."""
        if "_acc" in metric and not self.labelled:
            return float("nan")  # the hosts log a meaningless 0
        values = self.history.loc[self.history["metric"] == metric, "value"].dropna()
        return float(values.iloc[-1]) if len(values) else float("nan")


@dataclass(frozen=True)
class Found:
    """The runs of pretraining that were found, and notes on what is missing."""

    runs: Sequence[Run]
    notes: Sequence[Note]


def section(args: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A group of a config; empty if it is missing or not a mapping."""
    value = args.get(name)
    return value if isinstance(value, Mapping) else {}


def find_runs(paths: Iterable[Path | str]) -> Found:
    """Reads all runs at or below some folders, with their linear evaluations.

    Linear evaluations are also searched in the folder ``linear`` beside the runs, where both hosts
    put them.

    Args:
        paths: Folders of runs or above them, or checkpoints of runs.

    Raises:
        DataError: A path doesn't exist or holds no run, or no run can be read.
    """
    notes: list[Note] = []
    given = [Path(path).expanduser() for path in paths]
    folders = _unique(folder for path in given for folder in _run_folders(path))
    read = [run for folder in folders if (run := _read_args(folder, notes)) is not None]
    runs = [_read_run(run, notes) for run in read if SOURCE not in run.args]
    if not runs:
        what = "only linear evaluations" if read else "none that can be read"
        why = " ".join(f"{note.where}: {note.text}" for note in notes)
        shown = ", ".join(map(str, given)) or "no folder"
        raise DataError(
            f"{shown}: holds no run of pretraining, but {what}. {why}".strip()
            + " Give the folders of pretraining runs, or folders above them."
        )
    linear = [run for run in read if SOURCE in run.args]
    known = {run.folder.resolve() for run in linear}
    beside = _unique(
        args.parent
        for run in runs
        for args in sorted((run.folder.parent.parent / "linear").glob("*/args.json"))
    )
    others = [_read_args(folder, []) for folder in beside if folder.resolve() not in known]
    linear += [run for run in others if run is not None and SOURCE in run.args]
    runs = _attach_linear(runs, linear, known, notes)
    return Found(runs, [*notes, *(note for run in runs for note in _list_missing(run))])


def _run_folders(path: Path) -> list[Path]:
    if not path.exists():
        do = "Give the folders of runs, or folders above them"
        raise DataError(f"{path}: no such folder. {do}.")
    top = path.parent if path.is_file() else path  # the run of a checkpoint
    found = sorted(args.parent for args in top.rglob("args.json"))
    if not found:
        do = "Both hosts write args.json to the folder of a run unless checkpoint.enabled=False"
        raise DataError(f"{path}: holds no run (no args.json in it or below it). {do}.")
    return found


def _unique(folders: Iterable[Path]) -> list[Path]:
    return list({folder.resolve(): folder for folder in folders}.values())


def _read_args(folder: Path, notes: list[Note]) -> Run | None:
    run = Run(folder, {})
    try:
        args = read_json(folder / "args.json")
    except (OSError, ValueError) as error:
        notes.append(Note(run.title, f"left out, because its args.json is damaged ({error})."))
        return None
    if not isinstance(args, Mapping) or not ("method" in args or SOURCE in args):
        text = "left out, because its args.json isn't the config of a run: it names no method."
        notes.append(Note(run.title, text))
        return None
    return replace(run, args=resolved(args))


def _read_run(run: Run, notes: list[Note]) -> Run:
    """The run with its records and metrics."""
    records = None
    folder = section(run.args, "hardness").get("dir")
    folder = run.folder / Path(folder if isinstance(folder, str) and folder else "hardness")
    try:
        if folder.is_dir():
            records = recorded.read_records(folder, late_images=LATE)
            notes += [Note(run.title, note) for note in records.notes]
    except (HardnegError, OSError) as error:
        notes.append(Note(run.title, f"its records are left out. {error}"))
    return replace(run, records=records, history=_read_history(run, records, notes))


def _read_history(run: Run, records: Records | None, notes: list[Note]) -> pd.DataFrame:
    """Metrics per epoch from the records; those that they lack from ``metrics.csv``."""
    parts = [history_of(records)] if records is not None else []
    file = run.folder / "metrics.csv"
    if file.is_file():
        try:
            logged = _parse_csv_log(pd.read_csv(file, on_bad_lines="skip"))
        except (OSError, ValueError, KeyError) as error:
            text = f"its metrics.csv is left out, because it is damaged ({error})."
            notes.append(Note(run.title, text))
        else:
            known = set(parts[0]["metric"]) if parts else set()
            parts.append(logged[~logged["metric"].isin(known)])
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=_COLUMNS)


def history_of(records: Records) -> pd.DataFrame:
    """The recorded metrics per epoch, with the columns ``epoch``, ``metric``, ``value``."""
    rows = records.table[records.table["kind"] == "metric"]
    rows = rows.assign(metric=rows["quantity"].astype(str))
    rows = rows[rows["metric"].str.startswith(_METRICS)]
    # The ranks have reduced them already, so their values are equal.
    return rows.groupby(["epoch", "metric"], as_index=False)["value"].mean()


def _parse_csv_log(table: pd.DataFrame) -> pd.DataFrame:
    """Lightning's sparse rows in long form; a row without epoch belongs to the one before."""
    epoch = pd.to_numeric(table["epoch"], errors="coerce").ffill().fillna(0).astype(int)
    metrics = [name for name in table.columns if str(name).startswith(_METRICS)]
    values = table[metrics].apply(pd.to_numeric, errors="coerce").assign(epoch=epoch)
    rows = values.melt("epoch", var_name="metric").dropna()
    return rows.groupby(["epoch", "metric"], as_index=False)["value"].last()


# ---------------------------------------------------------------------- linear evaluation


def _attach_linear(
    runs: Sequence[Run], linear: Sequence[Run], given: set[Path], notes: list[Note]
) -> list[Run]:
    """Gives each run its linear evaluation; only folders in ``given`` must belong to a run."""
    by_run: dict[Path, list[Run]] = {}
    for one in linear:
        run = _evaluated_run(one, runs)
        if run is not None:
            by_run.setdefault(run.folder, []).append(_read_run(one, notes))
        elif one.folder.resolve() in given:
            text = f"evaluates {one.args[SOURCE]}, which is not among the given runs."
            notes.append(Note(one.title, text))
    attached = []
    for run in runs:
        candidates = [one for one in by_run.get(run.folder, ()) if len(one.history)]
        candidates.sort(key=lambda one: ((one.folder / "args.json").stat().st_mtime, one.folder))
        if len(candidates) > 1:
            text = f"was evaluated {len(candidates)} times; the newest, {candidates[-1].title}, "
            notes.append(Note(run.title, text + "counts."))
        attached.append(replace(run, linear=candidates[-1] if candidates else None))
    return attached


def _evaluated_run(linear: Run, runs: Sequence[Run]) -> Run | None:
    """The run whose folder, or a checkpoint in it, a linear evaluation names."""
    try:
        named = Path(str(linear.args[SOURCE])).expanduser()
        # A relative path starts at the working directory, now or then above the folder.
        starts = [Path.cwd(), *linear.folder.resolve().parents]
        places = {(start / named).resolve() for start in starts}
    except (OSError, ValueError, RuntimeError):  # endless link, unknown user, not a path
        return None
    for run in runs:
        folder = run.folder.resolve()
        if any(folder in (place, place.parent) for place in places):
            return run
    # The folders may have moved: METHOD/VERSION identifies a run if only one has it.
    parts = named.parts
    ends = {parts[-2:], parts[-3:-1]} if len(parts) > 2 else {parts[-2:]}
    same = [run for run in runs if len(run.folder.parts) > 1 and run.folder.parts[-2:] in ends]
    return same[0] if len(same) == 1 else None


# ---------------------------------------------------------------------- what is missing


def _list_missing(run: Run) -> list[Note]:
    texts = []
    if not run.labelled:
        texts.append("its images have no labels (data.no_labels), so it has no accuracy.")
    elif np.isnan(run.last("val_acc1")):
        texts.append("no online accuracy was logged; it needs labelled validation images.")
    if run.linear is None:
        texts.append(
            "it has no linear evaluation; run one with: solo-hardneg linear "
            f"{SOURCE}=FOLDER, or solo-learn's main_linear.py."
        )
    elif np.isnan(run.linear.last("val_acc1")):
        texts.append(
            "its linear evaluation left no accuracy; solo-learn logs it to wandb only, unless "
            "hardness.enabled=true records it."
        )
    if run.records is None:
        texts.append("its negatives were not recorded; hardness.enabled=true records them.")
    for one, what in ((run, "it"), (run.linear, "its linear evaluation")):
        if one is not None and one.unfinished:
            texts.append(f"{what} is at {one.unfinished}, and so are its numbers.")
    return [Note(run.title, text) for text in texts]
