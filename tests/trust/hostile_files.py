"""Files that an attacker or a full disk might leave in a run's folder."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from solo_hardneg.recording.records import FIELDS


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def marker_of(path: Path) -> Path:
    """The folder that the bomb of this file makes."""
    return path.with_name(f"{path.name}.executed")


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(marker_of(path))))


def saved_by_torch(path: Path) -> None:
    torch.save({"state_dict": {}, "epoch": 3, "extra": Bomb(marker_of(path))}, path)


def saved_by_old_torch(path: Path) -> None:
    content = {"state_dict": {}, "epoch": 3, "extra": Bomb(marker_of(path))}
    torch.save(content, path, _use_new_zipfile_serialization=False)


def cut_off(path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:700])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_text(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 10)


def loop(path: Path) -> None:
    path.symlink_to(path)


def folder(path: Path) -> None:
    path.mkdir()


def deep_json(path: Path) -> None:
    path.write_text("[" * 200_000 + "]" * 200_000)


def deep_config(path: Path) -> None:
    """Shallow enough for the parser, but too deep for recursion."""
    path.write_text('{"method": "simclr", "negatives": ' + '{"a": ' * 400 + "1" + "}" * 401)


ANY: dict[str, Callable[[Path], None]] = {
    "pickled": pickled,
    "saved_by_torch": saved_by_torch,
    "saved_by_old_torch": saved_by_old_torch,
    "cut_off": cut_off,
    "empty": empty,
    "no_text": no_text,
    "loop": loop,
    "folder": folder,
    "deep_json": deep_json,
    "deep_config": deep_config,
}


# ---------------------------------------------------------------------- Parquet


def table_of(rows: int = 3, **columns: Any) -> pa.Table:
    """Rows of the records' schema, filled with zeros."""
    texts = {"kind": "scalar", "quantity": "loss"}
    arrays = {
        field.name: pa.array([texts.get(field.name, 1 if field.name == "schema" else 0)] * rows)
        for field in FIELDS
    }
    arrays = {name: array.cast(FIELDS.field(name).type) for name, array in arrays.items()}
    return pa.table({**arrays, **columns})


def write_table(path: Path, table: pa.Table, **metadata: str) -> None:
    entries = {"schema": "1", "config": "{}", "notes": "[]", **metadata}
    named = {f"solo_hardneg.{key}": value for key, value in entries.items()}
    pq.write_table(table.replace_schema_metadata(named), path)


def other_version(path: Path) -> None:
    write_table(path, table_of(), schema="99")


def other_columns(path: Path) -> None:
    write_table(path, table_of().drop(["kind"]))


def other_types(path: Path) -> None:
    write_table(path, table_of(epoch=pa.array(["<b>", "1", "2"])))


def deep_metadata(path: Path) -> None:
    write_table(path, table_of(), config="[" * 100_000 + "]" * 100_000)


def no_config(path: Path) -> None:
    write_table(path, table_of(), config="not JSON")


def listed_config(path: Path) -> None:
    write_table(path, table_of(), config="[1, 2]", notes='{"a": 1}')


def pickled_type(path: Path) -> None:
    """An extension type that pyarrow up to 14.0.0 unpickles (CVE-2023-47248)."""
    marks = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Bomb(marker_of(path))),
    }
    bomb = pa.field("bomb", pa.int64(), metadata=marks)
    table = table_of().append_column(bomb, pa.array([1, 2, 3]))
    write_table(path, table)


def so_many_rows(path: Path, claimed: int = 10**12) -> None:
    """A few rows, and a footer that claims very many."""
    number = 54_321
    write_table(path, table_of(number))
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    body, footer = content[: -8 - length], content[-8 - length : -8]
    footer = footer.replace(_varint(number), _varint(claimed))
    path.write_bytes(body + footer + len(footer).to_bytes(4, "little") + b"PAR1")


def _varint(number: int) -> bytes:
    """A whole number in Thrift's compact protocol."""
    number, out = number << 1, []
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


PARQUET: dict[str, Callable[[Path], None]] = {
    **{"pickled": pickled, "cut_off": cut_off, "empty": empty, "loop": loop, "folder": folder},
    "other_version": other_version,
    "other_columns": other_columns,
    "other_types": other_types,
    "deep_metadata": deep_metadata,
    "no_config": no_config,
    "listed_config": listed_config,
    "pickled_type": pickled_type,
    "so_many_rows": so_many_rows,
}
