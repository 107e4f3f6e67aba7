"""Which negatives do MoCo and SimCLR need? Several choices, on real images.

Trains and evaluates on the 1,797 handwritten digits that scikit-learn ships, so nothing is
downloaded; then looks at the negatives of the runs, and lays them side by side in a report. What is
there already is not done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.rule import Rule
from rich.table import Table

import solo_hardneg

# Small enough for two cores and some minutes; everything else is as the configs have it.
SMALL = (
    "data=digits",
    "optimizer.batch_size=64",
    "scheduler.warmup_epochs=2",
    "knn_eval.enabled=True",
    "hardness.enabled=True",
    "hardness.every_n_steps=11",  # of 22 in an epoch
)
MOCO = ("optimizer.lr=0.12", "method_kwargs.queue_size=1024")
SIMCLR = ("optimizer.lr=0.4",)


@dataclass(frozen=True)
class Choice:
    """One row of the table.

    Attributes:
        name: the folder of its runs.
        title: what it is, for a person.
        config: the config's name.
        overrides: what differs from it, beside what all have.
        baseline: the name of the choice that it is compared with; its own for a baseline.
    """

    name: str
    title: str
    config: str
    overrides: tuple[str, ...]
    baseline: str


def _moco(name: str, title: str, *more: str) -> Choice:
    return Choice(name, title, "mocov2_banded", (*MOCO, *more), "all")


def _simclr(name: str, title: str, *more: str, config: str = "simclr_sscl") -> Choice:
    return Choice(name, title, config, (*SIMCLR, *more), "simclr")


ALL = _moco("all", "all (MoCo v2)", "negatives=all")
HARDEST = _moco("hardest_5", "hardest 5 %", "negatives=hardest_5")
BANDS = (ALL, HARDEST, _moco("easiest_95", "easiest 95 %", "negatives=easiest_95"))
# As SSCL has them, s is an eighth of the batch and k a thirty-second (section 4.1.2); as MoCHi has
# them, s and k are a sixteenth of the queue and k' a hundred and twenty-eighth.
_BATCH = ("negatives.mix.hardest=8", "negatives.mix.pairs=2")
_QUEUE = ("negatives.mix.hardest=64", "negatives.mix.pairs=64", "negatives.mix.queries=8")
METHODS = (
    _simclr("simclr", "SimCLR", config="simclr"),
    _simclr("dcl", "DCL", "negatives=dcl"),
    _simclr("hcl", "HCL", "negatives=hcl"),
    _simclr("sscl", "SSCL", "negatives=sscl", *_BATCH),
    replace(ALL, title="MoCo v2"),
    _moco("mochi", "MoCHi", "negatives=mochi", *_QUEUE),
    replace(HARDEST, title="banded, hardest 5 %"),
    _moco("curriculum", "curriculum", "negatives=curriculum"),
)
STUDY = ("queries=700", "negatives=700")  # of 1,437 images
LINEAR = ("data=digits", "optimizer.batch_size=64", "optimizer.lr=4.0")
console = Console()


@dataclass(frozen=True)
class Outcome:
    """What one step left behind: the newest checkpoint, its metrics in percent, its seconds."""

    folder: str
    checkpoint: str
    metrics: dict[str, float]
    seconds: float


def main(
    methods: Annotated[
        bool,
        typer.Option(
            "--methods",
            help="compare SimCLR, DCL, HCL, SSCL, MoCo v2, MoCHi, banded and curriculum "
            "instead of three bands",
        ),
    ] = False,
    out: Annotated[Path, typer.Option(help="where runs and results go, from the checkout")] = Path(
        "runs/quickstart"
    ),
    epochs: Annotated[int, typer.Option(min=1, help="epochs of pretraining")] = 10,
    linear_epochs: Annotated[int, typer.Option(min=1, help="epochs of linear evaluation")] = 15,
    seed: Annotated[int, typer.Option(help="seed of everything random")] = 5,
) -> None:
    """Train and evaluate on several choices of negatives, and print one table."""
    os.environ["SOLO_HARDNEG_HOST"] = "standalone"  # solo-learn knows no digits
    from solo_hardneg.standalone import run

    began = time.time()
    results: dict[str, tuple[Outcome, Outcome]] = {}
    common = (f"seed={seed}", "++log_every_n_steps=10")
    choices = METHODS if methods else BANDS
    for number, choice in enumerate(choices, 1):
        console.print(Rule(f"{number} of {len(choices)}: {choice.title}"))
        home = out / choice.name
        pretrained = step(
            home,
            "pretrain",
            run.pretrain,
            choice.config,
            (*SMALL, *common, *choice.overrides, f"max_epochs={epochs}"),
        )
        source = f"pretrained_feature_extractor='{pretrained.checkpoint}'"
        evaluated = step(
            home,
            "linear",
            run.linear,
            "linear",
            (*LINEAR, *common, source, f"max_epochs={linear_epochs}"),
        )
        results[choice.name] = pretrained, evaluated
    kind = "methods" if methods else "table"
    tabulate(out / f"{kind}.md", choices, results)
    look(out / f"report-{kind}", results)
    console.print(f"{time.time() - began:.0f} seconds in all.")


def step(
    home: Path,
    name: str,
    job: Callable[[DictConfig], Any],
    config: str,
    overrides: tuple[str, ...],
) -> Outcome:
    """Runs one job, unless its outcome for the very same settings is there."""
    overrides = (*overrides, f"checkpoint.dir='{home.resolve()}'")
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        cfg = compose(config, list(overrides))
    settings = json.dumps(OmegaConf.to_container(cfg, resolve=True), sort_keys=True)
    key = hashlib.sha256(f"{solo_hardneg.__version__} {settings}".encode()).hexdigest()[:16]
    path = home / f"{name}.json"
    if path.is_file():
        stored = json.loads(path.read_text())
        if stored.pop("key") == key and Path(stored["checkpoint"]).is_file():
            console.print(f"{name}: there already, {stored['checkpoint']}")
            return Outcome(**stored)
    console.print(f"solo-hardneg {name} --config-name {config} {' '.join(overrides)}", style="dim")
    began = time.time()
    result = job(cfg)
    outcome = Outcome(
        folder=str(result.folder),
        checkpoint=str(result.checkpoint),
        metrics=result.metrics,
        seconds=time.time() - began,
    )
    home.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps({"key": key, **asdict(outcome)}, indent=1))
    partial.replace(path)  # a killed run leaves no half of a result
    return outcome


def look(out: Path, results: dict[str, tuple[Outcome, Outcome]]) -> None:
    """Studies the trained encoders, and reports all that was seen, as one HTML file."""
    from solo_hardneg.analysis.analyze import analyze
    from solo_hardneg.analysis.report import report

    console.print(Rule("analysing and reporting"))
    for pretrained, _ in results.values():
        study = Path(pretrained.folder) / "analysis" / "study.npz"
        if not study.is_file():
            analyze([pretrained.folder], STUDY)
    folders = [Path(outcome.folder) for pair in results.values() for outcome in pair]
    page = report(folders, out, title="Handwritten digits: which negatives are needed?")
    console.print(f"The report: {page.resolve()}", soft_wrap=True)


def tabulate(
    markdown: Path, choices: tuple[Choice, ...], results: dict[str, tuple[Outcome, Outcome]]
) -> None:
    """Prints the table, and writes it as Markdown beside the runs."""
    columns = ["negatives", "linear", "diff", "kNN", "diff", "online", "kept", "made"]
    rows = [[choice.title, *cells(choice, results)] for choice in choices]
    table = Table(title="Top-1 accuracy in percent, on 360 digits that were never trained on")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    markdown.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))
    console.print("diff: to the nearest row above that has none, its baseline.")
    console.print("kept: how many negatives each query meets at the end; made: of them synthetic.")
    console.print("One seed and a small set: differences of up to three points are noise.")
    for choice in choices:
        places = " and ".join(str(Path(o.folder).resolve()) for o in results[choice.name])
        console.print(f"{choice.title}: {places}", soft_wrap=True)
    console.print(f"The table: {markdown.resolve()}", soft_wrap=True)


def cells(choice: Choice, results: dict[str, tuple[Outcome, Outcome]]) -> list[str]:
    """A row of the table, without its title."""
    pretrained, evaluated = (outcome.metrics for outcome in results[choice.name])
    base = results.get(choice.baseline)
    row = []
    for metric in ("val_acc1", "val_knn_acc1"):
        other = None if base is None or choice.name == choice.baseline else base[1].metrics[metric]
        row.append(f"{evaluated[metric]:.1f}")
        row.append("" if other is None else f"{evaluated[metric] - other:+.1f}")
    row.append(f"{pretrained['val_acc1']:.1f}")
    # The baselines of the hosts keep all, and say nothing.
    kept, made = (pretrained.get(f"negatives/{n}_step") for n in ("present", "synthetic"))
    return [*row, "all" if kept is None else f"{kept:.0f}", "" if made is None else f"{made:.0f}"]


if __name__ == "__main__":
    typer.run(main)
