"""What others wrote: configs that are read without resolving anything, and texts made harmless.

A run's folder may come from anybody. What is read of it, and by what, without executing any of it:

- checkpoints: ``torch.load(weights_only=True)``, in ``safety.reading``;
- ``args.json``: :func:`read_config`; of OmegaConf's references only those to the config itself;
- records: Parquet, in ``records``, whose schema must be ours;
- studies and the cache of depths: ``np.load(allow_pickle=False)``;
- ``metrics.csv``, and a user's table of synsets: CSV;
- plans and results of ``reproduce``: JSON, in ``reproduce.results``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_BYTES = 2**24  # of a JSON file; a config has some thousands
DEEPEST = 50  # so many levels of a JSON file; a config has five
LONGEST = 100  # of a name in a folder, in characters; file systems take 255 bytes
# A resolver other than oc.select; or one, perhaps, whose name is put together by references.
_RESOLVER = re.compile(r"\$\{(?!oc\.select:)[^}]*?:|\$\{[^}]*\$\{")
_NUMBERS = re.compile(r"[-+\d.,;eE ]*")  # "+4.7; -0.3": nothing that could be calculated


# ---------------------------------------------------------------------- reading


def read_json(file: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it can't be read.
        ValueError: it is damaged, too large, or too deep.
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
    """The config in an ``args.json``, with its references to itself filled in.

    Raises:
        OSError, ValueError: as :func:`read_json`; ValueError, too, if it holds no keys.
    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError("it holds no keys")
    return resolved(content)


def resolved(args: Mapping[str, Any]) -> dict[str, Any]:
    """A config with its references filled in, which solo-learn writes as they stand.

    Only references to the config itself: no other's ``args.json`` shall read this machine's
    environment into a report. What asks for more stays as it stands, and is escaped where
    OmegaConf may read it again; the uppermost level is only looked at. Where references can't be
    filled in at all, all of them stay.
    """
    try:
        config = OmegaConf.create(_mapped(dict(args), _escaped_resolver))
        plain: Any = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, ValueError, TypeError, RecursionError):
        plain = dict(args)
    return {
        key: value if isinstance(value, str) else _mapped(value, _escaped_resolver)
        for key, value in plain.items()
    }


def literal(value: Any) -> Any:
    """The same for OmegaConf, in which no text is a reference any more."""
    return _mapped(value, lambda text: text if _is_escaped(text) else _escaped(text))


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The same containers with other texts; keys stay."""
    if isinstance(value, Mapping):
        return {key: _mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(inner, change) for inner in value]
    return change(value) if isinstance(value, str) else value


def _escaped_resolver(text: str) -> str:
    return _escaped(text) if _RESOLVER.search(text) and not _is_escaped(text) else text


def _escaped(text: str) -> str:
    return re.sub(r"(\\*)\$\{", lambda found: f"{found[1] * 2}\\${{", text)


def _is_escaped(text: str) -> bool:
    """Whether an odd number of backslashes stands before each reference, which makes it none."""
    return all(len(found[1]) % 2 for found in re.finditer(r"(\\*)\$\{", text))


# ---------------------------------------------------------------------- writing


T = TypeVar("T")


def encodable(value: T) -> T:
    """A text, or containers of texts, that UTF-8 can hold.

    Bytes of a file's name that are no UTF-8 become escapes, ``caf\\udce9``; keys stay. Without
    this, neither a file, nor a table of pandas, nor a figure takes such a text.
    """
    return _mapped(value, lambda text: text.encode("utf-8", "backslashreplace").decode())


def write_text(file: Path, text: str) -> None:
    """Writes a file of UTF-8 with Unix line ends, whatever the locale and the text.

    Raises:
        OSError: it can't be written.
    """
    file.write_text(encodable(text), encoding="utf-8", newline="\n")


def file_name(text: str) -> str:
    """A text as a part of a file's name: no separators, no dot in front, and not too long."""
    name = re.sub(r"[^\w.]+", "-", text).strip("-.") or "study"
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST // 2]}-{hashlib.sha256(encodable(text).encode()).hexdigest()[:12]}"


def for_spreadsheets(table: DataFrame) -> DataFrame:
    """The same table for a CSV file, in which a spreadsheet executes nothing.

    A text that begins with what begins a formula gets an apostrophe in front, as spreadsheets
    themselves mark texts. Programs that read the file see it, too; numbers stay as they are.
    """
    table = table.copy()
    for place in range(table.shape[1]):
        column = table.iloc[:, place]
        if column.map(lambda v: isinstance(v, str)).any():
            table.isetitem(place, column.astype(object).map(no_formula))
    return table


def no_formula(value: Any) -> Any:
    """A cell's value; a text that would be a formula, with an apostrophe in front."""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return value
    return value if value[0] in "+-" and _NUMBERS.fullmatch(value) else f"'{value}"


def no_links(markdown: str) -> str:
    """A text in Markdown without links or pictures: none of ours has any."""
    return markdown.replace("](", "]\\(")
