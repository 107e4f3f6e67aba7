"""MoCo v2 with a say over its negatives (Cai et al. 2020; Chen et al. 2020, arXiv 2003.04297)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from solo_hardneg import ring
from solo_hardneg.distributed import gather
from solo_hardneg.errors import ConfigError, DataError, bad_value
from solo_hardneg.host import BaseMethod, MoCoV2Plus
from solo_hardneg.losses import mocov2plus_loss_func
from solo_hardneg.methods import fingerprint, rng, settings
from solo_hardneg.negatives import Pool

METHOD_KWARGS = ("proj_hidden_dim", "proj_output_dim", "queue_size", "temperature", "symmetric")


class MoCoV2Banded(MoCoV2Plus):
    """The host's MoCo v2, on the negatives that a policy leaves.

    Beside the host's settings it reads:

    - ``negatives``: the policy, a mapping of verbs (see :mod:`solo_hardneg.negatives`);
      where absent, the hardest 5 %.
    - ``method_kwargs.symmetric``: ``True`` is the host's loss, both views are queries, two queues;
      ``False`` is the paper's MoCo v2, view 1 is the query, view 2 the key, one queue.
      Where absent, the host's.

    The queue's buffers, with V views (2 or 1), D dimensions and L = K + reserve slots:
    ``queue`` (V, D, L) keys; ``queue_labels`` and ``queue_indexes`` (L,) the class and the dataset
    index of each key's image, -1 where unknown; ``queue_ptr`` (1,) the slot written next;
    ``queue_filled`` (1,) how many slots hold a key. Slots that hold none are no negatives.
    """

    queue: Tensor
    queue_labels: Tensor
    queue_indexes: Tensor
    queue_ptr: Tensor
    queue_filled: Tensor
    default_negatives: ClassVar[dict[str, Any]] = {"keep": {"band": [0.95, 1.0]}}

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self.policy = settings.read_policy(self.cfg, self.default_negatives)
        self.symmetric: bool = self.cfg.method_kwargs.symmetric
        if not self.symmetric:
            self.num_large_crops = self.num_crops = 1  # of the two views, one is encoded as query
        length = self.queue_size + math.ceil(self.policy.reserve * self.queue_size)
        views = 2 if self.symmetric else 1
        # Instead of the host's queue: it starts full of random vectors, which are no images.
        self.queue = torch.zeros(views, self.queue.shape[1], length)
        self.register_buffer("queue_labels", torch.full((length,), -1, dtype=torch.long))
        self.register_buffer("queue_indexes", torch.full((length,), -1, dtype=torch.long))
        self.register_buffer("queue_filled", torch.zeros(1, dtype=torch.long))
        self._fits: dict[int, bool] = {}
        self._rng_states: list[rng.State] | None = None
        self._warned: set[str] = set()

    @staticmethod
    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        """Fills in the defaults and checks what is ours, before anything is built.

        Raises:
            ConfigError: a key of ours is unknown, has an impossible value, or asks for something
                that the data can't give.
        """
        cfg = super(MoCoV2Banded, MoCoV2Banded).add_and_assert_specific_cfg(cfg)
        OmegaConf.resolve(cfg)  # what is logged and stored with the checkpoint are values
        settings.check_method_kwargs(cfg, METHOD_KWARGS)
        settings.check_choice(cfg, "method_kwargs.symmetric", default=True)
        policy = settings.read_policy(cfg, MoCoV2Banded.default_negatives)
        settings.check_queue(cfg, policy)
        settings.check_folders(cfg)
        if cfg.momentum.get("classifier") and not cfg.method_kwargs.symmetric:
            raise bad_value(
                "momentum.classifier",
                True,
                "needs method_kwargs.symmetric=true; in one direction nothing trains it",
                "Set one of the two to the other value.",
            )
        views = cfg.data.get("num_large_crops", 2) + cfg.data.get("num_small_crops", 0)
        if views != 2:
            raise bad_value("augmentations", f"{views} views", "MoCo takes exactly two views")
        return cfg

    # ------------------------------------------------------------------ one step

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """One step on ``[indexes, [view 1, view 2], targets]``.

        Returns:
            The contrastive loss plus that of the online classifier, a scalar.
        """
        indexes, _, targets = batch
        self._check_labels(targets)
        queries, keys, class_loss = self._encode(batch, batch_idx)
        # A query meets the queue of the view that its key is of.
        pairs = list(zip(queries, reversed(keys), reversed(range(len(keys))), strict=True))
        losses = [self._loss(q, k, view, indexes, targets) for q, k, view in pairs]
        nce_loss = torch.stack(losses).mean()
        self._enqueue(torch.stack([gather(k) for k in keys]), gather(targets), gather(indexes))
        self.log("train_nce_loss", nce_loss, on_epoch=True, sync_dist=True)
        return nce_loss + class_loss

    def _encode(
        self, batch: Sequence[Any], batch_idx: int
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Queries and keys of each direction, (B, D) each, and the online classifier's loss."""
        if self.symmetric:
            # The host's own step up to, and without, its loss.
            out = super(MoCoV2Plus, self).training_step(batch, batch_idx)
            return out["z"], out["momentum_z"], out["loss"]
        indexes, (query_view, key_view), targets = batch
        # The host's step without momentum, for a run of one view (see num_large_crops above).
        out = BaseMethod.training_step(self, [indexes, [query_view], targets], batch_idx)
        return out["z"], [self.momentum_forward(key_view)["z"]], out["loss"]

    def _loss(
        self, query: Tensor, key: Tensor, view: int, indexes: Tensor, targets: Tensor
    ) -> Tensor:
        """One direction's loss on the filled part of one queue, a scalar."""
        filled, pointer = int(self.queue_filled), int(self.queue_ptr)
        count = min(filled, self.queue_size)
        if count not in self._fits:
            # While the queue fills, a narrow band may hold nothing yet: such a step teaches
            # nothing, and is no error.
            self._fits[count] = count > 0 and self.policy.fits(count)
        usable = filled if self._fits[count] else 0
        return mocov2plus_loss_func(
            query,
            key,
            self.queue[view, :, :usable].clone(),  # it is written to before the backward pass
            self.temperature,
            policy=self.policy,
            query_labels=targets,
            queue_labels=self.queue_labels[:usable],
            query_indexes=indexes,
            queue_indexes=self.queue_indexes[:usable],
            queue_age=ring.ages(pointer, usable, self.queue.shape[2], query.device),
            queue_size=self.queue_size,
            observe=self._observe,
        )

    @torch.no_grad()
    def _enqueue(self, keys: Tensor, labels: Tensor, indexes: Tensor) -> None:
        """Puts keys (V, B, D) with their labels and indexes (B,) in the place of the oldest."""
        length = self.queue.shape[2]
        slots = ring.next_slots(int(self.queue_ptr), keys.shape[1], length, keys.device)
        self.queue[:, :, slots] = keys.permute(0, 2, 1).to(self.queue.dtype)
        self.queue_labels[slots] = labels.to(self.queue_labels)
        self.queue_indexes[slots] = indexes.to(self.queue_indexes)
        self.queue_ptr[0] = (int(self.queue_ptr) + keys.shape[1]) % length
        self.queue_filled[0] = min(int(self.queue_filled) + keys.shape[1], length)

    def _observe(self, pool: Pool) -> None:
        self.log("negatives/present", pool.counts.float().mean(), on_epoch=True, sync_dist=True)
        for name, values in pool.notes.items():
            self.log(f"negatives/{name}", values.mean(), on_epoch=True, sync_dist=True)
        short = pool.notes.get("fill_short")
        if short is not None and "fill_short" not in self._warned and short.mean() > 0.5:
            self._warned.add("fill_short")
            warnings.warn(
                "negatives.fill=older: the reserve can't replace all dropped negatives of "
                f"{short.mean():.0%} of the queries at this step (logged as negatives/fill_short). "
                "Raise negatives.fill.reserve, a share of the queue's size.",
                stacklevel=2,
            )

    def _check_labels(self, targets: Tensor) -> None:
        if "labels" in self.policy.needs and "labels" not in self._warned:
            self._warned.add("labels")  # asked once: the first batch tells
            if (targets < 0).all():
                raise ConfigError(
                    f"negatives={self.policy.config}: needs labels, and this dataset gives none "
                    "(all targets are -1). Choose negatives without 'label'."
                )

    # ------------------------------------------------------------------ before the first step

    def setup(self, stage: str) -> None:
        """Checks what only the trainer knows: how many processes there are."""
        super().setup(stage)
        if stage == "fit":
            batch = self.cfg.optimizer.batch_size * self.trainer.world_size
            ring.check_divisible(self.queue_size, batch)

    def configure_optimizers(self) -> Any:
        """The host's, once it is known that there is something to train on."""
        steps = self.trainer.estimated_stepping_batches
        if steps == 0 or self.trainer.num_training_batches == 0:
            raise DataError(
                f"optimizer.batch_size={self.cfg.optimizer.batch_size}: there are fewer images "
                f"than one batch in data.train_path={self.cfg.data.get('train_path')}. "
                "Lower optimizer.batch_size, or train on more images."
            )
        return super().configure_optimizers()

    # ------------------------------------------------------------------ saving and resuming

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to belong to this experiment."""
        return {
            "method": self.cfg.method,
            "negatives": self.policy.config,
            "queue_size": self.queue_size,
            "symmetric": self.symmetric,
            "temperature": float(self.temperature),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the policy's identity and the random states of all ranks."""
        super().on_save_checkpoint(checkpoint)
        fingerprint.write(checkpoint, self.identity)
        checkpoint["solo_hardneg_rng"] = rng.states_of_all_ranks()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses another policy's checkpoint; remembers the random states for the next epoch."""
        fingerprint.verify(checkpoint, self.identity)
        super().on_load_checkpoint(checkpoint)
        self._rng_states = checkpoint.get("solo_hardneg_rng")

    def on_train_start(self) -> None:
        """Takes up step and momentum where a resumed run left them; the host starts anew."""
        super().on_train_start()
        self.last_step = self.trainer.global_step  # the host's 0 would average once too often
        self.momentum_updater.update_tau(
            self.trainer.global_step, self.trainer.estimated_stepping_batches
        )

    def on_train_epoch_start(self) -> None:
        """After a resume: the epoch draws what it would have drawn without the interruption."""
        super().on_train_epoch_start()
        states, self._rng_states = self._rng_states, None
        if states is not None and len(states) == self.trainer.world_size:
            rng.restore(states[self.trainer.global_rank])
            fetcher = self.trainer.fit_loop._data_fetcher
            if fetcher is not None and not _will_iterate(self.trainer):
                iter(fetcher)  # draws the loader's seed


def _will_iterate(trainer: Any) -> bool:
    """Whether Lightning makes a new iterator for the epoch that starts.

    A resumed run's first epoch goes on with the one made before the checkpoint was read, in some
    versions of Lightning; ``TrainingEpochLoop.on_run_start`` has the condition.
    """
    loop = trainer.fit_loop
    resuming = loop.epoch_loop.restarting or getattr(loop, "is_resuming", False)
    return trainer.current_epoch > 0 and not resuming
