"""In the program of solo-learn: writes down its losses, and the losses of the recorded pools.

A Hydra callback of the tests (``+hydra.callbacks.watch._target_=watching.Watch``).
"""

from __future__ import annotations

import functools
import json
import sys
from typing import Any

from hydra.experimental.callback import Callback


class Watch(Callback):
    def __init__(self, file: str) -> None:
        self.file = file

    def on_job_start(self, config: Any, **kwargs: Any) -> None:
        from solo_hardneg.analysis import recorder, statistics
        from solo_hardneg.losses import info_nce

        def note(kind: str, value: float, **more: int) -> None:
            with open(self.file, "a") as file:
                file.write(json.dumps({"kind": kind, "value": value, **more}) + "\n")

        def summarize(pool: Any, temperature: float, *rest: Any) -> Any:
            several = (pool.present.shape[1] - pool.counts - 1).clamp(min=1)  # SupCon's positives
            loss, _ = info_nce(pool.positive, pool, temperature, several.float())
            note("pool", float(loss.mean()), negatives=int(pool.present.shape[1]))
            return statistics.summarize(pool, temperature, *rest)

        recorder.summarize = summarize
        module = sys.modules[f"solo.methods.{config.method}"]
        names = [name for name in vars(module) if name.endswith("_loss_func")]
        for name in names:
            theirs = getattr(module, name)

            @functools.wraps(theirs)
            def watched(*args: Any, theirs: Any = theirs, **kwargs: Any) -> Any:
                loss = theirs(*args, **kwargs)
                note("host", float(loss))
                return loss

            setattr(module, name, watched)
