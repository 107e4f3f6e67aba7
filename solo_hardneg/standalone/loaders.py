"""Data loaders of pretraining and linear evaluation."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from solo_hardneg.data.datasets import ImageDataset, IndexDataset, load_split
from solo_hardneg.data.loader import CheckedLoader
from solo_hardneg.data.transforms import Views, plain_pipeline
from solo_hardneg.errors import bad_value
from solo_hardneg.validate import number_of_devices, read


def make_loader(cfg: DictConfig, dataset: Any, train: bool) -> DataLoader:
    """Batches a dataset: shuffled, without an incomplete batch for training; else in order.

    Raises:
        ConfigError: There are fewer training images than one batch per device.
    """
    batch = cfg.optimizer.batch_size
    share = len(dataset) // (number_of_devices(cfg) * read(cfg, "num_nodes", 1))
    if train and share < batch:
        allowed = f"there are only {share} training images for each device, not one full batch"
        raise bad_value("optimizer.batch_size", batch, allowed, f"Set it to {share} or less.")
    return CheckedLoader(
        dataset,
        batch_size=batch,
        shuffle=train,
        drop_last=train,
        # Without images to decode, workers cost more than they save.
        num_workers=0 if isinstance(dataset, IndexDataset) else read(cfg, "data.num_workers", 0),
        pin_memory=torch.cuda.is_available(),
    )


def plain_loader(cfg: DictConfig, train: bool, crop: int) -> DataLoader:
    """Batches ``[X, targets]`` of all images of a split, in order, without augmentation."""
    dataset = ImageDataset(load_split(cfg, train), plain_pipeline(cfg.data.dataset, crop, False))
    return make_loader(cfg, dataset, train=False)


def _training_loader(cfg: DictConfig, transform: Any, indexed: bool) -> DataLoader:
    split = load_split(cfg, True)
    if cfg.data.format == "resident":  # a callback makes the views on the device
        return make_loader(cfg, IndexDataset(split), train=True)
    return make_loader(cfg, ImageDataset(split, transform, indexed), train=True)


def pretrain_loaders(cfg: DictConfig) -> tuple[DataLoader, DataLoader | None]:
    """Loads ``[indexes, [X1, X2], targets]`` and, with ``data.val_path``, ``[X, targets]``."""
    entries: Any = OmegaConf.to_container(cfg.augmentations, resolve=True)
    train = _training_loader(cfg, Views(cfg.data.dataset, entries), indexed=True)
    if cfg.data.val_path is None or cfg.data.no_labels:
        return train, None
    return train, plain_loader(cfg, False, entries[0]["crop_size"])


def linear_loaders(cfg: DictConfig) -> tuple[DataLoader, DataLoader]:
    """Loads ``[X, targets]`` for training the classifier and for validation."""
    crop = cfg.data.augmentations.crop_size
    train = _training_loader(cfg, plain_pipeline(cfg.data.dataset, crop, True), indexed=False)
    return train, plain_loader(cfg, False, crop)
