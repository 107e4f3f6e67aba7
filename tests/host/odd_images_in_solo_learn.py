"""Prints as JSON how solo-learn's loaders read odd folders, compared with the standalone host.

``python odd_images_in_solo_learn.py FOLDER``, with solo-learn importable; see ``test_odd_images``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import solo.methods  # noqa: F401, as in its programs
from marked_images import dali_is_installed
from omegaconf import OmegaConf
from solo.args import linear as linear_args
from solo.args import pretrain as pretrain_args
from solo.data import classification_dataloader, pretrain_dataloader
from solo.data.pretrain_dataloader import prepare_dataloader, prepare_datasets

from solo_hardneg import plugin
from solo_hardneg.data import loader as our_loader
from solo_hardneg.data.datasets import Split, load_split
from solo_hardneg.data.images import open_rgb
from solo_hardneg.errors import HardnegError

root = Path(sys.argv[1])


def standalone(folder: str, **data: Any) -> Split:
    data = {"dataset": "custom", "train_path": str(root / folder), **data}
    return load_split(OmegaConf.create({"data": data}), True)


def solo_learn(folder: str, **options: Any) -> Any:
    return prepare_datasets("custom", np.asarray, root / folder, **options)


def refusal(function: Callable[[], object]) -> str:
    try:
        function()
    except HardnegError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def files_of(dataset: Any) -> list[str]:
    if hasattr(dataset, "samples"):
        return [file for file, _ in dataset.samples]
    return [str(dataset.root / name) for name in dataset.images]


def run_dali(folder: str) -> None:
    """Runs an epoch of its DALI loader."""
    from nvidia.dali import fn
    from solo.data.dali_dataloader import PretrainDALIDataModule

    module = PretrainDALIDataModule(
        *("custom", root / folder, lambda images: [fn.resize(images, size=(8, 8))] * 2, 2, 0, 4),
        num_workers=1,
        dali_device="cpu",
        encode_indexes_into_labels=True,
    )
    trainer = {"local_rank": 0, "global_rank": 0, "world_size": 1}
    module.trainer = SimpleNamespace(**trainer)  # type: ignore[assignment]
    module.setup()
    for _ in module.train_dataloader():
        pass


plugin.register()
found: dict[str, Any] = {}
for name, no_labels in (("labelled", False), ("unlabelled", True)):
    for fraction in (-1, 0.5):
        dataset = solo_learn(name, no_labels=no_labels, data_fraction=fraction)
        ours = standalone(name, no_labels=no_labels, fraction=fraction)
        items = [dataset[i] for i in range(len(ours.images))]
        found[f"{name} {fraction}"] = {
            "files": files_of(dataset) == ours.images,
            "labels": [label for *_, label in items] == ours.targets,
            "pixels": all(
                np.array_equal(pixels, np.asarray(open_rgb(file)))
                for (_, pixels, _), file in zip(items, ours.images, strict=True)
            ),
            "images": len(ours.images),
        }
parts = [root / "labelled"] * 2
evaluated = classification_dataloader.prepare_datasets("custom", np.asarray, np.asarray, *parts)
found["evaluated"] = [files_of(part) == standalone("labelled").images for part in evaluated]
found["classes"] = [
    sum(entry.is_dir() for entry in module.os.scandir(root / "labelled"))
    for module in (pretrain_args, linear_args)
]

damaged = solo_learn("damaged")
found["damaged"] = refusal(lambda: [damaged[i] for i in range(len(damaged.samples))])
found["in a worker"] = refusal(lambda: list(prepare_dataloader(damaged, 2, num_workers=1)))
found["no classes"] = refusal(lambda: solo_learn("unlabelled/flat"))
found["no images"] = refusal(lambda: solo_learn("empty", no_labels=True))
odd = ("damaged", "no bytes", "floats", "latin1") if dali_is_installed() else ()
found["dali"] = {name: refusal(lambda name=name: run_dali(name)) for name in odd}
stat = SimpleNamespace(f_bavail=16, f_blocks=2**30, f_frsize=4096)
our_loader.os.statvfs = lambda _: stat  # type: ignore
_, validation = classification_dataloader.prepare_dataloaders(*evaluated, 2, num_workers=2)
training = prepare_dataloader(solo_learn("labelled"), 2, num_workers=2)
found["shared memory"] = [refusal(lambda each=each: list(each)) for each in (training, validation)]
before = pretrain_dataloader.ImageFolder, pretrain_dataloader.CustomDatasetWithoutLabels
plugin.register()
after = pretrain_dataloader.ImageFolder, pretrain_dataloader.CustomDatasetWithoutLabels
found["once"] = before == after
print(json.dumps(found))
