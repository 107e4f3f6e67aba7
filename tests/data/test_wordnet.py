"""Synsets of classes, and depths of least common ancestors, by hand and against nltk."""

from __future__ import annotations

import csv
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from solo_hardneg.data import wordnet as module
from solo_hardneg.data.classes import class_names, shipped_synsets
from solo_hardneg.data.wordnet import lca_depths, synsets_of
from solo_hardneg.errors import ConfigError, DataError

TENCH, GOLDFISH, MINIVAN = "n01440764", "n01443537", "n03770679"
PERSIAN, SIAMESE = "n02123394", "n02123597"
TABLE = Path(module.__file__).with_name("synsets_cifar.csv")
FORM = "It is a CSV file with the header class,synset and a line for each class, such as goldfish,"


def refuse() -> Any:
    raise AssertionError("WordNet was opened")


# ---------------------------------------------------------------------- depths


def test_depths_equal_those_counted_by_hand(wordnet: Any, depth_cache: Path) -> None:
    """The longest paths, from depth 0:

    entity, physical entity, object, whole (3), living thing, organism, animal, chordate,
    vertebrate (8), then:
      aquatic vertebrate, fish, bony fish, teleost fish, soft-finned fish, cypriniform fish,
        cyprinid (15), tench | goldfish (16)
      mammal, placental, carnivore, feline, cat, domestic cat (14), Persian | Siamese cat (15)
    from whole (3): artifact, instrumentality, conveyance, vehicle, wheeled vehicle,
      self-propelled vehicle, motor vehicle, truck, van, passenger van, minivan (14)

    The domestic cat is also a domestic animal (depth 7), on a shorter path, which doesn't count.
    """
    found = lca_depths([TENCH, GOLDFISH, PERSIAN, SIAMESE, MINIVAN])
    assert found.tolist() == [
        [16, 15, 8, 8, 3],
        [15, 16, 8, 8, 3],
        [8, 8, 15, 14, 3],
        [8, 8, 14, 15, 3],
        [3, 3, 3, 3, 14],
    ]
    assert found.dtype == np.int64


def test_a_class_may_be_the_ancestor_of_another(wordnet: Any, depth_cache: Path) -> None:
    """whale (13), toothed whale, dolphin (15): a dolphin's least common ancestor is the whale."""
    found = lca_depths([shipped_synsets("cifar100")[name] for name in ("dolphin", "whale")])
    assert found.tolist() == [[15, 13], [13, 13]]


def test_instances_have_ancestors(wordnet: Any, depth_cache: Path) -> None:
    """Buckingham Palace is an instance of a palace, whose depth is 10."""
    palace, castle = "n08875843", shipped_synsets("cifar100")["castle"]
    found = lca_depths([palace, "n03878066", castle])
    assert found[0].tolist() == [11, 10, 5]  # whole (3), artifact, structure (5)


def test_depths_of_random_nouns_equal_nltks(wordnet: Any, depth_cache: Path) -> None:
    chance = random.Random(0)
    lemmas = sorted(wordnet.all_lemma_names("n"))
    synsets = [chance.choice(wordnet.synsets(name, "n")) for name in chance.sample(lemmas, 60)]
    synsets += [wordnet.synset_from_pos_and_offset("n", int(n[1:])) for n in (SIAMESE, "n00001740")]
    found = lca_depths([f"n{synset.offset():08d}" for synset in synsets])
    assert (found == found.T).all()
    assert np.diag(found).tolist() == [synset.max_depth() for synset in synsets]
    assert (found <= np.diag(found)).all()
    assert len(np.unique(found)) > 8  # a varied sample
    pairs = [(i, j) for i in range(len(synsets)) for j in range(i)]
    for i, j in chance.sample(pairs, 300):
        common = synsets[i].lowest_common_hypernyms(synsets[j])
        assert {found[i, j]} == {synset.max_depth() for synset in common}


def test_depths_are_in_the_order_of_the_classes(wordnet: Any, depth_cache: Path) -> None:
    wnids = [MINIVAN, TENCH, SIAMESE, TENCH]
    found = lca_depths(wnids)
    for i, first in enumerate(wnids):
        for j, second in enumerate(wnids):
            assert found[i, j] == lca_depths([first, second])[0, 1], (first, second)
    assert found[1, 3] == 16
    assert lca_depths([]).shape == (0, 0)


def test_threads_share_one_reader(wordnet: Any, depth_cache: Path) -> None:
    wnids = list(shipped_synsets("cifar100").values())
    parts = [wnids[start : start + 25] for start in range(0, 100, 25)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lca_depths, parts))
    whole = lca_depths(wnids)
    for number, part in enumerate(found):
        place = slice(25 * number, 25 * number + 25)
        assert (part == whole[place, place]).all()


def test_unknown_wnids_are_refused(wordnet: Any, depth_cache: Path) -> None:
    """One beyond the end of the file, one inside an entry, and one malformed."""
    message = (
        r"^hardness.synsets: 3 of the 4 wnids \(n01440765, n99999999, tench\) are no nouns of "
        f"WordNet 3.0. Set hardness.synsets to a file that names others. {FORM}"
    )
    with pytest.raises(DataError, match=message):
        lca_depths([TENCH, "n99999999", "tench", "n01440765"], "hardness.synsets")
    assert list(depth_cache.parent.glob("**/*.npz")) == []


# ---------------------------------------------------------------------- the cache


def test_cached_depths_need_no_wordnet(
    wordnet: Any, depth_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wnids = [TENCH, MINIVAN, SIAMESE]
    first = lca_depths(wnids)
    (file,) = depth_cache.iterdir()
    monkeypatch.setattr(module, "_reader", refuse)
    monkeypatch.setattr(module, "_known", {})  # like another process
    assert (lca_depths(wnids[::-1]) == first[::-1, ::-1]).all()
    file.unlink()
    again = lca_depths(wnids)  # in this process
    again[:] = -1
    assert (lca_depths(wnids) == first).all()
    with pytest.raises(AssertionError, match="WordNet was opened"):
        lca_depths([*wnids, GOLDFISH])


@pytest.mark.parametrize("damage", ["cut", "flipped", "pickled", "other", "shape", "keys"])
def test_a_damaged_cache_is_recomputed_and_repaired(
    wordnet: Any, depth_cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    wnids = sorted([TENCH, MINIVAN])
    first = lca_depths(wnids)
    (file,) = depth_cache.iterdir()
    whole = file.read_bytes()
    middle = len(whole) // 3
    wrong = np.full((2, 2), 7, dtype=np.int16)
    arrays: dict[str, dict[str, Any]] = {
        "pickled": {"depths": np.array([None]), "classes": wnids},
        "other": {"depths": wrong, "classes": [TENCH, GOLDFISH]},
        "shape": {"depths": wrong[:1], "classes": wnids},
        "keys": {"depth": wrong},
    }
    if damage in arrays:
        np.savez(file, **arrays[damage])
    elif damage == "cut":
        file.write_bytes(whole[:-20])
    else:
        file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    monkeypatch.setattr(module, "_known", {})
    assert (lca_depths(wnids) == first).all()
    assert [f.name for f in depth_cache.iterdir()] == [file.name]  # no partial files
    monkeypatch.setattr(module, "_known", {})
    monkeypatch.setattr(module, "_reader", refuse)
    assert (lca_depths(wnids) == first).all()


def test_an_unwritable_cache_is_harmless(
    wordnet: Any, depth_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    depth_cache.parent.write_text("a file where a folder should be")
    assert lca_depths([TENCH, GOLDFISH])[0, 1] == 15
    monkeypatch.setattr(module, "_reader", refuse)
    assert lca_depths([TENCH, GOLDFISH])[0, 1] == 15  # cached in the process


# ---------------------------------------------------------------------- the table of CIFAR


def table() -> list[dict[str, str]]:
    with TABLE.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_every_class_of_cifar_has_a_noun(wordnet: Any) -> None:
    rows = table()
    assert len(rows) == 110
    assert list(rows[0]) == ["dataset", "class", "synset", "wnid", "note"]
    assert {row["dataset"] for row in rows} == {"cifar10", "cifar100"}
    for row in rows:
        synset = wordnet.synset(row["synset"])
        assert (synset.name(), synset.pos()) == (row["synset"], "n"), row
        assert f"n{synset.offset():08d}" == row["wnid"], row
    for dataset in ("cifar10", "cifar100"):
        assert len(set(shipped_synsets(dataset).values())) == len(shipped_synsets(dataset))
    strangers = {row["class"] for row in rows if not is_a_name_of_its_synset(wordnet, row)}
    assert strangers == {"aquarium_fish", "keyboard"}  # not in WordNet in this form
    assert all(row["note"] for row in rows if row["class"] in strangers)


def is_a_name_of_its_synset(wordnet: Any, row: dict[str, str]) -> bool:
    words = {row["class"], row["class"].removesuffix("_tree")}
    return bool(words & {*wordnet.synset(row["synset"]).lemma_names()})


ANCESTORS = {
    "mammal.n.01": "beaver dolphin otter seal whale fox mouse possum shrew bear cattle",
    "fish.n.01": "aquarium_fish flatfish ray shark trout",
    "plant.n.02": "orchid poppy rose sunflower tulip maple_tree palm_tree willow_tree",
    "edible_fruit.n.01": "apple orange pear",
    "furniture.n.01": "bed chair couch table wardrobe",
    "insect.n.01": "bee beetle butterfly cockroach",
    "person.n.01": "baby boy girl man woman",
    "reptile.n.01": "crocodile dinosaur lizard snake turtle",
    "vehicle.n.01": "bicycle motorcycle pickup_truck streetcar tank tractor rocket",
    "container.n.01": "bottle bowl can cup",
    "structure.n.01": "bridge castle house skyscraper",
    "instrumentality.n.03": "clock keyboard lamp telephone television lawn_mower",
}


def test_senses_match_cifars_groups(wordnet: Any) -> None:
    """The members of CIFAR-100's groups of classes share a hypernym."""
    for ancestor, group in ANCESTORS.items():
        above = wordnet.synset(ancestor)
        for name in group.split():
            synset = wordnet.synset_from_pos_and_offset(
                "n", int(shipped_synsets("cifar100")[name][1:])
            )
            assert above in synset.common_hypernyms(synset), name


# ---------------------------------------------------------------------- synsets of classes


def test_synsets_without_a_file_need_no_wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_reader", refuse)
    assert synsets_of([GOLDFISH, TENCH], "custom") == [GOLDFISH, TENCH]
    for dataset, number in {"cifar10": 10, "cifar100": 100}.items():
        found = synsets_of(class_names({"dataset": dataset}), dataset)
        assert len(found) == number
        assert all(module.is_wnid(wnid) for wnid in found)
    assert synsets_of(["truck", "cat"], "cifar10") == ["n04490091", "n02121620"]


@pytest.mark.parametrize(
    ("names", "dataset", "shown"),
    [
        (["ant", TENCH, "bee"], "custom", r"2 of the 3 classes \(ant, bee\)"),
        (list("0123456789"), "digits", r"10 of the 10 classes \(0, 1, 2, 3, 4, ...\)"),
        (["truck", "cat"], "cifar100", r"2 of the 2 classes \(cat, truck\)"),
        (["n0144076", "N01440764", "n014407640"], "imagenet", "3 of the 3 classes"),
    ],
)
def test_classes_without_a_synset_are_refused(names: list[str], dataset: str, shown: str) -> None:
    message = f"^study.synsets: {shown}.* Set study.synsets to a file that names them. {FORM}"
    with pytest.raises(DataError, match=message):
        synsets_of(names, dataset, key="study.synsets")


def test_a_users_file_names_synsets(wordnet: Any, depth_cache: Path, tmp_path: Path) -> None:
    """As spreadsheets write it, with wnids and names of nltk, and further classes."""
    file = tmp_path / "synsets.csv"
    lines = ["class,note,synset", "carp,x, goldfish.n.01 ", f'"big, fish","a, b",{TENCH}', "c,,d"]
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert synsets_of(["big, fish", "carp"], "custom", file) == [TENCH, GOLDFISH]
    own = tmp_path / "own.csv"
    own.write_text(f"class,synset\n{TENCH},{MINIVAN}\ncat,{SIAMESE}\n")
    assert synsets_of([TENCH], "imagenet", own) == [MINIVAN]  # it overrides the class name
    assert synsets_of(["cat"], "cifar10", own) == [SIAMESE]
    assert synsets_of(["keyboard"], "custom", TABLE) == ["n03085013"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, f"this file can't be read .*No such file.* {FORM}"),
        (b"class,synset\ncat,\xff\xfe", "this file can't be read .*utf-8"),
        (b"", f"its header must hold class,synset, and is missing. {FORM}"),
        (b"cat;cat.n.01", "its header must hold class,synset, and is cat;cat.n.01. It is"),
        (b"class,synset\ncat\n", f"line 2 has no synset. {FORM}"),
        (b"class,synset\n\ncat,cat.n.01\n,b\n", "line 4 has no class"),
        (
            b"class,synset\ncat,cat.n.01\ndog,dog.n.01\ncat,cat.n.02\n",
            "class cat stands in lines 2 and 4. Keep one of them.",
        ),
        (
            b"class,synset\ncat,cat.n.01\n",
            rf"1 of the 2 classes \(dog\) have no line in it. {FORM}",
        ),
    ],
)
def test_invalid_files_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "synsets.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^hardness.synsets={file}: {message}"):
        synsets_of(["cat", "dog"], "custom", file, "hardness.synsets")


@pytest.mark.parametrize("synset", ["cat.n.99", "run.v.01", "cat", "n99999999", "n01440765"])
def test_unknown_synsets_are_refused(wordnet: Any, tmp_path: Path, synset: str) -> None:
    file = tmp_path / "synsets.csv"
    file.write_text(f"class,synset\ncat,cat.n.01\nstray,{synset}\n")
    with pytest.raises(ConfigError, match=rf"^synsets={file}: 1 of .*{synset} \(line 3.* {FORM}"):
        synsets_of(["cat", "stray"], "custom", file)


# ---------------------------------------------------------------------- nltk


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, depth_cache: Path) -> Path:
    """nltk as in a new process, with one empty folder of data."""
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    lazy = LazyCorpusLoader("wordnet", WordNetCorpusReader, None)
    monkeypatch.setattr("nltk.corpus.wordnet", lazy)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(module, "_reader", module._reader.__wrapped__)
    return tmp_path


def test_missing_or_damaged_wordnet_is_refused(unopened: Path) -> None:
    with pytest.raises(DataError, match="^WordNet is in none .*downloader wordnet .*NLTK_DATA"):
        lca_depths([TENCH])
    (unopened / "corpora" / "wordnet").mkdir(parents=True)
    remove = rf"Remove {unopened}/corpora/wordnet, then get it again with: python -m nltk"
    with pytest.raises(DataError, match=rf"^nltk can't read its WordNet data .*\. {remove}"):
        lca_depths([TENCH])


@pytest.mark.parametrize("name", ["data.noun", pytest.param("index.noun", marks=pytest.mark.full)])
def test_a_truncated_file_of_wordnet_is_refused(wordnet: Any, unopened: Path, name: str) -> None:
    folder = unopened / "corpora" / "wordnet"
    shutil.copytree(str(wordnet.root), folder)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: whole.index(b"\n", len(whole) // 2) + 1])
    with pytest.raises(DataError, match=rf"{name}.* is cut off.*Remove {folder}, then get it"):
        lca_depths([TENCH])


def test_missing_nltk_is_refused(unopened: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    with pytest.raises(DataError, match="nltk, which is missing. Get it with: pip install nltk$"):
        lca_depths([TENCH])


def test_another_version_of_wordnet_is_refused(
    unopened: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = SimpleNamespace(
        ensure_loaded=lambda: None, get_version=lambda: "3.1", synset=lambda name: name
    )
    monkeypatch.setattr("nltk.corpus.wordnet", other)
    with pytest.raises(DataError, match=r"^nltk has WordNet 3.1, and wnids are of 3.0. Remove"):
        lca_depths([TENCH])


@pytest.mark.full
def test_importing_opens_nothing() -> None:
    code = (
        "import sys, solo_hardneg.data.wordnet as w, solo_hardneg.data.classes as c\n"
        "w.synsets_of(c.class_names({'dataset': 'cifar10'}), 'cifar10')\n"
        "print(sorted({'nltk', 'torch', 'torchvision', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
