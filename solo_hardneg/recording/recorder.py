"""The recorder: a Lightning callback that records statistics of negatives at every n-th step.

:func:`solo_hardneg.plugin.callbacks` gives it to every run in which our methods are registered, so
it records the host's methods, too. It does nothing unless ``hardness.enabled=true``, and does not
change the run: it has its own random generator.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from solo_hardneg.data import classes, wordnet
from solo_hardneg.data.dali import has_dummy_indexes
from solo_hardneg.distributed import all_or_none, gather_objects
from solo_hardneg.errors import HardnegError
from solo_hardneg.host import config_of
from solo_hardneg.negatives.pool import Pool
from solo_hardneg.recording import embeddings
from solo_hardneg.recording.probes import SUPPORTED, Batch, Probe, make_probe
from solo_hardneg.recording.settings import Hardness, read_hardness
from solo_hardneg.recording.statistics import Key, Summary, summarize

if TYPE_CHECKING:
    from solo_hardneg.recording.records import Rows
    from solo_hardneg.recording.writer import RecordsWriter

PREFIX = "hardness"  # of all logged scalars


class Recorder(Callback):
    """Records statistics of negatives, as scalars to the loggers and as Parquet files.

    Attributes:
        settings: What to record; disabled before the run begins.
        notes: What is not recorded and why.
    """

    def __init__(self) -> None:
        self.settings = Hardness()
        self.notes: list[str] = []
        self._probe: Probe | None = None
        self._writer: RecordsWriter | None = None
        self._depths: Tensor | None = None
        self._images: np.ndarray | None = None  # (2, largest index + 1): met, hard
        self._gram: Tensor | None = None  # (D, D) of the queries recorded in this epoch
        self._validated = False
        self._open_step: int | None = None  # the step being recorded
        self._last_step = -1  # the last recorded one
        self._restored: dict[str, Any] = {}

    # ------------------------------------------------------------------ before the first step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reads the settings.

        Raises:
            ConfigError: A setting is invalid.
        """
        cfg = config_of(trainer, pl_module)
        if stage == "fit" and cfg is not None:
            self.settings = all_or_none(lambda: read_hardness(cfg))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the probe of the method and the folder of the records.

        Raises:
            ConfigError, DataError: A file can't be read, or the folder can't be used. All ranks
                raise it.
        """
        cfg = config_of(trainer, pl_module)
        if cfg is None or not self.settings.enabled:
            return
        from solo_hardneg.recording.writer import RecordsWriter  # imports pandas

        self.notes.clear()
        self._images = self._gram = None
        if cfg.get("method") is not None:  # linear evaluation has metrics only
            all_or_none(lambda: self._prepare(pl_module, cfg))
        config = json.dumps(OmegaConf.to_container(cfg, resolve=True), default=str)
        name = str(cfg.get("name", cfg.get("method")))
        self._writer = RecordsWriter(trainer, self.settings.dir, name, config)

    def _prepare(self, module: LightningModule, cfg: DictConfig) -> None:
        self._probe = make_probe(module, str(cfg.method))
        if self._probe is None:
            self._note(
                f"the negatives of method={cfg.method} are not recorded, only its metrics. "
                f"Supported: {', '.join(SUPPORTED)}"
            )
            return
        if self._restored:
            self._probe.restore(self._restored)
        self._depths = self._find_depths(cfg, module.device)
        if has_dummy_indexes(cfg):
            self._note(
                "counts per image are missing, because DALI's indexes are dummies unless "
                "++dali.encode_indexes_into_labels=True"
            )
        elif self.settings.images:
            self._images = np.zeros((2, 0))

    def _find_depths(self, cfg: DictConfig, device: torch.device) -> Tensor | None:
        """(C, C) WordNet depth of the least common ancestors of classes, if known."""
        synsets, key = self.settings.synsets, "hardness.synsets"
        try:
            names = classes.class_names(cfg.data)
            wnids = wordnet.synsets_of(names, str(cfg.data.dataset), synsets, key)
            depths = wordnet.lca_depths(wnids, key)
        except HardnegError as error:
            if synsets is not None:
                raise
            self._note(f"the depth in WordNet is missing. {error}")
            return None
        return torch.from_numpy(depths).float().to(device)

    def _note(self, text: str) -> None:
        self.notes.append(text)
        rank_zero_warn(f"hardness: {text}")

    # ------------------------------------------------------------------ one step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Opens the probe if this step is to be recorded."""
        step = trainer.global_step  # equal for all batches of an accumulated gradient
        if self._probe is None or step % self.settings.every_n_steps or step == self._last_step:
            return
        self._open_step = self._last_step = step
        self._probe.open()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Records the step's negatives."""
        if self._probe is None:
            return
        step, self._open_step = self._open_step, None
        if step is not None:
            try:
                self._record(self._probe, trainer, pl_module, batch, step)
            finally:
                self._probe.close()
        self._probe.after_step(batch)

    @torch.no_grad()
    def _record(self, probe: Probe, trainer: Trainer, module: Any, batch: Batch, step: int) -> None:
        # The run's own generators must not advance.
        generator = torch.Generator().manual_seed(step * trainer.world_size + trainer.global_rank)

        def sample(number: int) -> Tensor:
            order = torch.randperm(number, generator=generator)[: self.settings.queries]
            return order.sort().values.to(module.device)

        pools = probe.pools(batch, sample)
        if not pools or self._writer is None:
            return
        percentiles, depths = self.settings.percentiles, self._depths
        parts = [summarize(pool, probe.temperature, percentiles, depths) for pool in pools]
        summary = reduce(Summary.__add__, parts)  # both directions have the same candidates
        summary = replace(summary, sums={**summary.sums, **self._measure_embeddings(pools)})
        place = trainer.current_epoch, step, trainer.global_rank
        _add_rows(self._writer.rows, place, summary)
        if self._images is not None and pools[0].indexes is not None:
            self._images = _add_padded([self._images, _count_images(summary, pools[0].indexes)])
        scalars = _means_of_all_ranks(summary)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                # Not self.log, which drops steps between those of log_every_n_steps.
                logger.log_metrics({f"{PREFIX}/{k}": v for k, v in scalars.items()}, step=step)

    def _measure_embeddings(self, pools: Sequence[Pool]) -> dict[Key, Tensor]:
        """The sum of uniformity over queries; adds the queries to those of the epoch.

        Uniformity compares queries with each other, so ``summarize`` can't take them in parts.
        """
        total = torch.zeros(2, 1, dtype=torch.float64)
        for pool in pools:
            if pool.query is None:
                continue
            products = embeddings.gram(pool.query)
            self._gram = products if self._gram is None else self._gram + products
            value = embeddings.uniformity(pool.query, pool.query_indexes)
            if not math.isnan(value):
                pair = torch.tensor([[value], [1.0]], dtype=torch.float64)
                total += pair * len(pool.query)
        return {("scalar", "uniformity"): total}

    # ------------------------------------------------------------------ after an epoch

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Marks the validation metrics as this epoch's."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the epoch's file.

        Raises:
            DataError: It can't be written. All ranks raise it.
        """
        writer = self._writer
        if writer is None:
            return
        epoch, rank = trainer.current_epoch, trainer.global_rank
        place = epoch, trainer.global_step, rank
        # On all ranks, because reading callback_metrics reduces them.
        for name, value in trainer.callback_metrics.items():
            # Validation metrics of earlier epochs stay in callback_metrics.
            if self._validated or not name.startswith("val_"):
                writer.rows.add(*place, "metric", name, [-1], [float(value)])
        if self._probe is not None:
            self._write_rankme(trainer, writer.rows)
        if self._images is not None:
            total = _add_padded(gather_objects(self._images))
            self._images = np.zeros((2, 0))
            if trainer.is_global_zero:
                met = np.flatnonzero(total[0])
                for quantity, counts in zip(("met", "hard"), total, strict=True):
                    writer.rows.add(*place, "image", quantity, met, counts[met])
        all_or_none(lambda: writer.write(epoch, rank, self.notes))
        self._validated = False

    def _write_rankme(self, trainer: Trainer, rows: Rows) -> None:
        """Adds RankMe of all queries recorded in the epoch; all ranks must call it together."""
        products = [part for part in gather_objects(self._gram) if part is not None]
        self._gram = None
        if not products or not trainer.is_global_zero:
            return
        value = embeddings.rankme(sum(products[1:], products[0]))
        rows.add(trainer.current_epoch, trainer.global_step, 0, "scalar", "rankme", [-1], [value])
        for logger in trainer.loggers:
            logger.log_metrics({f"{PREFIX}/rankme": value}, step=trainer.global_step)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Removes the probe's hooks from the method."""
        if self._probe is not None:
            self._probe.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Resets the recorder, for the next run of the same trainer."""
        if self._probe is not None:
            self._probe.close()
        self._probe, self._writer, self._open_step, self._last_step = None, None, None, -1

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The probe's state."""
        return {} if self._probe is None else self._probe.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state until the probe is made."""
        self._restored = state_dict


def _add_rows(rows: Rows, place: tuple[int, int, int], summary: Summary) -> None:
    """Adds a summary's rows; ``place`` is (epoch, step, rank)."""
    for (kind, quantity), (mean, number) in summary.means().items():
        bins = [-1] if kind == "scalar" else np.arange(len(mean))
        rows.add(*place, kind, quantity, bins, mean.numpy(), number.numpy())
    for quantity, count in summary.histograms.items():
        rows.add(*place, "histogram", quantity, np.arange(len(count)), count.numpy())


def _count_images(summary: Summary, indexes: Tensor) -> np.ndarray:
    """(2, largest index + 1) for how many queries each image was a negative, and a hard one."""
    images = indexes.cpu().numpy()
    known = images >= 0
    counts = (summary.met, summary.hard)
    return np.stack([np.bincount(images[known], count.numpy()[known]) for count in counts])


def _add_padded(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of arrays (2, n) of different n, as if zeros followed the shorter ones."""
    total = np.zeros((2, max(part.shape[1] for part in arrays)))
    for part in arrays:
        total[:, : part.shape[1]] += part
    return total


def _means_of_all_ranks(summary: Summary) -> dict[str, float]:
    """Known scalar means over the queries of all ranks, by quantity."""
    means = reduce(Summary.__add__, gather_objects(summary.scalars())).means()
    return {name: float(mean) for (_, name), (mean, number) in sorted(means.items()) if number}
