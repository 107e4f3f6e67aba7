"""``solo-hardneg analyze``: from checkpoints to studies, figures and tables."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

import solo_hardneg
from solo_hardneg.analysis import encoder
from solo_hardneg.analysis.encoder import Loaded
from solo_hardneg.analysis.images import DATA_KEYS, Images, find_images, pipelines_of
from solo_hardneg.analysis.results import Results, Studied, write
from solo_hardneg.analysis.study import Study, study
from solo_hardneg.data.loader import CheckedLoader
from solo_hardneg.errors import ConfigError, bad_value, unknown_name
from solo_hardneg.nested_hydra import nested_hydra
from solo_hardneg.standalone.checks import COUNT, WHOLE, Number, Rules, settle
from solo_hardneg.standalone.data import ImageDataset

_RULES: Rules = {
    "queries": (2000, COUNT),
    "negatives": (2000, Number(least=2, whole=True)),
    "percentiles": (100, COUNT),
    "seed": (5, Number(least=0, most=2**32 - 1, whole=True)),
    "split": ("train", ("train", "val")),
    "views": ("plain", ("plain", "augmented")),
    "crop_size": (None, None),
    "tsne": (True, bool),
    "synsets": (None, None),
    "out": (None, None),
    "device": ("auto", None),
    "batch_size": (256, COUNT),
    "num_workers": (0, WHOLE),
}
_GROUPS = ("data", "backbone", "method")  # what the run's own config says, unless it is given


def analyze(
    checkpoints: Sequence[Path | str], overrides: Sequence[str] = (), progress: bool = False
) -> Results:
    """Studies checkpoints, and writes arrays, figures, tables and a summary.

    Args:
        checkpoints: files of either host, or folders of runs, whose newest one is taken.
        overrides: ``KEY=VALUE``, see ``configs/analyze.yaml``.
        progress: whether to show a bar.

    Raises:
        ConfigError, DataError, CheckpointError: before anything is embedded, wherever that can be
            known.
    """
    cfg = read_settings(overrides)
    device = _device(cfg.device)
    paths = {os.path.realpath(Path(path).expanduser()): Path(path) for path in checkpoints}
    if not paths:
        raise ConfigError("analyze: no checkpoint is given. Add the path of a checkpoint or a run.")
    out = None if cfg.out is None else Path(str(cfg.out)).expanduser()
    with torch.random.fork_rng(devices=[]):  # networks and augmentations draw from the caller's
        return write(_studies([*paths.values()], cfg, device, progress), out)


def _studies(
    paths: Sequence[Path], cfg: DictConfig, device: torch.device, progress: bool
) -> list[Studied]:
    given: Any = OmegaConf.to_container(cfg, resolve=True)
    chosen = {key: given[key] for key in ("backbone", "method") if key in given}
    read = [encoder.load(path, chosen, given.get("data")) for path in paths]
    loaded = {one.file.resolve(): one for one in read}.values()  # a folder and its newest file
    known: dict[str, Images] = {}
    images = [find_images(one.config, cfg, known) for one in loaded]
    pipelines = [
        pipelines_of(one.config, some, cfg, one.file)
        for one, some in zip(loaded, images, strict=True)
    ]
    done = []
    for one, some, pair in zip(loaded, images, pipelines, strict=True):
        with _bar(one.file.name, progress) as step:
            result = _study(one, some, pair, cfg, device, step)
        done.append(Studied(result, one.file, one.config))
    return done


def told_apart(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Checkpoints and settings of one command line; solo-learn's checkpoints are ``...ep=9.ckpt``.

    What lies on the disk is a checkpoint; of the rest, what begins as a setting does is one.
    """
    settings = [
        text
        for text in arguments
        if re.match(r"[+~]*[A-Za-z_][\w.]*=", text) and not Path(text).expanduser().exists()
    ]
    return [text for text in arguments if text not in settings], settings


# ---------------------------------------------------------------------- settings


def read_settings(overrides: Sequence[str]) -> DictConfig:
    """Composes ``analyze.yaml`` with what is given on the command line, and checks it.

    Raises:
        ConfigError: a key is unknown, or a value can't be used.
    """
    try:
        parsed = OverridesParser.create().parse_overrides([*overrides])
    except HydraException as error:
        do = "Write KEY=VALUE; a value with = or spaces in it needs quotes inside of quotes"
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{' '.join(overrides)}: can't be read ({reason}). {do}.") from error
    known = [*_RULES, *_GROUPS]
    for item in parsed:
        key = item.key_or_group
        top, _, rest = key.partition(".")
        if top not in known:
            raise unknown_name("analyze", key, known, "setting")
        if top == "data" and rest and rest.split(".")[0] not in DATA_KEYS:
            raise unknown_name("data", rest, DATA_KEYS, "key")
        if _is_group(item) and item.value() not in (groups := _data_groups()):
            raise unknown_name("data", str(item.value()), groups, "group of images")
        if item.is_delete() or item.is_sweep_override():
            do = "Write KEY=VALUE."
            raise bad_value(key, item.input_line, "can't be taken away, or have several values", do)
    try:
        with nested_hydra(), initialize_config_module("solo_hardneg.configs", version_base="1.2"):
            cfg = compose("analyze", [f"data={i.value()}" for i in parsed if _is_group(i)])
    except HydraException as error:
        text = str(error).strip().splitlines()
        raise ConfigError(f"analyze: {' '.join(text)}") from error
    OmegaConf.set_struct(cfg, False)
    for item in parsed:  # not by Hydra, for which "negatives" is a group of configs
        if not _is_group(item):
            OmegaConf.update(cfg, item.key_or_group, item.value(), force_add=True)
    settle(cfg, _RULES)
    if cfg.crop_size is not None:
        COUNT.check("crop_size", cfg.crop_size)
    if cfg.synsets is not None and not Path(str(cfg.synsets)).expanduser().is_file():
        do = "Give a CSV file with the columns class and synset, or null."
        raise bad_value("synsets", cfg.synsets, "is no such file", do)
    return cfg


def _is_group(override: Override) -> bool:
    return override.key_or_group == "data" and isinstance(override.value(), str)


def _data_groups() -> list[str]:
    found = files("solo_hardneg.configs").joinpath("data").iterdir()
    return [file.name.removesuffix(".yaml") for file in found if file.name.endswith(".yaml")]


def _device(name: Any) -> torch.device:
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


def _study(
    one: Loaded,
    images: Images,
    pipelines: tuple[Any, Any],
    cfg: DictConfig,
    device: torch.device,
    step: Any,
) -> Study:
    parts = []
    torch.manual_seed(cfg.seed)  # of what augmentations draw
    for what, pipeline in zip(("queries", "negatives"), pipelines, strict=True):
        batches = _batches(images, getattr(images, what), pipeline, cfg, step)
        parts.append(encoder.embed(one.encoder, batches, device, what))
    (features, query), (_, negative) = parts
    targets = np.asarray(images.split.targets, dtype=np.int64)
    labels = targets[images.queries]
    notes = [*one.notes, *images.notes]
    points = np.empty((0, 2), np.float32)
    if cfg.tsne:
        step("t-SNE", 0)
        points, note = tsne(features, cfg.seed)
        notes += note
    result = study(
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
    return _without_comparison(result) if len(set(images.split.targets)) < 2 else result


def _without_comparison(result: Study) -> Study:
    """Of a single class, the share of the query's class says nothing: it is 1."""
    scalars = {k: v for k, v in result.scalars.items() if k.startswith("similarity/")}
    unknown = np.full_like(result.same_class, np.nan)
    return replace(result, same_class=unknown, depth=unknown, scalars=scalars)


def _batches(
    images: Images, indexes: NDArray[Any], pipeline: Any, cfg: DictConfig, step: Any
) -> Iterator[torch.Tensor]:
    dataset = ImageDataset(images.split.subset(indexes.tolist()), pipeline)
    total = len(images.queries) + len(images.negatives)
    loader = CheckedLoader(dataset, cfg.batch_size, num_workers=cfg.num_workers)
    loader.key = "num_workers"
    for tensors, _ in loader:
        yield tensors
        step("embedding", len(tensors) / total)


def tsne(features: NDArray[Any], seed: int) -> tuple[NDArray[Any], list[str]]:
    """(N, F) features in two dimensions (van der Maaten and Hinton 2008), or a note why not."""
    from sklearn.manifold import TSNE

    number = len(features)
    if number < 5 or np.ptp(features, axis=0).max() == 0:
        text = f"t-SNE is missing: it needs five different queries or more, and there are {number}"
        return np.empty((0, 2), np.float32), [f"{text}, or all are equal."]
    perplexity = min(30.0, (number - 1) / 3)  # scikit-learn's usual value, where it is allowed
    plane = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features)
    return np.asarray(plane, dtype=np.float32), []


def _info(one: Loaded, images: Images, cfg: DictConfig) -> dict[str, Any]:
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
        "predicted": one.encoder.predicted,  # queries or negatives, if they pass a predictor
        "queries": len(images.queries),
        "negatives": len(images.negatives),
        "percentiles": cfg.percentiles,
        "split": cfg.split,
        "views": cfg.views,
        "study_seed": cfg.seed,
        "version": solo_hardneg.__version__,
    }


class _bar:
    """A progress bar, on a terminal only: ``with _bar(...) as step: step(what, share)``."""

    def __init__(self, name: str, shown: bool) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.name = name
        self.columns = Progress(
            TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), transient=True
        )
        self.columns.disable = not (shown and self.columns.console.is_terminal)

    def __enter__(self) -> Any:
        self.columns.start()
        task = self.columns.add_task(self.name, total=1.0)

        def step(what: str, share: float) -> None:
            self.columns.update(task, description=f"{self.name}: {what}", advance=share)

        return step

    def __exit__(self, *_: Any) -> None:
        self.columns.stop()
