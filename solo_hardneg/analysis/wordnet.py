"""How far two classes are apart in WordNet: the depth of their least common ancestor.

Cai et al. 2020 (arXiv 2010.06682, section 4, figures 4b and 5b) find that hard negatives are
semantically near their query, and measure it so. A class is given as a wnid, the name that ImageNet
has for a synset of WordNet 3.0: an ``n`` (noun) and its offset in eight digits.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
import re
import tempfile
import threading
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from solo_hardneg.analysis.classes import shipped
from solo_hardneg.errors import DataError, bad_value

VERSION = "3.0"  # of WordNet: in any other one, the same offset is another synset
FORMAT = 1  # of the files in the cache, and of what they hold

_WNID = re.compile(r"n\d{8}")
_SIZES = {"data.noun": 15_300_280, "index.noun": 4_786_655}  # in bytes, of that version
_NAME = re.compile(r"\S+\.n\.0*[1-9]\d*")  # nltk reads number 0 as the last one
_FORM = (
    "It is a CSV file with the header class,synset and a line for each class, such as"
    " goldfish,goldfish.n.01 or goldfish,n01443537"
)
_LOCK = threading.RLock()  # nltk's reader seeks in one open file
_known: dict[str, np.ndarray] = {}  # what lca_depths has found in this process


def is_wnid(name: str) -> bool:
    """Whether a name has the form of a wnid, such as ``n01440764``."""
    return _WNID.fullmatch(name) is not None


def depths_for(
    names: Sequence[str], dataset: str, file: Path | str | None = None, key: str = "synsets"
) -> np.ndarray:
    """(C, C) depths of the least common ancestors of a dataset's classes, in label order.

    :func:`synsets_of` and :func:`lca_depths` in one; see there for arguments and errors.
    """
    return lca_depths(synsets_of(names, dataset, file, key), key)


# ---------------------------------------------------------------------- a synset for each class


def synsets_of(
    names: Sequence[str], dataset: str, file: Path | str | None = None, key: str = "synsets"
) -> list[str]:
    """The wnid of each class, in order: from the user's file, the names themselves, or our table.

    Args:
        names: C names of classes.
        dataset: as in ``data.dataset``; cifar10 and cifar100 have a table.
        file: the user's own choice, a CSV file with the header ``class,synset``; a synset is
            a wnid, or a name as nltk has it, ``tench.n.01``. It may hold more classes than these.
        key: the setting that names the file, for messages.

    Raises:
        ConfigError: the file can't be read, lacks classes, or names what is no noun in WordNet.
        DataError: there is no file, and some classes have no synset; or WordNet is missing.
    """
    if file is not None:
        return _from_file(names, Path(file).expanduser(), key)
    known = {name: name for name in names if is_wnid(name)} or shipped(dataset)
    missing = [name for name in names if name not in known]
    if missing:
        text = f"{key}: {_some(missing, len(names), 'classes')} have no WordNet synset"
        raise DataError(f"{text}. Set {key} to a file that names them. {_FORM}.")
    return [known[name] for name in names]


def _from_file(names: Sequence[str], file: Path, key: str) -> list[str]:
    rows = _rows(file, key)
    missing = [name for name in names if name not in rows]
    if missing:
        allowed = f"{_some(missing, len(names), 'classes')} have no line in it"
        raise bad_value(key, str(file), allowed, f"{_FORM}.")
    found = {name: _wnid(rows[name][0]) for name in names}
    wrong = [
        f"{rows[name][0]} (line {rows[name][1]}, class {name})"
        for name, wnid in found.items()
        if wnid is None
    ]
    if wrong:
        allowed = f"{_some(wrong, len(names), 'synsets')} are no nouns of WordNet {VERSION}"
        raise bad_value(key, str(file), allowed, f"{_FORM}.")
    return [str(found[name]) for name in names]


def _rows(file: Path, key: str) -> dict[str, tuple[str, int]]:
    """The synset of each class in the user's file, as it stands there, and its line."""
    try:
        # "-sig": spreadsheets write a mark in front of the first letter
        reader = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig"), newline=""))
        header = reader.fieldnames or []
        lines = [(reader.line_num, row.get("class"), row.get("synset")) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise bad_value(
            key, str(file), f"this file can't be read ({error})", f"{_FORM}."
        ) from error
    if not {"class", "synset"} <= set(header):
        allowed = f"its header must hold class,synset, and is {','.join(header) or 'missing'}"
        raise bad_value(key, str(file), allowed, f"{_FORM}.")
    rows: dict[str, tuple[str, int]] = {}
    for number, name, synset in lines:
        name, synset = (name or "").strip(), (synset or "").strip()
        if not name or not synset:
            empty = "synset" if name else "class"
            raise bad_value(key, str(file), f"line {number} has no {empty}", f"{_FORM}.")
        if name in rows:
            allowed = f"class {name} stands in lines {rows[name][1]} and {number}"
            raise bad_value(key, str(file), allowed, "Keep one of them.")
        rows[name] = (synset, number)
    return rows


def _wnid(text: str) -> str | None:
    """The wnid of a wnid or of nltk's name of a noun; None if WordNet has no such noun."""
    with _LOCK:
        if is_wnid(text):
            return text if _synset(text) is not None else None
        reader = _reader()
        from nltk.corpus.reader.wordnet import WordNetError

        if not _NAME.fullmatch(text):
            return None
        try:
            return f"n{reader.synset(text).offset():08d}"
        except WordNetError:
            return None


def _some(items: Sequence[str], number: int, what: str) -> str:
    """``7 of the 10 classes (a, b, c, d, e, ...)``"""
    dots = ", ..." if len(items) > 5 else ""
    return f"{len(items)} of the {number} {what} ({', '.join(items[:5])}{dots})"


# ---------------------------------------------------------------------- WordNet itself


@cache
def _reader() -> Any:
    """nltk's reader of WordNet 3.0; the first call takes seconds. It downloads nothing.

    Raises:
        DataError: nltk or its data are missing or can't be read, or are of another version.
    """
    get = "Get it with: python -m nltk.downloader wordnet (or set NLTK_DATA to where it is)"
    try:
        from nltk.corpus import wordnet
    except ImportError as error:
        text = (
            "WordNet is read with the package nltk, which is missing. Get it with: pip install nltk"
        )
        raise DataError(text) from error
    try:
        wordnet.ensure_loaded()
        version = wordnet.get_version()
        wordnet.synset("entity.n.01")  # the nouns are in a file of their own
    except LookupError as error:
        raise DataError(f"WordNet is in none of the folders that nltk looks in. {get}.") from error
    except Exception as error:  # whatever the damage leads to
        raise DataError(f"nltk can't read its WordNet data ({error!r}). {_get_again()}.") from error
    if version != VERSION:
        raise DataError(f"nltk has WordNet {version}, and wnids are of {VERSION}. {_get_again()}.")
    for name, size in _SIZES.items():
        file = wordnet.abspath(name)
        if file.file_size() < size:
            cut = f"{file}: is cut off, it has {file.file_size():,} of {size:,} bytes"
            raise DataError(f"{cut}. {_get_again()}.")
    return wordnet


def _get_again() -> str:
    """What to remove before the downloader, which leaves alone what it finds, gets it again."""
    import nltk

    folders = [Path(folder) / "corpora" for folder in nltk.data.path]
    places = [folder / name for folder in folders for name in ("wordnet", "wordnet.zip")]
    there = " and ".join(str(place) for place in places if place.exists())
    return f"Remove {there}, then get it again with: python -m nltk.downloader wordnet"


def _synset(wnid: str) -> Any:
    """nltk's synset of a wnid; None if WordNet has none there. Call it with the lock held."""
    reader = _reader()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nltk warns, we raise or say it ourselves
        return reader.synset_from_pos_and_offset("n", int(wnid[1:])) if is_wnid(wnid) else None


def first_lemmas(wnids: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The first lemma of each wnid, and of the synset above it (empty at the root).

    Unknown wnids are left out. Raises DataError without WordNet.
    """
    found = {}
    with _LOCK:
        for wnid in wnids:
            synset = _synset(wnid)
            if synset is not None:
                above = synset.hypernyms() + synset.instance_hypernyms()
                lemma = above[0].lemma_names()[0] if above else ""
                found[wnid] = (synset.lemma_names()[0], lemma)
    return found


# ---------------------------------------------------------------------- depths


def lca_depths(wnids: Sequence[str], key: str = "synsets") -> np.ndarray:
    """(C, C) depth of the least common ancestor of each two classes, int64; yours to change.

    A depth is a number of hypernym edges below ``entity.n.01``, the root of all nouns; 0 is the
    root itself: nothing in common. WordNet is no tree, so two conventions are needed, and these are
    nltk's (``max_depth``, ``lowest_common_hypernyms``): the depth of a synset is the length of its
    *longest* path to the root, and the least common ancestor is the common hypernym of greatest
    depth. Instance hypernyms count as hypernyms. A class is its own ancestor: the diagonal holds
    the classes' own depths, and a dolphin's least common ancestor with a whale is the whale.

    The result is kept in this process and in :func:`cache_folder`: WordNet is opened when a set of
    classes is first met, and not again.

    Args:
        wnids: C wnids; the same one may occur twice.
        key: the setting that leads to these wnids, for messages.

    Raises:
        DataError: WordNet is missing, or has no noun at one of these wnids.
    """
    classes, index = np.unique(np.asarray(wnids, dtype=str), return_inverse=True)
    name = hashlib.sha256(" ".join([f"{FORMAT} {VERSION}", *classes]).encode()).hexdigest()[:32]
    with _LOCK:
        if name not in _known:
            file = cache_folder() / f"lca-depths-{name}.npz"
            depths = _load(file, classes)
            if depths is None:
                depths = _compute(classes.tolist(), key)
                _save(file, classes, depths)
            _known[name] = depths
        return _known[name][np.ix_(index, index)].astype(np.int64)


def _compute(wnids: Sequence[str], key: str) -> np.ndarray:
    """(C, C) int16. All pairs at one depth are one matrix product: who shares an ancestor there."""
    synsets = {wnid: _synset(wnid) for wnid in wnids}
    unknown = [wnid for wnid, synset in synsets.items() if synset is None]
    if unknown:
        text = f"{key}: {_some(unknown, len(wnids), 'wnids')} are no nouns of WordNet {VERSION}"
        raise DataError(f"{text}. Set {key} to a file that names others. {_FORM}.")
    levels: dict[int, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for row, synset in enumerate(synsets.values()):
        for ancestor in {a for path in synset.hypernym_paths() for a in path}:
            levels[ancestor.max_depth()][ancestor.name()].add(row)
    depths = np.zeros((len(wnids), len(wnids)), dtype=np.int16)
    for depth in sorted(levels):  # the deepest one that two classes share is written last
        members = np.zeros((len(wnids), len(levels[depth])), dtype=np.float32)
        for column, rows in enumerate(levels[depth].values()):
            members[list(rows), column] = 1
        depths[members @ members.T > 0] = depth
    return depths


# ---------------------------------------------------------------------- the cache on disk


def cache_folder() -> Path:
    """Where computed depths are kept between processes; it may be deleted at any time."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("solo-hardneg"))


def _load(file: Path, classes: np.ndarray) -> np.ndarray | None:
    """The depths in a file of the cache; None if there is none, or it is damaged."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            depths, names = stored["depths"], stored["classes"]
    except FileNotFoundError:
        return None
    except Exception as error:  # numpy and zipfile raise whatever the damage leads to
        logging.getLogger(__name__).debug("%s: computing it again: %s", file, error)
        return None
    shape = (len(classes), len(classes))
    fits = depths.shape == shape and depths.dtype == np.int16 and np.array_equal(names, classes)
    return depths if fits else None


def _save(file: Path, classes: np.ndarray, depths: np.ndarray) -> None:
    """Writes a file of the cache at one go, so that no process reads half of one."""
    part = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as out:
            part = Path(out.name)
            np.savez_compressed(out, depths=depths, classes=classes)
        os.replace(part, file)
    except OSError as error:  # a full or read-only disk costs seconds next time, no more
        logging.getLogger(__name__).debug("%s can't be written: %s", file, error)
        if part is not None:
            with suppress(OSError):
                part.unlink()
