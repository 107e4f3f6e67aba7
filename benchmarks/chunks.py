"""Peak memory and time of a SimCLR step, with the whole batch in the encoder or in chunks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks import models
from benchmarks.memory import peak_memory, run_in_fresh_process
from benchmarks.provenance import HERE, provenance, update_csv


def measure_chunk(batch: int, chunk: int, backbone: str, pixels: int) -> dict[str, float]:
    """Returns the peak memory (bytes) and the time (seconds) of a forward and backward pass.

    Args:
        batch: Images, of two views each.
        chunk: Images in the encoder at once; 0 for all.
        backbone: A timm name.
        pixels: Side of a view.
    """
    cfg = models.compose_config(
        *("simclr_banded", batch, 0, backbone, "negatives=hardest_5"),
        *("data.train_path=null", "data.val_path=null"),
        f"performance.encoder_chunk={chunk or 'null'}",
    )
    model: Any = models.build_method(cfg).train()
    views = [torch.randn(batch, 3, pixels, pixels) for _ in range(2)]
    indexes = torch.arange(batch)

    def step() -> None:
        model.zero_grad(set_to_none=False)
        model.training_step([indexes, views, indexes % models.CLASSES], 0).backward()

    small = [indexes[:2], [view[:2] for view in views], indexes[:2]]
    model.training_step(small, 0).backward()  # so that the gradients' memory doesn't count
    start = time.perf_counter()
    peak = peak_memory(step)
    return {"peak": peak, "seconds": time.perf_counter() - start}


def run_chunks(
    batches: list[int],
    chunks: list[int],
    backbone: str,
    pixels: int,
    file: Path | None = HERE / "chunks.csv",
) -> pd.DataFrame:
    """Measures every batch with every chunk, each in a process of its own.

    Args:
        batches: Numbers of images.
        chunks: Images in the encoder at once; 0 for the whole batch.
        backbone: A timm name.
        pixels: Side of a view.
        file: CSV to update.
    """
    rows = []
    for batch in batches:
        for chunk in chunks:
            found = run_in_fresh_process("chunk", batch, chunk, backbone, pixels)
            size = {"images": batch, "chunk": chunk or "all", "backbone": backbone}
            cost = {"peak_MB": found["peak"] / 1e6, "seconds": found["seconds"]}
            rows.append({**size, "pixels": pixels, **{k: round(v, 1) for k, v in cost.items()}})
    table = pd.DataFrame(rows).assign(**provenance())
    if file is not None:
        update_csv(file, table, ["images", "chunk", "backbone", "pixels", "device"])
    return table
