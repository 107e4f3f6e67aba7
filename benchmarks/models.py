"""Methods with a full queue, and batches of noise to train them on."""

from __future__ import annotations

from typing import Any

import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from torch.nn.functional import normalize
from torch.utils.data import Dataset

CLASSES = 100


class Noise(Dataset):
    """Samples ``index, [view, view], target`` of noise, at no cost.

    Args:
        images: Number of samples.
        pixels: Side of a view.
    """

    def __init__(self, images: int, pixels: int) -> None:
        self.views = torch.randn(2, 8, 3, pixels, pixels)
        self.images = images

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> Any:
        return index, [*self.views[:, index % 8]], index % CLASSES


def compose_config(
    method: str, batch: int, queue: int, backbone: str, *overrides: str, data: str = "cifar100"
) -> DictConfig:
    """A method's config, with what the host's parser would add."""
    chosen = [
        *(f"data={data}", f"backbone.name={backbone}", f"optimizer.batch_size={batch}"),
        *([f"method_kwargs.queue_size={queue}"] if method.startswith("moco") else []),
        *overrides,
    ]
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        cfg = compose(method, chosen)
    OmegaConf.set_struct(cfg, False)
    cfg.data.num_classes, cfg.data.num_large_crops, cfg.data.num_small_crops = CLASSES, 2, 0
    cfg.checkpoint.enabled = False
    return cfg


def build_method(cfg: DictConfig) -> Any:
    """Builds a config's method, from our methods or the current host's."""
    from solo_hardneg.host import METHODS
    from solo_hardneg.methods import OUR_METHODS

    return {**METHODS, **OUR_METHODS}[cfg.method](cfg)


def fill_queue(model: Any) -> None:
    """Fills the queue with random keys, as if the run had been going on for epochs."""
    if hasattr(model, "queue"):
        model.queue.copy_(normalize(torch.randn_like(model.queue), dim=1))
    if hasattr(model, "queue_filled"):
        length = model.queue.shape[2]
        model.queue_filled[0] = length
        model.queue_labels.copy_(torch.arange(length) % CLASSES)
        model.queue_indexes.copy_(torch.arange(length))
        model.key_queue.read_counters()
