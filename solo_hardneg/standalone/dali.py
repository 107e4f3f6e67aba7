"""Views of image files made by NVIDIA DALI (``data.format=dali``), on the GPU or on the CPU.

As in solo-learn, DALI decodes, crops and colours the training images, and torchvision those of
validation. Beyond it, the order of the images and the views follow ``seed``, a resumed run has the
order that its epoch would have had, and the indexes of a batch are always the dataset's.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DistributedSampler

from solo_hardneg.dali import explain
from solo_hardneg.data.images import check_tiffs
from solo_hardneg.distributed import get_rank, get_world_size
from solo_hardneg.resident.recipe import Recipe
from solo_hardneg.standalone.checks import read
from solo_hardneg.standalone.data import Split

_AHEAD = 8  # batches; DALI works at no more


class DaliLoader:
    """Complete batches ``[indexes, views, targets]`` in random order, or ``[X, targets]``.

    In a distributed run each process has its share of every epoch, drawn as Lightning draws it.
    Lightning tells ``sampler`` the epoch, so the order depends on that, and on the seed.

    Args:
        split: image files and their targets.
        recipes: one per view.
        cfg: ``optimizer.batch_size``, ``data.num_workers`` (threads), ``dali.device``, ``seed``.
        indexed: with indexes and a list of views; else one view.

    Attributes:
        recent: the images that DALI was given last, among them the one that it fails at.

    Raises:
        DataError: there are TIFF files of floats.
    """

    def __init__(
        self, split: Split, recipes: Sequence[Recipe], cfg: DictConfig, indexed: bool
    ) -> None:
        check_tiffs(split.images)
        self.split, self.recipes, self.indexed = split, recipes, indexed
        self.batch_size: int = cfg.optimizer.batch_size
        self.threads, self.device = int(cfg.data.num_workers), str(read(cfg, "dali.device", "gpu"))
        self.seed: int = cfg.seed
        self.recent: deque[str] = deque(maxlen=_AHEAD * self.batch_size)
        self._targets = torch.tensor(split.targets)
        self._sampler: DistributedSampler | None = None
        self._passes: Any = None  # DALI's iterator; None before the first epoch
        self._under_way = False

    @property
    def sampler(self) -> DistributedSampler:
        """Which images this process has in which order; made once the processes are there."""
        if self._sampler is None:
            self._sampler = self.make_sampler()
        return self._sampler

    def make_sampler(self) -> DistributedSampler:
        """A sampler of this process's share, at the first epoch."""
        images: Any = range(len(self.split.images))
        # It adds the epoch to its seed: those of neighbours would be the same, an epoch apart.
        seed = int(np.random.SeedSequence(self.seed).generate_state(1)[0])
        return DistributedSampler(images, get_world_size(), get_rank(), seed=seed, drop_last=True)

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size

    def __iter__(self) -> Iterator[list[Any]]:
        try:
            if self._passes is None or self._under_way:  # the last epoch was left early
                self._passes = None  # or there would be two for a while
                self._passes = self._build()
            self._under_way = True
            for outputs in self._passes:
                yield self._batch(outputs[0])
        except RuntimeError as error:
            raise explain(error, list(self.recent)) from error
        self._under_way = False

    def _batch(self, found: dict[str, Tensor]) -> list[Any]:
        indexes = found["index"].flatten()
        targets = self._targets[indexes.cpu()].to(indexes.device)
        views = [found[f"view{i}"] for i in range(len(self.recipes))]
        return [indexes, views, targets] if self.indexed else [views[0], targets]

    def _build(self) -> Any:
        from nvidia.dali.plugin.pytorch import DALIGenericIterator

        from solo_hardneg.standalone.dali_views import views_pipeline

        on_gpu = self.device == "gpu"
        # From the epoch, too: a run that goes on doesn't draw the first epoch's views again.
        words = [self.seed, get_rank(), self.sampler.epoch]
        pipeline = views_pipeline(
            _Files(self),
            self.recipes,
            on_gpu,
            batch_size=self.batch_size,
            num_threads=self.threads,
            device_id=torch.cuda.current_device() if on_gpu else None,
            seed=int(np.random.SeedSequence(words).generate_state(1)[0] // 2),
        )
        names = [*(f"view{i}" for i in range(len(self.recipes))), "index"]
        return DALIGenericIterator([pipeline], names, auto_reset=True)


class _Files:
    """For DALI: the batches of one epoch after the other, as file names in bytes and indexes.

    DALI asks for the next epoch as soon as one ends, before Lightning tells which it is. So this
    counts by itself.
    """

    def __init__(self, loader: DaliLoader) -> None:
        self.loader, self.epoch = loader, loader.sampler.epoch

    def __iter__(self) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
        loader, sampler = self.loader, self.loader.make_sampler()
        sampler.set_epoch(self.epoch)
        self.epoch += 1
        order = list(sampler)
        for number in range(len(loader)):
            indexes = order[number * loader.batch_size :][: loader.batch_size]
            names = [str(loader.split.images[i]) for i in indexes]
            loader.recent.extend(names)
            encoded = [os.fsencode(name) for name in names]
            yield [np.frombuffer(n, np.uint8) for n in encoded], [np.array([i]) for i in indexes]
