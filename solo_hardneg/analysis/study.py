"""The papers' study of one trained encoder: what its queries and negatives look like, as arrays.

Cai et al. 2020 (arXiv 2010.06682, section 4) embed queries and negatives with the trained encoder,
rank the negatives of each query by similarity, and ask who is hard. The mathematics is in
:mod:`solo_hardneg.analysis.statistics`; here are its results, and how they are kept.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from solo_hardneg.analysis import ranking, statistics
from solo_hardneg.analysis.untrusted import encodable
from solo_hardneg.errors import DataError

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA = 1
_MARK = "solo_hardneg.study"  # the file's entry that says whose it is
CHUNK = 2**24  # so many similarities are held at once
QUANTITIES = ("similarity", "same_class", "depth")
Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Study:
    """What was found; NaN, or an empty array, stands for what could not be had (see ``notes``).

    Attributes:
        query_embeddings, negative_embeddings: (N, D) and (M, D) float32 unit vectors.
        query_labels, negative_labels: (N,) and (M,) classes in [0, C); -1 where unknown.
        query_indexes, negative_indexes: (N,) and (M,) places in the data set; -1 if not given.
        similarity, same_class, depth: (B,) means of each difficulty percentile, easiest first:
            of the similarity, of whether the negative is of the query's class (a share), and of
            the depth of the least common ancestor of both classes in WordNet (figure 5).
        scalars: the same means for ``QUANTITY/easiest_95``, ``QUANTITY/hardest_5``, and all
            negatives (``QUANTITY/all``) (figure 4).
        hard_share: (M,) for which share of the queries each negative is among the hardest 5 %.
        shuffled_share: (M,) the same after each query's similarities were dealt out at random
            (figure 6).
        class_mean, class_number: (C, C) mean similarity of query class by negative class, and of
            how many similarities (Tables A4-A6).
        class_names: C readable names.
        tsne, tsne_labels: (P, 2) and (P,): features of the backbone in two dimensions (SSCL's
            figure 6), and their classes.
        info: where it comes from: checkpoint, method, negatives, dataset, seed, the settings ...
        notes: what is missing, and why; one sentence each.
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
        """r/M: which share of the negatives are "the hardest 5 %" exactly (0.05 if 20 divides M).

        Whatever the encoder, this is the mean of ``hard_share``, as every query has r hard
        negatives. Its median is a finding: it falls as the same negatives are hard for many.
        """
        return float(self.hard_share.mean())

    def save(self, path: Path) -> None:
        """Writes an .npz file at one go; raises DataError if it can't be written."""
        arrays, plain = _parts(self)
        text = json.dumps(plain, default=str)
        entries: dict[str, Any] = {_MARK: np.array([SCHEMA]), "json": text, **arrays}
        partial = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
                partial = Path(file.name)
                np.savez_compressed(file, **entries)
            partial.chmod(0o644)  # a temporary file is for its owner only
            os.replace(partial, path)
        except OSError as error:
            if partial is not None:
                with suppress(OSError):
                    partial.unlink()
            do = "Set out=... to a folder that can be written to"
            raise DataError(f"{path}: the study can't be written ({error}). {do}.") from error


def load(path: Path) -> Study:
    """Reads what :meth:`Study.save` wrote; nothing in the file is executed.

    Raises:
        DataError: the file isn't there, is damaged, or is something else.
    """
    again = "Make it again with: solo-hardneg analyze CHECKPOINT"
    if not path.is_file():
        raise DataError(f"{path}: there is no such study. {again}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            stored = {name: file[name] for name in file.files}
    except Exception as error:  # numpy, zipfile and zlib have an error each
        text = f"{path}: this study can't be read; it is cut off, or no .npz file ({error})"
        raise DataError(f"{text}. {again}.") from error
    version = stored.pop(_MARK, None)
    if version is None:
        raise DataError(f"{path}: this is no study: it lacks the entry {_MARK}. {again}.")
    if version.tolist() != [SCHEMA]:
        text = f"{path}: this study has version {version.tolist()}, and this program reads {SCHEMA}"
        raise DataError(f"{text}. {again}.")
    try:
        plain = encodable(json.loads(str(stored.pop("json"))))
        known = {name.name for name in fields(Study)}
        result = Study(**{k: v for k, v in stored.items() if k in known}, **plain)
        _check(result)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: this study is damaged ({error}). {again}.") from error
    return result


def _parts(study: Study) -> tuple[dict[str, Array], dict[str, Any]]:
    values = {f.name: getattr(study, f.name) for f in fields(Study)}
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in values.items() if name not in arrays}
    plain["scalars"] = dict(plain["scalars"])
    plain["info"] = dict(plain["info"])
    return arrays, {**plain, "class_names": [*study.class_names], "notes": [*study.notes]}


def _check(study: Study) -> None:
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


# ---------------------------------------------------------------------- making one


@torch.no_grad()
def study(
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
    """Ranks the negatives of each query, and looks at who is where.

    Args:
        query, negative: (N, D) and (M, D), of any length but 0; they are normalized.
        query_labels, negative_labels: (N,) and (M,); -1 for unknown.
        percentiles: B bins of difficulty.
        depths: (C, C) depths of the least common ancestors of the classes.
        class_names: C names; without them the classes are counted from the labels.
        seed: of the shuffle that figure 6 is compared with.
        more: further fields of :class:`Study`.

    Raises:
        DataError: there are no queries or no negatives, or embeddings are not finite.
    """
    q, k = _unit(query, "queries"), _unit(negative, "negatives")
    ql = torch.as_tensor(np.asarray(query_labels, dtype=np.int64))
    kl = torch.as_tensor(np.asarray(negative_labels, dtype=np.int64))
    if not class_names:
        found = int(max(ql.max(), kl.max())) + 1
        class_names = [str(number) for number in range(found)]
    table = None if depths is None else torch.as_tensor(np.asarray(depths, dtype=np.float32))
    parts = _Sums(len(k), percentiles, len(class_names))
    generator = torch.Generator().manual_seed(seed)
    rows = max(CHUNK // len(k), 1)
    for start in range(0, len(q), rows):
        part = slice(start, start + rows)
        parts.add(q[part] @ k.T, ql[part], kl, table, generator)
    given = {"query_indexes": len(q), "negative_indexes": len(k)}
    defaults = {name: np.full(number, -1, dtype=np.int64) for name, number in given.items()}
    return Study(
        query_embeddings=q.numpy(),
        negative_embeddings=k.numpy(),
        query_labels=ql.numpy(),
        negative_labels=kl.numpy(),
        class_names=[*class_names],
        **parts.results(len(q)),
        **{**defaults, **more},
    )


class _Sums:
    """Sums over chunks of queries."""

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
        of_classes = statistics.of_classes(query_labels, labels, depths)
        for name, value in ({"similarity": similarity} | of_classes).items():
            ordered = ranks.order(value)
            self.bins[name] += torch.stack(ranking.by_percentile(ordered, self.percentiles))
            self.groups[name] += torch.stack(ranking.hard_and_easy(ordered))
        self.hard += ranking.hard_counts(ranks)
        dealt = ranking.rank(ranking.shuffled(similarity, generator))
        self.shuffled += ranking.hard_counts(dealt)
        if self.classes:
            mean, number = statistics.class_means(similarity, query_labels, labels, self.classes)
            self.pairs += torch.stack([(mean * number).nan_to_num(0.0), number])

    def results(self, queries: int) -> dict[str, Any]:
        scalars: dict[str, float] = {}
        for name, (sums, numbers) in self.groups.items():
            easy, hard = (sums / numbers).tolist()
            every = float(sums.sum() / numbers.sum())
            scalars |= {f"{name}/easiest_95": easy, f"{name}/hardest_5": hard, f"{name}/all": every}
        bins = {name: (sums / numbers).numpy() for name, (sums, numbers) in self.bins.items()}
        return {
            **bins,
            "scalars": scalars,
            "hard_share": (self.hard / queries).numpy(),
            "shuffled_share": (self.shuffled / queries).numpy(),
            "class_mean": (self.pairs[0] / self.pairs[1]).numpy(),
            "class_number": self.pairs[1].numpy(),
        }


def _unit(vectors: ArrayLike, what: str) -> Tensor:
    given = torch.as_tensor(np.asarray(vectors, dtype=np.float32))
    if given.ndim != 2 or not len(given):
        raise DataError(f"There are no {what}: an array of {tuple(given.shape)}, not (number, D).")
    if not bool(torch.isfinite(given).all()):
        text = f"The embeddings of the {what} hold values that are no finite numbers"
        raise DataError(f"{text}: training has diverged. Take an earlier checkpoint.")
    return F.normalize(given, dim=1)


# ---------------------------------------------------------------------- tables


def class_pairs(study: Study, n: int = 10) -> dict[str, DataFrame]:
    """The most anti-correlated, correlated and orthogonal classes (Cai et al. 2020, A4-A6).

    Args:
        study: with C classes.
        n: how many pairs of different classes; fewer if there are not so many.

    Returns:
        by these three words, tables with the columns ``mean similarity``, ``similarities`` (of how
        many that is the mean; of few, it is extreme by chance), ``class of the negative``,
        ``class of the query``; ties stand in the order of the query's class.
    """
    import pandas as pd

    mean = np.where(np.eye(len(study.class_mean), dtype=bool), np.nan, study.class_mean)
    query, negative = np.nonzero(~np.isnan(mean))
    values = mean[query, negative]
    orders = {"anti-correlated": values, "correlated": -values, "orthogonal": np.abs(values)}
    tables = {}
    names = np.asarray(study.class_names, dtype=object)
    for name, order in orders.items():
        first = np.argsort(order, kind="stable")[:n]
        columns = {
            "mean similarity": values[first],
            "similarities": study.class_number[query, negative][first].astype(np.int64),
            "class of the negative": names[negative[first]],
            "class of the query": names[query[first]],
        }
        tables[name] = pd.DataFrame(columns)
    return tables


def t_tests(studies: Sequence[Study]) -> DataFrame:
    """Hard against easy negatives over seeds, by unpaired t-tests (Cai et al. 2020, section 4).

    Args:
        studies: one for each seed.

    Returns:
        one row for the share of the query's class, and one for the depth, with columns
        ``quantity``, ``hardest 5 %`` and ``easiest 95 %`` (means over seeds), ``std`` of each,
        ``seeds``, ``p`` (NaN where it can't be had) and ``note`` (why).
    """
    import pandas as pd

    words = {"same_class": "share of the query's class", "depth": "depth of the common ancestor"}
    rows = []
    for name, quantity in words.items():
        hard, easy = (
            [v for s in studies if np.isfinite(v := s.scalars.get(f"{name}/{part}", np.nan))]
            for part in ("hardest_5", "easiest_95")
        )
        p = statistics.unpaired_t_test(hard, easy)
        note = ""
        if not hard or not easy:
            note = "not known"
        elif min(len(hard), len(easy)) < 2:
            note = "one seed: a t-test needs two or more"
        elif np.isnan(p):
            note = "all seeds have the same values"
        row: dict[str, Any] = {"quantity": quantity}
        for title, values in (("hardest 5 %", hard), ("easiest 95 %", easy)):
            row[title] = np.mean(values) if values else np.nan
            row[f"std {title}"] = np.std(values, ddof=1) if len(values) > 1 else np.nan
        rows.append({**row, "seeds": len(hard), "p": p, "note": note})
    return pd.DataFrame(rows)
