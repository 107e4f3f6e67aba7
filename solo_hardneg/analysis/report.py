"""``solo-hardneg report``: runs side by side, as one HTML file, as Markdown and as CSV.

The page stands alone: pictures are in it, and it asks for nothing from the network. Whatever comes
from configs, class names and paths is escaped.
"""

from __future__ import annotations

import base64
import io
import math
import platform
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

from solo_hardneg.analysis import (
    distributions,
    figures,
    plots,
    results,
    studied,
    study,
    tables,
    words,
)
from solo_hardneg.analysis.courses import course, unlike
from solo_hardneg.analysis.findings import sentences
from solo_hardneg.analysis.groups import WORDS, Group, baselines, differing, group, words_for
from solo_hardneg.analysis.plots import Plot
from solo_hardneg.analysis.runs import Note, find
from solo_hardneg.analysis.study import Study
from solo_hardneg.analysis.summary import METRICS, Summary, summarize
from solo_hardneg.analysis.untrusted import for_spreadsheets, no_links, write_text
from solo_hardneg.errors import DataError, HardnegError

_VERSIONS = ("solo-hardneg", "torch", "numpy", "pandas", "matplotlib")
_DPI = 130  # of scatter plots, which would be large as SVG


@dataclass(frozen=True)
class Picture:
    """A figure on the page.

    Attributes:
        name: what it shows, a key of ``words.CAPTIONS``.
        caption: one sentence or two.
        alt: what it shows, in numbers.
        light, dark: data URIs, for light and dark grounds.
        width, height: in CSS pixels.
    """

    name: str
    caption: str
    alt: str
    light: str
    dark: str
    width: int
    height: int


@dataclass(frozen=True)
class Report:
    """Where the report was written, its table, what it says on top, and (what, where) to mind."""

    html: Path
    summary: Summary
    sentences: Sequence[str]
    missing: Sequence[tuple[str, str]]


def report(
    paths: Iterable[Path | str],
    out: Path | str = "report",
    baseline: str | None = None,
    title: str | None = None,
) -> Path:
    """Writes ``report.html``, ``report.md``, ``report.csv`` and ``runs.csv``.

    Args:
        paths: folders of runs, or folders above them.
        out: the folder to write into; it is made if it isn't there.
        baseline: the label of the group that all are compared with.
        title: of the page.

    Returns:
        the path of the HTML file.

    Raises:
        DataError: a path holds no run that can be read, or ``out`` can't be written to.
        ConfigError: there is no group with the label ``baseline``.
    """
    return write(paths, out, baseline, title).html


def write(
    paths: Iterable[Path | str],
    out: Path | str = "report",
    baseline: str | None = None,
    title: str | None = None,
) -> Report:
    """As :func:`report`, and returns the table as well."""
    given, out = [Path(path) for path in paths], Path(out).expanduser()
    found = find(given)
    notes = list(found.notes)
    groups = group(found.runs, notes)
    summary = summarize(groups, baselines(groups, baseline))
    notes += summary.notes
    courses = {g.label: [course(run) for run in g.runs] for g in groups}
    studies, odd = studied.together(groups)
    notes += [*unlike(courses), *(Note(*pair) for pair in odd)]
    number = sum(g.seeds for g in groups)
    told, published = sentences(summary, courses), tables.beside(summary)
    context = {
        "title": title or f"Negatives in {number} run{'' if number == 1 else 's'}",
        "sentences": told,
        "results": tables.readable(summary),
        "remarks": _remarks(summary, baseline),
        "published": published,
        "settings": " ".join([words.SETTINGS, *([] if "here" in published else [words.NO_LINEAR])]),
        "training": _pictures(lambda: distributions.figures(courses)),
        "studied": _studied(studies, notes),
        "scatters": _scatters(studies),
        "pairs": _pairs(studies),
        "tests": _tests(studies),
        "tests_caption": words.TESTS,
        "runs": _runs(groups),
        "shared": _shared(groups),
        "terms": words.TERMS,
        "missing": _missing(notes, len(found.runs)),  # the studies' figures may have added some
        "command": _command(given, out, baseline, title),
        "versions": _versions(),
    }
    _save(out, context, summary, groups)
    return Report(out / "report.html", summary, told, context["missing"])


def _save(out: Path, context: Mapping[str, Any], summary: Summary, groups: Sequence[Group]) -> None:
    # Ten digits: what lies beyond them differs between versions of SciPy.
    plain: dict[str, Any] = {"index": False, "lineterminator": "\n", "float_format": "%.10g"}
    texts = {
        "report.html": page(context),
        "report.md": markdown(context),
        "report.csv": for_spreadsheets(tables.numbers(summary)).to_csv(**plain),
        "runs.csv": for_spreadsheets(tables.of_runs(groups)).to_csv(**plain),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(out / name, text)
    except OSError as error:
        do = "Choose a folder that can be written to"
        raise DataError(f"--out={out}: the report can't be written ({error}). {do}.") from error


def page(context: Mapping[str, Any]) -> str:
    """The HTML page; every value is escaped."""
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.globals["rows"] = lambda table: table.to_numpy(dtype=object).tolist()
    folder = resources.files("solo_hardneg.analysis")
    source = folder.joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(context)


def markdown(context: Mapping[str, Any]) -> str:
    """The tables, and what the figures show, as Markdown."""
    plain = tables.plain
    first, *others = map(plain, context["sentences"])
    parts = [f"# {plain(context['title'])}", first, "\n".join(f"- {text}" for text in others)]
    parts.append(tables.markdown(context["results"]).rstrip())
    parts += [plain(remark) for remark in context["remarks"]]
    if len(context["published"]):
        parts += ["## Beside the published numbers", tables.markdown(context["published"]).rstrip()]
        parts.append(context["settings"])
    pictures = [*context["training"], *context["studied"], *context["scatters"]]
    if pictures:
        items = [f"- {plain(picture.caption)} {plain(picture.alt)}" for picture in pictures]
        parts += ["## Figures", "In `report.html`:", "\n".join(items)]
    if context["missing"]:
        items = [f"- {plain(where)}: {plain(text)}" for text, where in context["missing"]]
        parts += ["## What is missing, and why", "\n".join(items)]
    return no_links("\n\n".join(parts) + "\n")


# ---------------------------------------------------------------------- pictures


def _pictures(make: Callable[[], Mapping[str, Plot]]) -> list[Picture]:
    """Makes figures twice, for light and for dark grounds."""
    versions = []
    for dark in (False, True):
        with plots.style(dark):
            versions.append({name: (plot, _svg(plot)) for name, plot in make().items()})
    light, dark_ones = versions
    return [_picture(name, plot, uri, dark_ones[name][1]) for name, (plot, uri) in light.items()]


def _studied(studies: Mapping[str, Sequence[Study]], notes: list[Note]) -> list[Picture]:
    """The papers' figures, or a note if the studies don't go together."""
    if not studies:
        return []
    try:
        return _pictures(lambda: figures.figures(studies))
    except HardnegError as error:
        notes.append(Note("the studies", f"their figures are left out. {error}"))
        return []


def _scatters(studies: Mapping[str, Sequence[Study]]) -> list[Picture]:
    """The t-SNE of each group's first seed that has one."""
    pictures = []
    for label, several in studies.items():
        one = next((s for s in several if len(s.tsne)), None)
        if one is None:
            continue
        uris = []
        for dark in (False, True):
            with plots.style(dark):
                plot = figures.tsne(one)
                uris.append(_png(plot, dark))
        many = len({*one.tsne_labels.tolist()} - {-1}) > figures.TSNE_CLASSES
        pictures.append(_picture(f"{'tsne_of_many' if many else 'tsne'} {label}", plot, *uris))
    return pictures


def _picture(name: str, plot: Plot, light: str, dark: str) -> Picture:
    kind, _, label = name.partition(" ")
    caption = words.CAPTIONS.get(kind, kind) + (f" {label}." if label else "")
    width, height = (round(96 * inches) for inches in plot.figure.get_size_inches())
    return Picture(kind, caption, plot.alt, light, dark, width, height)


def _svg(plot: Plot) -> str:
    return _uri("image/svg+xml", compact(plots.svg(plot.figure)).encode())


def compact(svg: str) -> str:
    """The same picture in fewer characters: a hundredth of a pixel is enough for its paths."""

    def shorter(match: re.Match[str]) -> str:
        return re.sub(r"(\.\d\d)\d+", r"\1", " ".join(match[0].split()))

    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(?<= )d="[^"]*"', shorter, svg)
    return re.sub(r"\s*\n\s*", " ", svg)


def _png(plot: Plot, dark: bool) -> str:
    out = io.BytesIO()
    ground, bare = plots.GROUND[dark], {"Software": None}
    plot.figure.savefig(out, format="png", dpi=_DPI, facecolor=ground, metadata=bare)
    return _uri("image/png", out.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


# ---------------------------------------------------------------------- tables and texts


def _remarks(summary: Summary, baseline: str | None) -> list[str]:
    """What to know of the main table."""
    remarks = ["Accuracies are in percent, differences in points."]
    if any(row.differences for row in summary.rows):
        remarks.append(words.TO_ALL if baseline is None else f"Differences are to {baseline}.")
    if any(not math.isnan(d.p) for row in summary.rows for d in row.differences.values()):
        remarks.append(words.CORRECTED)
    for row in summary.rows:
        if row.differing and row.baseline is not None:
            other = "; ".join(row.differing[:6])
            more = "" if len(row.differing) <= 6 else f" and {len(row.differing) - 6} more settings"
            remarks.append(
                f"{row.group.label} differs from {row.baseline.label} in more than the negatives: "
                f"{other}{more}."
            )
    return remarks


def _pairs(studies: Mapping[str, Sequence[Study]]) -> list[tuple[str, list[pd.DataFrame]]]:
    """Tables A4 to A6 of each group's seeds together."""
    found = []
    for label, several in studies.items():
        by_kind = study.class_pairs(results.together(several))
        shown = []
        for kind, table in by_kind.items():
            if len(table):
                texts = table.copy()
                texts["mean similarity"] = [f"{v:.3f}" for v in table["mean similarity"]]
                shown.append(texts.rename_axis(kind))
        if shown:
            found.append((label, shown))
    return found


def _tests(studies: Mapping[str, Sequence[Study]]) -> pd.DataFrame:
    """Hard against easy negatives over seeds, group by group."""
    parts = []
    for label, several in studies.items():
        table = study.t_tests(several)
        table = table[table["hardest 5 %"].notna() | table["easiest 95 %"].notna()]
        table.insert(0, "group", label)
        parts.append(table)
    if not parts:
        return pd.DataFrame()
    joined = pd.concat(parts, ignore_index=True)
    for name in joined.select_dtypes("number").columns.drop("seeds"):
        joined[name] = [f"{v:.3g}" if v == v else "" for v in joined[name]]
    return joined.astype(str)


def _runs(groups: Sequence[Group]) -> pd.DataFrame:
    table = tables.of_runs(groups)
    names = {f"{metric}_acc": title for metric, title in METRICS.items()}
    known = [name for name in names if table[name].notna().any()]
    columns = ["group", "seed", "name", "folder", "epochs", *known]
    columns += ["unfinished"] if (table["unfinished"] != "").any() else []
    shown = table[columns].copy()
    for name in known:
        shown[name] = [f"{v:.1f}" if v == v else "" for v in shown[name]]
    return shown.rename(columns=names)


def _shared(groups: Sequence[Group]) -> list[str]:
    """What all groups have in common, of the settings that a person asks for first."""
    varied = set(differing(groups))
    known = [key for key in WORDS if all(key in g.settings for g in groups)]
    known = [k for k in known if k != "data.fraction" or groups[0].settings[k] != "-1"]
    return [words_for(key, groups[0].settings[key]) for key in known if key not in varied]


def _missing(notes: Iterable[Note], runs: int) -> list[tuple[str, str]]:
    """Each text once, with the runs that it is true of."""
    places: dict[str, list[str]] = {}
    for note in notes:
        where = places.setdefault(note.text, [])
        if note.where not in where:
            where.append(note.where)
    return [
        (text, "all runs" if len(where) == runs > 1 else _joined(where))
        for text, where in places.items()
    ]


def _joined(where: Sequence[str]) -> str:
    more = f" and {len(where) - 4} more" if len(where) > 4 else ""
    return ", ".join(where[:4]) + more


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
        except metadata.PackageNotFoundError:  # run from a checkout that was not installed
            continue
    return ", ".join(found)
