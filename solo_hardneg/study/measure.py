"""The study of one trained encoder (Cai et al. 2020, arXiv 2010.06682, section 4), as arrays.

Queries and negatives are embedded, and the negatives of each query ranked by similarity.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from solo_hardneg.errors import DataError
from solo_hardneg.files import encodable, write_atomically
from solo_hardneg.recording import ranking, statistics
from solo_hardneg.study.significance import mean_and_std, student

SCHEMA = 1
_MARK = "solo_hardneg.study"  # entry of the file that holds its schema version
CHUNK = 2**24  # similarities held at once
QUANTITIES = ("similarity", "same_class", "depth")
Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Study:
    """Results of a study; unknown values are NaN or empty arrays (see ``notes``).

    Attributes:
        query_embeddings, negative_embeddings: (N, D) and (M, D) float32 unit vectors.
        query_labels, negative_labels: (N,) and (M,) classes in [0, C); -1 where unknown.
        query_indexes, negative_indexes: (N,) and (M,) indexes in the dataset; -1 if not given.
        similarity, same_class, depth: (B,) means per difficulty percentile, easiest first: of the
            similarity, of whether the negative is of the query's class, and of the depth of the
            least common ancestor of both classes in WordNet (figure 5).
        scalars: The same means as ``QUANTITY/easiest_95``, ``QUANTITY/hardest_5`` and
            ``QUANTITY/all`` (figure 4).
        hard_share: (M,) share of the queries for which each negative is among the hardest 5 %.
        shuffled_share: (M,) the same after shuffling each query's similarities (figure 6).
        class_mean, class_number: (C, C) mean similarity by the query's and the negative's class,
            and the number of similarities (Tables A4-A6).
        class_names: C readable names.
        tsne, tsne_labels: (P, 2) backbone features in two dimensions (SSCL, figure 6), and (P,)
            their classes.
        info: Checkpoint, method, policy, dataset, seed and settings.
        notes: What is missing and why, one sentence each.
    """

    query_embeddings: Array
    negative_embeddings: Array
    query_labels: Array
    negative_labels: Array
    query_indexes: Array
    negative_indexes: Array
    similarity: Array
    same_class: Array
    depth: Array
    hard_share: Array
    shuffled_share: Array
    class_mean: Array
    class_number: Array
    tsne: Array = field(default_factory=lambda: np.empty((0, 2), np.float32))
    tsne_labels: Array = field(default_factory=lambda: np.empty(0, np.int64))
    scalars: Mapping[str, float] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def hard_rate(self) -> float:
        """Exact share of the negatives that "the hardest 5 %" are (0.05 if 20 divides M).

        Every query has that many hard negatives, so this is the mean of ``hard_share`` for any
        encoder. The median falls as the same negatives are hard for many queries.
        """
        return float(self.hard_share.mean())

    def save(self, path: Path) -> None:
        """Writes an .npz file; raises DataError if it can't be written."""
        arrays, plain = _split_fields(self)
        text = json.dumps(plain, default=str)
        entries: dict[str, Any] = {_MARK: np.array([SCHEMA]), "json": text, **arrays}
        try:
            write_atomically(path, lambda file: np.savez_compressed(file, **entries))
        except OSError as error:
            do = "Set out=... to a folder that can be written to"
            raise DataError(f"{path}: the study can't be written ({error}). {do}.") from error


def load_study(path: Path) -> Study:
    """Reads a file of :meth:`Study.save`, executing nothing in it.

    Raises:
        DataError: The file is missing, damaged, or not a study.
    """
    again = "Make it again with: solo-hardneg analyze CHECKPOINT"
    if not path.is_file():
        raise DataError(f"{path}: no such study. {again}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            stored = {name: file[name] for name in file.files}
    except Exception as error:  # NumPy, zipfile and zlib raise errors of their own
        text = f"{path}: this study can't be read; it is cut off or not an .npz file ({error})"
        raise DataError(f"{text}. {again}.") from error
    version = stored.pop(_MARK, None)
    if version is None:
        raise DataError(f"{path}: not a study: it lacks the entry {_MARK}. {again}.")
    if version.tolist() != [SCHEMA]:
        text = f"{path}: this study has version {version.tolist()}, but only {SCHEMA} can be read"
        raise DataError(f"{text}. {again}.")
    try:
        plain = encodable(json.loads(str(stored.pop("json"))))
        known = {name.name for name in fields(Study)}
        result = Study(**{k: v for k, v in stored.items() if k in known}, **plain)
        _check_shapes(result)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: this study is damaged ({error}). {again}.") from error
    return result


def _split_fields(study: Study) -> tuple[dict[str, Array], dict[str, Any]]:
    """Arrays, and what is stored as JSON."""
    values = {f.name: getattr(study, f.name) for f in fields(Study)}
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in values.items() if name not in arrays}
    plain["scalars"] = dict(plain["scalars"])
    plain["info"] = dict(plain["info"])
    return arrays, {**plain, "class_names": [*study.class_names], "notes": [*study.notes]}


def _check_shapes(study: Study) -> None:
    n, m, c = len(study.query_labels), len(study.negative_labels), len(study.class_names)
    bins = study.similarity.shape
    shapes = {
        "query_embeddings": (n, study.query_embeddings.shape[-1]),
        "negative_embeddings": (m, study.query_embeddings.shape[-1]),
        "query_indexes": (n,),
        "negative_indexes": (m,),
        "same_class": bins,
        "depth": bins,
        "hard_share": (m,),
        "shuffled_share": (m,),
        "class_mean": (c, c),
        "class_number": (c, c),
        "tsne": (len(study.tsne_labels), 2),
    }
    for name, shape in shapes.items():
        if getattr(study, name).shape != shape:
            raise ValueError(f"{name} has shape {getattr(study, name).shape}, not {shape}")


# ---------------------------------------------------------------------- measuring


@torch.no_grad()
def measure(
    query: ArrayLike,
    negative: ArrayLike,
    query_labels: ArrayLike,
    negative_labels: ArrayLike,
    percentiles: int = 100,
    depths: ArrayLike | None = None,
    class_names: Sequence[str] = (),
    seed: int = 0,
    **more: Any,
) -> Study:
    """Ranks the negatives of each query by similarity, and averages over their ranks.

    Args:
        query: (N, D) embeddings of any length but 0; they are normalized.
        negative: (M, D) embeddings, likewise.
        query_labels: (N,) classes; -1 where unknown.
        negative_labels: (M,) classes; -1 where unknown.
        percentiles: Number of difficulty bins B.
        depths: (C, C) depths of the least common ancestors of the classes.
        class_names: C names; by default the numbers of the classes.
        seed: Seed of the shuffle in figure 6.
        more: Further fields of :class:`Study`.

    Raises:
        DataError: There are no queries or no negatives, or embeddings are not finite.
    """
    q, k = _normalize(query, "queries"), _normalize(negative, "negatives")
    ql = torch.as_tensor(np.asarray(query_labels, dtype=np.int64))
    kl = torch.as_tensor(np.asarray(negative_labels, dtype=np.int64))
    if not class_names:
        class_names = [str(number) for number in range(int(max(ql.max(), kl.max())) + 1)]
    table = None if depths is None else torch.as_tensor(np.asarray(depths, dtype=np.float32))
    sums = _RankSums(len(k), percentiles, len(class_names))
    generator = torch.Generator().manual_seed(seed)
    rows = max(CHUNK // len(k), 1)
    for start in range(0, len(q), rows):
        part = slice(start, start + rows)
        sums.add(q[part] @ k.T, ql[part], kl, table, generator)
    lengths = {"query_indexes": len(q), "negative_indexes": len(k)}
    defaults = {name: np.full(number, -1, dtype=np.int64) for name, number in lengths.items()}
    return Study(
        query_embeddings=q.numpy(),
        negative_embeddings=k.numpy(),
        query_labels=ql.numpy(),
        negative_labels=kl.numpy(),
        class_names=[*class_names],
        **sums.means(len(q)),
        **{**defaults, **more},
    )


class _RankSums:
    """Sums by rank, over chunks of queries."""

    def __init__(self, negatives: int, percentiles: int, classes: int) -> None:
        self.percentiles, self.classes = percentiles, classes
        self.bins = {name: torch.zeros(2, percentiles).double() for name in QUANTITIES}
        self.groups = {name: torch.zeros(2, 2).double() for name in QUANTITIES}
        self.hard, self.shuffled = torch.zeros(2, negatives).double()
        self.pairs = torch.zeros(2, classes, classes).double()

    def add(
        self,
        similarity: Tensor,
        query_labels: Tensor,
        labels: Tensor,
        depths: Tensor | None,
        generator: torch.Generator,
    ) -> None:
        ranks = ranking.rank(similarity)
        compared = statistics.compare_classes(query_labels, labels, depths)
        for name, value in ({"similarity": similarity} | compared).items():
            ordered = ranks.order(value)
            self.bins[name] += torch.stack(ranking.by_percentile(ordered, self.percentiles))
            self.groups[name] += torch.stack(ranking.hard_and_easy(ordered))
        self.hard += ranking.hard_counts(ranks)
        shuffled = ranking.rank(ranking.shuffled(similarity, generator))
        self.shuffled += ranking.hard_counts(shuffled)
        if self.classes:
            mean, number = statistics.class_means(similarity, query_labels, labels, self.classes)
            self.pairs += torch.stack([(mean * number).nan_to_num(0.0), number])

    def means(self, queries: int) -> dict[str, Any]:
        scalars: dict[str, float] = {}
        for name, (sums, numbers) in self.groups.items():
            easy, hard = (sums / numbers).tolist()
            mean = float(sums.sum() / numbers.sum())
            scalars |= {f"{name}/easiest_95": easy, f"{name}/hardest_5": hard, f"{name}/all": mean}
        bins = {name: (sums / numbers).numpy() for name, (sums, numbers) in self.bins.items()}
        return {
            **bins,
            "scalars": scalars,
            "hard_share": (self.hard / queries).numpy(),
            "shuffled_share": (self.shuffled / queries).numpy(),
            "class_mean": (self.pairs[0] / self.pairs[1]).numpy(),
            "class_number": self.pairs[1].numpy(),
        }


def _normalize(embeddings: ArrayLike, name: str) -> Tensor:
    vectors = torch.as_tensor(np.asarray(embeddings, dtype=np.float32))
    if vectors.ndim != 2 or not len(vectors):
        shape = tuple(vectors.shape)
        raise DataError(f"There are no {name}: an array of shape {shape}, not (number, D).")
    if not bool(torch.isfinite(vectors).all()):
        text = f"The embeddings of the {name} are not finite: training has diverged"
        raise DataError(f"{text}. Take an earlier checkpoint.")
    return F.normalize(vectors, dim=1)


# ---------------------------------------------------------------------- tables


def class_pairs(study: Study, n: int = 10) -> dict[str, pd.DataFrame]:
    """The most anti-correlated, correlated and orthogonal classes (Cai et al. 2020, A4-A6).

    Args:
        study: A study of C classes.
        n: Number of pairs of different classes, or all if there are fewer.

    Returns:
        By these three words, tables with the columns ``mean similarity``, ``similarities`` (their
        number; a mean of few is extreme by chance), ``class of the negative`` and ``class of the
        query``. Ties are in the order of the query's class.
    """
    mean = np.where(np.eye(len(study.class_mean), dtype=bool), np.nan, study.class_mean)
    query, negative = np.nonzero(~np.isnan(mean))
    values = mean[query, negative]
    names = np.asarray(study.class_names, dtype=object)
    pairs = pd.DataFrame(
        {
            "mean similarity": values,
            "similarities": study.class_number[query, negative].astype(np.int64),
            "class of the negative": names[negative],
            "class of the query": names[query],
        }
    )
    orders = {"anti-correlated": values, "correlated": -values, "orthogonal": np.abs(values)}
    return {
        name: pairs.iloc[np.argsort(order, kind="stable")[:n]].reset_index(drop=True)
        for name, order in orders.items()
    }


def t_tests(studies: Sequence[Study]) -> pd.DataFrame:
    """Hard against easy negatives over seeds, by unpaired t-tests (Cai et al. 2020, section 4).

    Args:
        studies: One per seed.

    Returns:
        A row each for the share of the query's class and for the depth, with the columns
        ``quantity``, ``hardest 5 %`` and ``easiest 95 %`` (means over seeds), ``std`` of each,
        ``seeds``, ``p`` and ``note`` (why p is NaN).
    """
    names = {"same_class": "share of the query's class", "depth": "depth of the common ancestor"}
    parts = {"hardest 5 %": "hardest_5", "easiest 95 %": "easiest_95"}
    rows = []
    for name, quantity in names.items():
        row: dict[str, Any] = {"quantity": quantity}
        sides = []
        for title, part in parts.items():
            values = np.array([s.scalars.get(f"{name}/{part}", np.nan) for s in studies])
            row[title], row[f"std {title}"] = mean_and_std(values)
            sides.append(values[np.isfinite(values)].tolist())
        row |= {"seeds": len(sides[0]), "p": student(*sides), "note": ""}
        if min(map(len, sides)) == 0:
            row["note"] = "not known"
        elif min(map(len, sides)) == 1:
            row["note"] = "one seed: a t-test needs two or more"
        elif np.isnan(row["p"]):
            row["note"] = "all seeds have the same values"
        rows.append(row)
    return pd.DataFrame(rows)
