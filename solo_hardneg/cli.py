"""The command ``solo-hardneg``."""

from __future__ import annotations

import runpy
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from solo_hardneg.environment import prepare
from solo_hardneg.errors import HardnegError, unknown_name

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Contrastive methods that choose, mix and weigh their negatives.",
    callback=prepare,
)
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=_PASS_ON)
def pretrain(context: typer.Context) -> None:
    """Pretrain: --config-name mocov2_banded data=digits negatives=hardest_5 (Hydra's arguments)."""
    _hydra("pretrain", context.args)


@app.command(context_settings=_PASS_ON)
def linear(context: typer.Context) -> None:
    """Evaluate: --config-name linear data=digits pretrained_feature_extractor=PATH (Hydra's)."""
    _hydra("linear", context.args)


@app.command(context_settings=_PASS_ON)
def run(
    script: Annotated[Path, typer.Argument(help="a script of solo-learn, such as main_knn.py")],
    context: typer.Context,
) -> None:
    """Run one of solo-learn's scripts that are no Hydra programs, with our methods registered."""
    if not script.is_file():
        sys.exit(f"run {script}: no such file. Give the path of a script of solo-learn.")
    # As `python SCRIPT` has it: the script's folder comes first, so that its solo-learn is found.
    sys.path.insert(0, str(script.resolve().parent))
    sys.argv = [str(script), *context.args]
    try:
        from solo_hardneg.plugin import register

        register()
    except HardnegError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    runpy.run_path(str(script), run_name="__main__")


@app.command()
def policies() -> None:
    """List what can be done to the negatives, and the presets."""
    from importlib.resources import files

    from solo_hardneg.negatives import available

    verbs, presets = (Table(box=None, show_header=False, padding=(0, 2, 0, 0)) for _ in range(2))
    for info in available().values():
        lines = [
            info.summary,
            info.example and f"{info.name}: {info.example}",
            f"arguments: {', '.join(info.arguments)}" if info.arguments else "",
            f"may need: {', '.join(sorted(info.needs))}" if info.needs else "",
            info.source,
            " ",
        ]
        verbs.add_row(info.name, escape("\n".join(filter(None, lines))))
    console = Console(highlight=False)
    console.print("Verbs of the config group negatives, applied from top to bottom:\n")
    console.print(verbs)
    console.print(
        "Each also takes from_epoch and until_epoch, and any number may be a schedule: "
        "{from: 0.0, to: 0.95, epochs: [0, 100], curve: linear}.\n",
        markup=False,
    )
    console.print("Presets, negatives=NAME:\n")
    for file in sorted(files("solo_hardneg.configs").joinpath("negatives").iterdir(), key=str):
        if file.name.endswith(".yaml"):
            first = file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
            presets.add_row(file.name.removesuffix(".yaml"), escape(first))
    console.print(presets)


@app.command()
def analyze(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT... [KEY=VALUE ...]",
            help="checkpoints or folders of runs, and settings (configs/analyze.yaml)",
        ),
    ],
) -> None:
    """Study trained encoders: RUN... data=cifar100 queries=2000 negatives=2000 tsne=false."""
    try:
        from solo_hardneg.study.analyze import analyze as study
        from solo_hardneg.study.analyze import split_arguments
        from solo_hardneg.study.output import print_results

        print_results(study(*split_arguments(arguments), progress=True), Console())
    except HardnegError as error:
        sys.exit(f"{type(error).__name__}: {error}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="folder of a run, or a checkpoint")],
    to: Annotated[Path, typer.Option(help="file to write, *.safetensors")],
) -> None:
    """Write a run's backbone with torchvision's and timm's names, without the classifier."""
    console = Console()
    try:
        from solo_hardneg.study.export import export_backbone

        text = export_backbone(run, to)
    except HardnegError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="folders of runs, or folders above them", metavar="RUN...")
    ],
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path("report"),
    baseline: Annotated[
        str | None,
        typer.Option(
            help="the group to compare all others with, by its name in the table; by default, the "
            "one with all negatives of the same family"
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="title of the page")] = None,
) -> None:
    """Lay runs side by side: accuracies, the papers' numbers, and the recorded negatives.

    Writes one HTML file that needs no network, and CSVs.
    """
    try:
        from solo_hardneg.report.page import write_report
        from solo_hardneg.report.tables import accuracy_table

        made = write_report(runs, out, baseline, title)
    except HardnegError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    rows = accuracy_table(made.comparison)
    # Terminals are narrower than the page.
    rows = rows[[name for name in rows.columns if "top 5" not in name]]
    table = Table(title="Accuracy in percent, differences to the baseline in points")
    for name in rows.columns:
        title = "difference" if name.endswith("difference") else escape(name)
        table.add_column(title, justify="left" if name == "group" else "right", overflow="fold")
    for row in rows.itertuples(index=False):
        table.add_row(*map(escape, row))  # a name may look like rich's markup
    console = Console()
    console.print(table)
    for text, where in made.notes:
        console.print(f"- {where}: {text}", markup=False, highlight=False)
    console.print(f"The report: {escape(str(made.html.resolve()))}", soft_wrap=True)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": False})
def reproduce(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(help="an experiment (configs/paper), or your own YAML file"),
    ] = None,
    scale: Annotated[
        str, typer.Option(help="paper, day, hour, minute (configs/scale), or your own YAML file")
    ] = "minute",
    rows: Annotated[
        str, typer.Option(help="rows to run, with commas between; all by default")
    ] = "",
    seeds: Annotated[int | None, typer.Option(min=1, help="number of seeds")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="output; by default reproduced/NAME-DATASET-SCALE")
    ] = None,
    run: Annotated[bool, typer.Option(help="--no-run: only rewrite the table")] = True,
    scripts: Annotated[
        Path | None,
        typer.Option(
            help="a solo-learn checkout, to train by its main_pretrain.py and main_linear.py"
        ),
    ] = None,
) -> None:
    """Reproduce a table of the papers: reproduce NAME [KEY=VALUE ...]. Without NAME, list them.

    KEY=VALUE are settings of the runs (data=cifar100 data.train_path=... accelerator=gpu), of the
    linear evaluation alone (linear.KEY=VALUE), or of Hydra's multirun (hydra/launcher=joblib).
    Cells that have a result don't run again.
    """
    console = Console()
    chosen = [row for row in rows.split(",") if row]
    echo = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    try:
        from solo_hardneg.reproduce import command, render

        if name is None:
            render.print_experiments(console)
            return
        outcome, page = command.reproduce(
            name, scale, context.args, chosen, seeds, folder, run, scripts, echo
        )
    except HardnegError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    render.print_outcome(outcome, page, console)
    if outcome.failed:
        sys.exit(1)


@app.command()
def folders(
    dataset: Annotated[str, typer.Argument(help="tinyimagenet or imagenet100")],
    path: Annotated[Path, typer.Argument(help="folder that holds train and val")],
    split: Annotated[
        Path | None,
        typer.Option(help="new folder for train and val, both drawn from the training images"),
    ] = None,
    held_out: Annotated[int, typer.Option(help="validation images; SSCL: 10,000")] = 10_000,
    seed: Annotated[int, typer.Option(help="seed of the draw")] = 0,
) -> None:
    """Count a dataset's images, and hold out validation images of the training set, as SSCL did.

    The images are linked, not copied. Train with data=tinyimagenet data.train_path=SPLIT/train
    data.val_path=SPLIT/val.
    """
    from solo_hardneg.data import tiny_imagenet

    console = Console()
    try:
        if dataset not in tiny_imagenet.DATASETS:
            raise unknown_name("dataset", dataset, tiny_imagenet.DATASETS, "dataset")
        classes, train, val = tiny_imagenet.count_images(path)
        made = None if split is None else tiny_imagenet.hold_out(path, split, held_out, seed)
    except HardnegError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    lines = [f"{path}: {classes} classes, {train:,} training and {val:,} validation images."]
    if made is not None:
        state = "exists already" if made.existing else f"was written ({made.way})"
        lines.append(
            f"{split}: the split of seed {made.seed} {state}: {made.train:,} training and "
            f"{made.val:,} validation images. SHA-256 of the held-out names: {made.sha256}"
        )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _hydra(program: str, arguments: list[str]) -> None:
    from solo_hardneg.runner import start

    start(program, arguments)
