"""Records on disk: round trips, and notes about files that can't be read."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from solo_hardneg.errors import DataError
from solo_hardneg.recording import records

CONFIG = {"method": "mocov2_banded", "name": "a run"}


def write(folder: Path, epoch: int, rank: int = 0, notes: tuple[str, ...] = ()) -> Path:
    rows = records.Rows()
    rows.add(epoch, 10 * epoch, rank, "scalar", "floored", [-1], [0.25], [64.0])
    rows.add(epoch, 10 * epoch, rank, "percentile", "mass", range(2), [0.1, 0.9], [64.0, 64.0])
    if epoch == 1:  # in some files only
        rows.add(epoch, 12, rank, "image", "met", [3, 5], [7.0, 1.0])
    return rows.write(folder, epoch, rank, json.dumps(CONFIG), notes)


def test_written_records_are_read(tmp_path):
    folder = tmp_path / "new" / "hardness"
    for epoch, rank in ((0, 0), (0, 1), (1, 0), (1, 1)):
        write(folder, epoch, rank, notes=("no classes",))
    found = records.read_records(folder)
    assert found.config == CONFIG
    assert found.notes == ("no classes",)
    assert len(found.table) == 4 * 3 + 2 * 2
    assert found.table.columns.tolist() == records.FIELDS.names
    mass = found.table.query("quantity == 'mass' and epoch == 1 and rank == 1")
    assert mass[["step", "bin", "value", "weight"]].values.tolist() == [
        [10, 0, 0.1, 64],
        [10, 1, 0.9, 64],
    ]


def test_pandas_reads_the_folder(tmp_path):
    for epoch in (0, 1):
        write(tmp_path, epoch)
    (tmp_path / ".epoch00002-rank0.parquet.part").write_bytes(b"PAR1 of a killed run")
    table = pd.read_parquet(tmp_path)
    assert sorted({*table["epoch"]}) == [0, 1]
    assert {*table["schema"]} == {records.SCHEMA_VERSION}
    text = {"kind": str, "quantity": str}
    read = records.read_records(tmp_path).table
    pd.testing.assert_frame_equal(table.astype(text), read.astype(text))


def test_writing_an_epoch_again_replaces_its_file(tmp_path):
    first, second = write(tmp_path, 0), write(tmp_path, 0)
    assert first == second
    assert [*tmp_path.iterdir()] == [first]
    assert len(records.read_records(tmp_path).table) == 3


def test_damaged_and_foreign_files_are_left_out_with_a_note(tmp_path):
    whole, cut = write(tmp_path, 0), write(tmp_path, 1)
    cut.write_bytes(cut.read_bytes()[:-40])
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"x": [1]}), foreign)
    newer = write(tmp_path, 2)
    table = pq.read_table(newer)
    metadata = {**table.schema.metadata, b"solo_hardneg.schema": b"9"}
    pq.write_table(table.replace_schema_metadata(metadata), newer)
    (tmp_path / "text.parquet").write_text("no Parquet at all")

    found = records.read_records(tmp_path)
    assert {*found.table["epoch"]} == {0}
    notes = dict(note.split(": left out, because ") for note in found.notes)
    assert notes.keys() == {str(tmp_path / name) for name in (cut, foreign, newer, "text.parquet")}
    assert notes[str(cut)].startswith("it is damaged (")
    assert notes[str(foreign)] == "it is not one of solo-hardneg's records"
    assert notes[str(newer)] == (
        "it has version 9 of the schema, and this is version 1; read it with the release of "
        "solo-hardneg that wrote it"
    )
    whole.unlink()
    with pytest.raises(DataError, match="there is nothing to read.*it has version 9"):
        records.read_records(tmp_path)


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no Parquet files; a run writes one after each"):
        records.read_records(tmp_path)
    missing = tmp_path / "missing"
    with pytest.raises(DataError, match=r"no such folder\. Record a run with hardness\.enabled"):
        records.read_records(missing)


def test_counts_of_images_can_be_read_for_late_epochs_only(tmp_path):
    for epoch in range(8):
        rows = records.Rows()
        for kind in ("image", "scalar"):
            rows.add(epoch, epoch, 0, kind, "met", [epoch], [1.0])
        rows.write(tmp_path, epoch, 0, json.dumps(CONFIG))
    table = records.read_records(tmp_path, late_images=0.25).table
    assert {*table[table.kind == "image"].epoch} == {6, 7}
    assert {*table[table.kind == "scalar"].epoch} == set(range(8))
    assert len(records.read_records(tmp_path).table) == 16


def test_files_from_an_epoch_on_are_deleted(tmp_path):
    for epoch, rank in ((0, 0), (1, 0), (1, 1), (2, 0)):
        write(tmp_path, epoch, rank)
    (tmp_path / "notes.parquet").write_text("a user's own")
    records.drop_from(tmp_path, 1)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "epoch00000-rank0.parquet",
        "notes.parquet",
    ]


def test_an_empty_epoch_has_a_file(tmp_path):
    records.Rows().write(tmp_path, 0, 0, json.dumps(CONFIG), ["nothing happened"])
    found = records.read_records(tmp_path)
    assert len(found.table) == 0
    assert found.notes == ("nothing happened",)


def test_the_config_of_a_folders_records(tmp_path):
    assert records.recorded_config(tmp_path) is None
    (tmp_path / "text.parquet").write_text("no Parquet at all")
    assert records.recorded_config(tmp_path) is None
    write(tmp_path, 3)
    assert records.recorded_config(tmp_path) == json.dumps(CONFIG)
