"""A run's records: one Parquet file per epoch and process.

All files have one schema, in long format, so ``pandas.read_parquet(folder)`` reads all of them. By
``kind``:

- scalar: ``value`` is a mean over ``weight`` queries; for classes, depths and what a policy
  dropped, over pairs of a query and a negative. ``positive/p05`` and the like are quantiles over
  the process's queries. ``rankme`` is one value per epoch, in the first process's file.
- percentile: the same per percentile of difficulty, ``bin`` 0 (easiest) upwards.
- histogram: ``value`` counts the similarities in ``bin``, one of 200 over [-1, 1].
- image: ``value`` counts, over the epoch's recorded steps and all processes, for how many queries
  the image ``bin`` was a negative (``met``), and among the hardest 5 % (``hard``). Only the first
  process's file has these rows.
- metric: what the trainer logged by the end of the epoch.

To combine processes or steps, average means by ``weight`` and sum counts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from solo_hardneg.errors import DataError
from solo_hardneg.files import write_atomically

SCHEMA_VERSION = 1
MOST_ROWS = 50_000_000  # of a file; an epoch of ImageNet has some rows for each of 1.3 M images
_PREFIX = b"solo_hardneg."
_NAME = re.compile(r"epoch(\d+)-rank\d+\.parquet")
_DAMAGED = (OSError, pa.ArrowException, ValueError, DataError)
FIELDS = pa.schema(
    [
        ("schema", pa.int16()),
        ("epoch", pa.int32()),
        ("step", pa.int64()),
        ("rank", pa.int16()),
        ("kind", pa.string()),
        ("quantity", pa.string()),
        ("bin", pa.int32()),
        ("value", pa.float64()),
        ("weight", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Records:
    """What a run recorded.

    Attributes:
        table: All rows, with the columns of ``FIELDS``.
        config: The run's config, from its newest file.
        notes: What is missing and why, in the run itself or because a file can't be read.
    """

    table: pd.DataFrame
    config: dict[str, Any]
    notes: tuple[str, ...]


class Rows:
    """Collects the rows of one process's file."""

    def __init__(self) -> None:
        self._blocks: list[pa.Table] = []

    def add(
        self,
        epoch: int,
        step: int,
        rank: int,
        kind: str,
        quantity: str,
        bins: ArrayLike,
        values: ArrayLike,
        weights: ArrayLike | float = 1.0,
    ) -> None:
        """Adds one row per bin; a quantity without bins has bin -1."""
        number = np.size(bins)
        constants = (SCHEMA_VERSION, epoch, step, rank, kind, quantity)
        arrays = (bins, values, np.broadcast_to(weights, number))
        fields = iter(FIELDS)
        columns = [
            *(pa.repeat(pa.scalar(v, next(fields).type), number) for v in constants),
            *(pa.array(np.asarray(v), next(fields).type) for v in arrays),
        ]
        self._blocks.append(pa.Table.from_arrays(columns, schema=FIELDS))

    def write(
        self, folder: Path, epoch: int, rank: int, config: str, notes: Sequence[str] = ()
    ) -> Path:
        """Writes the file of an epoch and a process, completely or not at all.

        Args:
            folder: Folder of the records; created if missing.
            epoch: Epoch of the rows.
            rank: Process of the rows.
            config: The run's config, as JSON.
            notes: What is missing and why.

        Raises:
            OSError: The file can't be written.
        """
        metadata = {"schema": str(SCHEMA_VERSION), "config": config, "notes": json.dumps([*notes])}
        named = {_PREFIX + name.encode(): text.encode() for name, text in metadata.items()}
        table = pa.concat_tables(self._blocks or [FIELDS.empty_table()])
        table = table.replace_schema_metadata(named)
        path = folder / f"epoch{epoch:05d}-rank{rank}.parquet"
        write_atomically(path, lambda file: pq.write_table(table, file, compression="zstd"))
        return path


def first_late(epochs: Iterable[int], late: float) -> int:
    """The first of the last ``late`` share of the recorded epochs."""
    known = sorted(set(epochs))
    return known[-max(math.ceil(late * len(known)), 1)]


def read_records(folder: Path, late_images: float = 1.0) -> Records:
    """Reads what a run recorded.

    Damaged files, and those of another version or program, are left out with a note.

    Args:
        folder: ``RUN/hardness``.
        late_images: The share of the epochs, counted from the last, whose rows of kind ``image``
            are read. These are most of all rows.

    Raises:
        DataError: The folder is missing, or holds nothing that can be read.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: there is no such folder. Record a run with hardness.enabled=true."
        )
    tables, notes, config = [], [], {}
    paths = sorted(folder.glob("*.parquet"))
    named = [int(found[1]) for path in paths if (found := _NAME.fullmatch(path.name))]
    late = first_late(named, late_images) if named else 0
    for path in paths:
        try:
            file_config, file_notes = _config_and_notes(path)
            table = _read_table(path)
        except _DAMAGED as error:
            reason = str(error) if isinstance(error, DataError) else f"it is damaged ({error})"
            notes.append(f"{path}: left out, because {reason}")
            continue
        early = pc.and_(pc.equal(table["kind"], "image"), pc.less(table["epoch"], late))
        tables.append(table.filter(pc.invert(early)).to_pandas())
        config = file_config
        notes += [note for note in file_notes if note not in notes]
    if not tables:
        reason = "; ".join(notes) or "it holds no Parquet files; a run writes one after each epoch"
        raise DataError(f"{folder}: there is nothing to read. {reason}.")
    return Records(_concatenate(tables), config, tuple(notes))


def recorded_config(folder: Path) -> str | None:
    """The config (JSON) of the records in a folder; ``None`` if it has none."""
    for path in sorted(folder.glob("*.parquet")):
        try:
            return _metadata(path)["config"]
        except _DAMAGED:
            continue
    return None


def drop_from(folder: Path, epoch: int) -> None:
    """Deletes the files of an epoch and later ones, which a resumed run writes again.

    They would stay if the resumed run had fewer epochs or processes.
    """
    for path in folder.glob("*.parquet"):
        found = _NAME.fullmatch(path.name)
        if found and int(found[1]) >= epoch:
            path.unlink()


def _metadata(path: Path) -> Mapping[str, str]:
    with path.open("rb") as file:
        found = pq.read_metadata(file).metadata or {}
    metadata = {
        key.removeprefix(_PREFIX).decode(): value.decode()
        for key, value in found.items()
        if key.startswith(_PREFIX)
    }
    if not {"schema", "config", "notes"} <= set(metadata):
        raise DataError("it is not one of solo-hardneg's records")
    version = metadata["schema"]
    if version != str(SCHEMA_VERSION):
        raise DataError(
            f"it has version {version} of the schema, and this is version {SCHEMA_VERSION}; "
            "read it with the release of solo-hardneg that wrote it"
        )
    return metadata


def _config_and_notes(path: Path) -> tuple[dict[str, Any], list[str]]:
    metadata = _metadata(path)
    try:
        config, notes = json.loads(metadata["config"]), json.loads(metadata["notes"])
    except RecursionError:
        raise ValueError("its config is nested too deeply") from None
    if not isinstance(config, dict) or not isinstance(notes, list):
        raise ValueError("its config is no mapping or its notes are no list")
    return config, [note for note in notes if isinstance(note, str)]


def _read_table(path: Path) -> pa.Table:
    """All rows; raises DataError for unknown columns or too many rows."""
    with path.open("rb") as file:
        metadata = pq.read_metadata(file)
        # Parquet's own schema: Arrow's, in the metadata, may name types that run code when read.
        schema = metadata.schema.to_arrow_schema()
        types = {field.name: field.type for field in schema}
        if types != {field.name: field.type for field in FIELDS}:
            raise DataError(f"its columns are not those of records ({', '.join(schema.names)})")
        if not 0 <= metadata.num_rows <= MOST_ROWS:
            raise DataError(f"it claims {metadata.num_rows} rows, more than any epoch has")
        return pq.ParquetFile(file, read_dictionary=["kind", "quantity"]).read()


def _concatenate(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    # pandas keeps categories only where all tables have the same ones.
    for name in ("kind", "quantity"):
        categories = sorted(set().union(*(table[name].cat.categories for table in tables)))
        for table in tables:
            table[name] = table[name].cat.set_categories(categories)
    return pd.concat(tables, ignore_index=True)
