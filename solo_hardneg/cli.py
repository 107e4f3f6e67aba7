"""The command ``solo-hardneg``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from solo_hardneg.environment import prepare
from solo_hardneg.errors import HardnegError

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

    table = Table(title="Policies: the verbs of the config group 'negatives'")
    for title in ("name", "arguments", "what it does", "needs", "source"):
        table.add_column(title, overflow="fold", no_wrap=title == "name")
    for info in available().values():
        needs = ", ".join(sorted(info.needs)) or "-"
        table.add_row(info.name, ", ".join(info.arguments), info.summary, needs, info.source)
    console = Console()
    console.print(table)
    console.print(
        "Each also takes from_epoch and until_epoch, and any number may be a schedule: "
        "{from: 0.0, to: 0.95, epochs: [0, 100], curve: linear}.\n"
    )

    presets = Table(title="Presets: negatives=NAME")
    presets.add_column("name", no_wrap=True)
    presets.add_column("what it does")
    for file in sorted(files("solo_hardneg.configs").joinpath("negatives").iterdir(), key=str):
        if file.name.endswith(".yaml"):
            first = file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
            presets.add_row(file.name.removesuffix(".yaml"), first)
    console.print(presets)


@app.command()
def analyze(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT... [KEY=VALUE ...]",
            help="checkpoints or folders of runs, then settings (configs/analyze.yaml)",
        ),
    ],
) -> None:
    """Study trained encoders: RUN... data=cifar100 queries=2000 negatives=2000 tsne=false."""
    from solo_hardneg.analysis.analyze import analyze as study
    from solo_hardneg.analysis.analyze import told_apart
    from solo_hardneg.analysis.results import show

    try:
        show(study(*told_apart(arguments), progress=True), Console())
    except HardnegError as error:
        sys.exit(f"{type(error).__name__}: {error}")


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="folders of runs, or folders above them", metavar="RUN...")
    ],
    out: Annotated[Path, typer.Option(help="the folder to write into")] = Path("report"),
    baseline: Annotated[
        str | None,
        typer.Option(
            help="the group that the others are compared with, as the table calls it; by default, "
            "the one with all negatives of the same family"
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="the page's title")] = None,
) -> None:
    """Lay runs side by side: accuracies, the papers' numbers, and what was seen of the negatives.

    Writes one HTML file that needs no network, Markdown and CSV.
    """
    try:
        from solo_hardneg.analysis.report import write
        from solo_hardneg.analysis.tables import readable

        made = write(runs, out, baseline, title)
    except HardnegError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    rows = readable(made.summary)
    # A terminal is narrower than the page.
    rows = rows[[name for name in rows.columns if "top 5" not in name]]
    table = Table(title="Accuracy in percent, differences to the baseline in points")
    for name in rows.columns:
        title = "difference" if name.endswith("difference") else escape(name)
        table.add_column(title, justify="left" if name == "group" else "right", overflow="fold")
    for row in rows.itertuples(index=False):
        table.add_row(*map(escape, row))  # a name may hold what rich takes for markup
    console = Console()
    console.print(table)
    for sentence in made.sentences:
        console.print(escape(sentence))
    for text, where in made.missing:
        console.print(f"- {where}: {text}", markup=False, highlight=False)
    console.print(f"The report: {escape(str(made.html.resolve()))}", soft_wrap=True)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": False})
def reproduce(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(help="an experiment (configs/paper), or a YAML file of your own"),
    ] = None,
    scale: Annotated[
        str, typer.Option(help="paper, day, hour, minute (configs/scale), or a YAML file")
    ] = "minute",
    rows: Annotated[str, typer.Option(help="run these only, with commas between")] = "",
    seeds: Annotated[int | None, typer.Option(min=1, help="how many")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="where to; by default reproduced/NAME-DATASET-SCALE")
    ] = None,
    run: Annotated[bool, typer.Option(help="--no-run: only write the table again")] = True,
    scripts: Annotated[
        Path | None,
        typer.Option(
            help="a solo-learn checkout: train by its main_pretrain.py and main_linear.py"
        ),
    ] = None,
) -> None:
    """Make a table of the papers again, beside what was published: reproduce NAME [KEY=VALUE ...].

    KEY=VALUE are settings of the runs (data=cifar100 data.train_path=... accelerator=gpu), of the
    linear evaluation alone (linear.KEY=VALUE), or of Hydra's sweep (hydra/launcher=joblib). What
    has a result is not run again.
    """
    from solo_hardneg.reproduce.command import reproduce as again
    from solo_hardneg.reproduce.show import show, show_experiments

    console = Console()
    if name is None:
        show_experiments(console)
        return
    chosen = [row for row in rows.split(",") if row]

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    try:
        outcome, page = again(name, scale, context.args, chosen, seeds, folder, run, scripts, say)
    except HardnegError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    show(outcome, page, console)
    if outcome.failed:
        sys.exit(1)


@app.command()
def folders(
    dataset: Annotated[str, typer.Argument(help="tinyimagenet or imagenet100")],
    path: Annotated[Path, typer.Argument(help="the folder that holds train and val")],
    split: Annotated[
        Path | None,
        typer.Option(help="a new folder: train and val of a split of the training images"),
    ] = None,
    held_out: Annotated[int, typer.Option(help="images of that val; SSCL has 10,000")] = 10_000,
    seed: Annotated[int, typer.Option(help="of the draw")] = 0,
) -> None:
    """Check a dataset's folders, and hold out validation images of the training set, as SSCL did.

    The images are linked, not copied. Then: data=tinyimagenet data.train_path=SPLIT/train
    data.val_path=SPLIT/val.
    """
    from solo_hardneg import folders as known

    console = Console()
    try:
        layout = known.check(dataset, path)
        made = None if split is None else known.split(path, split, held_out, seed)
    except HardnegError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    lines = [
        f"{path}: {len(layout.classes)} classes, {sum(layout.train.values()):,} training and "
        f"{sum(layout.val.values()):,} validation images."
    ]
    if made is not None:
        state = "is there already" if made.existing else f"was written ({made.way})"
        lines.append(
            f"{split}: the split of seed {made.seed} {state}: {made.train:,} training and "
            f"{made.val:,} validation images. SHA-256 of the held-out names: {made.sha256}"
        )
    for line in (*lines, *layout.notes):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _hydra(program: str, arguments: list[str]) -> None:
    from solo_hardneg.runner import start

    start(program, arguments)
