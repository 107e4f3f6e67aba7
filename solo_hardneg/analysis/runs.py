"""Finding the folders of runs, of either host, and reading what lies in them.

A run's folder holds ``args.json`` and, where there are any, ``hardness/`` (Parquet),
``metrics.csv`` and studies below ``analysis/``. All of it is data: nothing in it is executed, and
what can't be read is left out, with a note.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from solo_hardneg.analysis import records as recorded
from solo_hardneg.analysis import studied
from solo_hardneg.analysis.records import Records
from solo_hardneg.analysis.study import Study
from solo_hardneg.analysis.untrusted import read_json, resolved
from solo_hardneg.errors import DataError, HardnegError

FROM = "pretrained_feature_extractor"  # the key by which a linear evaluation names its run
LATE = 0.25  # this share of the recorded epochs, the last ones, is late in training
_WANTED = ("train_", "val_", "negatives/")  # of all that hosts log, as the beginnings of names
_COLUMNS = ["epoch", "metric", "value"]


@dataclass(frozen=True)
class Note:
    """Something that is missing, or not as one would expect: where, and what."""

    where: str
    text: str


@dataclass(frozen=True)
class Run:
    """One run of pretraining or of linear evaluation.

    Attributes:
        folder: where it lies.
        args: its config, as the host wrote it.
        history: columns ``epoch``, ``metric``, ``value``: what the host logged for each epoch.
        records: what the recorder wrote; ``None`` if there is nothing.
        study: what ``solo-hardneg analyze`` found; ``None`` if there is nothing.
        linear: the linear evaluation of this run.
    """

    folder: Path
    args: Mapping[str, Any]
    history: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=_COLUMNS))
    records: Records | None = None
    study: Study | None = None
    linear: Run | None = None

    @property
    def title(self) -> str:
        """The last two parts of its folder, such as ``mocov2_banded/offline-1a2b3c4d``."""
        return "/".join(self.folder.parts[-2:])

    @property
    def seed(self) -> int | None:
        """The seed, if the config says it."""
        seed = self.args.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return not section(self.args, "data").get("no_labels", False)

    @property
    def epochs(self) -> int:
        """How many epochs have been trained, as far as anything was written of them."""
        last = [] if self.records is None else [self.records.table["epoch"].max()]
        last += [self.history["epoch"].max()] if len(self.history) else []
        return int(max(last)) + 1 if last else 0

    @property
    def unfinished(self) -> str:
        """``3 of 4 epochs``, if the config plans more than have been trained; else empty."""
        planned, epochs = self.args.get("max_epochs"), self.epochs
        stopped = isinstance(planned, int) and 0 < epochs < planned
        return f"{epochs} of {planned} epochs" if stopped else ""

    def last(self, metric: str) -> float:
        """The last value of a metric; NaN if it was never logged, or labels are missing."""
        if "_acc" in metric and not self.labelled:
            return float("nan")  # without labels the hosts log a meaningless 0
        values = self.history.loc[self.history["metric"] == metric, "value"].dropna()
        return float(values.iloc[-1]) if len(values) else float("nan")


@dataclass(frozen=True)
class Found:
    """The runs of pretraining that were found, and what is missing."""

    runs: Sequence[Run]
    notes: Sequence[Note]


def section(args: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A group of a config; empty where it is missing or something else."""
    value = args.get(name)
    return value if isinstance(value, Mapping) else {}


def find(paths: Iterable[Path | str]) -> Found:
    """Reads all runs at or below some folders, linear evaluations with what they evaluate.

    Linear evaluations are looked for in the folder ``linear`` beside the runs as well, which is
    where both hosts put them.

    Raises:
        DataError: a path is not there or holds no run, or no run can be read.
    """
    notes: list[Note] = []
    given = [Path(path).expanduser() for path in paths]
    folders = _unique(folder for path in given for folder in _below(path))
    read = [run for folder in folders if (run := _read_args(folder, notes)) is not None]
    runs = [_read(run, notes) for run in read if FROM not in run.args]
    if not runs:
        what = "only linear evaluations" if read else "none that can be read"
        why = " ".join(f"{note.where}: {note.text}" for note in notes)
        shown = ", ".join(map(str, given)) or "nothing was given"
        raise DataError(
            f"{shown}: holds no run of pretraining, but {what}. {why}".strip()
            + " Give the folders of pretraining runs, or folders above them."
        )
    linear = [run for run in read if FROM in run.args]
    beside = _unique(
        args.parent
        for run in runs
        for args in sorted((run.folder.parent.parent / "linear").glob("*/args.json"))
    )
    known = {run.folder.resolve() for run in linear}
    others = [_read_args(folder, []) for folder in beside if folder.resolve() not in known]
    linear += [run for run in others if run is not None and FROM in run.args]
    runs = _attach(runs, linear, known, notes)
    for run in runs:
        notes += _missing(run)
    return Found(runs, notes)


def _below(path: Path) -> list[Path]:
    if not path.exists():
        do = "Give the folders of runs, or folders above them"
        raise DataError(f"{path}: there is no such folder. {do}.")
    top = path.parent if path.is_file() else path  # a checkpoint, say: the run it belongs to
    found = sorted(args.parent for args in top.rglob("args.json"))
    if not found:
        do = "Both hosts write args.json into the folder of a run unless checkpoint.enabled=False"
        raise DataError(f"{path}: holds no run (there is no args.json in it or below it). {do}.")
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
    if not isinstance(args, Mapping) or not ("method" in args or FROM in args):
        text = "left out, because its args.json is no config of a run: it names no method."
        notes.append(Note(run.title, text))
        return None
    return replace(run, args=resolved(args))


def _read(run: Run, notes: list[Note]) -> Run:
    """The same run with everything that was written of it."""
    records = None
    place = section(run.args, "hardness").get("dir")
    folder = run.folder / Path(place if isinstance(place, str) and place else "hardness")
    try:
        if folder.is_dir():
            records = recorded.read(folder, late_images=LATE)
            notes += [Note(run.title, note) for note in records.notes]
    except (HardnegError, OSError) as error:
        notes.append(Note(run.title, f"its records are left out. {error}"))
    run = replace(run, records=records, history=_history(run, records, notes))
    if FROM in run.args:
        return run
    study, texts = studied.newest(run.folder, run.args, run.epochs)
    notes += [Note(run.title, text) for text in texts]
    return replace(run, study=study)


def _history(run: Run, records: Records | None, notes: list[Note]) -> pd.DataFrame:
    """What was logged at the end of each epoch; what the records lack, from ``metrics.csv``."""
    parts = [history_of(records)] if records is not None else []
    file = run.folder / "metrics.csv"
    if file.is_file():
        try:
            logged = _of_csv(pd.read_csv(file, on_bad_lines="skip"))
        except (OSError, ValueError, KeyError) as error:
            what = f"its metrics.csv is left out, because it is damaged ({error})."
            notes.append(Note(run.title, what))
        else:
            known = set(parts[0]["metric"]) if parts else set()
            parts.append(logged[~logged["metric"].isin(known)])
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=_COLUMNS)


def history_of(records: Records) -> pd.DataFrame:
    """What a run logged at the end of each epoch, from its records: ``epoch, metric, value``."""
    rows = records.table[records.table["kind"] == "metric"]
    rows = rows.assign(metric=rows["quantity"].astype(str))
    rows = rows[rows["metric"].str.startswith(_WANTED)]
    # The processes have reduced them already, so that they are equal.
    return rows.groupby(["epoch", "metric"], as_index=False)["value"].mean()


def _of_csv(table: pd.DataFrame) -> pd.DataFrame:
    """Lightning's sparse rows, each with some of the columns, in long form.

    Rows without an epoch belong to the one before them.
    """
    epoch = pd.to_numeric(table["epoch"], errors="coerce").ffill().fillna(0).astype(int)
    names = [name for name in table.columns if str(name).startswith(_WANTED)]
    parts = []
    for name in names:
        values = pd.to_numeric(table[name], errors="coerce")
        last = values.dropna().groupby(epoch).last()
        parts.append(pd.DataFrame({"epoch": last.index, "metric": name, "value": last.to_numpy()}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=_COLUMNS)


# ---------------------------------------------------------------------- linear evaluation


def _attach(
    runs: Sequence[Run], linear: Sequence[Run], asked_for: set[Path], notes: list[Note]
) -> list[Run]:
    """Gives each run its linear evaluation; those found only beside it may belong to others."""
    owned: dict[Path, list[Run]] = {}
    for run in linear:
        owner = _owner(run, runs)
        if owner is not None:
            owned.setdefault(owner.folder, []).append(_read(run, notes))
        elif run.folder.resolve() in asked_for:
            text = f"evaluates {run.args[FROM]}, which is none of the runs given."
            notes.append(Note(run.title, text))
    attached = []
    for run in runs:
        candidates = [one for one in owned.get(run.folder, ()) if len(one.history)]
        candidates.sort(key=lambda one: ((one.folder / "args.json").stat().st_mtime, one.folder))
        if len(candidates) > 1:
            text = f"was evaluated {len(candidates)} times; the newest, {candidates[-1].title}, "
            notes.append(Note(run.title, text + "counts."))
        attached.append(replace(run, linear=candidates[-1] if candidates else None))
    return attached


def _owner(linear: Run, runs: Sequence[Run]) -> Run | None:
    """The run whose folder, or a checkpoint in it, the linear evaluation names."""
    try:
        named = Path(str(linear.args[FROM])).expanduser()
        # A relative path was meant from where it was started: here, or somewhere above its folder.
        starts = [Path.cwd(), *linear.folder.resolve().parents]
        meant = {(start / named).resolve() for start in starts}
    except (OSError, ValueError, RuntimeError):  # an endless link, no such user, no path at all
        return None
    for run in runs:
        folder = run.folder.resolve()
        if any(folder in (place, place.parent) for place in meant):
            return run
    # The folders may have been moved: METHOD/VERSION tells runs apart if only one run has it.
    parts = named.parts
    ends = {parts[-2:], parts[-3:-1]} if len(parts) > 2 else {parts[-2:]}
    same = [run for run in runs if len(run.folder.parts) > 1 and run.folder.parts[-2:] in ends]
    return same[0] if len(same) == 1 else None


# ---------------------------------------------------------------------- what is missing


def _missing(run: Run) -> list[Note]:
    texts = []
    if not run.labelled:
        texts.append("its images have no labels (data.no_labels), so there is no accuracy.")
    elif np.isnan(run.last("val_acc1")):
        texts.append("no online accuracy was logged; it needs labelled validation images.")
    if run.linear is None:
        texts.append(
            "there is no linear evaluation; make one with: solo-hardneg linear "
            f"{FROM}=FOLDER, or solo-learn's main_linear.py."
        )
    elif np.isnan(run.linear.last("val_acc1")):
        texts.append(
            "its linear evaluation left no accuracy behind; solo-learn's goes to wandb, unless "
            "hardness.enabled=true records it."
        )
    if run.records is None:
        texts.append("its negatives were not recorded; hardness.enabled=true records them.")
    for one, what in ((run, "it"), (run.linear, "its linear evaluation")):
        if one is not None and one.unfinished:
            texts.append(
                f"{what} stopped (or is) after {one.unfinished}; its numbers are those of that "
                "moment."
            )
    return [Note(run.title, text) for text in texts]
