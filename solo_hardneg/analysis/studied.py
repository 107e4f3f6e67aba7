"""The studies of runs: where they lie, whether they are of the run, and which go together.

``solo-hardneg analyze`` writes ``analysis/study.npz`` into a run's folder or, for several
checkpoints of one run, ``analysis/CHECKPOINT/study.npz``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo_hardneg.analysis import study as studies
from solo_hardneg.analysis.study import Study
from solo_hardneg.errors import HardnegError

if TYPE_CHECKING:
    from solo_hardneg.analysis.groups import Group

MISSING = (
    "there is no study of a checkpoint below its analysis/; make one with: solo-hardneg analyze "
    "FOLDER (without out=..., so that it is written there)."
)
_WHOSE = ("method", "seed")  # a study that differs from its run in these is another run's
# Studies that differ in these measure different things.
_SAME = ("epoch", "dataset", "split", "views", "queries", "negatives", "projector", "predicted")
_DRAWN = "study_seed"  # which images are drawn; that adds chance, and no more


def newest(folder: Path, args: Mapping[str, Any], epochs: int) -> tuple[Study | None, list[str]]:
    """The study of a run's latest epoch, and what to mind.

    Args:
        folder: of the run.
        args: its config.
        epochs: how many have been trained; 0 if unknown.
    """
    found: list[tuple[Path, Study]] = []
    texts = []
    for file in sorted((folder / "analysis").rglob("study.npz"), key=lambda f: len(f.parts)):
        try:
            one = studies.load(file)
        except HardnegError as error:
            texts.append(f"its study is left out. {error}")
            continue
        other = _other(one, args)
        if other:
            where = file.relative_to(folder).as_posix()
            texts.append(f"{where} is left out: it is of a run with {', '.join(other)}.")
        else:
            found.append((file, one))
    if not found:
        return None, texts or [MISSING]
    epoch = {file: _epoch(one) for file, one in found}
    file, one = max(found, key=lambda pair: epoch[pair[0]])  # of several, the first
    if len(found) > 1:
        where = file.relative_to(folder).as_posix()
        texts.append(f"has {len(found)} studies; that of the latest epoch, {where}, counts.")
    return one, [*texts, *one.notes, *_outdated(one, folder, args, epochs)]


def _epoch(one: Study) -> int:
    epoch = one.info.get("epoch")
    return epoch if isinstance(epoch, int) else 0


def _other(one: Study, args: Mapping[str, Any]) -> list[str]:
    """By what a study's run is known to be another one."""
    known = [key for key in _WHOSE if one.info.get(key) is not None and args.get(key) is not None]
    return [f"{key}={one.info[key]}" for key in known if one.info[key] != args[key]]


def _outdated(one: Study, folder: Path, args: Mapping[str, Any], epochs: int) -> list[str]:
    texts = []
    name = str(one.info.get("checkpoint") or "").replace("\\", "/").split("/")[-1]
    if name and not (folder / name).is_file():
        texts.append(f"the checkpoint of its study, {name}, is not there any more.")
    if 0 < _epoch(one) < epochs:
        texts.append(f"its study is of epoch {_epoch(one)}; it was trained on to epoch {epochs}.")
    data = args.get("data")
    dataset = data.get("dataset") if isinstance(data, Mapping) else None
    if None not in (dataset, one.info.get("dataset")) and one.info["dataset"] != dataset:
        texts.append(f"its study is of images of {one.info['dataset']}, not of {dataset}.")
    return texts


def together(groups: Sequence[Group]) -> tuple[dict[str, list[Study]], list[tuple[str, str]]]:
    """The studies of each group that can be taken together, and notes: where, and what.

    Of a group's studies those are left out that differ from most in what they measure.
    """
    kept: dict[str, list[Study]] = {}
    notes = []
    for group in groups:
        pairs = [(run, run.study) for run in group.runs if run.study is not None]
        if not pairs:
            continue
        most = Counter(_settings(study) for _, study in pairs).most_common(1)[0][0]
        for run, study in pairs:
            mine = _settings(study)
            if mine == most:
                kept.setdefault(group.label, []).append(study)
            else:
                what = _difference(mine, most)
                text = (
                    f"its study is left out, because it differs from those of other seeds: {what}."
                )
                notes.append((run.title, text))
        seeds = {study.info.get(_DRAWN) for study in kept[group.label]}
        if len(seeds) > 1:
            text = "its studies draw different images (seed=), so their spread is of these, too."
            notes.append((group.label, text))
    return kept, [*notes, *_unfair(groups, kept)]


def _settings(study: Study) -> tuple[tuple[str, Any], ...]:
    given = {"predicted": "", **study.info, "percentiles": len(study.similarity)}
    return tuple((key, given.get(key)) for key in (*_SAME, "percentiles"))


def _difference(one: tuple[Any, ...], most: tuple[Any, ...]) -> str:
    pairs = zip(one, most, strict=True)
    return ", ".join(f"{mine[0]} {mine[1]}, not {its[1]}" for mine, its in pairs if mine != its)


def _unfair(groups: Sequence[Group], kept: Mapping[str, Sequence[Study]]) -> list[tuple[str, str]]:
    """What differs between groups on the same data, which their figures lay side by side."""
    values: dict[tuple[str, str], set[str]] = {}
    for group in groups:
        dataset = group.settings.get("data.dataset", "unknown")
        for study in kept.get(group.label, ())[:1]:
            for key, value in _settings(study):
                if key != "epoch":  # it follows from max_epochs, which the report shows
                    values.setdefault((dataset, key), set()).add(str(value))
    return [
        (
            f"studies of the runs on {dataset}",
            f"they differ in {key} ({', '.join(sorted(several))}), so they can't be fairly "
            "compared.",
        )
        for (dataset, key), several in sorted(values.items())
        if len(several) > 1
    ]
