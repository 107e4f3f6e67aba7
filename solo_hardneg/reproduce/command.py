"""``solo-hardneg reproduce``: runs the cells that have no result, and writes the table."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from solo_hardneg.errors import ConfigError, DataError
from solo_hardneg.reproduce import store
from solo_hardneg.reproduce.claims import judge
from solo_hardneg.reproduce.experiment import Experiment, Row, load_experiment, load_scale
from solo_hardneg.reproduce.grid import make_cells
from solo_hardneg.reproduce.launch import launch_cells
from solo_hardneg.reproduce.overrides import Overrides, compose_config, sort_overrides
from solo_hardneg.reproduce.render import Outcome, write_outcome
from solo_hardneg.reproduce.table import group_accuracies, make_table
from solo_hardneg.reproduce.train import check_scripts

# How to get a dataset that is missing.
_DOWNLOAD = "Add data.download=true to download it."
_REMEDIES = {
    "cifar10": _DOWNLOAD,
    "cifar100": _DOWNLOAD,
    "tinyimagenet": (
        "Get tiny-imagenet-200 of Stanford's CS231n; `solo-hardneg folders tinyimagenet PATH "
        "--split OUT` makes SSCL's split."
    ),
    "imagenet": "Get ILSVRC 2012 from image-net.org, one folder per class.",
    "imagenet100": "Take 100 classes of ILSVRC 2012 (image-net.org), one folder per class.",
}
_OTHER_DATASET = "Choose another dataset: data=NAME data.train_path=... data.val_path=..."


def reproduce(
    name: str,
    scale: str = "minute",
    arguments: Sequence[str] = (),
    rows: Sequence[str] = (),
    seeds: int | None = None,
    folder: Path | None = None,
    run: bool = True,
    scripts: Path | None = None,
    echo: Callable[[str], object] = print,
) -> tuple[Outcome, Path]:
    """Runs an experiment's cells that have no result, and writes its table.

    Args:
        name: Experiment, or path of a user's YAML file.
        scale: Scale, or path of a user's YAML file.
        arguments: Overrides of the runs and of the multirun, as on the command line.
        rows: Rows to run; by default all. The table has every row with a result.
        seeds: Number of seeds; by default the scale's, or else the experiment's.
        folder: Output folder; by default ``reproduced/NAME-DATASET-SCALE``.
        run: Whether to run cells, or only to write the table of those in the folder's plan.
        scripts: Folder of solo-learn's ``main_pretrain.py`` and ``main_linear.py``, to train by
            them; by default this package's runner trains.
        echo: Receives lines of progress.

    Returns:
        The outcome, and the page that was written. Cells that fail are part of the outcome.

    Raises:
        ConfigError, DataError: Something is invalid or missing; raised before anything runs.
    """
    experiment, size, user = load_experiment(name), load_scale(scale), sort_overrides(arguments)
    selected = experiment.select_rows(rows)
    settings = {
        "experiment": experiment.name,
        "data": user.data or experiment.data,
        "scale": size.name,
    }
    home = folder or Path("reproduced") / "-".join(settings.values())
    if scripts is not None:
        check_scripts(scripts)
    _check_folder(home, settings)
    if run:
        images, digest = _inspect_images(experiment, selected[0], user, settings["data"])
        numbers = range(seeds or size.seeds or experiment.seeds)
        all_rows = list(experiment.rows.values())
        cells = make_cells(experiment, size, all_rows, numbers, user, images, digest)
    else:
        cells = list(store.read_plan(home / "plan.json")[0].values())
    results, notes = store.read_results(home, cells)
    for note in notes:
        echo(note)
    if run:
        if scripts is not None:
            settings["scripts"] = str(scripts.resolve())
        plan = store.write_plan(home, cells, settings)
        done = {name for name, result in results.items() if result.state == store.DONE}
        echo(f"{home}: {len(done)} of {len(cells)} cells have a result.")
        names = {row.name for row in selected}
        missing = [cell.name for cell in cells if cell.row in names and cell.name not in done]
        if missing:
            echo(f"To be run: {', '.join(missing)}")
            launch_cells(plan, missing, user.hydra)
            results, _ = store.read_results(home, cells)
    table = make_table(experiment, settings["data"], cells, results.values())
    verdicts = judge(experiment.claims, group_accuracies(results.values(), "top1"))
    outcome = Outcome(experiment, size, settings["data"], cells, results, table, verdicts)
    return outcome, write_outcome(home, outcome)


def _inspect_images(
    experiment: Experiment, row: Row, user: Overrides, data: str
) -> tuple[int, str]:
    """Returns the number of training images, and a hash of the names of the user's own files.

    Raises:
        DataError: The dataset is missing.
    """
    from solo_hardneg.data.datasets import load_split
    from solo_hardneg.standalone.config import parse_pretrain

    overrides = (f"data={data}", *experiment.pretrain, *row.overrides, *user.pretrain)
    cfg = compose_config(row.config, overrides)
    cfg.data.format = "image_folder"  # other formats read the same files
    try:
        cfg = parse_pretrain(cfg)
        splits = [load_split(cfg, True)]
        if cfg.data.val_path is not None and not cfg.data.no_labels:
            splits.append(load_split(cfg, False))
    except DataError as error:
        raise DataError(f"{error} {_REMEDIES.get(data, _OTHER_DATASET)}") from error
    count = len(splits[0].images)
    if not isinstance(splits[0].images[0], str):  # a torchvision or scikit-learn dataset
        return count, ""
    digest = hashlib.sha256()
    for key, split in zip(("train_path", "val_path"), splits, strict=False):
        for image, target in zip(split.images, split.targets, strict=True):
            digest.update(os.fsencode(f"{os.path.relpath(image, cfg.data[key])} {target}\n"))
    return count, digest.hexdigest()


def _check_folder(folder: Path, settings: Mapping[str, str]) -> None:
    """Raises ConfigError if the folder holds another experiment."""
    try:
        _, found = store.read_plan(folder / "plan.json")
    except DataError:
        return  # missing or damaged: it is written again
    found = {key: found.get(key) for key in settings}
    if found != settings:
        shown = ", ".join(f"{key}={value}" for key, value in found.items())
        raise ConfigError(
            f"--folder {folder}: it holds another experiment ({shown}). Take another."
        )
