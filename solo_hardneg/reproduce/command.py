"""``solo-hardneg reproduce``: what of a grid has no result is run, and the table is written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from solo_hardneg.errors import ConfigError, DataError
from solo_hardneg.reproduce import claims, page, results, table
from solo_hardneg.reproduce.cells import Cell, Images, dataset_of, make_cells
from solo_hardneg.reproduce.experiment import Experiment, Row, Scale, load_experiment, load_scale
from solo_hardneg.reproduce.overrides import Arguments, composed, told_apart
from solo_hardneg.reproduce.page import Outcome
from solo_hardneg.reproduce.programs import check_scripts

# How one comes by the datasets, where they aren't there.
_HOW = {
    "cifar10": "Add data.download=true to fetch it from its authors' page.",
    "cifar100": "Add data.download=true to fetch it from its authors' page.",
    "tinyimagenet": (
        "Get tiny-imagenet-200 of Stanford's CS231n, then `solo-hardneg folders tinyimagenet PATH "
        "--split OUT` checks it and makes the split of SSCL."
    ),
    "imagenet": "Get ILSVRC 2012 from image-net.org, with one folder for each class.",
    "imagenet100": "Take 100 classes of ILSVRC 2012 (image-net.org), with one folder for each.",
}


def reproduce(
    name: str,
    scale: str = "minute",
    arguments: Sequence[str] = (),
    rows: Sequence[str] = (),
    seeds: int | None = None,
    folder: Path | None = None,
    run: bool = True,
    scripts: Path | None = None,
    say: Callable[[str], object] = print,
) -> tuple[Outcome, Path]:
    """Runs an experiment's missing cells, and writes its table.

    Args:
        name: of an experiment, or the path of a file of one's own.
        scale: of a scale, or the path of a file of one's own.
        arguments: overrides of the runs and of the sweep, as on the command line.
        rows: the rows to run; all by default. The table has all that have a result.
        seeds: how many; by default as many as the scale has, or else the experiment.
        folder: where everything goes; by default ``reproduced/NAME-DATASET-SCALE``.
        run: whether to run anything, or only to write the table of what is there.
        scripts: the folder of solo-learn's ``main_pretrain.py`` and ``main_linear.py``, to run
            these, with its loaders; by default this package's runner trains.
        say: is given lines for the person who waits.

    Returns:
        what came out, and the page that was written.

    Raises:
        ConfigError, DataError: before anything is run, wherever that can be known. A cell that
            fails later raises nothing: it is part of the outcome.
    """
    experiment, size, told = load_experiment(name), load_scale(scale), told_apart(arguments)
    data = dataset_of(experiment, told)
    number = seeds or size.seeds or experiment.seeds
    chosen = experiment.chosen(rows)
    home = folder or Path("reproduced") / f"{experiment.name}-{data}-{size.name}"
    if scripts is not None:
        check_scripts(scripts)
    _check_home(home, experiment, data, size)
    if not run:  # of what was planned, whatever the overrides were
        cells = list(results.read_plan(home / "plan.json")[0].values())
        found, notes = results.standing(home, cells)
        for note in notes:
            say(note)
        outcome = _outcome(experiment, size, data, cells, found)
        return outcome, page.write(home, outcome)
    images = _look_at_images(experiment, chosen[0], told, data)
    cells = make_cells(experiment, size, experiment.rows, range(number), told, images)
    home.mkdir(parents=True, exist_ok=True)
    found, notes = results.standing(home, cells)
    for note in notes:
        say(note)
    settings: dict[str, Any] = {"experiment": experiment.name, "data": data, "scale": size.name}
    if scripts is not None:
        settings["scripts"] = str(scripts.resolve())
    plan = results.write_plan(home, cells, settings)
    say(f"{home}: {_done(found)} of {len(cells)} cells have a result.")
    missing = [
        cell.name
        for cell in cells
        if cell.row in {row.name for row in chosen}
        and (cell.name not in found or found[cell.name].state == results.FAILED)
    ]
    if missing:
        from solo_hardneg.reproduce.sweep import sweep

        say(f"To be run: {', '.join(missing)}")
        sweep(plan, missing, told.hydra)
    found, notes = results.standing(home, cells)
    outcome = _outcome(experiment, size, data, cells, found)
    return outcome, page.write(home, outcome)


def _outcome(
    experiment: Experiment,
    scale: Scale,
    data: str,
    cells: Sequence[Cell],
    found: dict[str, results.Result],
) -> Outcome:
    plan = {cell.name: cell for cell in cells}
    made = table.build(experiment, data, plan, found)
    verdicts = claims.judge(experiment.claims, table.values(found, "top1"))
    return Outcome(experiment, scale, data, cells, found, made, verdicts)


def _done(found: dict[str, results.Result]) -> int:
    return sum(result.state == results.DONE for result in found.values())


def _look_at_images(experiment: Experiment, row: Row, told: Arguments, data: str) -> Images:
    """How many images there are to train on, and which, which also shows that they are there."""
    from solo_hardneg.standalone.config import parse_pretrain
    from solo_hardneg.standalone.data import load_split

    overrides = (f"data={data}", *experiment.pretrain, *row.overrides, *told.pretrain)
    cfg = composed(row.config, overrides)
    cfg.data.format = "image_folder"  # whatever reads them later: they are the same files
    try:
        cfg = parse_pretrain(cfg)
        splits = [load_split(cfg, True)]
        if cfg.data.val_path is not None and not cfg.data.no_labels:
            splits.append(load_split(cfg, False))
    except DataError as error:
        do = "Choose another dataset: data=NAME data.train_path=... data.val_path=..."
        raise DataError(f"{error} {_HOW.get(data, do)}") from error
    if not isinstance(splits[0].images[0], str):  # torchvision's files, or scikit-learn's
        return Images(len(splits[0].images))
    digest = hashlib.sha256()
    for key, split in zip(("train_path", "val_path"), splits, strict=False):
        for image, target in zip(split.images, split.targets, strict=True):
            digest.update(os.fsencode(f"{os.path.relpath(image, cfg.data[key])} {target}\n"))
    return Images(len(splits[0].images), digest.hexdigest())


def _check_home(home: Path, experiment: Experiment, data: str, scale: Scale) -> None:
    """Raises ConfigError if the folder holds another experiment."""
    if not (home / "plan.json").is_file():
        return
    try:
        _, settings = results.read_plan(home / "plan.json")
    except DataError:
        return  # cut short: it is written again
    ours = {"experiment": experiment.name, "data": data, "scale": scale.name}
    theirs = {key: settings.get(key) for key in ours}
    if theirs != ours:
        shown = ", ".join(f"{key}={value}" for key, value in theirs.items())
        raise ConfigError(f"--folder {home}: it holds another experiment ({shown}). Take another.")
