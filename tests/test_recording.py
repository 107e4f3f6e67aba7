"""Recording in whole programs: foreign ones, several processes, a killed run, wandb."""

from __future__ import annotations

import csv
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from integration_helpers import run_python
from killing import Program

from solo_hardneg.analysis import records

pytestmark = pytest.mark.full

SMALL = [
    *("data=digits", "data.val_path=builtin", "+data.fraction=0.1", "+limit_val_batches=1"),
    *("scheduler.warmup_epochs=0", "method_kwargs.proj_hidden_dim=32"),
    *("method_kwargs.proj_output_dim=16", "accelerator=cpu", "+enable_progress_bar=false"),
    *("hardness.enabled=true", "hardness.every_n_steps=1"),
]
STANDALONE = {"SOLO_HARDNEG_HOST": "standalone"}

FOREIGN = """
import json, sys
import lightning
from lightning.pytorch import Trainer
{first}
trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
print(json.dumps({{
    "callbacks": [type(callback).__module__ for callback in trainer.callbacks],
    "loaded": sorted(m for m in sys.modules if m.startswith("solo_hardneg")),
    "heavy": sorted(m for m in ("pandas", "pyarrow", "nltk") if m in sys.modules),
}}))
"""


def foreign(folder: Path, first: str = "") -> dict[str, Any]:
    program = FOREIGN.format(first=first)
    return json.loads(
        run_python("-c", program, cwd=folder, env=STANDALONE).ok().out.splitlines()[-1]
    )


def test_a_foreign_program_gets_no_recorder(tmp_path: Path) -> None:
    found = foreign(tmp_path)
    assert not any("solo_hardneg" in module for module in found["callbacks"])
    assert found["loaded"] == ["solo_hardneg", "solo_hardneg.errors", "solo_hardneg.plugin"]
    # The same check sees it in a program in which our methods are registered.
    found = foreign(tmp_path, "from solo_hardneg.plugin import register; register()")
    assert "solo_hardneg.analysis.recorder" in found["callbacks"]
    assert found["heavy"] == []  # needed only by a run that is recorded
    found = foreign(tmp_path, "import solo_hardneg.analysis.records")
    assert found["heavy"] == ["pandas", "pyarrow"]


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
    table = records.read(run / "hardness").table
    scalars = table[table.kind == "scalar"]
    assert {*scalars["rank"]} == {0, 1}
    last = scalars[scalars.step == scalars.step.max()]
    offered = last[last.quantity == "count/offered"].value.tolist()
    # Both have all negatives: the queue with everybody's keys, or both processes' images.
    assert offered == ([62, 62] if method == "simclr" else [64, 64])
    with (run / "metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row.get("hardness/count/offered")]
    assert len(logged) == len({*scalars.step})
    for quantity, rows in last.groupby("quantity", observed=True):
        assert len(rows) == 2, quantity
        if "positive/p" in quantity:  # of all queries together, and not a mean
            assert rows.value.min() <= float(logged[-1][f"hardness/{quantity}"]) <= rows.value.max()
            continue
        mean = (rows.value * rows.weight).sum() / rows.weight.sum()
        assert float(logged[-1][f"hardness/{quantity}"]) == pytest.approx(mean, rel=1e-5), quantity
    positives = last[last.quantity == "similarity/positive"].value.tolist()
    assert positives[0] != positives[1]  # each process has queries of its own
    # The first process has the images of both: each of SimCLR's 32 queries and their 32 twins
    # meets the 31 other images' two views.
    images = table[(table.kind == "image") & (table.quantity == "met")]
    assert {*images["rank"]} == {0}
    if method == "simclr":
        steps = len({*scalars.step})
        assert images.value.sum() == steps * 64 * 62


def test_a_killed_run_loses_the_epoch_at_hand_and_nothing_else(tmp_path: Path) -> None:
    command = ["-m", "solo_hardneg", "pretrain", "--config-name", "mocov2_banded", *SMALL]
    size = ["optimizer.batch_size=32", "method_kwargs.queue_size=64", "max_epochs=50"]
    program = Program(tmp_path / "killed", [*command, "negatives=all", *size], STANDALONE)
    try:
        program.kill_after(4 * 5 + 2)  # four steps an epoch
    finally:
        program.kill()
    (folder,) = program.folder.glob("checkpoints/*/*/hardness")
    found = records.read(folder)
    assert not any("left out" in note for note in found.notes)
    epochs = sorted({*found.table.epoch})
    assert epochs[:5] == [0, 1, 2, 3, 4]
    scalars = found.table[found.table.quantity == "similarity/negative"]
    assert [*scalars.step] == list(range(1, 4 * len(epochs)))  # at step 0 the queue is empty
    pd.testing.assert_frame_equal(
        pd.read_parquet(folder)[["epoch", "step", "value"]], found.table[["epoch", "step", "value"]]
    )


def test_wandb_has_the_scalars_offline_too(tmp_path: Path) -> None:
    run = pretrain(
        *(tmp_path, "simclr", "optimizer.batch_size=32", "max_epochs=2"),
        *("wandb.enabled=true", "wandb.offline=true"),
        WANDB_DIR=str(tmp_path),
        WANDB_SILENT="true",
    )
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    history = wandb_history(file)
    table = records.read(run / "hardness").table
    for quantity in ("mass/hardest_5", "similarity/positive", "count/offered"):
        rows = table[table.quantity == quantity].set_index("step").value
        found = {
            int(row["trainer/global_step"]): row[f"hardness/{quantity}"]
            for row in history
            if f"hardness/{quantity}" in row
        }
        assert found == pytest.approx(rows.to_dict())
        assert len(found) == 8


def wandb_history(file: Path) -> list[dict[str, Any]]:
    """What a run logged, from the file that wandb would upload."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for data in framed(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
    return rows


def framed(content: bytes) -> Iterator[bytes]:
    """The records of a file in the format of LevelDB's logs, which is wandb's.

    Blocks of 32 KiB hold fragments, each with a checksum (4 bytes), its length (2) and its kind
    (1): a whole record, the first, a middle or the last part of one. wandb has 7 bytes in front.
    """
    whole, first, last = 1, 2, 4
    place, record = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # too little for a header: the block's end is empty
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        part = content[place + 7 : place + 7 + length]
        record = part if kind in (whole, first) else record + part
        place += 7 + length
        if kind in (whole, last):
            yield record
