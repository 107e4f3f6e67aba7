"""What is recorded during training, as Parquet files: one for each epoch and process.

All files have one schema, in long format, so that ``pandas.read_parquet(folder)`` reads the lot:

- ``kind`` scalar: ``value`` is a mean over ``weight`` queries or, of classes and depths, pairs of
  a query and a negative; ``positive/p05`` … are percentiles of this process's queries.
- percentile: the same for each percentile of difficulty, ``bin`` 0 (easiest) upwards.
- histogram: ``value`` counts similarities in ``bin``, of 200 over [-1, 1].
- image: ``value`` counts, over the epoch's recorded steps, how often the image ``bin`` was a
  negative of a query (``met``), and how often it was among the hardest 5 % (``hard``), of all
  processes together; the first one's file has it.
- metric: what the trainer logged by the end of the epoch.

Of several processes or steps, means are averaged by ``weight`` and counts summed.
"""

from __future__ import annotations

import json
import math
import os
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

SCHEMA_VERSION = 1
# An epoch has a few rows for each image (and some hundreds more), and ImageNet a million images.
MOST_ROWS = 50_000_000
_PREFIX = b"solo_hardneg."
_NAME = re.compile(r"epoch(\d+)-rank\d+\.parquet")
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
        table: all rows, with the columns of ``FIELDS``.
        config: the run's config, as its newest file has it.
        notes: what is missing and why: of the run itself, and of files that can't be read.
    """

    table: pd.DataFrame
    config: dict[str, Any]
    notes: tuple[str, ...]


class Rows:
    """Rows of one process, until they are written."""

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
        """Adds one row for each bin; -1 is the bin of what has none."""
        number = np.size(bins)
        constant: dict[str, Any] = {
            "schema": SCHEMA_VERSION,
            "epoch": epoch,
            "step": step,
            "rank": rank,
        }
        constant |= {"kind": kind, "quantity": quantity}
        columns = [
            pa.repeat(pa.scalar(v, FIELDS.field(n).type), number) for n, v in constant.items()
        ]
        of_bins = bins, values, np.broadcast_to(weights, number)
        for name, several in zip(("bin", "value", "weight"), of_bins, strict=True):
            columns.append(pa.array(np.asarray(several), FIELDS.field(name).type))
        self._blocks.append(pa.Table.from_arrays(columns, schema=FIELDS))

    def write(
        self, folder: Path, epoch: int, rank: int, config: str, notes: Sequence[str] = ()
    ) -> Path:
        """Writes them as the file of an epoch and a process, all of it or nothing.

        Args:
            folder: where to; it is made if it isn't there.
            epoch, rank: whose file it is.
            config: the run's config, as JSON.
            notes: what is missing in it and why.
        """
        metadata = {"schema": str(SCHEMA_VERSION), "config": config, "notes": json.dumps([*notes])}
        named = {_PREFIX + name.encode(): text.encode() for name, text in metadata.items()}
        table = pa.concat_tables(self._blocks or [FIELDS.empty_table()])
        table = table.replace_schema_metadata(named)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"epoch{epoch:05d}-rank{rank}.parquet"
        partial = folder / f".{path.name}.part"  # readers pass over names with a dot in front
        with partial.open("wb") as file:  # pyarrow takes no path that isn't UTF-8
            pq.write_table(table, file, compression="zstd")
        os.replace(partial, path)
        return path


def first_late(epochs: Iterable[int], late: float) -> int:
    """The epoch in which the last ``late`` share of those recorded begins."""
    known = sorted(set(epochs))
    return known[-max(math.ceil(late * len(known)), 1)]


def read(folder: Path, late_images: float = 1.0) -> Records:
    """Reads what a run recorded.

    A file that is cut short, of another version or none of ours is left out, with a note.

    Args:
        folder: ``RUN/hardness``.
        late_images: the share of the epochs, the last ones, of which the images' counts are read.
            They are most of all rows: a row for each image and epoch.

    Raises:
        DataError: there is no such folder, or nothing in it that can be read.
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
            metadata = _metadata(path)
            its_config, its_notes = _told(metadata)
            table = _table(path)
        except (OSError, pa.ArrowException, ValueError, DataError) as error:
            notes.append(f"{path}: left out, because {_why(error)}")
            continue
        early = pc.and_(pc.equal(table["kind"], "image"), pc.less(table["epoch"], late))
        tables.append(table.filter(pc.invert(early)).to_pandas())
        config = its_config
        notes += [note for note in its_notes if note not in notes]
    if not tables:
        what = "; ".join(notes) or "it holds no Parquet files; a run writes one after each epoch"
        raise DataError(f"{folder}: there is nothing to read. {what}.")
    return Records(_concatenated(tables), config, tuple(notes))


def config_of(folder: Path) -> str | None:
    """The config (JSON) that an earlier recording in this folder has; ``None`` if there is none."""
    for path in sorted(folder.glob("*.parquet")):
        try:
            return _metadata(path)["config"]
        except (OSError, pa.ArrowException, ValueError, DataError):
            continue
    return None


def drop_from(folder: Path, epoch: int) -> None:
    """Removes the files of an epoch and later ones, which a run that is resumed before it replaces.

    The new run may have fewer epochs, or processes, than that which wrote them.
    """
    for path in folder.glob("*.parquet"):
        found = _NAME.fullmatch(path.name)
        if found and int(found[1]) >= epoch:
            path.unlink()


def _metadata(path: Path) -> Mapping[str, str]:
    with path.open("rb") as file:
        found = pq.read_metadata(file).metadata or {}
    ours = {
        key[len(_PREFIX) :].decode(): value.decode()
        for key, value in found.items()
        if key.startswith(_PREFIX)
    }
    if not {"schema", "config", "notes"} <= set(ours):
        raise DataError("it is not one of solo-hardneg's records")
    if ours["schema"] != str(SCHEMA_VERSION):
        raise DataError(
            f"it has version {ours['schema']} of the schema, and this is version {SCHEMA_VERSION}; "
            "read it with the release of solo-hardneg that wrote it"
        )
    return ours


def _told(metadata: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The run's config and the notes; ValueError if they are none."""
    try:
        config, notes = json.loads(metadata["config"]), json.loads(metadata["notes"])
    except RecursionError:
        raise ValueError("its config is nested too deeply") from None
    if not isinstance(config, dict) or not isinstance(notes, list):
        raise ValueError("its config or its notes are none")
    return config, [note for note in notes if isinstance(note, str)]


def _table(path: Path) -> pa.Table:
    """All rows, in our columns, and no others; DataError if it has other ones, or too many."""
    with path.open("rb") as file:
        told = pq.read_metadata(file)
        # By Parquet's own schema: Arrow's, in the metadata, may name types that run code when read.
        found = told.schema.to_arrow_schema()
        kinds = {field.name: field.type for field in found}
        if kinds != {field.name: field.type for field in FIELDS}:
            raise DataError(f"its columns are not those of the records ({', '.join(found.names)})")
        if not 0 <= told.num_rows <= MOST_ROWS:
            raise DataError(f"it claims {told.num_rows} rows; no epoch has so many")
        return pq.ParquetFile(file, read_dictionary=["kind", "quantity"]).read()


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, DataError) else f"it is damaged ({error})"


def _concatenated(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """All rows; pandas keeps categories only where all tables have the same ones."""
    for name in ("kind", "quantity"):
        categories = sorted(set().union(*(table[name].cat.categories for table in tables)))
        for table in tables:
            table[name] = table[name].cat.set_categories(categories)
    return pd.concat(tables, ignore_index=True)
