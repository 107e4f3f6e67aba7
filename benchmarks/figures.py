"""The README's pictures and tables, from the CSVs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.provenance import HERE
from solo_hardneg.analysis import plots

DOCS = HERE.parent / "docs"
# What was aimed at: (K, policy, candidate) → time and memory, as ratios to the host's loss.
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


def loss_rows(queries: int = 256, dimensions: int = 128) -> pd.DataFrame:
    """The rows of one N and D."""
    rows = pd.read_csv(HERE / "loss.csv")
    return rows[(queries == rows.N) & (dimensions == rows.D)]


def target_table() -> pd.DataFrame:
    """What was aimed at, and what was measured."""
    rows = loss_rows()
    found = []
    for keys, policy, candidate, time, memory in TARGETS:
        same = (keys == rows.K) & (rows.policy == policy) & (rows.candidate == candidate)
        for _, row in rows[same].iterrows():
            spread = f"{row.ratio:.2f} ({row.ratio_p20:.2f}-{row.ratio_p80:.2f})"
            found.append(
                {
                    **{"K": f"{keys:,}", "policy": policy, "backend": candidate},
                    **{"time": spread, "aim": f"≤ {time}"},
                    **{
                        "memory": f"{row.memory_ratio:.2f}",
                        "aim of memory": f"≤ {memory}" if memory else "",
                    },
                }
            )
    return pd.DataFrame(found)


def main_table(keys: tuple[int, ...] = (4096, 16384, 65536)) -> pd.DataFrame:
    """Time as a ratio to the host's loss, candidate by K; and memory at the largest."""
    rows = loss_rows()
    wide = rows.pivot_table(
        index=["policy", "candidate"], columns="K", values=["ratio", "memory_ratio"], sort=False
    )
    wide = wide[wide["ratio"][list(keys)].notna().any(axis=1)]
    table = pd.DataFrame({f"K = {k:,}": wide["ratio"][k].map("{:.2f}".format) for k in keys})
    table["memory"] = wide["memory_ratio"][keys[-1]].map("{:.2f}".format)
    return table.replace("nan", "").reset_index()


def loader_table() -> pd.DataFrame:
    """What makes the views of CIFAR-100: images per second, both views of an image as one."""
    rows = pd.read_csv(HERE / "loader.csv").sort_values(["threads", "images_s"])
    names = {"standalone": "PIL", "kornia": "kornia, batched", "resident": "data.format=resident"}
    spread = rows["images_s"].map("{:,.0f}".format)
    spread += rows["images_s_p20"].map(" ({:,.0f}".format)
    spread += rows["images_s_p80"].map("-{:,.0f})".format)
    return pd.DataFrame(
        {
            "views made by": rows["loader"].map(names),
            "workers": rows["workers"].where(rows["workers"] > 0, ""),
            "threads": rows["threads"],
            "images per second": spread,
        }
    )


def load_table() -> pd.DataFrame:
    """Whole runs inside solo-learn: steps and images per second, and a step's time as a ratio."""
    rows = pd.read_csv(HERE / "load.csv")
    rows = rows[rows["device"] == rows["device"].iloc[-1]]
    spread = rows["ratio"].map("{:.2f}".format)
    spread += rows["ratio_p20"].map(" ({:.2f}".format) + rows["ratio_p80"].map("-{:.2f})".format)
    return pd.DataFrame(
        {
            "data.format": rows["format"],
            "run": rows["run"],
            "steps per second": rows["steps_s"].map("{:.2f}".format),
            "images per second": rows["images_s"].map("{:.0f}".format),
            "a step's time": spread,
        }
    )


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown."""
    lines = [table.columns, ["---"] * len(table.columns), *table.astype(str).to_numpy()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _lines(
    rows: pd.DataFrame, over: str, value: str, which: list[tuple[str, str]], title: str, up: str
) -> plots.Plot:
    """One line for each (candidate, policy), on logarithmic axes."""
    figure, axes = plots.new(title, f"{over} (keys)" if over == "K" else over, up)
    for (candidate, policy), look in zip(which, plots.looks(len(which)), strict=True):
        same = rows[(rows.candidate == candidate) & (rows.policy == policy)].sort_values(over)
        axes.plot(same[over], same[value], label=f"{candidate}: {policy}", **look)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    if value.endswith("ratio"):
        axes.axhline(1.0, color=plots.NEUTRAL, linewidth=1)
    plots.below(figure, axes, columns=1)
    return plots.Plot(figure, title)


def save_plots(folder: Path = DOCS) -> list[Path]:
    """Writes the pictures."""
    rows = loss_rows()
    host = rows[rows.policy == "plain"].candidate.iloc[0]
    host = next((name for name in rows.candidate if "solo" in name or "host" in name), host)
    hardest = [(name, "hardest 5 %") for name in ("sort and mask", "topk", "chunked", "numba")]
    ours = [*hardest, ("numba", "plain"), ("numba", "without the hardest 0.1 %")]
    grow = [(host, "plain"), ("chunked", "hardest 5 %"), ("numba", "hardest 5 %")]
    over_queries = pd.read_csv(HERE / "loss.csv")
    over_queries = over_queries[(over_queries.K == 65536) & (over_queries.D == 128)]
    made = {
        "loss-time": (rows, "K", "ratio", ours, "Time, the host's loss = 1", "ratio"),
        "loss-memory": (rows, "K", "memory_ratio", ours, "Peak memory, the host's = 1", "ratio"),
        "scaling-keys": (rows, "K", "ms", grow, "Time, N = 256", "milliseconds"),
        "scaling-queries": (over_queries, "N", "ms", grow, "Time, K = 65,536", "milliseconds"),
    }
    paths = []
    for name, (of, over, value, which, title, up) in made.items():
        if of[over].nunique() < 3:
            continue
        with plots.style():
            plot = _lines(of, over, value, which, title, up)
        paths.append(folder / f"{name}.png")
        plots.save_png(plot.figure, paths[-1])
    return paths
