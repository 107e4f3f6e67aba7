"""``solo-hardneg report``: runs side by side in one HTML page, with CSVs.

The page needs no network: its figures are embedded. Jinja escapes all texts of configs, class names
and paths.
"""

from __future__ import annotations

import base64
import io
import math
import platform
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from solo_hardneg.errors import DataError, HardnegError
from solo_hardneg.files import write_atomically
from solo_hardneg.report import captions, distributions, tables
from solo_hardneg.report.comparison import Comparison, compare_groups
from solo_hardneg.report.history import differing_percentiles, epoch_history
from solo_hardneg.report.studies import studies_by_group
from solo_hardneg.runs.find import Note, find_runs
from solo_hardneg.runs.groups import (
    SETTING_NAMES,
    Group,
    describe_setting,
    differing_keys,
    find_baselines,
    group_runs,
)
from solo_hardneg.study import figures, plots
from solo_hardneg.study.measure import Study

_VERSIONS = ("solo-hardneg", "torch", "numpy", "pandas", "matplotlib")
_DPI = 130  # of scatter plots, which would be large as SVG


class Picture(NamedTuple):
    """A figure on the page.

    Attributes:
        uri: Data URI.
        caption: One sentence or two.
        alt: Alternative text.
        width, height: In CSS pixels.
    """

    uri: str
    caption: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Report:
    """The page's path, its numbers, and notes as (what, where)."""

    html: Path
    comparison: Comparison
    notes: Sequence[tuple[str, str]]


def write_report(
    paths: Iterable[Path | str],
    out: Path | str = "report",
    baseline: str | None = None,
    title: str | None = None,
) -> Report:
    """Writes ``report.html``, ``report.csv`` (groups) and ``runs.csv``.

    Args:
        paths: Folders of runs, or folders above them.
        out: Folder to write to.
        baseline: Label of the group that all are compared with.
        title: Title of the page.

    Raises:
        DataError: A path holds no run that can be read, or ``out`` can't be written to.
        ConfigError: No group has the label ``baseline``.
    """
    given, out = [Path(path) for path in paths], Path(out).expanduser()
    found = find_runs(given)
    notes = list(found.notes)
    groups = group_runs(found.runs, notes)
    comparison = compare_groups(groups, find_baselines(groups, baseline))
    histories = {g.label: [epoch_history(run) for run in g.runs] for g in groups}
    studies, study_notes = studies_by_group(groups)
    notes += [*comparison.notes, *differing_percentiles(histories), *study_notes]
    number = sum(g.seeds for g in groups)
    published = tables.published_table(comparison)
    remarks = [] if "here" in published else [captions.NO_LINEAR]
    with plots.style():
        training = [_embed(*item) for item in distributions.draw_run_figures(histories).items()]
        study_pictures = _embed_studies(studies, notes)
    context = {
        "title": title or f"Negatives in {number} run{'' if number == 1 else 's'}",
        "groups": len(groups),
        "accuracies": tables.accuracy_table(comparison, histories),
        "remarks": _remarks(comparison, baseline),
        "published": published,
        "paper_settings": " ".join([captions.PAPER_SETTINGS, *remarks]),
        "training": training,
        "studies": study_pictures,
        "pairs": tables.pair_tables(studies),
        "tests": tables.t_test_table(studies),
        "tests_caption": captions.TESTS,
        "runs": tables.last_values_table(groups),
        "shared": _shared_settings(groups),
        "terms": captions.TERMS,
        "notes": _merge_notes(notes, len(found.runs)),
        "command": _command(given, out, baseline, title),
        "versions": _versions(),
    }
    _write_files(out, context, tables.group_table(comparison, histories), groups)
    return Report(out / "report.html", comparison, context["notes"])


def _write_files(
    out: Path, context: Mapping[str, Any], table: pd.DataFrame, groups: Sequence[Group]
) -> None:
    # Versions of SciPy differ after ten digits.
    form: dict[str, Any] = {"index": False, "lineterminator": "\n", "float_format": "%.10g"}
    texts = {
        "report.html": render(context),
        "report.csv": table.to_csv(**form),
        "runs.csv": tables.run_table(groups).to_csv(**form),
    }
    try:
        for name, text in texts.items():
            write_atomically(out / name, text)
    except OSError as error:
        do = "Choose a folder that can be written to"
        raise DataError(f"--out={out}: the report can't be written ({error}). {do}.") from error


def render(context: Mapping[str, Any]) -> str:
    """The HTML page; every value is escaped."""
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    template = resources.files("solo_hardneg.report").joinpath("report.html.j2")
    return environment.from_string(template.read_text(encoding="utf-8")).render(context)


# ---------------------------------------------------------------------- figures


def _embed(name: str, figure: Figure, as_png: bool = False) -> Picture:
    """Embeds a figure; ``name`` is a key of ``CAPTIONS``, with or without a group's label."""
    kind, _, label = name.partition(" ")
    text, alt = captions.CAPTIONS[kind]
    uri = _png_uri(figure) if as_png else _svg_uri(figure)
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return Picture(uri, f"{text} {label}." if label else text, alt, width, height)


def _embed_studies(studies: Mapping[str, Sequence[Study]], notes: list[Note]) -> list[Picture]:
    """The papers' figures, and the t-SNE of each group's first seed that has one."""
    pictures = []
    try:
        pictures = [_embed(*item) for item in figures.draw_study_figures(studies).items()]
    except HardnegError as error:
        notes.append(Note("the studies", f"their figures are left out. {error}"))
    for label, several in studies.items():
        study = next((s for s in several if len(s.tsne)), None)
        if study is not None:
            many = len({*study.tsne_labels.tolist()} - {-1}) > figures.TSNE_CLASSES
            name = f"{'tsne_of_many' if many else 'tsne'} {label}"
            pictures.append(_embed(name, figures.draw_tsne(study), as_png=True))
    return pictures


def _svg_uri(figure: Figure) -> str:
    return _data_uri("image/svg+xml", compact_svg(plots.to_svg(figure)).encode())


def compact_svg(svg: str) -> str:
    """Shortens an SVG: coordinates of paths keep two decimals, a hundredth of a pixel."""

    def shorten(match: re.Match[str]) -> str:
        return re.sub(r"(\.\d\d)\d+", r"\1", " ".join(match[0].split()))

    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(?<= )d="[^"]*"', shorten, svg)
    return re.sub(r"\s*\n\s*", " ", svg)


def _png_uri(figure: Figure) -> str:
    out = io.BytesIO()
    plots.save_png(figure, out, _DPI)
    return _data_uri("image/png", out.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


# ---------------------------------------------------------------------- texts


def _remarks(comparison: Comparison, baseline: str | None) -> list[str]:
    """Remarks on the table of accuracies."""
    differences = [d for row in comparison.rows for d in row.differences.values()]
    remarks = [captions.UNITS]
    if differences:
        remarks.append(captions.BASELINE if baseline is None else f"Differences are to {baseline}.")
    if any(not math.isnan(d.p) for d in differences):
        remarks.append(captions.CORRECTED)
    return remarks


def _shared_settings(groups: Sequence[Group]) -> list[str]:
    """The settings that all groups have in common, of those that readers look for first."""
    varied = set(differing_keys(groups))
    known = [key for key in SETTING_NAMES if all(key in g.settings for g in groups)]
    known = [key for key in known if key not in varied]
    settings = {key: groups[0].settings[key] for key in known}
    if settings.get("data.fraction") == "-1":  # all data
        del settings["data.fraction"]
    return [describe_setting(key, value) for key, value in settings.items()]


def _merge_notes(notes: Iterable[Note], runs: int) -> list[tuple[str, str]]:
    """Each text once, with the runs that it is true of."""
    places: dict[str, list[str]] = {}
    for note in notes:
        where = places.setdefault(note.text, [])
        if note.where not in where:
            where.append(note.where)
    merged = []
    for text, where in places.items():
        more = f" and {len(where) - 4} more" if len(where) > 4 else ""
        joined = ", ".join(where[:4]) + more
        merged.append((text, "all runs" if len(where) == runs > 1 else joined))
    return merged


def _command(paths: Sequence[Path], out: Path, baseline: str | None, title: str | None) -> str:
    parts = ["solo-hardneg", "report", *map(str, paths), "--out", str(out)]
    parts += ["--baseline", baseline] if baseline else []
    parts += ["--title", title] if title else []
    return shlex.join(parts)


def _versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for name in _VERSIONS:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:  # a checkout that isn't installed
            continue
    return ", ".join(found)
