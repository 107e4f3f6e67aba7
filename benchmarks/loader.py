"""Images per second of the loaders: PIL in worker processes, and whole batches on the device.

The loaders take turns in each round, in random order, so that other work on the machine slows all
of them alike. The first batches of a turn are not counted: workers start and fill their queues.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks import models
from benchmarks.provenance import HERE, package_version, provenance, update_csv
from benchmarks.timing import now

KEYS = ["loader", "dataset", "workers", "N", "threads", "device"]
LIBRARIES = ("torchvision", "pillow", "kornia")
Source = Callable[[], Iterator[int]]  # yields the number of images of each batch


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
    """Compares all loaders; both views of an image count as one image.

    Args:
        train_path: Folder of the images.
        batch: Images of a batch.
        workers: Numbers of worker processes of the PIL loader.
        batches: Batches that count in a turn.
        rounds: Turns of each loader.
        file: CSV to update.
        data: The dataset's config.
        crop: Side of a view, pixels.
        until: Time after which no round starts, see :func:`benchmarks.timing.now`.
    """
    sources = make_sources(train_path, batch, workers, data, crop)
    speeds: dict[tuple[str, int], list[float]] = {key: [] for key in sources}
    order, generator = list(sources), random.Random(0)
    for number in range(rounds):
        if number and now() >= until:
            break
        generator.shuffle(order)
        for name, processes in order:
            prefetched = 1 + 2 * processes
            speed = measure_speed(sources[name, processes], prefetched, batches)
            speeds[name, processes].append(speed)
    rows = []
    for (name, processes), values in speeds.items():
        low, middle, high = np.percentile(values, [20, 50, 80]).round(1)
        rows.append(
            {
                **{"loader": name, "dataset": data, "workers": processes, "N": batch},
                **{"images_s_p20": low, "images_s": middle, "images_s_p80": high},
                **{"batches": batches, "rounds": len(values), "pixels": crop},
            }
        )
    versions = {name: package_version(name) for name in LIBRARIES}
    table = pd.DataFrame(rows).assign(**versions, **provenance())
    if file is not None:
        update_csv(file, table, KEYS)
    return table


def measure_speed(source: Source, skipped: int, batches: int) -> float:
    """Returns images per second of one turn."""
    counts = source()
    for _ in islice(counts, skipped):
        pass
    start = now()
    number = sum(islice(counts, batches))
    return number / (now() - start)


def make_sources(
    train_path: Path | str, batch: int, workers: list[int], data: str, crop: int
) -> dict[tuple[str, int], Source]:
    """Returns the loaders by name and number of workers; kornia where it is installed."""
    from solo_hardneg.standalone.loaders import pretrain_loaders

    def load(override: str) -> tuple[DictConfig, Any]:
        paths = f"data.train_path={train_path}", "data.val_path=null"
        sizes = "mocov2_banded", batch, 65536, "resnet18"
        crop_size = f"data.suggest.crop_size={crop}"
        cfg = models.compose_config(*sizes, *paths, crop_size, override, data=data)
        return cfg, pretrain_loaders(cfg)[0]

    sources: dict[tuple[str, int], Source] = {}
    for number in workers:
        _, pil = load(f"data.num_workers={number}")
        sources["standalone", number] = lambda pil=pil: (len(indexes) for indexes, _, _ in pil)
    cfg, indexes_only = load("data.format=resident")
    views = resident_views(cfg, indexes_only.dataset)
    sources["resident", 0] = lambda: _count_views(indexes_only, views)
    try:
        others = kornia_views(cfg, views.images)
    except ImportError:
        return sources
    sources["kornia", 0] = lambda: _count_views(indexes_only, others)
    return sources


def _count_views(loader: DataLoader, views: Callable[..., Any]) -> Iterator[int]:
    for number, (indexes, _, _) in enumerate(loader):
        yield len(views(indexes.to(_device()), 0, 0, number)[0])


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resident_views(cfg: DictConfig, dataset: Any) -> Any:
    """Our views of a dataset, on the GPU if there is one."""
    from solo_hardneg.data.resident.images import load_images
    from solo_hardneg.data.resident.recipe import pretrain_recipes
    from solo_hardneg.data.resident.views import ResidentViews

    entries: Any = OmegaConf.to_container(cfg.augmentations, resolve=True)
    recipes = pretrain_recipes(cfg.data.dataset, entries, cut=True)
    return ResidentViews(load_images(dataset, _device()), recipes, seed=0)


def kornia_views(cfg: DictConfig, images: torch.Tensor) -> Callable[..., list[torch.Tensor]]:
    """kornia's nearest augmentations of the same images (N, 3, H, W).

    They differ: kornia draws one order of the jitter's steps per batch, crops without antialiasing
    and blurs by a kernel of fixed width.
    """
    import kornia.augmentation as K

    from solo_hardneg.data.resident.recipe import pretrain_recipes

    entries: Any = OmegaConf.to_container(cfg.augmentations, resolve=True)
    recipe = pretrain_recipes(cfg.data.dataset, entries, cut=True)[0]
    jitter = entries[0]["color_jitter"]
    amounts = [jitter[name] for name in ("brightness", "contrast", "saturation", "hue")]
    size = (recipe.size, recipe.size)
    augment = K.AugmentationSequential(
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

    def views(indexes: torch.Tensor, *_: int) -> list[torch.Tensor]:
        chosen = images.index_select(0, indexes).float() / 255
        with torch.no_grad():
            return [augment(chosen) for _ in range(2)]

    return views


def make_jpegs(folder: Path, number: int, side: int, copies: int) -> Path:
    """Writes JPEGs of smooth noise, about as hard to decode as photographs of their size.

    Args:
        folder: Gets ten folders of classes.
        number: Number of images.
        side: Pixels.
        copies: Names of each image, which make an epoch longer.
    """
    generator = np.random.default_rng(0)
    for index in range(number):
        place = folder / f"class{index % 10}"
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (28, 28, 3), dtype=np.uint8))
        fine = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = fine + generator.integers(-12, 13, fine.shape)
        file = place / f"{index:05}.jpg"
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=90)
        for copy in range(1, copies):
            file.with_stem(f"{index:05}-{copy}").hardlink_to(file)
    return folder
