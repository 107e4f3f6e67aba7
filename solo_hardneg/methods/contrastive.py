"""What all our methods share: a policy over their negatives, read, applied, logged and saved."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from omegaconf import DictConfig
from torch import Tensor

from solo_hardneg.data.loader import number_of_images
from solo_hardneg.distributed import StepReport, gather, gather_objects
from solo_hardneg.environment import INPUTS, check_wandb, resolve_paths
from solo_hardneg.errors import ConfigError, DataError, resolve
from solo_hardneg.host import NAME, BaseMethod
from solo_hardneg.methods import checkpoint_identity, finite, random_states, settings
from solo_hardneg.negatives import Policy, Pool
from solo_hardneg.negatives.stats import LossStats
from solo_hardneg.negatives.thresholds import LearnedThresholds
from solo_hardneg.validate import REQUIRED, Positive, apply_rules

# These metrics are means over all ranks when they are logged, so Lightning need not reduce them.
warnings.filterwarnings("ignore", r".* use `self\.log\('(negatives/.*|train_nce_loss)'")

# Warnings printed once, when a note of the pool holds for more than half of the queries.
_WARNINGS = {
    "fill_short": "negatives.fill=older: the reserve can't replace all dropped negatives of "
    "{share} Raise negatives.fill.reserve, a share of the queue's size.",
    "none_left": "negatives: no negatives are left, so there is nothing to learn, for {share} "
    "Use a wider band, or a larger queue or batch.",
    "mix_short": "negatives.mix: fewer negatives than negatives.mix.hardest are left, and those "
    "are mixed, for {share} Lower negatives.mix.hardest.",
    "floored": "negatives.debias: the debiased sum of the negatives is at its floor, so they teach "
    "nothing, for {share} Lower negatives.debias.tau_plus, or raise method_kwargs.temperature.",
}


class ContrastiveMethod(BaseMethod):
    """A host's contrastive method with a policy over its negatives.

    The policy is the config's ``negatives``, a mapping of verbs (see
    :mod:`solo_hardneg.negatives`), or else ``default_negatives``, the only difference between the
    methods of a family.
    """

    default_negatives: ClassVar[dict[str, Any]]
    known_method_kwargs: ClassVar[tuple[str, ...]]

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self.policy = settings.read_policy(self.cfg, self.default_negatives)
        self.backend = str(self.cfg.get("backend", "auto"))
        self.observers: list[Callable[[Pool], None]] = []  # called with each step's pools
        self._stats: list[LossStats] = []  # of this step, one per direction
        self._pending: PendingStep | None = None
        self._warned: set[str] = set()
        self._backends_printed: set[str] = set()
        self._labels_checked = False
        self._random_states: list[random_states.State] | None = None
        self.image_thresholds = LearnedThresholds(self) if self.policy.learns else None

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        """Fills in the defaults of our keys and checks them, before anything is built.

        Raises:
            ConfigError: One of our keys is unknown, has an invalid value, or needs labels or
                indexes that the data don't provide.
        """
        cfg = super().add_and_assert_specific_cfg(cfg)
        resolve(cfg)  # so that values are logged and stored, not references
        settings.check_method_kwargs(cfg, cls.known_method_kwargs)
        apply_rules(cfg, {"method_kwargs.temperature": (REQUIRED, Positive)})
        policy = settings.read_policy(cfg, cls.default_negatives)
        cls.check_family(cfg, policy)
        settings.check_backend(cfg, policy, cfg.method_kwargs.get("queue_size"))
        resolve_paths(cfg, INPUTS)
        settings.check_folders(cfg)
        if NAME == "solo":  # the standalone host checks it itself
            check_wandb(cfg)
        return cfg

    @classmethod
    def check_family(cls, cfg: DictConfig, policy: Policy) -> None:
        """Fills in and checks the keys that only this family of methods has."""

    # ------------------------------------------------------------------ one step

    def policy_at(self, batch_idx: int) -> Policy:
        """Returns the policy at a step of the current epoch."""
        if not self.policy.changes:
            return self.policy
        share = batch_idx / self.trainer.num_training_batches
        return self.policy.at(self.current_epoch + share)

    def loss_settings(self, indexes: Tensor) -> dict[str, Any]:
        """Returns the loss arguments that both families share.

        Pools are built, at the cost of the dense backend, only if there are observers.

        Args:
            indexes: (N,) dataset index of each query's image.
        """
        kwargs: dict[str, Any] = {"report": self.collect_stats, "backend": self.backend}
        if self.image_thresholds is not None:
            kwargs["query_thresholds"] = self.image_thresholds.of(indexes)
        return {**kwargs, "observe": self._observe} if self.observers else kwargs

    def _observe(self, pool: Pool) -> None:
        for observer in self.observers:
            observer(pool)

    def collect_stats(self, stats: LossStats) -> None:
        """Receives the loss statistics of one direction, and prints each new backend once.

        While a queue fills, the backend may differ.
        """
        if stats.backend not in self._backends_printed:
            self._backends_printed.add(stats.backend)
            if self.global_rank == 0:
                print(f"Backend of the loss: {stats.backend} (backend={self.backend})")
        self._stats.append(stats)

    def log_step(
        self, batch: Sequence[Any], policy: Policy, outputs_finite: Tensor, nce_loss: Tensor
    ) -> Tensor:
        """Logs the loss and the policy's statistics, as means over all ranks; moves thresholds.

        Their values are checked in :meth:`on_after_backward`, without waiting here.

        Args:
            batch: ``[indexes, views, targets]``.
            policy: Policy of this step.
            outputs_finite: Bool, whether this rank's outputs are finite; see :mod:`.finite`.
            nce_loss: This rank's contrastive loss, a scalar.

        Returns:
            A bool on the device: whether outputs and loss are finite on all ranks.
        """
        stats, self._stats = self._stats, []
        notes = _mean_notes(stats)
        flags = {"outputs finite": outputs_finite, "loss finite": nce_loss.isfinite()}
        report = StepReport({**flags, **notes, "train_nce_loss": nce_loss})
        self._pending = PendingStep(report, batch, nce_loss.detach(), self.global_step)
        means = report.means
        metrics = {f"negatives/{name}": means[name] for name in notes}
        self.log_dict({**metrics, "train_nce_loss": means["train_nce_loss"]}, on_epoch=True)
        is_finite = report.everywhere("outputs finite", "loss finite")
        shares = [one.notes["above_threshold"] for one in stats if "above_threshold" in one.notes]
        if self.image_thresholds is not None and policy.threshold_rule is not None and shares:
            share, indexes = torch.cat(shares), batch[0]
            views = indexes.repeat(len(share) // len(indexes))
            self.image_thresholds.update(views, share, policy.threshold_rule, is_finite)
        return is_finite

    def on_before_backward(self, loss: Tensor) -> None:
        """Skips the standalone host's own check of the loss: this class has one."""

    def on_after_backward(self) -> None:
        """Checks the step's values: the one wait for the device, while the backward pass runs.

        Raises:
            DivergedError: A rank's outputs or loss are not finite. Neither weights nor queue have
                changed.
        """
        super().on_after_backward()
        self.check_step()

    def check_step(self) -> None:
        """Checks and warns of the last logged step's values, unless that is done already."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        values = pending.report.read()
        finite.check_outputs(values.pop("outputs finite"), self, pending.batch, pending.step)
        finite.check_loss(values.pop("loss finite"), pending.loss, pending.step)
        for name in _WARNINGS.keys() & values.keys() - self._warned:
            share = sum(values[name]) / len(values[name])
            if share > 0.5:
                self._warned.add(name)
                where = f"{share:.0%} of the queries at this step (logged as negatives/{name})."
                rank_zero_warn(_WARNINGS[name].format(share=where), stacklevel=2)

    def check_labels(self, targets: Tensor) -> None:
        """Refuses, at the first step, a dataset without the labels that the policy needs."""
        if "labels" in self.policy.needs and not self._labels_checked:
            self._labels_checked = True
            if (gather(targets) < 0).all():
                raise ConfigError(
                    f"negatives={self.policy.config}: needs labels, and this dataset has none "
                    "(all targets are -1). Choose negatives without 'label'."
                )

    # ------------------------------------------------------------------ before the first step

    def configure_optimizers(self) -> Any:
        """Returns the host's optimizers.

        Raises:
            DataError: There are fewer images than one batch.
        """
        steps = self.trainer.estimated_stepping_batches  # calls collectives
        enough = steps != 0 and self.trainer.num_training_batches != 0
        if not all(gather_objects(enough)):
            raise DataError(
                f"optimizer.batch_size={self.cfg.optimizer.batch_size}: there are fewer images "
                f"than one batch in data.train_path={self.cfg.data.get('train_path')}. "
                "Lower optimizer.batch_size, or train on more images."
            )
        return super().configure_optimizers()

    def on_train_start(self) -> None:
        """Restores random states if the run resumes inside an epoch.

        Raises:
            DataError: An epoch has more steps on one rank than on another.
        """
        super().on_train_start()
        if random_states.restarts_inside_epoch(self.trainer):
            self._restore_random_states()
        self._check_equal_epochs()
        if self.image_thresholds is not None:
            self.image_thresholds.fit(number_of_images(self.trainer.train_dataloader))

    def _check_equal_epochs(self) -> None:
        """Ranks with unequal numbers of steps would deadlock; solo-learn's DALI may cause it."""
        steps = gather_objects(self.trainer.num_training_batches)
        if len(set(steps)) > 1:
            raise DataError(
                f"optimizer.batch_size={self.cfg.optimizer.batch_size}: the ranks have "
                f"{', '.join(map(str, steps))} batches in an epoch, and must have the same number. "
                f"Set +limit_train_batches={min(steps)}, or another batch size."
            )

    # ------------------------------------------------------------------ saving and resuming

    @property
    def identity(self) -> dict[str, Any]:
        """Values that must be equal to resume a checkpoint."""
        values = {
            "method": self.cfg.method,
            "negatives": self.policy.config,
            "temperature": float(self.cfg.method_kwargs.temperature),
        }
        # Thresholds belong to the images of a dataset.
        return (
            values
            if self.image_thresholds is None
            else {**values, "dataset": self.cfg.data.dataset}
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the experiment's identity and the random states of all ranks.

        Raises:
            DivergedError: The weights are not finite. The last checkpoint stays.
        """
        finite.check_weights(checkpoint["state_dict"], self.global_step)
        super().on_save_checkpoint(checkpoint)
        defaults = {"negatives": self.policy.defaults}
        checkpoint_identity.store_identity(checkpoint, self.identity, defaults)
        checkpoint["solo_hardneg_rng"] = random_states.states_of_all_ranks()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses another experiment's checkpoint; keeps the random states for the next epoch."""
        defaults = {"negatives": self.policy.defaults}
        checkpoint_identity.check_identity(checkpoint, self.identity, defaults)
        super().on_load_checkpoint(checkpoint)
        if self.image_thresholds is not None:
            self.image_thresholds.resize(len(checkpoint["state_dict"]["thresholds"]))
        self._random_states = checkpoint.get("solo_hardneg_rng")

    def on_train_epoch_start(self) -> None:
        """Restores random states after a resume, so the epoch draws what it would have drawn."""
        super().on_train_epoch_start()
        self._restore_random_states()

    def on_train_epoch_end(self) -> None:
        """Checks that the learned thresholds are equal on all ranks."""
        super().on_train_epoch_end()
        if self.image_thresholds is not None:
            self.image_thresholds.check_ranks(self.current_epoch)

    def _restore_random_states(self) -> None:
        states, self._random_states = self._random_states, None
        if states is not None:
            random_states.restore_states(states, self.trainer)


class PendingStep(NamedTuple):
    """A logged step whose values are not checked yet, with the context for an error message."""

    report: StepReport
    batch: Sequence[Any]
    loss: Tensor
    step: int


def _mean_notes(stats: Sequence[LossStats]) -> dict[str, Tensor]:
    """A step's values to log, by name: means over queries and directions."""
    notes: dict[str, list[Tensor]] = {}
    for one in stats:
        found = {"present": one.counts, **one.notes}
        if one.candidates:  # an empty queue is no reason to warn
            found["none_left"] = one.counts == 0
        for name, values in found.items():
            notes.setdefault(name, []).append(values.float().mean())
    return {name: torch.stack(means) for name, means in notes.items()}
