"""Whole runs by solo-learn's ``main_pretrain.py``: steps and images per second.

Its ``mocov2plus`` and our ``mocov2_banded`` with the same loss's shape (both directions, two
queues), with and without the recorder, on DALI and on solo-learn's image folder. Each run is a
process; a callback writes down when its steps end.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hydra.experimental.callback import Callback as HydraCallback
from PIL import Image

from benchmarks.hosts import checkout
from benchmarks.loss import write
from benchmarks.provenance import HERE, provenance
from benchmarks.timing import now, summary

WARM_UP = 10  # steps that don't count: threads start, files come into the cache
BOTH = ["method_kwargs.symmetric=true"]
EVERY = 25  # steps between records here; 100 by default
RECORDED = ["hardness.enabled=true", f"hardness.every_n_steps={EVERY}"]
# (what a row says, the config, what differs from it)
RUNS = {
    "solo-learn's mocov2plus": ("mocov2plus", []),
    f"solo-learn's mocov2plus, recorded every {EVERY} steps": ("mocov2plus", RECORDED),
    "mocov2_banded, hardest 5 %": ("mocov2_banded", BOTH),
    f"mocov2_banded, hardest 5 %, recorded every {EVERY} steps": (
        "mocov2_banded",
        [*BOTH, *RECORDED],
    ),
    "mocov2_banded, one direction": ("mocov2_banded", []),
}
FORMATS = ("image_folder", "dali")
REFERENCE = next(iter(RUNS))


class Clock(HydraCallback):
    """In solo-learn's program: writes down when each step ends.

    (``+hydra.callbacks.clock._target_=benchmarks.load.Clock``)
    """

    def __init__(self, file: str) -> None:
        self.file = file

    def on_job_start(self, config: Any, **kwargs: Any) -> None:
        """Puts a callback behind those that every trainer gets."""
        from lightning.pytorch import Callback

        from solo_hardneg import plugin

        theirs, ends, file = plugin.callbacks, [], self.file

        class Ends(Callback):
            def on_train_batch_end(self, *_: Any, **__: Any) -> None:
                ends.append(now())

            def on_train_end(self, *_: Any) -> None:
                Path(file).write_text(json.dumps(ends))

        plugin.callbacks = lambda: [*theirs(), Ends()]


def make_images(folder: Path, number: int, side: int = 224, copies: int = 1) -> Path:
    """JPEGs of smooth noise, about as hard to decode as photographs of this size.

    Args:
        folder: where to, in ten folders of classes.
        number: how many are made.
        side: pixels.
        copies: names that each has: an epoch is so much longer.
    """
    generator = np.random.default_rng(0)
    for index in range(number):
        place = folder / f"class{index % 10}"
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (28, 28, 3), dtype=np.uint8))
        fine = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = fine + generator.integers(-12, 13, fine.shape)
        pixels = noisy.clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{index:05}.jpg", quality=90)
        for copy in range(1, copies):
            (place / f"{index:05}-{copy}.jpg").hardlink_to(place / f"{index:05}.jpg")
    return folder


def seconds_of(
    name: str, data_format: str, images: Path, batch: int, steps: int, sizes: list[str]
) -> float:
    """Of a step of one run, on average.

    Raises:
        RuntimeError: the program failed.
    """
    root = checkout()
    assert root is not None
    config, more = RUNS[name]
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "ends.json"
        clock = "+hydra.callbacks.clock"
        command = [
            *(sys.executable, str(root / "main_pretrain.py"), "--config-name", config),
            *("data=custom", f"data.train_path={images}", f"data.val_path={images}"),
            *("+limit_val_batches=0", f"+max_steps={WARM_UP + steps}", "max_epochs=1000"),
            *("checkpoint.enabled=false", "data.num_workers=1", f"data.format={data_format}"),
            *(f"optimizer.batch_size={batch}", *sizes, *more, f"hardness.dir={place}/records"),
            *(f"{clock}._target_=benchmarks.load.Clock", f"{clock}.file={file}"),
        ]
        env = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        run = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{run.stderr[-3000:]}")
        ends = json.loads(file.read_text())
    return (ends[-1] - ends[WARM_UP - 1]) / (len(ends) - WARM_UP)


def run_load(
    images: Path | None, batch: int, steps: int, rounds: int, pixels: int, queue: int, backbone: str
) -> pd.DataFrame:
    """One row for each run and format; ratios are to the baseline of the same round and format.

    Raises:
        RuntimeError: there is no checkout of solo-learn.
    """
    import torch

    if checkout() is None:
        raise RuntimeError(
            "load: needs a checkout of solo-learn at $SOLO_LEARN_DIR or ~/solo-learn"
        )
    device = "gpu" if torch.cuda.is_available() else "cpu"
    sizes = [
        *(f"data.suggest.crop_size={pixels}", f"method_kwargs.queue_size={queue}"),
        *(f"backbone.name={backbone}", f"dali.device={device}"),
    ]
    order = [(name, kind) for kind in FORMATS for name in RUNS]
    shuffle, seconds = random.Random(0), {of: [] for of in order}
    with tempfile.TemporaryDirectory() as place:
        images = images or make_images(Path(place), 20 * batch)
        for number in range(rounds):
            for of in shuffle.sample(order, len(order)):
                seconds[of].append(seconds_of(*of, images, batch, steps, sizes))
                print(f"round {number + 1}, {of[1]}: {of[0]}: {seconds[of][-1]:.3f} s", flush=True)
    rows = []
    for kind in FORMATS:
        of_kind = {name: seconds[name, kind] for name in RUNS}
        for name, row in summary(of_kind, REFERENCE).items():
            middle = row["ms"] / 1e3
            speed = {"steps_s": round(1 / middle, 3), "images_s": round(batch / middle, 1)}
            rows.append({"format": kind, "run": name, **speed, **row})
    given = {"N": batch, "K": queue, "backbone": backbone, "pixels": pixels, "steps": steps}
    table = pd.DataFrame(rows).round(3).assign(rounds=rounds, **given, **provenance())
    write(HERE / "load.csv", table, ["format", "run", "N", "K", "backbone", "pixels", "device"])
    return table
