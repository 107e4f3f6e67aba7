"""Which negatives do MoCo and SimCLR need? Compares several choices on real images.

Trains and evaluates on scikit-learn's 1,797 handwritten digits, so nothing is downloaded; then
analyzes the negatives of the runs and writes a report. Finished steps are not repeated.
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
from solo_hardneg.files import write_atomically

# Some minutes on two cores; everything else is as in the configs.
SMALL = (
    "data=digits",
    "optimizer.batch_size=64",
    "scheduler.warmup_epochs=2",
    "knn_eval.enabled=True",
    "hardness.enabled=True",
    "hardness.every_n_steps=11",  # twice per epoch
)
MOCO = ("optimizer.lr=0.12", "method_kwargs.queue_size=1024")
SIMCLR = ("optimizer.lr=0.4",)
LINEAR = ("data=digits", "optimizer.batch_size=64", "optimizer.lr=4.0")
STUDY = ("queries=700", "negatives=700")  # of 1,437 images
COLUMNS = ("negatives", "linear", "diff", "kNN", "diff", "online", "kept", "made")
console = Console()


@dataclass(frozen=True)
class Choice:
    """One row of the table.

    Attributes:
        name: Folder of the runs.
        title: First cell of the row.
        config: Name of the config.
        overrides: Overrides of this row alone.
        baseline: Name of the row to compare with; a baseline names itself.
    """

    name: str
    title: str
    config: str
    overrides: tuple[str, ...]
    baseline: str


def _moco(name: str, title: str, *overrides: str) -> Choice:
    return Choice(name, title, "mocov2_banded", (*MOCO, *overrides), "all")


def _simclr(name: str, title: str, *overrides: str, config: str = "simclr_sscl") -> Choice:
    return Choice(name, title, config, (*SIMCLR, *overrides), "simclr")


ALL = _moco("all", "all (MoCo v2)", "negatives=all")
HARDEST = _moco("hardest_5", "hardest 5 %", "negatives=hardest_5")
BANDS = (ALL, HARDEST, _moco("easiest_95", "easiest 95 %", "negatives=easiest_95"))
# SSCL, section 4.1.2: s is 1/8 of the batch and k 1/32. MoCHi: s and k are 1/16 of the queue and
# k' 1/128.
_SSCL_MIX = ("negatives.mix.hardest=8", "negatives.mix.pairs=2")
_MOCHI_MIX = ("negatives.mix.hardest=64", "negatives.mix.pairs=64", "negatives.mix.queries=8")
METHODS = (
    _simclr("simclr", "SimCLR", config="simclr"),
    _simclr("dcl", "DCL", "negatives=dcl"),
    _simclr("hcl", "HCL", "negatives=hcl"),
    _simclr("sscl", "SSCL", "negatives=sscl", *_SSCL_MIX),
    replace(ALL, title="MoCo v2"),
    _moco("mochi", "MoCHi", "negatives=mochi", *_MOCHI_MIX),
    replace(HARDEST, title="banded, hardest 5 %"),
    _moco("curriculum", "curriculum", "negatives=curriculum"),
)


@dataclass(frozen=True)
class Outcome:
    """Result of one step: folder, newest checkpoint, metrics (accuracies in percent), seconds."""

    folder: str
    checkpoint: str
    metrics: dict[str, float]
    seconds: float


Outcomes = dict[str, tuple[Outcome, Outcome]]  # choice → pretraining, linear evaluation


def main(
    methods: Annotated[
        bool,
        typer.Option(
            "--methods",
            help="compare SimCLR, DCL, HCL, SSCL, MoCo v2, MoCHi, banded and curriculum "
            "instead of three bands",
        ),
    ] = False,
    out: Annotated[Path, typer.Option(help="folder of runs and results")] = Path("runs/quickstart"),
    epochs: Annotated[int, typer.Option(min=1, help="epochs of pretraining")] = 10,
    linear_epochs: Annotated[int, typer.Option(min=1, help="epochs of linear evaluation")] = 15,
    seed: Annotated[int, typer.Option(help="random seed")] = 5,
) -> None:
    """Train and evaluate several choices of negatives, and print one table."""
    os.environ["SOLO_HARDNEG_HOST"] = "standalone"  # solo-learn has no digits
    from solo_hardneg.standalone import run

    began = time.time()
    outcomes: Outcomes = {}
    common = (f"seed={seed}", "++log_every_n_steps=10")
    choices, kind = (METHODS, "methods") if methods else (BANDS, "table")
    for number, choice in enumerate(choices, 1):
        console.print(Rule(f"{number} of {len(choices)}: {choice.title}"))
        folder = out / choice.name
        overrides = (*SMALL, *common, *choice.overrides, f"max_epochs={epochs}")
        pretrained = run_once(folder, "pretrain", run.pretrain, choice.config, overrides)
        source = f"pretrained_feature_extractor='{pretrained.checkpoint}'"
        overrides = (*LINEAR, *common, source, f"max_epochs={linear_epochs}")
        evaluated = run_once(folder, "linear", run.linear, "linear", overrides)
        outcomes[choice.name] = pretrained, evaluated
    write_table(out / f"{kind}.md", choices, outcomes)
    analyze_and_report(out / f"report-{kind}", outcomes)
    console.print(f"{time.time() - began:.0f} seconds in all.")


def run_once(
    folder: Path,
    name: str,
    job: Callable[[DictConfig], Any],
    config: str,
    overrides: tuple[str, ...],
) -> Outcome:
    """Runs a job, or returns the stored outcome of the same settings.

    Args:
        folder: Gets the run and ``NAME.json``, the stored outcome.
        name: The command: ``pretrain`` or ``linear``.
        job: What the command calls.
        config: Name of the config.
        overrides: Its overrides.
    """
    overrides = (*overrides, f"checkpoint.dir='{folder.resolve()}'")
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        cfg = compose(config, list(overrides))
    settings = json.dumps(OmegaConf.to_container(cfg, resolve=True), sort_keys=True)
    key = hashlib.sha256(f"{solo_hardneg.__version__} {settings}".encode()).hexdigest()[:16]
    path = folder / f"{name}.json"
    if path.is_file():
        stored = json.loads(path.read_text())
        if stored.pop("key") == key and Path(stored["checkpoint"]).is_file():
            console.print(f"{name}: there already, {stored['checkpoint']}")
            return Outcome(**stored)
    console.print(f"solo-hardneg {name} --config-name {config} {' '.join(overrides)}", style="dim")
    began = time.time()
    result = job(cfg)
    seconds = time.time() - began
    outcome = Outcome(str(result.folder), str(result.checkpoint), result.metrics, seconds)
    write_atomically(path, json.dumps({"key": key, **asdict(outcome)}, indent=1))
    return outcome


def analyze_and_report(out: Path, outcomes: Outcomes) -> None:
    """Analyzes the trained encoders and writes one HTML report of all runs."""
    from solo_hardneg.report.page import write_report
    from solo_hardneg.study.analyze import analyze

    console.print(Rule("analysing and reporting"))
    for pretrained, _ in outcomes.values():
        if not (Path(pretrained.folder) / "analysis" / "study.npz").is_file():
            analyze([pretrained.folder], STUDY)
    folders = [Path(outcome.folder) for pair in outcomes.values() for outcome in pair]
    report = write_report(folders, out, title="Handwritten digits: which negatives are needed?")
    console.print(f"The report: {report.html.resolve()}", soft_wrap=True)


def write_table(markdown: Path, choices: tuple[Choice, ...], outcomes: Outcomes) -> None:
    """Prints the table and writes it as Markdown."""
    table = Table(title="Top-1 accuracy in percent, on 360 digits that were never trained on")
    table.add_column(COLUMNS[0], no_wrap=True)
    for column in COLUMNS[1:]:
        table.add_column(column, justify="right")
    rows = [table_row(choice, outcomes) for choice in choices]
    for row in rows:
        table.add_row(*row)
    console.print(table)
    lines = [COLUMNS, ["---"] + ["---:"] * (len(COLUMNS) - 1), *rows]
    markdown.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))
    console.print("diff: difference to the baseline, the nearest row above without one.")
    console.print("kept: negatives of each query at the end; made: synthetic ones among them.")
    console.print("One seed and a small set: differences of up to three points are noise.")
    for choice in choices:
        folders = " and ".join(str(Path(o.folder).resolve()) for o in outcomes[choice.name])
        console.print(f"{choice.title}: {folders}", soft_wrap=True)
    console.print(f"The table: {markdown.resolve()}", soft_wrap=True)


def table_row(choice: Choice, outcomes: Outcomes) -> list[str]:
    """Formats a row of the table."""
    pretrained, evaluated = (outcome.metrics for outcome in outcomes[choice.name])
    baseline = outcomes[choice.baseline][1].metrics
    row = [choice.title]
    for metric in ("val_acc1", "val_knn_acc1"):
        difference = f"{evaluated[metric] - baseline[metric]:+.1f}"
        row += [f"{evaluated[metric]:.1f}", "" if choice.name == choice.baseline else difference]
    row.append(f"{pretrained['val_acc1']:.1f}")
    # The host's own methods keep all negatives and log no counts.
    kept, made = (pretrained.get(f"negatives/{n}_step") for n in ("present", "synthetic"))
    return [*row, "all" if kept is None else f"{kept:.0f}", "" if made is None else f"{made:.0f}"]


if __name__ == "__main__":
    typer.run(main)
