"""Recording in whole programs: several processes, a killed run, wandb, and other programs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pandas as pd
import pytest
from integration_helpers import run_python
from killing import Program

from solo_hardneg.recording import records

pytestmark = pytest.mark.full

SMALL = [
    *("data=digits", "data.val_path=builtin", "+data.fraction=0.1", "+limit_val_batches=1"),
    *("scheduler.warmup_epochs=0", "method_kwargs.proj_hidden_dim=32"),
    *("method_kwargs.proj_output_dim=16", "accelerator=cpu", "+enable_progress_bar=false"),
    *("hardness.enabled=true", "hardness.every_n_steps=1"),
]
STANDALONE = {"SOLO_HARDNEG_HOST": "standalone"}

UNREGISTERED = """
import json, sys
from lightning.pytorch import Trainer

def show():
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    callbacks = [type(callback).__module__ for callback in trainer.callbacks]
    loaded = [m for m in sys.modules if m.startswith("solo_hardneg") or m in ("pandas", "pyarrow")]
    print(json.dumps([callbacks, sorted(loaded)]))

show()
from solo_hardneg.plugin import register
register()
show()
"""


def test_a_program_without_our_methods_gets_no_recorder(tmp_path: Path) -> None:
    done = run_python("-c", UNREGISTERED, cwd=tmp_path, env=STANDALONE).ok()
    unregistered, registered = map(json.loads, done.out.splitlines()[-2:])
    assert not any("solo_hardneg" in module for module in unregistered[0])
    assert unregistered[1] == ["solo_hardneg", "solo_hardneg.errors", "solo_hardneg.plugin"]
    assert "solo_hardneg.recording.recorder" in registered[0]
    assert not {"pandas", "pyarrow"} & {*registered[1]}  # only recording needs them


def pretrain(folder: Path, *arguments: str, **env: str) -> Path:
    command = ["-m", "solo_hardneg", "pretrain", "--config-name", *arguments, *SMALL]
    run_python(*command, "checkpoint.dir=runs", cwd=folder, env={**STANDALONE, **env}).ok()
    (args,) = folder.glob("runs/*/*/args.json")
    return args.parent


@pytest.mark.parametrize("method", ["mocov2plus", "simclr"])
def test_two_processes_record_their_queries_and_log_the_means_of_all(
    tmp_path: Path, method: str
) -> None:
    queue = ["method_kwargs.queue_size=64"] if method.startswith("moco") else []
    run = pretrain(
        *(tmp_path, method, *queue, "optimizer.batch_size=16", "max_epochs=2"),
        *("strategy=ddp", "devices=2"),
    )
    assert sorted(file.name for file in (run / "hardness").iterdir()) == [
        f"epoch0000{epoch}-rank{rank}.parquet" for epoch in (0, 1) for rank in (0, 1)
    ]
    table = records.read_records(run / "hardness").table
    of_an_epoch = table.quantity == "rankme"  # one value for the queries of both
    scalars = table[(table.kind == "scalar") & ~of_an_epoch]
    assert {*scalars["rank"]} == {0, 1}
    assert [*table[of_an_epoch].epoch] == [0, 1]
    last = scalars[scalars.step == scalars.step.max()]
    offered = last[last.quantity == "count/offered"].value.tolist()
    # Both processes have all negatives: the whole queue, or the images of both.
    assert offered == ([62, 62] if method == "simclr" else [64, 64])
    with (run / "metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row.get("hardness/count/offered")]
    assert len(logged) == len({*scalars.step})
    for quantity, rows in last.groupby("quantity", observed=True):
        assert len(rows) == 2, quantity
        if "positive/p" in quantity:  # a quantile over all queries, not a mean
            assert rows.value.min() <= float(logged[-1][f"hardness/{quantity}"]) <= rows.value.max()
            continue
        mean = (rows.value * rows.weight).sum() / rows.weight.sum()
        assert float(logged[-1][f"hardness/{quantity}"]) == pytest.approx(mean, rel=1e-5), quantity
    positives = last[last.quantity == "similarity/positive"].value.tolist()
    assert positives[0] != positives[1]  # different queries
    # The first process has the counts of both: 64 views of 32 images, each with the 62 views of
    # the other images as negatives.
    images = table[(table.kind == "image") & (table.quantity == "met")]
    assert {*images["rank"]} == {0}
    if method == "simclr":
        steps = len({*scalars.step})
        assert images.value.sum() == steps * 64 * 62


def test_a_killed_run_loses_only_its_current_epoch(tmp_path: Path) -> None:
    command = ["-m", "solo_hardneg", "pretrain", "--config-name", "mocov2_banded", *SMALL]
    size = ["optimizer.batch_size=32", "method_kwargs.queue_size=64", "max_epochs=50"]
    program = Program(tmp_path / "killed", [*command, "negatives=all", *size], STANDALONE)
    try:
        program.kill_after(4 * 5 + 2)  # four steps an epoch
    finally:
        program.kill()
    (folder,) = program.folder.glob("checkpoints/*/*/hardness")
    found = records.read_records(folder)
    assert not any("left out" in note for note in found.notes)
    epochs = sorted({*found.table.epoch})
    assert epochs[:5] == [0, 1, 2, 3, 4]
    scalars = found.table[found.table.quantity == "similarity/negative"]
    assert [*scalars.step] == list(range(1, 4 * len(epochs)))  # at step 0 the queue is empty
    pd.testing.assert_frame_equal(
        pd.read_parquet(folder)[["epoch", "step", "value"]], found.table[["epoch", "step", "value"]]
    )


def test_wandb_logs_the_scalars_offline(tmp_path: Path) -> None:
    run = pretrain(
        *(tmp_path, "simclr", "optimizer.batch_size=32", "max_epochs=2"),
        *("wandb.enabled=true", "wandb.offline=true"),
        WANDB_DIR=str(tmp_path),
        WANDB_SILENT="true",
    )
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content, table = file.read_bytes(), records.read_records(run / "hardness").table
    for quantity in ("mass/hardest_5", "similarity/positive", "count/offered"):
        assert content.count(f"hardness/{quantity}".encode()) >= 8
        assert len(table[table.quantity == quantity]) == 8
