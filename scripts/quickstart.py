"""Which negatives does MoCo need? All, the hardest 5 % and the easiest 95 %, on real images.

Trains and evaluates on the 1,797 handwritten digits that scikit-learn ships, so nothing is
downloaded. What is there already is not done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.rule import Rule
from rich.table import Table

import solo_hardneg

POLICIES = {
    "all": "all negatives (MoCo v2)",
    "hardest_5": "only the hardest 5 %",
    "easiest_95": "only the easiest 95 %",
}
# Small enough for two cores and some minutes; everything else is as the configs have it.
PRETRAIN = (
    "data=digits",
    "optimizer.batch_size=64",
    "optimizer.lr=0.12",
    "scheduler.warmup_epochs=2",
    "method_kwargs.queue_size=1024",
    "knn_eval.enabled=True",
)
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
    out: Annotated[Path, typer.Option(help="where runs and results go, from the checkout")] = Path(
        "runs/quickstart"
    ),
    epochs: Annotated[int, typer.Option(min=1, help="epochs of pretraining")] = 10,
    linear_epochs: Annotated[int, typer.Option(min=1, help="epochs of linear evaluation")] = 15,
    seed: Annotated[int, typer.Option(help="seed of everything random")] = 5,
) -> None:
    """Train and evaluate MoCo v2 on all, the hardest 5 % and the easiest 95 % of its negatives."""
    os.environ["SOLO_HARDNEG_HOST"] = "standalone"  # solo-learn knows no digits
    from solo_hardneg.standalone import run

    began = time.time()
    results: dict[str, tuple[Outcome, Outcome]] = {}
    common = (f"seed={seed}", "++log_every_n_steps=10")
    for number, (policy, meaning) in enumerate(POLICIES.items(), 1):
        console.print(Rule(f"{number} of {len(POLICIES)}: {meaning}"))
        home = out / policy
        pretrained = step(
            home,
            "pretrain",
            run.pretrain,
            "mocov2_banded",
            (*PRETRAIN, *common, f"negatives={policy}", f"max_epochs={epochs}"),
        )
        source = f"pretrained_feature_extractor='{pretrained.checkpoint}'"
        evaluated = step(
            home,
            "linear",
            run.linear,
            "linear",
            (*LINEAR, *common, source, f"max_epochs={linear_epochs}"),
        )
        results[policy] = pretrained, evaluated
    report(out, results, time.time() - began)


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


def report(out: Path, results: dict[str, tuple[Outcome, Outcome]], seconds: float) -> None:
    """Prints the table, and writes it as Markdown beside the runs."""
    columns = ["negatives", "linear", "to all", "kNN", "to all", "online", "kept"]
    rows = []
    for policy, (pretrained, evaluated) in results.items():
        linear, knn = (evaluated.metrics[m] for m in ("val_acc1", "val_knn_acc1"))
        base = results["all"][1].metrics
        rows.append(
            [
                POLICIES[policy],
                f"{linear:.1f} %",
                "" if policy == "all" else f"{linear - base['val_acc1']:+.1f}",
                f"{knn:.1f} %",
                "" if policy == "all" else f"{knn - base['val_knn_acc1']:+.1f}",
                f"{pretrained.metrics['val_acc1']:.1f} %",
                f"{pretrained.metrics['negatives/present_step']:.0f}",
            ]
        )
    table = Table(title="Top-1 accuracy on 360 digits that were never trained on")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    markdown = out / "table.md"
    markdown.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))
    console.print("kept: how many negatives each query meets.")
    console.print("One seed and a small set: differences of up to three points are noise.")
    for policy, outcomes in results.items():
        places = " and ".join(str(Path(o.folder).resolve()) for o in outcomes)
        console.print(f"{POLICIES[policy]}: {places}", soft_wrap=True)
    console.print(f"The table: {markdown.resolve()}", soft_wrap=True)
    console.print(f"{seconds:.0f} seconds in all.")


if __name__ == "__main__":
    typer.run(main)
