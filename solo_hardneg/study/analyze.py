"""``solo-hardneg analyze``: from checkpoints to studies, figures and tables."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

import solo_hardneg
from solo_hardneg.data.datasets import ImageDataset
from solo_hardneg.data.loader import CheckedLoader
from solo_hardneg.environment import nested_hydra
from solo_hardneg.errors import ConfigError, bad_value, unknown_name
from solo_hardneg.study import encoder
from solo_hardneg.study.encoder import LoadedEncoder
from solo_hardneg.study.images import DATA_KEYS, Images, find_images, make_pipelines
from solo_hardneg.study.measure import Study, measure
from solo_hardneg.study.output import CheckpointStudy, Results, write_results
from solo_hardneg.validate import Count, Rules, Seed, Whole, apply_rules, check_type

_RULES: Rules = {
    "queries": (2000, Count),
    "negatives": (2000, Annotated[int, Field(ge=2)]),
    "percentiles": (100, Count),
    "seed": (5, Seed),
    "split": ("train", ("train", "val")),
    "views": ("plain", ("plain", "augmented")),
    "crop_size": (None, Any),
    "tsne": (True, bool),
    "synsets": (None, Any),
    "out": (None, Any),
    "device": ("auto", Any),
    "batch_size": (256, Count),
    "num_workers": (0, Whole),
}
_GROUPS = ("data", "backbone", "method")  # taken from the run's own config by default
Step = Callable[[str, float], None]  # moves the progress bar: what is done, and a share to add


def analyze(
    checkpoints: Sequence[Path | str], overrides: Sequence[str] = (), progress: bool = False
) -> Results:
    """Studies checkpoints, and writes arrays, figures and tables.

    Args:
        checkpoints: Files of either host, or folders of runs, of which the newest is taken.
        overrides: ``KEY=VALUE``, see ``configs/analyze.yaml``.
        progress: Show a progress bar.

    Raises:
        ConfigError, DataError, CheckpointError: Before anything is embedded, wherever possible.
    """
    cfg = read_analyze_config(overrides)
    device = _select_device(cfg.device)
    paths = {os.path.realpath(Path(path).expanduser()): Path(path) for path in checkpoints}
    if not paths:
        raise ConfigError("analyze: no checkpoint is given. Add the path of a checkpoint or a run.")
    out = None if cfg.out is None else Path(str(cfg.out)).expanduser()
    with torch.random.fork_rng(devices=[]):  # leaves the caller's random state alone
        done = _study_checkpoints([*paths.values()], cfg, device, progress)
    return write_results(done, out)


def _study_checkpoints(
    paths: Sequence[Path], cfg: DictConfig, device: torch.device, progress: bool
) -> list[CheckpointStudy]:
    given: Any = OmegaConf.to_container(cfg, resolve=True)
    overrides = {key: given[key] for key in ("backbone", "method") if key in given}
    loaded = [encoder.load_encoder(path, overrides, given.get("data")) for path in paths]
    # A folder and its newest checkpoint are one.
    unique = [*{one.file.resolve(): one for one in loaded}.values()]
    cache: dict[str, Images] = {}
    images = [find_images(one.config, cfg, cache) for one in unique]
    pipelines = [
        make_pipelines(one.config, some, cfg, one.file)
        for one, some in zip(unique, images, strict=True)
    ]
    done = []
    for one, some, pair in zip(unique, images, pipelines, strict=True):
        with _progress_bar(one.file.name, progress) as step:
            study = _study_checkpoint(one, some, pair, cfg, device, step)
        done.append(CheckpointStudy(study, one.file, one.config))
    return done


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits a command line into checkpoints and settings.

    solo-learn's checkpoints are named ``...ep=9.ckpt``: whatever exists is a checkpoint, and of the
    rest, whatever starts like ``KEY=`` is a setting.
    """
    settings = [
        text
        for text in arguments
        if re.match(r"[+~]*[A-Za-z_][\w.]*=", text) and not Path(text).expanduser().exists()
    ]
    return [text for text in arguments if text not in settings], settings


# ---------------------------------------------------------------------- settings


def read_analyze_config(overrides: Sequence[str]) -> DictConfig:
    """Composes ``analyze.yaml`` with overrides, and checks it.

    Raises:
        ConfigError: A key is unknown, or a value can't be used.
    """
    try:
        parsed = OverridesParser.create().parse_overrides([*overrides])
    except HydraException as error:
        do = "Write KEY=VALUE; a value with = or spaces needs quotes inside quotes"
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{' '.join(overrides)}: can't be read ({reason}). {do}.") from error
    for item in parsed:
        _check_override(item)
    try:
        with nested_hydra(), initialize_config_module("solo_hardneg.configs", version_base="1.2"):
            cfg = compose("analyze", [f"data={i.value()}" for i in parsed if _is_group(i)])
    except HydraException as error:
        raise ConfigError(f"analyze: {' '.join(str(error).split())}") from error
    OmegaConf.set_struct(cfg, False)
    for item in parsed:  # not by Hydra, for which "negatives" is a group of configs
        if not _is_group(item):
            OmegaConf.update(cfg, item.key_or_group, item.value(), force_add=True)
    apply_rules(cfg, _RULES)
    if cfg.crop_size is not None:
        check_type("crop_size", cfg.crop_size, Count)
    if cfg.synsets is not None and not Path(str(cfg.synsets)).expanduser().is_file():
        do = "Give a CSV file with the columns class and synset, or null."
        raise bad_value("synsets", cfg.synsets, "no such file", do)
    return cfg


def _check_override(item: Override) -> None:
    key = item.key_or_group
    top, _, rest = key.partition(".")
    if top not in (known := [*_RULES, *_GROUPS]):
        raise unknown_name("analyze", key, known, "setting")
    if top == "data" and rest and rest.split(".")[0] not in DATA_KEYS:
        raise unknown_name("data", rest, DATA_KEYS, "key")
    if _is_group(item) and item.value() not in (groups := _data_groups()):
        raise unknown_name("data", str(item.value()), groups, "group of images")
    if item.is_delete() or item.is_sweep_override():
        do = "Write KEY=VALUE."
        raise bad_value(key, item.input_line, "can't be deleted or have several values", do)


def _is_group(override: Override) -> bool:
    return override.key_or_group == "data" and isinstance(override.value(), str)


def _data_groups() -> list[str]:
    found = files("solo_hardneg.configs").joinpath("data").iterdir()
    return [file.name.removesuffix(".yaml") for file in found if file.name.endswith(".yaml")]


def _select_device(name: Any) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise bad_value("device", name, f"can't be used ({reason})", "Set device=auto.") from error
    return device


# ---------------------------------------------------------------------- one checkpoint


def _study_checkpoint(
    one: LoadedEncoder,
    images: Images,
    pipelines: tuple[Any, Any],
    cfg: DictConfig,
    device: torch.device,
    step: Step,
) -> Study:
    torch.manual_seed(cfg.seed)  # seeds the augmentations
    embedded = []
    for role, pipeline in zip(("queries", "negatives"), pipelines, strict=True):
        batches = _load_batches(images, getattr(images, role), pipeline, cfg, step)
        embedded.append(encoder.embed(one.encoder, batches, device, role))
    (features, query), (_, negative) = embedded
    targets = np.asarray(images.split.targets, dtype=np.int64)
    labels = targets[images.queries]
    notes = [*one.notes, *images.notes]
    points = np.empty((0, 2), np.float32)
    if cfg.tsne:
        step("t-SNE", 0)
        points, tsne_notes = compute_tsne(features, cfg.seed)
        notes += tsne_notes
    study = measure(
        query,
        negative,
        labels,
        targets[images.negatives],
        cfg.percentiles,
        images.depths,
        images.names,
        cfg.seed,
        query_indexes=images.queries.astype(np.int64),
        negative_indexes=images.negatives.astype(np.int64),
        tsne=points,
        tsne_labels=labels if len(points) else labels[:0],
        info=_info(one, images, cfg),
        notes=notes,
    )
    return _without_classes(study) if len(set(images.split.targets)) < 2 else study


def _without_classes(study: Study) -> Study:
    """Removes what compares classes: with a single class, all negatives are of the query's."""
    scalars = {k: v for k, v in study.scalars.items() if k.startswith("similarity/")}
    unknown = np.full_like(study.same_class, np.nan)
    return replace(study, same_class=unknown, depth=unknown, scalars=scalars)


def _load_batches(
    images: Images, indexes: NDArray[Any], pipeline: Any, cfg: DictConfig, step: Step
) -> Iterator[torch.Tensor]:
    dataset = ImageDataset(images.split.subset(indexes.tolist()), pipeline)
    total = len(images.queries) + len(images.negatives)
    loader = CheckedLoader(dataset, cfg.batch_size, num_workers=cfg.num_workers)
    loader.key = "num_workers"
    for tensors, _ in loader:
        yield tensors
        step("embedding", len(tensors) / total)


def compute_tsne(features: NDArray[Any], seed: int) -> tuple[NDArray[Any], list[str]]:
    """Maps (N, F) features to two dimensions (van der Maaten and Hinton 2008).

    Returns:
        (N, 2) float32 points; or none of them, with a note that says why.
    """
    from sklearn.manifold import TSNE

    number = len(features)
    if number < 5 or np.ptp(features, axis=0).max() == 0:
        text = f"t-SNE is missing: it needs at least five different queries, not {number} or equal"
        return np.empty((0, 2), np.float32), [f"{text} ones."]
    perplexity = min(30.0, (number - 1) / 3)  # scikit-learn's default, where it is allowed
    points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features)
    return np.asarray(points, dtype=np.float32), []


def _info(one: LoadedEncoder, images: Images, cfg: DictConfig) -> dict[str, Any]:
    config = one.config
    return {
        "checkpoint": str(one.file),
        "epoch": one.epoch,
        "method": config.get("method", config.get("pretrain_method")),
        "name": config.get("name"),
        "policy": config.get("negatives") or {},
        "seed": config.get("seed"),
        "dataset": images.data.data.dataset,
        "projector": one.encoder.projector is not None,
        "predicted": one.encoder.predicted,  # the role, if any, that passes the predictor
        "queries": len(images.queries),
        "negatives": len(images.negatives),
        "percentiles": cfg.percentiles,
        "split": cfg.split,
        "views": cfg.views,
        "study_seed": cfg.seed,
        "version": solo_hardneg.__version__,
    }


@contextmanager
def _progress_bar(name: str, shown: bool) -> Iterator[Step]:
    """A progress bar, on terminals only."""
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    disable = not (shown and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=disable) as bar:
        task = bar.add_task(name, total=1.0)

        def step(what: str, share: float) -> None:
            bar.update(task, description=f"{name}: {what}", advance=share)

        yield step
