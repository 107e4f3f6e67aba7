"""Images per second of what makes the views: PIL in worker processes, and whole batches at once.

All loaders take turns in each round, in an order of their own, so that whatever else the machine
does falls on all of them alike. The first batches of a turn don't count: workers start, and fill
their queues.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from benchmarks import models
from benchmarks.loss import write
from benchmarks.provenance import HERE, provenance
from benchmarks.timing import now

KEYS = ["loader", "dataset", "workers", "N", "threads", "device"]
Source = Callable[[], Iterator[int]]  # what gives the number of images of each batch


def run_loader(
    train_path: Path | str,
    batch: int,
    workers: list[int],
    batches: int,
    rounds: int = 5,
    file: Path | None = HERE / "loader.csv",
    data: str = "cifar100",
    crop: int = 32,
    until: float = math.inf,
) -> pd.DataFrame:
    """All loaders; both views of an image count as one image.

    Args:
        train_path: folder of the images.
        batch: images of a batch.
        workers: numbers of worker processes of the PIL pipeline; the others have none.
        batches: how many count in each turn.
        rounds: how many turns each loader has.
        file: the CSV to write to, if any.
        data: the dataset's config; folders of images are read by DALI, too, where it is installed.
        crop: pixels of a side of the views.
        until: no further round starts then, on the clock of :func:`benchmarks.timing.now`.
    """
    sources = all_sources(train_path, batch, workers, data, crop)
    speeds: dict[tuple[str, int], list[float]] = {key: [] for key in sources}
    order, shuffle = list(sources), random.Random(0)
    for number in range(rounds):
        if number and now() >= until:
            break
        shuffle.shuffle(order)
        for key in order:
            skipped = 1 + 2 * key[1]  # as many as workers prepare in advance
            speeds[key].append(speed(sources[key], skipped, batches))
    rows = []
    for (name, number), found in speeds.items():
        low, middle, high = np.percentile(found, [20, 50, 80]).round(1)
        images = {"images_s_p20": low, "images_s": middle, "images_s_p80": high}
        place = {"loader": name, "dataset": data, "workers": number, "N": batch}
        rows.append({**place, **images, "batches": batches, "rounds": len(found), "pixels": crop})
    table = pd.DataFrame(rows).assign(**versions(), **provenance())
    if file is not None:
        write(file, table, KEYS)
    return table


def speed(source: Source, skipped: int, batches: int) -> float:
    """Images per second of one turn."""
    counts = source()
    for _ in islice(counts, skipped):
        pass
    start = now()
    number = sum(islice(counts, batches))
    return number / (now() - start)


def all_sources(
    train_path: Path | str, batch: int, workers: list[int], data: str = "cifar100", crop: int = 32
) -> dict[tuple[str, int], Source]:
    """What is compared, by name and number of workers; kornia and DALI where they are installed."""
    from solo_hardneg.dali import is_installed
    from solo_hardneg.standalone.data import FOLDERS, pretrain_loaders

    def loader(*overrides: str) -> tuple[DictConfig, Any]:
        where = f"data.train_path={train_path}", "data.val_path=null"
        size = f"data.suggest.crop_size={crop}"
        method = "mocov2_banded", batch, 65536, "resnet18"
        cfg = models.config(*method, *where, size, *overrides, data=data)
        return cfg, pretrain_loaders(cfg)[0]

    sources: dict[tuple[str, int], Source] = {}
    for number in workers:
        _, pil = loader(f"data.num_workers={number}")
        sources["standalone", number] = lambda pil=pil: (len(indexes) for indexes, _, _ in pil)
        if data in FOLDERS and is_installed():
            device = "gpu" if torch.cuda.is_available() else "cpu"
            _, dali = loader(
                f"data.num_workers={number}", "data.format=dali", f"dali.device={device}"
            )
            sources["dali", number] = lambda dali=dali: (len(indexes) for indexes, _, _ in dali)
    cfg, indexes_only = loader("data.format=resident")
    views = resident(cfg, indexes_only.dataset)
    sources["resident", 0] = lambda: _filled(indexes_only, views)
    try:
        theirs = kornias(cfg, views.images)
    except ImportError:
        return sources
    sources["kornia", 0] = lambda: _filled(indexes_only, theirs)
    return sources


def _filled(loader: DataLoader, views: Callable[..., Any]) -> Iterator[int]:
    for number, (indexes, _, _) in enumerate(loader):
        made = views(indexes.to(_device()), 0, 0, number)
        yield len(made[0])


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resident(cfg: DictConfig, dataset: Any) -> Any:
    """Our views of a dataset, on the GPU if there is one."""
    from solo_hardneg.resident.images import load_images
    from solo_hardneg.resident.recipe import pretrain_recipes
    from solo_hardneg.resident.views import ResidentViews

    entries: Any = OmegaConf.to_container(cfg.augmentations, resolve=True)
    recipes = pretrain_recipes(cfg.data.dataset, entries, cut=True)
    return ResidentViews(load_images(dataset, _device()), recipes, seed=0)


def kornias(cfg: DictConfig, images: torch.Tensor) -> Callable[..., list[torch.Tensor]]:
    """The same steps by kornia, on the same bytes.

    They are not quite the same: kornia draws one order of the jitter's steps for all of a batch,
    its crop has no antialiasing, and its blur is a kernel of fixed width.
    """
    import kornia.augmentation as K

    from solo_hardneg.resident.recipe import pretrain_recipes

    entries: Any = OmegaConf.to_container(cfg.augmentations, resolve=True)
    recipe = pretrain_recipes(cfg.data.dataset, entries, cut=True)[0]
    jitter = entries[0]["color_jitter"]
    amounts = [jitter[name] for name in ("brightness", "contrast", "saturation", "hue")]
    size = (recipe.size, recipe.size)
    steps = K.AugmentationSequential(
        K.RandomResizedCrop(
            size, recipe.scale or (1, 1), recipe.ratio, "bicubic", cropping_mode="resample"
        ),
        K.ColorJitter(*amounts, p=recipe.jitter),
        K.RandomGrayscale(p=recipe.grey),
        K.RandomGaussianBlur((7, 7), (0.1, 2.0), p=recipe.blur),
        K.RandomHorizontalFlip(p=recipe.flip),
        K.Normalize(torch.tensor(recipe.mean), torch.tensor(recipe.std)),
        data_keys=["input"],
    ).to(images.device)

    def views(indexes: torch.Tensor, *place: int) -> list[torch.Tensor]:
        chosen = images.index_select(0, indexes).float() / 255
        with torch.no_grad():
            return [steps(chosen) for _ in range(2)]

    return views


def versions() -> dict[str, str]:
    """Of what decodes and augments, beside what every row has."""
    found = {}
    for package in ("torchvision", "pillow", "kornia", "nvidia-dali-cuda130"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found
