"""What ``solo-hardneg analyze`` writes and prints: studies by group, figures and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from solo_hardneg.errors import DataError
from solo_hardneg.files import file_name, write_atomically
from solo_hardneg.runs.find import Run
from solo_hardneg.runs.groups import group_runs
from solo_hardneg.study import plots
from solo_hardneg.study.figures import draw_study_figures, draw_tsne
from solo_hardneg.study.measure import QUANTITIES, Study, class_pairs, t_tests
from solo_hardneg.study.significance import mean_and_std

_TABLES = {"anti-correlated": "A4", "correlated": "A5", "orthogonal": "A6"}


@dataclass(frozen=True)
class CheckpointStudy:
    """A study with its checkpoint and the config of the run."""

    study: Study
    file: Path
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """Studies by group, and the files written.

    Attributes:
        groups: Studies by label; those of one group differ in their run's seed.
        folder: Folder of figures and tables.
        written: All files.
        notes: What is missing and why.
    """

    groups: Mapping[str, Sequence[Study]]
    folder: Path
    written: Sequence[Path]
    notes: Sequence[str]

    @property
    def studies(self) -> list[Study]:
        """The studies of all groups."""
        return [study for studies in self.groups.values() for study in studies]


def write_results(done: Sequence[CheckpointStudy], out: Path | None) -> Results:
    """Writes the studies, and figures and tables that compare them.

    Args:
        done: One or several, of different checkpoints.
        out: Folder to write to. By default, each study goes to ``analysis`` beside its checkpoint;
            so do figures and tables if it is the only one, and otherwise to ``./analysis``.

    Raises:
        DataError: A folder can't be written to.
    """
    indexes = group_studies(done)
    folders = _study_folders(done, indexes, out)
    folder = folders[0] if len(done) == 1 else (out or Path("analysis"))
    written = []
    groups: dict[str, list[Study]] = {}
    for label, members in indexes.items():
        for index in members:
            study = done[index].study
            study = replace(study, info={**study.info, "group": label})
            groups.setdefault(label, []).append(study)
            written.append(folders[index] / "study.npz")
            study.save(written[-1])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written += [*_write_figures(groups, folder), *_write_tables(groups, folder)]
    except OSError as error:
        do = "Set out=... to a folder that can be written to"
        raise DataError(f"{folder}: can't be written to ({error}). {do}.") from error
    return Results(groups, folder, written, _notes(groups))


def _study_folders(
    done: Sequence[CheckpointStudy], indexes: Mapping[str, Sequence[int]], out: Path | None
) -> list[Path]:
    """A folder for each study, no two of them equal."""
    if out is not None and len(done) == 1:
        return [out]
    labels = {index: label for label, members in indexes.items() for index in members}
    parents = [one.file.resolve().parent for one in done]
    folders: list[Path] = []
    for index, one in enumerate(done):
        if out is not None:
            seed = one.config.get("seed")
            folder = out / file_name(labels[index] + ("" if seed is None else f"-seed{seed}"))
        else:
            folder = one.file.parent / "analysis"
            if parents.count(parents[index]) > 1:  # several checkpoints of one run
                folder = folder / file_name(one.file.stem)
        first, number = folder, 2
        while folder in folders:
            folder = first.with_name(f"{first.name}-{number}")
            number += 1
        folders.append(folder)
    return folders


def group_studies(done: Sequence[CheckpointStudy]) -> dict[str, list[int]]:
    """Indexes of the studies whose runs differ in their seed only, by label."""
    runs = []
    for one in done:
        # Without a config, every checkpoint is a group of its own.
        config = one.config or {"method": str(one.file)}
        runs.append(Run(one.file.parent, {**config, "epoch": one.study.info.get("epoch")}))
    index = {id(run): i for i, run in enumerate(runs)}
    groups = group_runs(runs, [], one_per_seed=False)
    return {group.label: [index[id(run)] for run in group.runs] for group in groups}


def _notes(groups: Mapping[str, Sequence[Study]]) -> list[str]:
    studies = [study for several in groups.values() for study in several]
    notes = [*dict.fromkeys(note for study in studies for note in study.notes)]
    for label, several in groups.items():
        if len({study.info.get("seed") for study in several}) < len(several):
            text = "several of these runs have the same seed, so their spread is meaningless"
            notes.append(f"{label}: {text}.")
    if len(studies) == 1:
        notes.append("One run: no error bars and no t-tests. Add runs that differ in seed=.")
    return notes


# ---------------------------------------------------------------------- files


def _write_figures(groups: Mapping[str, Sequence[Study]], folder: Path) -> list[Path]:
    total = sum(map(len, groups.values()))
    with plots.style():
        made = draw_study_figures(groups)
        for label, studies in groups.items():
            for number, study in enumerate(studies):
                if len(study.tsne):
                    suffix = f"-{file_name(label)}" + (f"-{number + 1}" if number else "")
                    made[f"tsne{suffix if total > 1 else ''}"] = draw_tsne(study)
    for name, figure in made.items():
        plots.save_png(figure, folder / f"{name}.png")
    return [folder / f"{name}.png" for name in made]


def _write_tables(groups: Mapping[str, Sequence[Study]], folder: Path) -> list[Path]:
    tests = {label: t_tests(studies) for label, studies in groups.items()}
    tables = {
        "hard-and-easy": hard_and_easy_table(groups),
        "percentiles": percentile_table(groups),
        "t-tests": pd.concat(tests, names=["group"]).reset_index("group"),
    }
    for label, studies in groups.items():
        for kind, table in class_pairs(pool_class_means(studies)).items():
            if len(table):
                suffix = f"-{file_name(label)}" if len(groups) > 1 else ""
                tables[f"table-{_TABLES[kind]}-{kind}{suffix}"] = table
    for name, table in tables.items():
        csv = table.to_csv(index=False, lineterminator="\n")
        write_atomically(folder / f"{name}.csv", csv)
    return [folder / f"{name}.csv" for name in tables]


def pool_class_means(studies: Sequence[Study]) -> Study:
    """The first study with the class means over all: each pair of images counts once."""
    if len({tuple(study.class_names) for study in studies}) > 1:
        return studies[0]
    number = np.sum([study.class_number for study in studies], axis=0)
    sums = [np.nan_to_num(study.class_mean) * study.class_number for study in studies]
    with np.errstate(invalid="ignore"):
        mean = np.sum(sums, axis=0) / number
    return replace(studies[0], class_mean=mean, class_number=number)


def hard_and_easy_table(groups: Mapping[str, Sequence[Study]]) -> pd.DataFrame:
    """The values of figure 4: a row per study, columns ``QUANTITY/PART``."""
    parts = ("hardest_5", "easiest_95", "all")
    keys = [f"{name}/{part}" for name in QUANTITIES for part in parts]
    rows: list[dict[str, Any]] = [
        {
            **{"group": label, "seed": study.info.get("seed")},
            **{key: study.scalars.get(key, np.nan) for key in keys},
        }
        for label, studies in groups.items()
        for study in studies
    ]
    return pd.DataFrame(rows)


def percentile_table(groups: Mapping[str, Sequence[Study]]) -> pd.DataFrame:
    """The values of figure 5: a row per study and percentile (0 = easiest)."""
    tables = [
        pd.DataFrame(
            {
                "group": label,
                "seed": study.info.get("seed"),
                "percentile": np.arange(len(study.similarity)),
                **{name: getattr(study, name) for name in QUANTITIES},
            }
        )
        for label, studies in groups.items()
        for study in studies
    ]
    return pd.concat(tables, ignore_index=True)


# ---------------------------------------------------------------------- terminal


def print_results(results: Results, console: Console) -> None:
    """Prints the values of figure 4, what is missing, and the folders written to."""
    table = Table(title="Negatives by difficulty: hardest 5 % / easiest 95 %")
    table.add_column("run", overflow="fold")
    for name in ("seeds", "similarity", "of the query's class", "depth in WordNet"):
        table.add_column(name, justify="right")
    for label, studies in results.groups.items():
        cells = []
        for name, form in (("similarity", ".3f"), ("same_class", ".1%"), ("depth", ".2f")):
            keys = [f"{name}/{part}" for part in ("hardest_5", "easiest_95")]
            means = [mean_and_std([s.scalars.get(key, np.nan) for s in studies])[0] for key in keys]
            cells.append(" / ".join(f"{v:{form}}" if np.isfinite(v) else "-" for v in means))
        table.add_row(escape(label), str(len(studies)), *cells)
    console.print(table)
    for note in results.notes:
        console.print(f"- {note}", markup=False, highlight=False)
    folders = dict.fromkeys([results.folder, *(path.parent for path in results.written)])
    for folder in folders:
        console.print(f"Written: {folder}", markup=False, soft_wrap=True)
