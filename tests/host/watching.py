"""Hydra callback that records solo-learn's losses and those of the recorded pools.

Enabled by ``+hydra.callbacks.watch._target_=watching.Watch``.
"""

from __future__ import annotations

import functools
import json
import sys
from typing import Any

import torch
from hydra.experimental.callback import Callback


def by_hand(z: Any, indexes: Any, temperature: float) -> tuple[Any, Any]:
    """(2B,) mean similarity to the positives, and (2B, 2B) logits of the negatives."""
    z = torch.nn.functional.normalize(z.detach(), dim=-1)
    positives, logits = [], torch.full((len(z), len(z)), -torch.inf)
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i and indexes[j] == indexes[i]]
        positives.append(sum(float(z[i] @ z[j]) for j in others) / len(others))
        for j in range(len(z)):
            if indexes[j] != indexes[i]:
                logits[i, j] = float(z[i] @ z[j]) / temperature
    return torch.tensor(positives), logits


class Watch(Callback):
    def __init__(self, file: str) -> None:
        self.file = file

    def on_job_start(self, config: Any, **kwargs: Any) -> None:
        from solo_hardneg.losses import info_nce
        from solo_hardneg.recording import recorder, statistics

        def write(kind: str, loss: Any, positive: Any, negatives: Any, **more: int) -> None:
            line = {"kind": kind, "loss": float(loss.mean()), "positive": float(positive.mean())}
            if negatives.ndim == 2:
                negatives = torch.logsumexp(negatives, dim=1)
            line["negatives"] = float(negatives.mean())
            with open(self.file, "a") as file:
                file.write(json.dumps({**line, **more}) + "\n")

        def summarize(pool: Any, temperature: float, *rest: Any) -> Any:
            loss, _ = info_nce(pool.positive, pool, temperature)
            negatives = (pool.similarity / temperature).masked_fill(~pool.present, -torch.inf)
            write("pool", loss, pool.positive, negatives, size=int(pool.present.shape[1]))
            return statistics.summarize(pool, temperature, *rest)

        recorder.summarize = summarize
        module = sys.modules[f"solo.methods.{config.method}"]
        names = [name for name in vars(module) if name.endswith("_loss_func")]
        for name in names:
            loss_func = getattr(module, name)

            @functools.wraps(loss_func)
            def watched(*args: Any, loss_func: Any = loss_func, **kwargs: Any) -> Any:
                loss = loss_func(*args, **kwargs)
                parts = by_hand(*args, **kwargs) if "indexes" in kwargs else (loss, loss)
                write("host", loss, *parts)
                return loss

            setattr(module, name, watched)
