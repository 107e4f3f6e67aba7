"""Extends solo-learn's NVIDIA DALI loaders.

They read our list of images, run on machines without a GPU, and name the image that DALI fails on.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from solo_hardneg.data.images import check_images, check_tiffs
from solo_hardneg.data.listing import class_folders, labelled_images, unlabelled_images
from solo_hardneg.data.mixins import add_mixin
from solo_hardneg.errors import DataError, bad_value

DEVICES = ("gpu", "cpu")
_BUILDERS = ("PretrainPipelineBuilder", "NormalPipelineBuilder", "CustomNormalPipelineBuilder")
_ITERATORS = ("PretrainWrapper", "Wrapper")

_MOST = 20_000  # images to open in search of a damaged one, which takes a minute
_OF_THE_DEVICE = re.compile(r"CUDA (runtime|driver)|CUDA_ERROR|cuda[EM]|out of memory|[Aa]lloc")
_OF_AN_IMAGE = re.compile(r"decod|image|jpe?g|\bread|\bopen|\bfile", re.IGNORECASE)


def has_dummy_indexes(cfg: DictConfig) -> bool:
    """Whether the indexes of a batch are dummies instead of places in the dataset."""
    encoded = OmegaConf.select(cfg, "dali.encode_indexes_into_labels", default=False)
    return OmegaConf.select(cfg, "data.format") == "dali" and not encoded


def check_resources(device: Any, threads: Any) -> None:
    """Refuses a missing GPU, and pipelines without threads.

    Raises:
        ConfigError: Names the key.
    """
    if device not in DEVICES:
        raise bad_value("dali.device", device, "must be gpu or cpu")
    if device == "gpu" and not torch.cuda.is_available():
        raise bad_value("dali.device", device, "there is no GPU here", "Set dali.device=cpu.")
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        allowed = "must be a whole number above 0 with data.format=dali, whose threads it counts"
        raise bad_value("data.num_workers", threads, allowed)


def explain(error: RuntimeError, files: Sequence[str]) -> DataError:
    """Finds the image at which DALI failed, which DALI's own error often doesn't name.

    Args:
        error: DALI's error. It is pages long; only the lines with the cause are kept.
        files: Files that DALI may have read, oldest first. The first ones are opened, if an image
            may be the cause.
    """
    lines = [line.strip(" ,") for line in str(error).splitlines()]
    lines = [line for line in dict.fromkeys(lines) if not line.startswith("[frame ")]
    causes = [line for line in lines if re.search(r"operator|rror|failure|failed|Could not", line)]
    text = f"data.format=dali: DALI stopped ({' '.join(causes or lines)[:600]})"
    if any(_OF_THE_DEVICE.search(line) for line in lines):
        return DataError(f"{text}. If memory is short, lower optimizer.batch_size.")
    if not any(_OF_AN_IMAGE.search(line) for line in lines):
        return DataError(f"{text}.")
    try:
        check_images(files[:_MOST])
    except DataError as found:
        return found
    which = "the images" if len(files) <= _MOST else f"the first {_MOST:,} images"
    return DataError(f"{text}. PIL can read {which}: use data.format=image_folder.")


def extend_dali_loaders() -> None:
    """Mixes our classes into those that solo-learn's DALI data modules look up.

    Does nothing without DALI. Calling it again is harmless.
    """
    try:
        module = importlib.import_module("solo.data.dali_dataloader")
    except ImportError:  # solo-learn runs without DALI
        return
    add_mixin(module, _BUILDERS, _Builder)
    add_mixin(module, _ITERATORS, _Iterator)


class _Builder:
    """Reads our list of images, and runs without a GPU with ``dali.device=cpu``.

    solo-learn's builders assign a GPU to every pipeline, even to those on the CPU.

    Attributes:
        files: The images, starting with this process's share.
    """

    def __init__(
        self, data_path: Any, *args: Any, data_fraction: float = -1, **kwargs: Any
    ) -> None:
        from nvidia.dali import ops

        files, labels = _list_samples(str(data_path), kwargs.get("no_labels", False), data_fraction)
        check_tiffs(files)
        # data_fraction is applied to our list: solo-learn's may contain hidden folders, which break
        # the stratified draw.
        host: Any = super()
        host.__init__(Path(data_path), *args, data_fraction=-1, **kwargs)
        check_resources(getattr(self, "device", None), getattr(self, "num_threads", None))
        if not torch.cuda.is_available():  # not before, as __init__ adds it to the seed
            self.device_id = None
        if kwargs.get("encode_indexes_into_labels", False):
            self.conversion_map, labels = labels, list(range(len(files)))
        shard, shards = kwargs.get("shard_id", 0), kwargs.get("num_shards", 1)
        validation = kwargs.get("validation", False)
        self.reader = ops.readers.File(
            files=files,
            labels=labels,
            shard_id=shard,
            num_shards=shards,
            shuffle_after_epoch=kwargs.get("random_shuffle", not validation),
        )
        start = len(files) * shard // shards
        self.files = files[start:] + files[:start]

    def pipeline(self, *args: Any, **kwargs: Any) -> Any:
        """The host's pipeline, with ``files`` for our iterators."""
        made = super().pipeline(*args, **kwargs)  # type: ignore[misc]
        made.files = self.files
        return made


def _list_samples(folder: str, no_labels: bool, fraction: float) -> tuple[list[str], list[int]]:
    """The images that a loader reads, and their labels."""
    if no_labels:
        files = unlabelled_images(folder)
        labels = [-1] * len(files)
    else:
        classes = {name: label for label, name in enumerate(class_folders(folder, folder))}
        samples = labelled_images(folder, classes)
        files, labels = [file for file, _ in samples], [label for _, label in samples]
    if odd := [file for file in files if not _is_utf8(file)]:
        do = "Rename it, or use data.format=image_folder."
        raise DataError(f"{odd[0]}: DALI can't open names that are not in UTF-8. {do}")
    if fraction > 0:
        from sklearn.model_selection import train_test_split

        by = None if no_labels else labels
        options: dict[str, Any] = {"train_size": fraction, "stratify": by, "random_state": 42}
        files, _, labels, _ = train_test_split(files, labels, **options)
    return files, labels


def _is_utf8(name: str) -> bool:
    try:
        os.fsencode(name).decode()
    except UnicodeDecodeError:
        return False
    return True


class _Iterator:
    """Names the image at which DALI fails.

    Attributes:
        files: All images, starting with this process's share.
    """

    def __init__(self, *args: Any, pipelines: Any, **kwargs: Any) -> None:
        self.files: list[str] = pipelines.files
        host: Any = super()
        try:  # this makes the first batch
            host.__init__(*args, pipelines=pipelines, **kwargs)
        except RuntimeError as error:
            raise explain(error, self.files) from error

    def __next__(self) -> Any:
        try:
            return super().__next__()  # type: ignore[misc]
        except RuntimeError as error:
            raise explain(error, self.files) from error
