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

from solo_hardneg.errors import HardnegError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Contrastive methods that choose, mix and weigh their negatives.",
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
            first = file.read_text().splitlines()[0].removeprefix("# ")
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


def _hydra(program: str, arguments: list[str]) -> None:
    from solo_hardneg.runner import start

    start(program, arguments)
