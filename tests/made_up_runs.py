"""Folders of runs with made-up numbers, in the hosts' and the recorder's formats; hostile ones."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from solo_hardneg.recording.records import Rows
from solo_hardneg.study.measure import Study

MOCO: dict[str, Any] = {
    "method": "mocov2_banded",
    "name": "moco",
    "seed": 5,
    "max_epochs": 4,
    "data": {"dataset": "imagenet", "train_path": "/a/train", "suggest": {"tau_plus": 0.1}},
    "backbone": {"name": "resnet50", "kwargs": {}},
    "method_kwargs": {"queue_size": 1024, "temperature": 0.2, "symmetric": False},
    "optimizer": {"name": "sgd", "batch_size": 64, "lr": 0.03},
    "negatives": {},
    "wandb": {"enabled": False},
}
SIMCLR: dict[str, Any] = {
    "method": "simclr_sscl",
    "name": "simclr",
    "seed": 5,
    "max_epochs": 4,
    "data": {"dataset": "cifar10", "train_path": "/b/train", "suggest": {"tau_plus": 0.1}},
    "backbone": {"name": "resnet18", "kwargs": {}},
    "method_kwargs": {"temperature": 0.5},
    "optimizer": {"name": "sgd", "batch_size": 256, "lr": 0.1},
    "negatives": {},
}
HARDEST = {"keep": {"band": [0.95, 1.0]}}
SSCL = {
    "mix": {"hardest": 32, "pairs": 8},
    "reweight": {"beta": 1.0},
    "debias": {"tau_plus": 0.1},
}
EVIL = (
    "<script>document.title='run'</script>",
    "</style></title><img src=x onerror=\"document.title='run'\">",
    "\"><svg onload=document.title='run'>",
    "![x](javascript:document.title='run') [y](http://evil.example) <javascript:1>",
    '=HYPERLINK("http://evil.example")',
    "+1+cmd|' /C calc'!A0",
    "-2+3+cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "../../../outside",
    "--><script>document.title='run'</script><!-- ]]> & {{ 7 * 7 }}",
)


def changed(args: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy with other values; ``a__b`` means ``a.b``."""
    args = copy.deepcopy(args)
    for key, value in changes.items():
        *parts, last = key.split("__")
        place = args
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = value
    return args


def write_args(folder: Path, args: dict[str, Any]) -> Path:
    """Writes ``args.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "args.json").write_text(json.dumps(args), encoding="utf-8")
    return folder


def write_metrics(folder: Path, accuracies: Sequence[float], **last: float) -> Path:
    """Writes ``metrics.csv`` as Lightning does: sparse rows, the last without an epoch."""
    names = ["epoch", "step", "val_acc1", "val_acc5", "train_nce_loss_epoch", *last]
    lines = [",".join(names)]
    empty = "," * len(last)
    for epoch, value in enumerate(accuracies):
        lines.append(f"{epoch},{epoch},{value},{min(value + 20, 100)},{empty}")
        lines.append(f"{epoch},{epoch},,,{5 - epoch / 2}{empty}")
    if last:
        lines.append(f",{len(accuracies)},,,," + ",".join(str(v) for v in last.values()))
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_records(
    folder: Path,
    args: dict[str, Any],
    epochs: int = 4,
    hard: float = 0.3,
    kept: float = 1.0,
    percentiles: int = 10,
    queue: bool = True,
) -> Path:
    """Writes Parquet files of two ranks, with smooth curves of round numbers.

    Args:
        folder: Folder of the run.
        args: Its config.
        epochs: Number of files per rank.
        hard: Share of mass of the hardest 5 % in the first epoch.
        kept: Share of negatives that the policy keeps.
        percentiles: Number of difficulty percentiles.
        queue: Whether keys have an age.
    """
    for epoch in range(epochs):
        for rank in (0, 1):
            rows, place = Rows(), (epoch, epoch * 10, rank)
            for name, value in _scalars(epoch, hard, kept).items():
                # The second rank has more queries, and other values.
                rows.add(*place, "scalar", name, [-1], [value * (1 - 0.1 * rank)], [8.0 + 8 * rank])
            bins, ones = list(range(percentiles)), [10.0] * percentiles
            same = [0.1 + 0.02 * b + 0.01 * epoch for b in bins]
            rows.add(*place, "percentile", "same_class", bins, same, ones)
            if kept < 1:
                for side in ("precision", "recall"):
                    rows.add(*place, "percentile", f"dropped/{side}", bins, same, ones)
            if queue:
                rows.add(*place, "percentile", "age", bins, [500.0 - 10 * b for b in bins], ones)
            for side, centre in (("negative", 110), ("positive", 160 + 5 * epoch)):
                distance = np.abs(np.arange(200) - centre)
                counts = np.where(distance < 20, 20 - distance, 0).astype(float).tolist()
                rows.add(*place, "histogram", side, list(range(200)), counts, [1.0] * 200)
            images, ones = list(range(60)), [1.0] * 60
            rows.add(*place, "image", "met", images, [100.0] * 60, ones)
            rows.add(*place, "image", "hard", images, [float(i % 11) for i in images], ones)
            metrics = {"val_acc1": 20.0 + 10 * epoch, "train_nce_loss_epoch": 6.0 - epoch}
            for name, value in metrics.items():
                rows.add(*place, "metric", name, [-1], [value], [1.0])
            rows.write(folder / "hardness", epoch, rank, json.dumps(args))
    return folder


def _scalars(epoch: int, hard: float, kept: float) -> dict[str, float]:
    found = {"dropped/precision": 0.2, "dropped/recall": 0.5 - 0.1 * epoch} if kept < 1 else {}
    return {
        **found,
        "rankme": 20.0 + 2 * epoch,
        "alignment": 0.8 - 0.1 * epoch,
        "uniformity": -2.0,
        "similarity/positive": 0.6 + 0.05 * epoch,
        "similarity/negative": 0.1,
        "mass/hardest_0.1": hard / 10,
        "mass/hardest_1": hard / 3,
        "mass/hardest_5": hard + 0.05 * epoch,
        "mass/hardest_10": hard + 0.1 * epoch + 0.1,
        "effective_negatives": 400.0 - 50 * epoch,
        "same_class/hardest_5": 0.4,
        "same_class/easiest_95": 0.1,
        "count/offered": 1000.0,
        "count/kept": 1000.0 * kept,
        "count/dropped": 1000.0 * (1 - kept),
        "count/filled": 0.0,
        "count/synthetic": 0.0,
    }


def make_study(
    names: Sequence[str] = ("cat", "dog", "truck"), shift: float = 0.0, **info: Any
) -> Study:
    """A study of fixed numbers, of 4 queries, 20 negatives and 10 percentiles.

    Args:
        names: Names of the classes.
        shift: Added to the shares of the query's class.
        info: Further entries of the study's ``info``.
    """
    bins, classes = np.arange(10.0), len(names)
    mean = np.linspace(-0.2, 0.4, classes**2).reshape(classes, classes)
    scalars = {
        "similarity/easiest_95": 0.1,
        "similarity/hardest_5": 0.7,
        "same_class/easiest_95": 0.08 + shift,
        "same_class/hardest_5": 0.5 + shift,
    }
    return Study(
        query_embeddings=np.eye(4, 8, dtype=np.float32),
        negative_embeddings=np.eye(20, 8, dtype=np.float32),
        query_labels=np.arange(4) % classes,
        negative_labels=np.arange(20) % classes,
        query_indexes=np.arange(4),
        negative_indexes=np.arange(4, 24),
        similarity=-0.2 + 0.1 * bins,
        same_class=0.05 * bins + shift,
        depth=np.full(10, np.nan),
        hard_share=np.array([0.25] * 4 + [0.0] * 16),
        shuffled_share=np.array([0.25] * 4 + [0.0] * 16),
        class_mean=mean,
        class_number=np.ones((classes, classes)),
        tsne=np.stack([np.arange(12.0), np.arange(12.0) % 5], axis=1).astype(np.float32),
        tsne_labels=np.arange(12) % classes,
        scalars=scalars,
        class_names=list(names),
        info={"queries": 4, "negatives": 20, "split": "train", "views": "plain", **info},
        notes=["the depth in WordNet is missing in this made-up study."],
    )


def make_runs(root: Path) -> list[Path]:
    """Writes eight runs in four groups, with linear evaluations, and returns their folders.

    MoCo v2 on all negatives and on the hardest 5 % has three seeds each, SimCLR and SSCL one.
    """
    folders = []
    accuracies = {"all": (60.0, 61.0, 60.5), "hard": (55.0, 56.0, 55.5)}
    for policy, values in accuracies.items():
        negatives = HARDEST if policy == "hard" else {}
        for seed, accuracy in enumerate(values):
            args = changed(MOCO, seed=seed, negatives=negatives, name=f"moco-{policy}")
            folder = write_args(root / "mocov2_banded" / f"{policy}{seed}", args)
            kept = 0.05 if negatives else 1.0
            write_records(folder, args, hard=0.3 + 0.02 * seed + 0.2 * (kept < 1), kept=kept)
            (folder / "epoch3.ckpt").touch()
            write_linear(root, folder / "epoch3.ckpt", accuracy, "imagenet")
            if seed < 2:
                shift = 0.01 * seed + (0.1 if negatives else 0.0)
                info = {"method": "mocov2_banded", "seed": seed, "epoch": 4}
                study = make_study(shift=shift, checkpoint="/x/epoch3.ckpt", **info)
                study.save(folder / "analysis" / "study.npz")
            folders.append(folder)
    for method, negatives, accuracy in (("simclr", None, 80.0), ("simclr_sscl", SSCL, 83.0)):
        args = changed(SIMCLR, method=method, negatives=negatives)
        if negatives is None:
            del args["negatives"]
        folder = write_args(root / method / "one", args)
        write_metrics(folder, [30, 40, 50, accuracy - 10])
        write_linear(root, folder, accuracy, "cifar10")
        folders.append(folder)
    return folders


def write_linear(
    root: Path, source: Path | str, accuracy: float, dataset: str, name: str = "", lr: float = 4.0
) -> Path:
    """Writes a linear evaluation with this final accuracy, and a kNN accuracy two points below."""
    part = source if isinstance(source, str) else source.relative_to(root).as_posix()
    args = {
        "name": "linear",
        "pretrained_feature_extractor": str(source),
        "max_epochs": 2,
        "data": {"dataset": dataset},
        "optimizer": {"name": "sgd", "lr": lr, "batch_size": 64, "weight_decay": 0},
    }
    folder = write_args(root / "linear" / (name or part.replace("/", "-")), args)
    return write_metrics(folder, [accuracy - 5, accuracy], val_knn_acc1=accuracy - 2)


def make_evil_study(text: str, **info: Any) -> Study:
    """A study whose texts are all this one."""
    names = (text, f"{text}2", "cat")
    study = make_study(names, dataset=text, checkpoint=text, **info)
    return replace(study, notes=[f"{text} is missing."])


def make_evil_runs(root: Path, texts: Sequence[str] = EVIL) -> Path:
    """Writes a run per text, which is its dataset, method, name, policy, metric and classes."""
    for number, text in enumerate(texts):
        method = text if number % 2 else "mocov2_banded"
        args = {
            **MOCO,
            "method": method,
            "name": text,
            "data": {"dataset": text, "train_path": text},
            "negatives": {text: {text: text}, "keep": {"band": [0.9, 1.0]}},
            "optimizer": {"name": text},
            text: text,
        }
        folder = write_args(root / f"r{number}" / re.sub(r"[/\0]", "_", text)[:60], args)
        rows = Rows()
        for name in ("val_acc1", f"train_{text}"):
            rows.add(0, 0, 0, "metric", name, [-1], [50.0])
        rows.add(0, 0, 0, "scalar", "mass/hardest_5", [-1], [0.5])
        rows.write(folder / "hardness", 0, 0, json.dumps(args), notes=[f"{text} wasn't recorded"])
        make_evil_study(text, method=method, seed=5, epoch=1).save(folder / "analysis/study.npz")
    return root
