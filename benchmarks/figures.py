"""The README's figures and tables, from the CSVs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.provenance import HERE
from solo_hardneg.study import plots

DOCS = HERE.parent / "docs"
# K, policy, candidate → targets of time and memory, as ratios to solo-learn's loss.
TARGETS: list[tuple[int, str, str, float, float | None]] = [
    (65536, "hardest 5 %", "numba", 0.25, 0.12),
    (65536, "hardest 5 %", "numba, the host's queue", 0.35, 0.12),
    (65536, "hardest 5 %", "chunked", 0.8, 0.12),
    (65536, "plain", "numba", 0.5, 0.12),
    (65536, "plain", "chunked", 0.5, 0.12),
    (65536, "without the hardest 0.1 %", "numba", 0.5, 0.12),
    (4096, "hardest 5 %", "auto", 0.8, 0.3),
    (65536, "sscl", "auto", 2.0, 0.5),
    (16384, "sscl", "auto", 1.5, 0.5),
    (4096, "sscl", "auto", 2.5, None),
]


def read_losses(**sizes: int) -> pd.DataFrame:
    """The rows of ``loss.csv`` with these values of N, K or D."""
    rows = pd.read_csv(HERE / "loss.csv")
    return rows[(rows[list(sizes)] == pd.Series(sizes)).all(axis=1)]


def target_table() -> pd.DataFrame:
    """What was aimed at and what was measured, at N = 256 and D = 128."""
    names = ["K", "policy", "candidate", "aim", "aim of memory"]
    targets = pd.DataFrame(TARGETS, columns=names)
    rows = targets.merge(read_losses(N=256, D=128), on=names[:3], how="inner")
    memory_aim = rows["aim of memory"].map("≤ {}".format).where(rows["aim of memory"].notna(), "")
    return pd.DataFrame(
        {
            "K": rows["K"].map("{:,}".format),
            "policy": rows["policy"],
            "backend": rows["candidate"],
            "time": _with_spread(rows, "ratio", "{:.2f}"),
            "aim": rows["aim"].map("≤ {}".format),
            "memory": rows["memory_ratio"].map("{:.2f}".format),
            "aim of memory": memory_aim,
        }
    )


def main_table(keys: tuple[int, ...] = (4096, 16384, 65536)) -> pd.DataFrame:
    """Ratio of time by candidate and K, and of memory at the largest K."""
    wide = read_losses(N=256, D=128).pivot_table(
        index=["policy", "candidate"], columns="K", values=["ratio", "memory_ratio"], sort=False
    )
    wide = wide[wide["ratio"][list(keys)].notna().any(axis=1)]
    table = pd.DataFrame({f"K = {k:,}": wide["ratio"][k].map("{:.2f}".format) for k in keys})
    table["memory"] = wide["memory_ratio"][keys[-1]].map("{:.2f}".format)
    return table.replace("nan", "").reset_index()


def loader_table() -> pd.DataFrame:
    """Images of CIFAR-100 per second, both views of an image counted as one."""
    rows = pd.read_csv(HERE / "loader.csv").sort_values(["threads", "images_s"])
    names = {"standalone": "PIL", "kornia": "kornia, batched", "resident": "data.format=resident"}
    return pd.DataFrame(
        {
            "views made by": rows["loader"].map(names),
            "workers": rows["workers"].where(rows["workers"] > 0, ""),
            "threads": rows["threads"],
            "images per second": _with_spread(rows, "images_s", "{:,.0f}"),
        }
    )


def _with_spread(rows: pd.DataFrame, column: str, form: str) -> pd.Series:
    """Formats medians, with the 20th and 80th percentile in brackets."""
    low, middle, high = (
        rows[f"{column}{suffix}"].map(form.format) for suffix in ("_p20", "", "_p80")
    )
    return middle + " (" + low + "-" + high + ")"


def as_markdown_table(table: pd.DataFrame) -> str:
    """Formats a table in Markdown."""
    lines = [table.columns, ["---"] * len(table.columns), *table.astype(str).to_numpy()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _draw_lines(
    rows: pd.DataFrame, x: str, y: str, lines: list[tuple[str, str]], title: str, label: str
) -> Figure:
    """Draws a line for each (candidate, policy) on logarithmic axes."""
    figure, axes = plots.new_figure(title, "K (keys)" if x == "K" else x, label)
    for (candidate, policy), look in zip(lines, plots.line_styles(len(lines)), strict=True):
        same = rows[(rows.candidate == candidate) & (rows.policy == policy)].sort_values(x)
        axes.plot(same[x], same[y], label=f"{candidate}: {policy}", **look)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    if y.endswith("ratio"):
        axes.axhline(1.0, color=plots.NEUTRAL, linewidth=1)
    plots.legend_below(figure, axes)
    return figure


def save_plots(folder: Path = DOCS) -> list[Path]:
    """Writes the figures and returns their paths."""
    over_keys, over_queries = read_losses(N=256, D=128), read_losses(K=65536, D=128)
    hardest = [(name, "hardest 5 %") for name in ("sort and mask", "topk", "chunked", "numba")]
    lines = [*hardest, ("numba", "plain"), ("numba", "without the hardest 0.1 %")]
    reference = next(name for name in over_keys.candidate if name.startswith("solo-learn"))
    growing = [(reference, "plain"), ("chunked", "hardest 5 %"), ("numba", "hardest 5 %")]
    figures = {
        "loss-time": (over_keys, "K", "ratio", lines, "Time, the host's loss = 1", "ratio"),
        "loss-memory": (
            *(over_keys, "K", "memory_ratio", lines),
            *("Peak memory, the host's = 1", "ratio"),
        ),
        "scaling-keys": (over_keys, "K", "ms", growing, "Time, N = 256", "milliseconds"),
        "scaling-queries": (over_queries, "N", "ms", growing, "Time, K = 65,536", "milliseconds"),
    }
    paths = []
    for name, content in figures.items():
        with plots.style():
            figure = _draw_lines(*content)
        paths.append(folder / f"{name}.png")
        plots.save_png(figure, paths[-1])
    return paths
