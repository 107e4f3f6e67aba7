"""WordNet distance of classes: the depth of their least common ancestor.

Cai et al. 2020 (arXiv 2010.06682, section 4, figures 4b and 5b) use it to show that hard negatives
are semantically near their query. A class is given by its wnid, ImageNet's name for a synset of
WordNet 3.0: an ``n`` (noun) and its offset in eight digits.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import re
import threading
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from solo_hardneg.data.classes import shipped_synsets
from solo_hardneg.data.listing import abbreviate
from solo_hardneg.errors import DataError, bad_value
from solo_hardneg.files import write_atomically

VERSION = "3.0"  # of WordNet; offsets of other versions mean other synsets
FORMAT = 1  # of cached files

_WNID = re.compile(r"n\d{8}")
_SIZES = {"data.noun": 15_300_280, "index.noun": 4_786_655}  # bytes of WordNet 3.0
_NAME = re.compile(r"\S+\.n\.0*[1-9]\d*")  # nltk would read number 0 as the last sense
_FORM = (
    "It is a CSV file with the header class,synset and a line for each class, such as"
    " goldfish,goldfish.n.01 or goldfish,n01443537"
)
_LOCK = threading.RLock()  # nltk's reader seeks in one open file
_known: dict[str, np.ndarray] = {}  # depths computed or loaded in this process


def is_wnid(name: str) -> bool:
    """Whether a name has the form of a wnid, such as ``n01440764``."""
    return _WNID.fullmatch(name) is not None


# ---------------------------------------------------------------------- synsets of classes


def synsets_of(
    names: Sequence[str], dataset: str, file: Path | str | None = None, key: str = "synsets"
) -> list[str]:
    """The wnid of each class: from the user's file, the names themselves, or our table.

    Args:
        names: C names of classes.
        dataset: As in ``data.dataset``; cifar10 and cifar100 have a table.
        file: CSV file with the header ``class,synset``; a synset is a wnid, or a name of nltk,
            ``tench.n.01``. Further classes in it are ignored.
        key: The setting that names the file, for messages.

    Returns:
        C wnids.

    Raises:
        ConfigError: The file can't be read, lacks classes, or names a synset that is no noun of
            WordNet.
        DataError: There is no file, and some classes have no synset; or WordNet is missing.
    """
    if file is not None:
        return _synsets_in_file(names, Path(file).expanduser(), key)
    known = {name: name for name in names if is_wnid(name)} or shipped_synsets(dataset)
    if missing := [name for name in names if name not in known]:
        problem = (
            f"{len(missing)} of the {len(names)} classes ({abbreviate(missing)}) have no synset"
        )
        raise DataError(
            f"{key}: {problem} in WordNet. Set {key} to a file that names them. {_FORM}."
        )
    return [known[name] for name in names]


def _synsets_in_file(names: Sequence[str], file: Path, key: str) -> list[str]:
    rows = _read_rows(file, key)
    if missing := [name for name in names if name not in rows]:
        problem = (
            f"{len(missing)} of the {len(names)} classes ({abbreviate(missing)}) have no line in it"
        )
        raise bad_value(key, str(file), problem, f"{_FORM}.")
    wnids = {name: _find_wnid(rows[name][0]) for name in names}
    wrong = [
        f"{rows[name][0]} (line {rows[name][1]}, class {name})"
        for name, wnid in wnids.items()
        if not wnid
    ]
    if wrong:
        problem = f"{len(wrong)} of the {len(names)} synsets ({abbreviate(wrong)}) are no nouns"
        raise bad_value(key, str(file), f"{problem} of WordNet {VERSION}", f"{_FORM}.")
    return [wnids[name] for name in names]


def _read_rows(file: Path, key: str) -> dict[str, tuple[str, int]]:
    """The synset of each class in the user's file, and its line."""
    try:
        # "-sig": spreadsheets begin the file with a byte order mark
        reader = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig"), newline=""))
        header = reader.fieldnames or []
        lines = [(reader.line_num, row.get("class"), row.get("synset")) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        problem = f"this file can't be read ({error})"
        raise bad_value(key, str(file), problem, f"{_FORM}.") from error
    if not {"class", "synset"} <= set(header):
        problem = f"its header must hold class,synset, and is {','.join(header) or 'missing'}"
        raise bad_value(key, str(file), problem, f"{_FORM}.")
    rows: dict[str, tuple[str, int]] = {}
    for number, name, synset in lines:
        name, synset = (name or "").strip(), (synset or "").strip()
        if not name or not synset:
            problem = f"line {number} has no {'synset' if name else 'class'}"
            raise bad_value(key, str(file), problem, f"{_FORM}.")
        if name in rows:
            problem = f"class {name} stands in lines {rows[name][1]} and {number}"
            raise bad_value(key, str(file), problem, "Keep one of them.")
        rows[name] = (synset, number)
    return rows


def _find_wnid(text: str) -> str:
    """The wnid of a wnid or of nltk's name of a noun; empty if WordNet has no such noun."""
    if is_wnid(text):
        return text if _synset(text) is not None else ""
    with _LOCK:
        reader = _reader()
        from nltk.corpus.reader.wordnet import WordNetError

        try:
            return f"n{reader.synset(text).offset():08d}" if _NAME.fullmatch(text) else ""
        except WordNetError:
            return ""


# ---------------------------------------------------------------------- depths


def lca_depths(wnids: Sequence[str], key: str = "synsets") -> np.ndarray:
    """(C, C) int64 depth of the least common ancestor of each pair of classes, a new array.

    Depth counts hypernym edges below ``entity.n.01``, the root of all nouns; 0 means nothing in
    common. WordNet is no tree, so two of nltk's conventions apply (``max_depth``,
    ``lowest_common_hypernyms``): the depth of a synset is the length of its *longest* path to the
    root, and the least common ancestor is the common hypernym of greatest depth. Instance hypernyms
    count as hypernyms. A class is its own ancestor: the diagonal holds the classes' own depths, and
    the least common ancestor of dolphin and whale is the whale.

    Results are cached in this process and in :func:`cache_folder`, so WordNet is opened only for a
    new set of classes.

    Args:
        wnids: C wnids; repetitions are allowed.
        key: The setting that leads to these wnids, for messages.

    Raises:
        DataError: WordNet is missing, or has no noun for one of the wnids.
    """
    classes, index = np.unique(np.asarray(wnids, dtype=str), return_inverse=True)
    name = hashlib.sha256(" ".join([f"{FORMAT} {VERSION}", *classes]).encode()).hexdigest()[:32]
    with _LOCK:
        if name not in _known:
            file = cache_folder() / f"lca-depths-{name}.npz"
            depths = _load_depths(file, classes)
            if depths is None:
                depths = _compute_depths(classes.tolist(), key)
                _save_depths(file, classes, depths)
            _known[name] = depths
        return _known[name][np.ix_(index, index)].astype(np.int64)


def _compute_depths(wnids: Sequence[str], key: str) -> np.ndarray:
    """(C, C) int16 depths of distinct wnids, with one matrix product per depth of ancestors."""
    synsets = {wnid: _synset(wnid) for wnid in wnids}
    if unknown := [wnid for wnid, synset in synsets.items() if synset is None]:
        problem = f"{len(unknown)} of the {len(wnids)} wnids ({abbreviate(unknown)}) are no nouns"
        remedy = f"Set {key} to a file that names others. {_FORM}"
        raise DataError(f"{key}: {problem} of WordNet {VERSION}. {remedy}.")
    levels: dict[int, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for row, synset in enumerate(synsets.values()):
        for ancestor in {a for path in synset.hypernym_paths() for a in path}:
            levels[ancestor.max_depth()][ancestor.name()].add(row)
    depths = np.zeros((len(wnids), len(wnids)), dtype=np.int16)
    for depth in sorted(levels):  # the deepest common ancestor is written last
        members = np.zeros((len(wnids), len(levels[depth])), dtype=np.float32)
        for column, rows in enumerate(levels[depth].values()):
            members[list(rows), column] = 1
        depths[members @ members.T > 0] = depth
    return depths


def cache_folder() -> Path:
    """Where computed depths are cached; it may be deleted at any time."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("solo-hardneg"))


def _load_depths(file: Path, classes: np.ndarray) -> np.ndarray | None:
    """The depths in a cached file; ``None`` if it is missing or damaged."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            depths, names = stored["depths"], stored["classes"]
    except FileNotFoundError:
        return None
    except Exception as error:  # numpy and zipfile raise many kinds for damaged files
        logging.getLogger(__name__).debug("%s: computing it again: %s", file, error)
        return None
    shape = (len(classes), len(classes))
    fits = depths.shape == shape and depths.dtype == np.int16 and np.array_equal(names, classes)
    return depths if fits else None


def _save_depths(file: Path, classes: np.ndarray, depths: np.ndarray) -> None:
    """Writes a cached file atomically; a full or read-only disk only costs time later."""
    try:
        write_atomically(file, lambda out: np.savez_compressed(out, depths=depths, classes=classes))
    except OSError as error:
        logging.getLogger(__name__).debug("%s can't be written: %s", file, error)


# ---------------------------------------------------------------------- names


def readable_names(names: Sequence[str], synsets: Sequence[str] | None = None) -> list[str]:
    """Names for figures: ``n01440764`` becomes ``tench``, ``sweet_pepper`` ``sweet pepper``.

    A wnid is replaced by the first lemma of its synset. Classes that share a lemma are
    distinguished by their hypernym (``crane (wading bird)``), or else by their name. Wnids stay
    where WordNet or their synset is missing.

    Args:
        names: C names of classes.
        synsets: C wnids; ``None``: those names that are wnids.
    """
    try:
        with _LOCK:
            lemmas = [
                _lemmas(synset) if is_wnid(name) else ("", "")
                for name, synset in zip(names, synsets or names, strict=True)
            ]
    except DataError:
        lemmas = [("", "")] * len(names)
    labels = [lemma or name for name, (lemma, _) in zip(names, lemmas, strict=True)]
    labels = [label.replace("_", " ") for label in labels]
    labels = _distinguish(labels, [hypernym.replace("_", " ") for _, hypernym in lemmas])
    return _distinguish(labels, names)


def _lemmas(wnid: str) -> tuple[str, str]:
    """The first lemmas of a synset and of its hypernym; empty where missing."""
    synset = _synset(wnid)
    if synset is None:
        return "", ""
    above = synset.hypernyms() + synset.instance_hypernyms()
    return synset.lemma_names()[0], above[0].lemma_names()[0] if above else ""


def _distinguish(labels: Sequence[str], by: Sequence[str]) -> list[str]:
    """Adds ``by`` in brackets to labels that occur more than once."""
    count = Counter(labels)
    return [
        f"{label} ({extra})" if count[label] > 1 and extra else label
        for label, extra in zip(labels, by, strict=True)
    ]


# ---------------------------------------------------------------------- nltk


def _synset(wnid: str) -> Any:
    """nltk's synset of a wnid; ``None`` if WordNet has none."""
    if not is_wnid(wnid):
        return None
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nltk, for offsets without a synset
        return _reader().synset_from_pos_and_offset("n", int(wnid[1:]))


@cache
def _reader() -> Any:
    """nltk's reader of WordNet 3.0. The first call takes seconds; nothing is downloaded.

    Raises:
        DataError: nltk or WordNet is missing, damaged, or of another version.
    """
    try:
        from nltk.corpus import wordnet
    except ImportError as error:
        text = "WordNet is read with the package nltk, which is missing."
        raise DataError(f"{text} Get it with: pip install nltk") from error
    try:
        wordnet.ensure_loaded()
        version = wordnet.get_version()
        wordnet.synset("entity.n.01")  # reads the file of nouns
    except LookupError as error:
        get = "Get it with: python -m nltk.downloader wordnet (or set NLTK_DATA to its folder)"
        raise DataError(f"WordNet is in none of the folders that nltk searches. {get}.") from error
    except Exception as error:  # nltk raises many kinds for damaged files
        raise _unusable(f"nltk can't read its WordNet data ({error!r})") from error
    if version != VERSION:
        raise _unusable(f"nltk has WordNet {version}, and wnids are of {VERSION}")
    for name, size in _SIZES.items():
        file = wordnet.abspath(name)
        if file.file_size() < size:
            raise _unusable(f"{file}: is cut off, it has {file.file_size():,} of {size:,} bytes")
    return wordnet


def _unusable(problem: str) -> DataError:
    """The error for data that must be removed, because the downloader keeps what it finds."""
    import nltk

    folders = [Path(folder) / "corpora" for folder in nltk.data.path]
    places = [folder / name for folder in folders for name in ("wordnet", "wordnet.zip")]
    found = " and ".join(str(place) for place in places if place.exists())
    remedy = f"Remove {found}, then get it again with: python -m nltk.downloader wordnet"
    return DataError(f"{problem}. {remedy}.")
