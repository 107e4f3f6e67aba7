"""Safe reading of files from others, and atomic writing.

A run's folder may come from anybody, so nothing in it is executed:

- checkpoints: ``torch.load(weights_only=True)``, in ``models.checkpoints``;
- ``args.json``: :func:`read_config`, which resolves only references to the config itself;
- records: Parquet of our schema, in ``recording.records``;
- studies and the cache of WordNet depths: ``np.load(allow_pickle=False)``;
- ``metrics.csv`` and a user's table of synsets: CSV;
- plans and results of ``reproduce``: JSON, in ``reproduce.store``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_BYTES = 2**24  # of a JSON file; a config has a few thousand
DEEPEST = 50  # levels of a JSON file; a config has five
LONGEST = 100  # characters of a file's name; file systems allow 255 bytes
# A resolver other than oc.select, or one whose name may be composed of references.
_RESOLVER = re.compile(r"\$\{(?!oc\.select:)[^}]*?:|\$\{[^}]*\$\{")
_MARKDOWN = str.maketrans({"\\": "\\\\", "&": "&amp;", "<": "&lt;", "|": "\\|"})


# ---------------------------------------------------------------------- reading


def read_json(file: Path) -> Any:
    """Reads a JSON file.

    Raises:
        OSError: It can't be read.
        ValueError: It is damaged, too large, or too deep.
    """
    if file.stat().st_size > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES // 2**20} MB")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"it has more than {DEEPEST} levels") from None
    _check_depth(content)
    return content


def _check_depth(content: Any) -> None:
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(DEEPEST):
        below = [v.values() if isinstance(v, dict) else v for v in level]
        level = [v for several in below for v in several if isinstance(v, dict | list)]
        if not level:
            return
    raise ValueError(f"it has more than {DEEPEST} levels")


def read_config(file: Path) -> dict[str, Any]:
    """Reads the config in an ``args.json``, and resolves its references to itself.

    Raises:
        OSError, ValueError: As :func:`read_json`; ValueError also if it isn't a mapping.
    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError("it holds no keys")
    return resolved(content)


def resolved(args: Mapping[str, Any]) -> dict[str, Any]:
    """Resolves the references in a config, which solo-learn writes unresolved.

    Only references to the config itself are resolved: another person's ``args.json`` must not read
    this machine's environment into a report. Others stay, escaped below the top level, where
    OmegaConf may read them again. If resolving fails, all references stay.
    """
    try:
        config = OmegaConf.create(_map_texts(dict(args), _escape_resolver))
        plain: Any = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, ValueError, TypeError, RecursionError):
        plain = dict(args)
    return {
        key: value if isinstance(value, str) else _map_texts(value, _escape_resolver)
        for key, value in plain.items()
    }


def literal(value: Any) -> Any:
    """Escapes all references in a value, so that OmegaConf resolves none."""
    return _map_texts(value, lambda text: text if _is_escaped(text) else _escape(text))


def flatten(value: Any, key: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(value, Mapping):
        return {key: value}
    parts = (flatten(v, f"{key}.{name}" if key else str(name)) for name, v in value.items())
    return {name: part for flat in parts for name, part in flat.items()}


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Applies a function to all texts in nested containers, except keys."""
    if isinstance(value, Mapping):
        return {key: _map_texts(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_map_texts(inner, change) for inner in value]
    return change(value) if isinstance(value, str) else value


def _escape_resolver(text: str) -> str:
    return _escape(text) if _RESOLVER.search(text) and not _is_escaped(text) else text


def _escape(text: str) -> str:
    return re.sub(r"(\\*)\$\{", lambda found: f"{found[1] * 2}\\${{", text)


def _is_escaped(text: str) -> bool:
    """Whether an odd number of backslashes, which escapes it, precedes each reference."""
    return all(len(found[1]) % 2 for found in re.finditer(r"(\\*)\$\{", text))


# ---------------------------------------------------------------------- writing


T = TypeVar("T")


def encodable(value: T) -> T:
    """Makes a text, or all texts in containers except keys, encodable as UTF-8.

    Bytes of a file's name that aren't UTF-8 become escapes, ``caf\\udce9``. Neither files nor
    pandas nor matplotlib accept them otherwise.
    """
    return _map_texts(value, lambda text: text.encode("utf-8", "backslashreplace").decode())


def write_atomically(
    path: Path, content: str | bytes | Callable[[BinaryIO], Any], durable: bool = False
) -> None:
    """Writes a file completely or not at all: no reader ever sees half of it.

    Args:
        path: File to write. Missing parent folders are made.
        content: Text, written as UTF-8 with Unix line ends whatever the locale; bytes; or a
            function that writes to the open file, such as ``lambda file: np.savez(file, x=x)``.
        durable: Flush to the disk before the file appears under its name.

    Raises:
        OSError: The file can't be written. An existing file stays, and nothing is left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unique among threads and nodes; readers of folders skip names that begin with a dot.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with partial.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(encodable(content).encode() if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def file_name(text: str) -> str:
    """A text as part of a file's name: no separators, no leading dot, and not too long."""
    name = re.sub(r"[^\w.]+", "-", text).strip("-.") or "study"
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST // 2]}-{hashlib.sha256(encodable(text).encode()).hexdigest()[:12]}"


def markdown_table(table: DataFrame) -> str:
    """A table in Markdown, with its texts escaped."""
    rows = [[escape_markdown(value) for value in row] for row in table.to_numpy(dtype=object)]
    header = [escape_markdown(name) for name in table.columns]
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, rule, *rows))


def escape_markdown(value: Any) -> str:
    """A value as one line of plain text in Markdown."""
    return " ".join(str(value).split()).translate(_MARKDOWN)
