"""Files are written completely or not at all, and texts as plain text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import pytest

from solo_hardneg.files import markdown_table, write_atomically


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("é\n", "é\n".encode()),
        (os.fsdecode(b"caf\xe9"), rb"caf\udce9"),
        (b"\x00\xff", b"\x00\xff"),
        (lambda file: file.write(b"ab"), b"ab"),
    ],
)
def test_write_atomically(tmp_path: Path, content: Any, expected: bytes, durable: bool) -> None:
    path = tmp_path / "new" / "folder" / "x"
    for _ in range(2):
        write_atomically(path, content, durable)
        assert path.read_bytes() == expected
    assert os.listdir(path.parent) == ["x"]
    assert path.stat().st_mode & 0o444 == 0o444


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise error

    (tmp_path / "x").write_text("old")
    with pytest.raises(error):
        write_atomically(tmp_path / "x", fail)
    assert os.listdir(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_markdown_tables_hold_plain_text() -> None:
    table = pd.DataFrame({"a|b": ["<script>alert(1)</script>", "x\ny"], "c": ["1 & 2", "\\"]})
    assert markdown_table(table) == (
        "| a\\|b | c |\n"
        "| --- | ---: |\n"
        "| &lt;script>alert(1)&lt;/script> | 1 &amp; 2 |\n"
        "| x y | \\\\ |\n"
    )
