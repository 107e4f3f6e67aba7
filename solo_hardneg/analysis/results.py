"""What ``solo-hardneg analyze`` leaves behind: studies in groups, figures, tables and a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from solo_hardneg.analysis import plots
from solo_hardneg.analysis.figures import figures, tsne
from solo_hardneg.analysis.groups import group as groups_of
from solo_hardneg.analysis.plots import Plot
from solo_hardneg.analysis.runs import Run
from solo_hardneg.analysis.study import QUANTITIES, Study, class_pairs, t_tests
from solo_hardneg.analysis.tables import markdown as markdown_of
from solo_hardneg.analysis.tables import plain
from solo_hardneg.analysis.untrusted import file_name, for_spreadsheets, no_links, write_text
from solo_hardneg.errors import DataError

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import Console

_TABLES = {"anti-correlated": "A4", "correlated": "A5", "orthogonal": "A6"}


@dataclass(frozen=True)
class Studied:
    """A study, the checkpoint that it is of, and the config of its run."""

    study: Study
    file: Path
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """What was found and written.

    Attributes:
        groups: the studies by label; those of one group are of runs that differ in their seed.
        folder: of figures, tables and ``summary.md``.
        written: all files.
        notes: what is missing, and why.
    """

    groups: Mapping[str, Sequence[Study]]
    folder: Path
    written: Sequence[Path]
    notes: Sequence[str]

    @property
    def studies(self) -> list[Study]:
        """All of them."""
        return [study for studies in self.groups.values() for study in studies]


def write(done: Sequence[Studied], out: Path | None) -> Results:
    """Writes the studies, and what compares them.

    Args:
        done: one or several, each with its own checkpoint.
        out: where to; None: each study beside its checkpoint, in ``analysis``, with figures and
            tables if it is the only one, and else these into ``./analysis``.

    Raises:
        DataError: a folder can't be written to.
    """
    indexes = group(done)
    places = _places(done, indexes, out)
    single = len(done) == 1
    folder = places[0] if single else (out or Path("analysis"))
    written = []
    groups: dict[str, list[Study]] = {}
    for label, members in indexes.items():
        for index in members:
            info = {**done[index].study.info, "group": label}
            study = replace(done[index].study, info=info)
            groups.setdefault(label, []).append(study)
            study.save(places[index] / "study.npz")
            written.append(places[index] / "study.npz")
    notes = _notes(groups)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = _write_figures(groups, folder)
        tables = _write_tables(groups, folder)
        summary = folder / "summary.md"
        text = _summary(groups, made, tables, notes)
        write_text(summary, text)
    except OSError as error:
        do = "Set out=... to a folder that can be written to"
        raise DataError(f"{folder}: can't be written to ({error}). {do}.") from error
    pictures = [folder / f"{name}.{ending}" for name in made for ending in ("png", "svg")]
    csvs = [folder / f"{name}.{ending}" for name in tables for ending in ("csv", "md")]
    return Results(groups, folder, [*written, *pictures, *csvs, summary], notes)


def _places(
    done: Sequence[Studied], indexes: Mapping[str, Sequence[int]], out: Path | None
) -> list[Path]:
    """The folder of each study; no two have the same."""
    if out is not None and len(done) == 1:
        return [out]
    label_of = {index: label for label, members in indexes.items() for index in members}
    places = []
    folders = [one.file.resolve().parent for one in done]
    for index, one in enumerate(done):
        if out is not None:
            seed = one.config.get("seed")
            name = label_of[index] + ("" if seed is None else f"-seed{seed}")
            place = out / file_name(name)
        else:
            place = one.file.parent / "analysis"
            if folders.count(folders[index]) > 1:  # several checkpoints of one run
                place = place / file_name(one.file.stem)
        number = 2
        first = place
        while place in places:
            place = first.with_name(f"{first.name}-{number}")
            number += 1
        places.append(place)
    return places


def group(done: Sequence[Studied]) -> dict[str, list[int]]:
    """Which studies are of seeds of one another, by a label that says what they are."""
    runs = []
    for one in done:
        # Without a config nobody knows whether two checkpoints are of one kind.
        known = one.config or {"method": str(one.file)}
        args = {**known, "epoch": one.study.info.get("epoch")}
        runs.append(Run(one.file.parent, args))
    places = {id(run): place for place, run in enumerate(runs)}
    found = groups_of(runs, [], one_per_seed=False)
    return {one.label: [places[id(run)] for run in one.runs] for one in found}


def _notes(groups: Mapping[str, Sequence[Study]]) -> list[str]:
    notes = []
    for label, studies in groups.items():
        seeds = [study.info.get("seed") for study in studies]
        if len(set(seeds)) < len(seeds):
            text = "of these runs several have the same seed, so their spread says little"
            notes.append(f"{label}: {text}.")
        if len(studies) > 1:
            continue
        if len(groups) == 1:
            notes.append("One run: no error bars and no t-tests. Add runs that differ in seed=.")
    found = [note for studies in groups.values() for study in studies for note in study.notes]
    return [*dict.fromkeys(found), *notes]


# ---------------------------------------------------------------------- files


def _write_figures(groups: Mapping[str, Sequence[Study]], folder: Path) -> dict[str, Plot]:
    with plots.style():
        made = figures(groups)
        total = sum(len(studies) for studies in groups.values())
        for label, studies in groups.items():
            for number, study in enumerate(studies):
                if len(study.tsne):
                    several = f"-{file_name(label)}" + (f"-{number + 1}" if number else "")
                    made[f"tsne{several if total > 1 else ''}"] = tsne(study)
    for name, plot in made.items():
        plots.save_png(plot.figure, folder / f"{name}.png")
        plots.save_svg(plot.figure, folder / f"{name}.svg", plot.alt)
    return made


def _write_tables(groups: Mapping[str, Sequence[Study]], folder: Path) -> dict[str, DataFrame]:
    tables = {"hard-and-easy": means(groups), "percentiles": by_percentile(groups)}
    tests = [t_tests(studies).assign(group=label) for label, studies in groups.items()]
    import pandas as pd

    tables["t-tests"] = pd.concat(tests, ignore_index=True)
    tables["t-tests"].insert(0, "group", tables["t-tests"].pop("group"))
    for label, studies in groups.items():
        for kind, table in class_pairs(together(studies)).items():
            if len(table):
                several = f"-{file_name(label)}" if len(groups) > 1 else ""
                tables[f"table-{_TABLES[kind]}-{kind}{several}"] = table
    for name, table in tables.items():
        csv = for_spreadsheets(table).to_csv(index=False, lineterminator="\n")
        write_text(folder / f"{name}.csv", csv)
        write_text(folder / f"{name}.md", markdown(table))
    return tables


def together(studies: Sequence[Study]) -> Study:
    """The first study with the class means of all: each pair of images counts once."""
    if len({tuple(study.class_names) for study in studies}) > 1:
        return studies[0]
    number = np.sum([study.class_number for study in studies], axis=0)
    sums = [np.nan_to_num(study.class_mean) * study.class_number for study in studies]
    with np.errstate(invalid="ignore"):
        mean = np.sum(sums, axis=0) / number
    return replace(studies[0], class_mean=mean, class_number=number)


def means(groups: Mapping[str, Sequence[Study]]) -> DataFrame:
    """The values of figure 4: a row for each study, columns ``QUANTITY/PART``."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for label, studies in groups.items():
        for study in studies:
            row: dict[str, Any] = {"group": label, "seed": study.info.get("seed")}
            parts = ("hardest_5", "easiest_95", "all")
            keys = [f"{name}/{part}" for name in QUANTITIES for part in parts]
            rows.append({**row, **{key: study.scalars.get(key, np.nan) for key in keys}})
    return pd.DataFrame(rows)


def by_percentile(groups: Mapping[str, Sequence[Study]]) -> DataFrame:
    """The values of figure 5: a row for each study and percentile (0 = easiest)."""
    import pandas as pd

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


def markdown(table: DataFrame) -> str:
    """A table in Markdown; numbers have four significant digits, unknown ones are empty."""

    def shown(value: Any) -> str:
        if value is None or value != value:
            return ""
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    # Column by column, for pandas would make floats of a row's whole numbers.
    texts = {name: [shown(value) for value in table[name]] for name in table.columns}
    return no_links(markdown_of(type(table)(texts)))


def show(results: Results, console: Console) -> None:
    """Prints the values of figure 4, what is missing, and where everything lies."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Negatives by difficulty: hardest 5 % / easiest 95 %")
    table.add_column("run", overflow="fold")
    for name in ("seeds", "similarity", "of the query's class", "depth in WordNet"):
        table.add_column(name, justify="right")
    for label, studies in results.groups.items():
        cells = []
        for name, form in (("similarity", ".3f"), ("same_class", ".1%"), ("depth", ".2f")):
            pair = [
                plots.mean_and_std([s.scalars.get(f"{name}/{part}", np.nan) for s in studies])[0]
                for part in ("hardest_5", "easiest_95")
            ]
            cells.append(" / ".join("-" if value != value else f"{value:{form}}" for value in pair))
        table.add_row(escape(label), str(len(studies)), *cells)
    console.print(table)
    for note in results.notes:
        console.print(f"- {note}", markup=False, highlight=False)
    console.print(f"Written: {results.folder / 'summary.md'}", markup=False, soft_wrap=True)
    for study in (path for path in results.written if path.name == "study.npz"):
        console.print(f"         {study}", markup=False, soft_wrap=True)


def _compared(info: Mapping[str, Any]) -> str:
    """Which vectors of a checkpoint the similarity is of."""
    if not info.get("projector"):
        return "features of the backbone"
    predicted = info.get("predicted")
    through = f", the {predicted} through the predictor" if predicted else ""
    return f"outputs of the projector{through}"


def _code(value: Any) -> str:
    """A text between backquotes."""
    return " ".join(str(value).split()).replace("`", "'")


def _summary(
    groups: Mapping[str, Sequence[Study]],
    made: Mapping[str, Plot],
    tables: Mapping[str, DataFrame],
    notes: Sequence[str],
) -> str:

    def text(value: Any) -> str:
        return no_links(plain(value))

    first = next(iter(groups.values()))[0].info
    parts = ["# The negatives of trained encoders\n"]
    what = (
        f"{text(first.get('queries'))} queries and {text(first.get('negatives'))} negatives of "
        f"{text(first.get('dataset'))} ({text(first.get('split'))} images, "
        f"{text(first.get('views'))} views), ranked "
        "by cosine similarity. As in Cai et al. 2020 (arXiv 2010.06682), section 4, the trained "
        "encoder embeds both, also where the loss has keys of a momentum encoder.\n"
    )
    parts.append(what)
    for label, studies in groups.items():
        found = ", ".join(f"`{_code(study.info.get('checkpoint'))}`" for study in studies)
        parts.append(f"- {text(label)}: {found}. Compared: {text(_compared(studies[0].info))}.")
    if notes:
        parts.append("\n## What is missing\n")
        parts += [f"- {text(note)}" for note in notes]
    parts.append("\n## Figures\n")
    for name, plot in made.items():
        alt = text(plot.alt)
        parts.append(f"![{alt}]({name}.png)\n\n{alt}\n")
    for name, table in tables.items():
        if name != "percentiles":  # hundreds of rows
            parts.append(f"## {name}\n\n{markdown(table)}")
    return "\n".join(parts)
