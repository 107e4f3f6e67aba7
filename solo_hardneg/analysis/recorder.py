"""The recorder: a Lightning callback that looks at the negatives of every n-th step.

Lightning asks :func:`solo_hardneg.plugin.callbacks` for it in every run in which our methods are
registered, so it reaches the host's own methods, too. It does nothing unless the config has
``hardness.enabled=true``, and it changes nothing in the run: it draws from a generator of its own.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from solo_hardneg.analysis.settings import Hardness, read_settings
from solo_hardneg.analysis.statistics import Key, Summary, summarize
from solo_hardneg.analysis.taps import KNOWN, Batch, Tap, make_tap
from solo_hardneg.dali import has_dummy_indexes
from solo_hardneg.distributed import all_or_none, gather_objects
from solo_hardneg.errors import ConfigError, DataError, HardnegError
from solo_hardneg.negatives import build
from solo_hardneg.trainers import config_of, run_folder

PREFIX = "hardness"  # of everything that it logs


class Recorder(Callback):
    """Records what DESIGN section 5 lists, as scalars to the loggers and as Parquet files.

    Attributes:
        settings: what to do; off before the run has begun.
        folder: where the Parquet files go, once that is known.
        notes: what is not recorded and why.
    """

    def __init__(self) -> None:
        self.settings = Hardness()
        self.folder: Path | None = None
        self.notes: list[str] = []
        self._tap: Tap | None = None
        self._depths: Tensor | None = None
        self._images: np.ndarray | None = None  # (2, largest index + 1): met, hard
        self._rows: Any = None  # records.Rows
        self._validated = False
        self._open_step: int | None = None  # the step that is being recorded
        self._last_step = -1  # the last one that was
        self._config = "{}"
        self._restored: dict[str, Any] = {}

    # ------------------------------------------------------------------ before the first step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reads the settings.

        Raises:
            ConfigError: one can't be used.
        """
        cfg = config_of(trainer, pl_module)
        if stage != "fit" or cfg is None:
            return
        self.settings = all_or_none(lambda: read_settings(cfg))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds out where the negatives come from and where the records go.

        Raises:
            ConfigError, DataError: a file can't be read, or the folder can't be used. All ranks
                raise it.
        """
        cfg = config_of(trainer, pl_module)
        if cfg is None or not self.settings.enabled:
            return
        all_or_none(lambda: self._begin(pl_module, cfg))
        self.folder = self._find_folder(trainer, str(cfg.get("name", cfg.get("method"))))

    def _begin(self, pl_module: LightningModule, cfg: DictConfig) -> None:
        from solo_hardneg.analysis.records import Rows  # a run that is not recorded needs no pandas

        self._rows, self._images = Rows(), None
        self._config = json.dumps(OmegaConf.to_container(cfg, resolve=True), default=str)
        self.notes.clear()
        method = cfg.get("method")
        if method is not None:  # linear evaluation has none, and its metrics are recorded
            self._tap = make_tap(pl_module, str(method))
            if self._tap is None:
                self._note(
                    f"the negatives of method={method} are not recorded, only its metrics. "
                    f"Known: {', '.join(KNOWN)}"
                )
            else:
                self._prepare(self._tap, cfg, pl_module.device)

    def _prepare(self, tap: Tap, cfg: DictConfig, device: torch.device) -> None:
        """What is known of the images beside their similarities."""
        if self._restored:
            tap.restore(self._restored)
        self._depths = self._find_depths(cfg, device)
        if has_dummy_indexes(cfg):
            self._note(
                "the images' counts are missing, because DALI's indexes are dummies unless "
                "++dali.encode_indexes_into_labels=True"
            )
        elif self.settings.images:
            self._images = np.zeros((2, 0))

    def _find_depths(self, cfg: DictConfig, device: torch.device) -> Tensor | None:
        """(C, C) depth of the least common ancestors of classes, where WordNet knows them."""
        from solo_hardneg.analysis import classes, wordnet

        synsets = self.settings.synsets
        try:
            names = classes.class_names(cfg.data)
            file = None if synsets is None else Path(synsets).expanduser()
            depths = wordnet.depths_for(names, str(cfg.data.dataset), file, "hardness.synsets")
        except HardnegError as error:
            if synsets is not None:
                raise
            self._note(f"the depth in WordNet is missing. {error}")
            return None
        return torch.from_numpy(np.asarray(depths)).float().to(device)

    def _find_folder(self, trainer: Trainer, name: str) -> Path:
        """``hardness.dir``, below the folder to which the run's checkpoints go."""
        place = Path(self.settings.dir).expanduser()
        if not place.is_absolute():
            run = run_folder(trainer)
            # Without checkpoints a run has no folder; this one is not shared with other runs.
            own = f"{name.replace('/', '_')}-{uuid.uuid4().hex[:8]}"
            place = place / own if run is None else run / place
        place = Path(trainer.strategy.broadcast(str(place)))  # each process has made up its own
        all_or_none(lambda: self._check_folder(place))
        all_or_none(lambda: self._clear_folder(place, trainer))
        return place

    def _check_folder(self, place: Path) -> None:
        """Refuses a folder with other records, which may be on one rank's disk only."""
        from solo_hardneg.analysis import records

        earlier = records.config_of(place)
        if earlier is not None and _identity(earlier) != _identity(self._config):
            raise ConfigError(
                f"hardness.dir={self.settings.dir}: {place} holds the records of another run, and "
                "they would mix. Give each run a folder of its own, or move the old ones away."
            )

    def _clear_folder(self, place: Path, trainer: Trainer) -> None:
        """Removes records of epochs that will be trained once more."""
        from solo_hardneg.analysis import records

        if trainer.is_global_zero:
            with self._writing_to(place):
                records.drop_from(place, trainer.current_epoch)
            print(f"Hardness records: {place}")

    @contextlib.contextmanager
    def _writing_to(self, folder: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"hardness.dir={self.settings.dir}: the records can't be written to {folder} "
                f"({error.strerror or error}). Make room there, or set hardness.dir to another "
                "folder."
            ) from error

    def _note(self, text: str) -> None:
        self.notes.append(text)
        rank_zero_warn(f"hardness: {text}")

    # ------------------------------------------------------------------ one step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Opens the tap, if it is this step's turn."""
        step = trainer.global_step
        if self._tap is None or step % self.settings.every_n_steps or step == self._last_step:
            return
        self._open_step = self._last_step = step
        self._tap.open()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Looks at the step's negatives."""
        if self._tap is None:
            return
        step, self._open_step = self._open_step, None
        if step is not None:
            try:
                self._record(self._tap, trainer, pl_module, batch, step)
            finally:
                self._tap.close()
        self._tap.after_step(batch)

    @torch.no_grad()
    def _record(self, tap: Tap, trainer: Trainer, module: Any, batch: Batch, step: int) -> None:
        # Not from the run's generators, which would then draw something else.
        generator = torch.Generator().manual_seed(step * trainer.world_size + trainer.global_rank)

        def choose(number: int) -> Tensor:
            order = torch.randperm(number, generator=generator)[: self.settings.queries]
            return order.sort().values.to(module.device)

        pools = tap.pools(batch, choose)
        percentiles, depths = self.settings.percentiles, self._depths
        parts = [summarize(pool, module.temperature, percentiles, depths) for pool in pools]
        if parts:
            summary = reduce(Summary.__add__, parts)  # the directions have the same candidates
            self._keep(summary, trainer, step)
            if self._images is not None and pools[0].indexes is not None:
                self._images = _counted(self._images, summary, pools[0].indexes)
            self._log(trainer, _of_all_ranks(summary), step)

    def _keep(self, summary: Summary, trainer: Trainer, step: int) -> None:
        place = trainer.current_epoch, step, trainer.global_rank
        for (kind, quantity), (mean, number) in summary.means().items():
            bins = [-1] if kind == "scalar" else np.arange(len(mean))
            self._rows.add(*place, kind, quantity, bins, mean.numpy(), number.numpy())
        for (kind, quantity), count in summary.counts.items():
            self._rows.add(*place, kind, quantity, np.arange(len(count)), count.numpy())

    def _log(self, trainer: Trainer, means: dict[str, float], step: int) -> None:
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                # Not through self.log: that keeps only what falls on one of its own steps.
                logger.log_metrics({f"{PREFIX}/{k}": v for k, v in means.items()}, step=step)

    # ------------------------------------------------------------------ after an epoch

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes down that what was logged of validation is this epoch's."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the epoch's file.

        Raises:
            DataError: it can't be written. All ranks raise it.
        """
        if not self.settings.enabled or self.folder is None:
            return
        place = trainer.current_epoch, trainer.global_step, trainer.global_rank
        # On all processes, for it reduces what was logged.
        for name, value in trainer.callback_metrics.items():
            if self._validated or not name.startswith("val_"):  # it keeps those of earlier epochs
                self._rows.add(*place, "metric", name, [-1], [float(value)])
        if self._images is not None:
            self._images = self._keep_images(self._images, trainer, place)
        folder = self.folder
        all_or_none(lambda: self._write(folder, place[0], place[2]))
        self._rows, self._validated = type(self._rows)(), False

    def _write(self, folder: Path, epoch: int, rank: int) -> None:
        with self._writing_to(folder):
            self._rows.write(folder, epoch, rank, self._config, self.notes)

    def _keep_images(
        self, images: np.ndarray, trainer: Trainer, place: tuple[int, int, int]
    ) -> np.ndarray:
        """Puts the images' counts of all processes into the first one's file; returns new ones."""
        counts = gather_objects(images)
        if trainer.is_global_zero:
            total = _summed(counts)
            met = np.flatnonzero(total[0])
            for quantity, values in zip(("met", "hard"), total, strict=True):
                self._rows.add(*place, "image", quantity, met, values[met])
        return np.zeros((2, 0))

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leaves nothing behind in the method."""
        if self._tap is not None:
            self._tap.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The run is over; the next one, with the same trainer, begins anew."""
        if self._tap is not None:
            self._tap.close()
        self._tap, self._open_step, self._last_step = None, None, -1

    # ------------------------------------------------------------------ saving and resuming

    def state_dict(self) -> dict[str, Any]:
        """What the tap must know after a resume."""
        return {} if self._tap is None else self._tap.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remembers it until there is a tap."""
        self._restored = state_dict


def _counted(images: np.ndarray, summary: Summary, indexes: Tensor) -> np.ndarray:
    """(2, number) how often each image was met, and was hard, with what a step adds to it."""
    of = indexes.cpu().numpy()
    known = of >= 0
    counts = [np.bincount(of[known], part.numpy()[known]) for part in (summary.met, summary.hard)]
    return _summed([images, np.stack(counts)])


def _summed(several: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of arrays (2, n) of differing n: zeros follow the shorter ones."""
    total = np.zeros((2, max(part.shape[1] for part in several)))
    for part in several:
        total[:, : part.shape[1]] += part
    return total


def _identity(config: str) -> str:
    """What makes a run this experiment, whatever machine it is continued on."""
    plain = json.loads(config)
    keys = ("method", "pretrained_feature_extractor", "method_kwargs", "seed")
    identity = {key: plain.get(key) for key in keys}
    identity["negatives"] = _policy(plain.get("negatives"))
    identity["dataset"] = (plain.get("data") or {}).get("dataset")
    identity["backbone"] = (plain.get("backbone") or {}).get("name")
    settings = plain.get("hardness") or {}
    identity |= {name: settings.get(name) for name in ("every_n_steps", "queries", "percentiles")}
    return json.dumps(identity, sort_keys=True)


def _policy(negatives: Any) -> Any:
    """A policy in one form for all that do the same; the order of its verbs counts."""
    if negatives is None:  # the method's own
        return None
    try:
        return list(build(negatives).config.items())
    except ConfigError:  # of a verb that isn't installed here
        return negatives


def _of_all_ranks(summary: Summary) -> dict[str, float]:
    """The scalars of the queries of all processes; what nobody knows is left out."""
    mine = Summary(_scalars(summary.sums), _scalars(summary.numbers), {}, *[torch.zeros(0)] * 2)
    mine = replace(mine, positives=summary.positives)
    means = reduce(Summary.__add__, gather_objects(mine)).means()
    return {name: float(mean) for (_, name), (mean, number) in sorted(means.items()) if number}


def _scalars(of: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    return {key: value for key, value in of.items() if key[0] == "scalar"}
