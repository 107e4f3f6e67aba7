"""What all our methods share: a policy over their negatives, read, applied, logged and saved."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from omegaconf import DictConfig
from torch import Tensor

from solo_hardneg.distributed import gather, gather_objects, get_world_size
from solo_hardneg.environment import INPUTS, check_wandb, resolve_paths
from solo_hardneg.errors import ConfigError, DataError, resolve
from solo_hardneg.host import NAME, BaseMethod
from solo_hardneg.methods import fingerprint, finite, rng, settings
from solo_hardneg.negatives import Policy, Pool
from solo_hardneg.negatives.kept import Kept
from solo_hardneg.step_report import StepReport

# These metrics are means over all ranks when they are logged, so Lightning need not reduce them.
warnings.filterwarnings("ignore", r".* use `self\.log\('(negatives/.*|train_nce_loss)'")

# What to say, once, when a note of the pool holds for more than half of the queries.
_WARNINGS = {
    "fill_short": "negatives.fill=older: the reserve can't replace all dropped negatives of "
    "{share} Raise negatives.fill.reserve, a share of the queue's size.",
    "none_left": "negatives: no negatives are left, and there is nothing to learn, for {share} "
    "Make the band wider, or the queue or the batch larger.",
    "mix_short": "negatives.mix: fewer negatives than negatives.mix.hardest are there for {share} "
    "Those are mixed. Lower it.",
    "floored": "negatives.debias: what it leaves of the negatives' sum is at its floor, so that "
    "they teach nothing, for {share} Lower negatives.debias.tau_plus, or raise "
    "method_kwargs.temperature.",
}


class ContrastiveMethod(BaseMethod):
    """A host's contrastive method, on the negatives that a policy leaves.

    It reads ``negatives``, a mapping of verbs (see :mod:`solo_hardneg.negatives`); where the
    config has none, the policy is ``default_negatives``. Within a family, methods differ in
    nothing else.
    """

    default_negatives: ClassVar[dict[str, Any]]
    known_method_kwargs: ClassVar[tuple[str, ...]]

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self.policy = settings.read_policy(self.cfg, self.default_negatives)
        self._rng_states: list[rng.State] | None = None
        self.backend = str(self.cfg.get("backend", "auto"))
        self._backends_said: set[str] = set()
        self.observers: list[Callable[[Pool], None]] = []  # called with each step's pools
        self._kept: list[Kept] = []  # of this step, one for each direction
        self._unread: UnreadStep | None = None
        self._warned: set[str] = set()
        self._labels_seen = False

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        """Fills in the defaults and checks what is ours, before anything is built.

        Raises:
            ConfigError: a key of ours is unknown, has an impossible value, or asks for something
                that the data can't give.
        """
        cfg = super().add_and_assert_specific_cfg(cfg)
        resolve(cfg)  # what is logged and stored with the checkpoint are values
        settings.check_method_kwargs(cfg, cls.known_method_kwargs)
        settings.check_number(cfg, "method_kwargs.temperature", float)
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
        """Fills in and checks what only methods of this family have."""

    # ------------------------------------------------------------------ one step

    def policy_at(self, batch_idx: int) -> Policy:
        """The policy at a step of the current epoch."""
        if not self.policy.changes:
            return self.policy
        share = batch_idx / self.trainer.num_training_batches
        return self.policy.at(self.current_epoch + share)

    def loss_settings(self) -> dict[str, Any]:
        """What both families' losses take beside the vectors and the policy.

        Pools are made, at the cost of the dense backend, only if somebody wants to see them.
        """
        how: dict[str, Any] = {"report": self.report, "backend": self.backend}
        return {**how, "observe": self._show} if self.observers else how

    def _show(self, pool: Pool) -> None:
        for observer in self.observers:
            observer(pool)

    def report(self, kept: Kept) -> None:
        """Takes what the policy left to the queries of one direction."""
        self._say(kept.backend)
        self._kept.append(kept)

    def finish_forward(
        self, batch: Sequence[Any], outputs_finite: Tensor, nce_loss: Tensor
    ) -> Tensor:
        """Shares this step's numbers among the ranks, and logs the loss and what the policy left.

        They are read in :meth:`on_after_backward`.

        Args:
            batch: ``[indexes, views, targets]``.
            outputs_finite: bool, whether this rank's outputs are; see :mod:`.finite`.
            nce_loss: this rank's contrastive loss.

        Returns:
            A bool on the device: whether outputs and loss are finite on all ranks.
        """
        kept, self._kept = self._kept, []
        notes = _notes_of(kept)
        flags = {
            "outputs finite": outputs_finite,
            "loss finite": nce_loss.isfinite(),
        }
        report = StepReport({**flags, **notes, "train_nce_loss": nce_loss})
        self._unread = UnreadStep(report, batch, nce_loss.detach(), self.global_step)
        means = report.means
        metrics = {f"negatives/{name}": means[name] for name in notes}
        self.log_dict({**metrics, "train_nce_loss": means["train_nce_loss"]}, on_epoch=True)
        return report.everywhere("outputs finite", "loss finite")

    def on_before_backward(self, loss: Tensor) -> None:
        """Leaves out the standalone host's own check of the loss; this class has one."""

    def on_after_backward(self) -> None:
        """Reads the step's numbers: the one wait for the device, while the backward pass runs.

        Raises:
            DivergedError: a rank's outputs or loss are not finite. Neither weights nor queue have
                changed.
        """
        super().on_after_backward()
        self.read_step()

    def read_step(self) -> None:
        """Checks the numbers of the last step, unless that was done already."""
        unread, self._unread = self._unread, None
        if unread is None:
            return
        values = unread.report.read()
        finite.check_outputs(values.pop("outputs finite"), self, unread.batch, unread.step)
        finite.check_loss(values.pop("loss finite"), unread.loss, unread.step)
        for name in _WARNINGS.keys() & values.keys() - self._warned:
            share = sum(values[name]) / len(values[name])
            if share > 0.5:
                self._warned.add(name)
                where = f"{share:.0%} of the queries at this step (logged as negatives/{name})."
                rank_zero_warn(_WARNINGS[name].format(share=where), stacklevel=2)

    def _say(self, backend: str) -> None:
        """Says once which backend computes the loss; while a queue fills it may be another."""
        if backend not in self._backends_said:
            self._backends_said.add(backend)
            if self.global_rank == 0:
                print(f"Backend of the loss: {backend} (backend={self.backend})")

    def check_labels(self, targets: Tensor) -> None:
        """Refuses, at the first step, a dataset without the labels that the policy needs."""
        if "labels" in self.policy.needs and not self._labels_seen:
            self._labels_seen = True
            if (gather(targets) < 0).all():
                raise ConfigError(
                    f"negatives={self.policy.config}: needs labels, and this dataset gives none "
                    "(all targets are -1). Choose negatives without 'label'."
                )

    # ------------------------------------------------------------------ before the first step

    def configure_optimizers(self) -> Any:
        """The host's, once it is known that there is something to train on."""
        steps = self.trainer.estimated_stepping_batches  # has collectives of its own
        enough = steps != 0 and self.trainer.num_training_batches != 0
        if not all(gather_objects(enough)):
            raise DataError(
                f"optimizer.batch_size={self.cfg.optimizer.batch_size}: there are fewer images "
                f"than one batch in data.train_path={self.cfg.data.get('train_path')}. "
                "Lower optimizer.batch_size, or train on more images."
            )
        return super().configure_optimizers()

    def on_train_start(self) -> None:
        """Refuses an epoch that has more steps on one rank than on another.

        The ranks would wait for each other at its end. solo-learn's DALI shares images out so that
        it can happen.
        """
        super().on_train_start()
        resumes = self._rng_states is not None
        if resumes and getattr(self.trainer.fit_loop, "restarted_mid_epoch", False):
            self._restore_rng()  # newer versions of Lightning don't start such an epoch once more
        if get_world_size() == 1:
            return
        steps = self.trainer.num_training_batches
        everybodys = gather(torch.tensor([steps], dtype=torch.float64, device=self.device))
        if (everybodys != everybodys[0]).any():
            numbers = ", ".join(f"{number:g}" for number in everybodys.tolist())
            raise DataError(
                f"optimizer.batch_size={self.cfg.optimizer.batch_size}: the ranks have "
                f"{numbers} batches in an epoch, and must have the same number. Set "
                f"+limit_train_batches={int(everybodys.min())}, or another batch size."
            )

    # ------------------------------------------------------------------ saving and resuming

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to belong to this experiment."""
        return {
            "method": self.cfg.method,
            "negatives": self.policy.config,
            "temperature": float(self.cfg.method_kwargs.temperature),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the policy's identity and the random states of all ranks.

        Raises:
            DivergedError: the weights are not finite. The last checkpoint stays as it is.
        """
        finite.check_weights(checkpoint["state_dict"], self.global_step)
        super().on_save_checkpoint(checkpoint)
        fingerprint.write(checkpoint, self.identity, {"negatives": self.policy.defaults})
        checkpoint["solo_hardneg_rng"] = rng.states_of_all_ranks()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses another policy's checkpoint; remembers the random states for the next epoch."""
        fingerprint.verify(checkpoint, self.identity, {"negatives": self.policy.defaults})
        super().on_load_checkpoint(checkpoint)
        self._rng_states = checkpoint.get("solo_hardneg_rng")

    def on_train_epoch_start(self) -> None:
        """After a resume: the epoch draws what it would have drawn without the interruption."""
        super().on_train_epoch_start()
        self._restore_rng()

    def _restore_rng(self) -> None:
        states, self._rng_states = self._rng_states, None
        if states is None:
            return
        if len(states) != self.trainer.world_size:
            rank_zero_warn(rng.other_number(len(states), self.trainer.world_size))
            return
        rng.restore(states[self.trainer.global_rank])
        fetcher = self.trainer.fit_loop._data_fetcher
        if fetcher is not None and not _will_iterate(self.trainer):
            iter(fetcher)  # draws the loader's seed


class UnreadStep(NamedTuple):
    """A step whose numbers are not read yet, with what an error message needs."""

    report: StepReport
    batch: Sequence[Any]
    loss: Tensor
    step: int


def _notes_of(kept: Sequence[Kept]) -> dict[str, Tensor]:
    """What is worth logging of a step, by name: means over queries and directions."""
    notes: dict[str, list[Tensor]] = {}
    for one in kept:
        found = {"present": one.counts, **one.notes}
        if one.candidates:  # a queue that is still empty is no reason to warn
            found["none_left"] = one.counts == 0
        for name, values in found.items():
            notes.setdefault(name, []).append(values.float().mean())
    return {name: torch.stack(means) for name, means in notes.items()}


def _will_iterate(trainer: Any) -> bool:
    """Whether Lightning makes a new iterator for the epoch that starts.

    A resumed run's first epoch goes on with the one made before the checkpoint was read, in some
    versions of Lightning; ``TrainingEpochLoop.on_run_start`` has the condition.
    """
    loop = trainer.fit_loop
    resuming = loop.epoch_loop.restarting or getattr(loop, "is_resuming", False)
    return trainer.current_epoch > 0 and not resuming
