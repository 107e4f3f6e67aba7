"""Encodes a batch in chunks: the memory of a chunk, and the negatives of the whole batch.

Gradient accumulation adds no negatives to SimCLR's. GradCache (Gao et al. 2021, arXiv 2101.06983)
encodes a large batch in pieces, and each of them again in the backward pass. Activation
checkpointing (Chen et al. 2016, arXiv 1604.06174) of each piece computes the same gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from solo_hardneg.errors import bad_value
from solo_hardneg.validate import Count, check_type, read

KEY = "performance.encoder_chunk"


class ChunkedEncoder(nn.Module):
    """Mixin of a backbone that encodes ``chunk`` images at a time.

    Only the features of a chunk are kept; the rest is computed again in the backward pass. Batch
    normalization sees a chunk at a time, and its running statistics are updated once per chunk.
    """

    chunk: int

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (B, 3, H, W) to features (B, D)."""
        encode = super().forward
        parts = images.split(self.chunk)
        if not torch.is_grad_enabled():
            return torch.cat([encode(part) for part in parts])

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            return nullcontext(), _frozen_statistics(self)

        kwargs: dict[str, Any] = {"use_reentrant": False, "context_fn": contexts}
        return torch.cat([checkpoint(encode, part, **kwargs) for part in parts])


def read_chunk(cfg: DictConfig) -> int | None:
    """Returns ``performance.encoder_chunk``; ``None`` if it is not set.

    Raises:
        ConfigError: It is no whole number above 0, or doesn't divide the batch.
    """
    chunk, batch = read(cfg, KEY), cfg.optimizer.batch_size
    if chunk is None:
        return None
    check_type(KEY, chunk, Count)
    if batch % chunk:
        divisors = [n for n in range(2, batch + 1) if batch % n == 0]
        nearest = min(divisors, key=lambda n: abs(n - chunk), default=batch)
        do = f"The nearest that does is {nearest}."
        raise bad_value(KEY, chunk, f"must divide optimizer.batch_size={batch}", do)
    return int(chunk)


def chunk_encoder(backbone: nn.Module, chunk: int | None) -> None:
    """Makes a backbone encode ``chunk`` images at a time; ``None`` changes nothing.

    Raises:
        ConfigError: The chunk is one image, and the backbone normalizes over the images.
    """
    if chunk is None:
        return
    if chunk == 1 and any(isinstance(module, _BatchNorm) for module in backbone.modules()):
        text = "leaves batch normalization a single image, whose features it would make constant"
        raise bad_value(KEY, chunk, text, "Set it to 2 or more, better to 64 or more.")
    kind = type(backbone)
    backbone.__class__ = type(
        kind.__name__, (ChunkedEncoder, kind), {"__module__": kind.__module__}
    )
    backbone.chunk = chunk  # type: ignore[assignment]


def refuse_chunk(cfg: DictConfig) -> None:
    """Raises ConfigError if a method without negatives in the batch has an encoder chunk."""
    if (chunk := read(cfg, KEY)) is not None:
        text = f"is for SimCLR's methods; {cfg.method} has its negatives in the queue, so a smaller"
        do = "Lower optimizer.batch_size instead, or set accumulate_grad_batches."
        raise bad_value(KEY, chunk, f"{text} batch has as many", do)


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Keeps batch normalization from counting a chunk again as it is computed again."""
    norms = [module for module in module.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked
