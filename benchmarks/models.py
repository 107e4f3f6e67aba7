"""Methods as a run has them, with a full queue, for batches of noise."""

from __future__ import annotations

from typing import Any

import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from torch.nn.functional import normalize

CLASSES = 100


def config(
    method: str, batch: int, queue: int, backbone: str, *overrides: str, data: str = "cifar100"
) -> DictConfig:
    """The composed config of a method, with what the host's parser would add."""
    chosen = [
        *(f"data={data}", f"backbone.name={backbone}", f"optimizer.batch_size={batch}"),
        *(["method_kwargs.queue_size=" + str(queue)] if method.startswith("moco") else []),
        *overrides,
    ]
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        cfg = compose(method, chosen)
    OmegaConf.set_struct(cfg, False)
    cfg.data.num_classes, cfg.data.num_large_crops, cfg.data.num_small_crops = CLASSES, 2, 0
    cfg.checkpoint.enabled = False
    return cfg


def build(cfg: DictConfig) -> Any:
    """The method, of whichever host there is."""
    from solo_hardneg.host import METHODS
    from solo_hardneg.methods import OUR_METHODS

    return {**METHODS, **OUR_METHODS}[cfg.method](cfg)


def fill_queue(model: Any) -> None:
    """Random keys in all slots, as after the first epochs."""
    if hasattr(model, "queue"):
        model.queue.copy_(normalize(torch.randn_like(model.queue), dim=1))
    if hasattr(model, "queue_filled"):
        length = model.queue.shape[2]
        model.queue_filled[0] = length
        model.queue_labels.copy_(torch.arange(length) % CLASSES)
        model.queue_indexes.copy_(torch.arange(length))
        model.read_counters()
