"""Images per second of the standalone host's loader: decoding and augmenting, nothing else."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path

import pandas as pd

from benchmarks import models
from benchmarks.loss import write
from benchmarks.provenance import HERE, provenance


def run_loader(train_path: Path, batch: int, workers: list[int], batches: int) -> pd.DataFrame:
    """Both views of each image count as one image. The first batch, with the start of the
    workers, doesn't."""
    from solo_hardneg.standalone.data import pretrain_loaders

    rows = []
    for number in workers:
        cfg = models.config(
            "mocov2_banded", batch, 65536, "resnet18",
            f"data.train_path={train_path}", f"data.num_workers={number}", "data.val_path=null",
        )  # fmt: skip
        loader, _ = pretrain_loaders(cfg)
        loaded = iter(loader)
        next(loaded)
        start = time.perf_counter()
        count = sum(len(indexes) for indexes, _, _ in islice(loaded, batches))
        seconds = time.perf_counter() - start
        rows.append(
            {
                **{"loader": "standalone", "dataset": "cifar100", "workers": number, "N": batch},
                **{"images_s": round(count / seconds, 1), "batches": batches},
            }
        )
    table = pd.DataFrame(rows).assign(**provenance())
    write(HERE / "loader.csv", table, ["loader", "dataset", "workers", "N", "device"])
    return table
