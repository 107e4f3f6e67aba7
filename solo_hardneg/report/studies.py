"""Finds the studies of runs, and those of a group that can be compared.

``solo-hardneg analyze`` writes ``analysis/study.npz`` to a run's folder or, for several checkpoints
of one run, ``analysis/CHECKPOINT/study.npz``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from solo_hardneg.errors import HardnegError
from solo_hardneg.runs.find import Note, Run, section
from solo_hardneg.runs.groups import Group
from solo_hardneg.study.measure import Study, load_study

MISSING = (
    "it has no study in analysis/; make one with: solo-hardneg analyze FOLDER (without out=..., so "
    "that it is written there)."
)
_OF_RUN = ("method", "seed")  # a study that differs from its run in these is of another run
# Studies that differ in these measure different things.
_MEASURED = ("epoch", "dataset", "split", "views", "queries", "negatives", "projector", "predicted")


def newest_study(run: Run) -> tuple[Study | None, list[str]]:
    """The study of a run's latest epoch, and remarks."""
    found: list[tuple[Path, Study]] = []
    texts = []
    files = (run.folder / "analysis").rglob("study.npz")
    for file in sorted(files, key=lambda file: len(file.parts)):
        try:
            study = load_study(file)
        except HardnegError as error:
            texts.append(f"its study is left out. {error}")
            continue
        known = [key for key in _OF_RUN if None not in (study.info.get(key), run.args.get(key))]
        other = [f"{k}={study.info[k]}" for k in known if study.info[k] != run.args[k]]
        if other:
            where = file.relative_to(run.folder).as_posix()
            texts.append(f"{where} is left out: it is of a run with {', '.join(other)}.")
        else:
            found.append((file, study))
    if not found:
        return None, texts or [MISSING]
    file, study = max(found, key=lambda pair: _epoch(pair[1]))  # of several, the first
    if len(found) > 1:
        where = file.relative_to(run.folder).as_posix()
        texts.append(f"has {len(found)} studies; that of the latest epoch, {where}, counts.")
    return study, [*texts, *study.notes, *_outdated(study, run)]


def _epoch(study: Study) -> int:
    epoch = study.info.get("epoch")
    return epoch if isinstance(epoch, int) else 0


def _outdated(study: Study, run: Run) -> list[str]:
    texts = []
    name = str(study.info.get("checkpoint") or "").replace("\\", "/").split("/")[-1]
    if name and not (run.folder / name).is_file():
        texts.append(f"the checkpoint of its study, {name}, no longer exists.")
    if 0 < _epoch(study) < run.epochs:
        texts.append(f"its study is of epoch {_epoch(study)} of {run.epochs}.")
    dataset, studied = section(run.args, "data").get("dataset"), study.info.get("dataset")
    if None not in (dataset, studied) and studied != dataset:
        texts.append(f"its study is of images of {studied}, not of {dataset}.")
    return texts


def studies_by_group(groups: Sequence[Group]) -> tuple[dict[str, list[Study]], list[Note]]:
    """The studies of each group that measure the same, and notes.

    A study that differs from most of its group in what it measures is left out.
    """
    kept: dict[str, list[Study]] = {}
    notes: list[Note] = []
    for group in groups:
        pairs = []
        for run in group.runs:
            study, texts = newest_study(run)
            notes += [Note(run.title, text) for text in texts]
            if study is not None:
                pairs.append((run, study))
        if not pairs:
            continue
        most = Counter(_measured(study) for _, study in pairs).most_common(1)[0][0]
        for run, study in pairs:
            settings = _measured(study)
            if settings == most:
                kept.setdefault(group.label, []).append(study)
            else:
                both = zip(settings, most, strict=True)
                text = ", ".join(
                    f"{one[0]} {one[1]}, not {two[1]}" for one, two in both if one != two
                )
                notes.append(Note(run.title, f"its study is left out, unlike other seeds: {text}."))
        if len({study.info.get("study_seed") for study in kept[group.label]}) > 1:
            text = "its studies draw different images (seed=), which adds to their spread."
            notes.append(Note(group.label, text))
    return kept, [*notes, *_differing_studies(groups, kept)]


def _measured(study: Study) -> tuple[tuple[str, Any], ...]:
    info = {"predicted": "", **study.info, "percentiles": len(study.similarity)}
    return tuple((key, info.get(key)) for key in (*_MEASURED, "percentiles"))


def _differing_studies(groups: Sequence[Group], kept: Mapping[str, Sequence[Study]]) -> list[Note]:
    """Notes on settings of studies that differ between groups on the same data."""
    values: dict[tuple[str, str], set[str]] = {}
    for group in groups:
        dataset = group.settings.get("data.dataset", "unknown")
        for study in kept.get(group.label, ())[:1]:
            for key, value in _measured(study):
                if key != "epoch":  # follows from max_epochs, which the report shows
                    values.setdefault((dataset, key), set()).add(str(value))
    return [
        Note(
            f"studies of the runs on {dataset}",
            f"differ in {key} ({', '.join(sorted(several))}), so they can't be compared fairly.",
        )
        for (dataset, key), several in sorted(values.items())
        if len(several) > 1
    ]
