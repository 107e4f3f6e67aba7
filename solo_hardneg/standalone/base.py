"""The base classes of the methods: the same names, keys and batches as the host's."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from solo_hardneg.errors import bad_value
from solo_hardneg.limits import check_memory
from solo_hardneg.standalone.backbones import build_backbone, try_out
from solo_hardneg.standalone.checks import (
    COUNT,
    POSITIVE,
    REQUIRED,
    SHARE,
    Rules,
    settle,
)
from solo_hardneg.standalone.knn import DISTANCES, knn_accuracy
from solo_hardneg.standalone.training import TrainedModule, class_metrics

METHOD_RULES: Rules = {
    "optimizer.classifier_lr": (REQUIRED, POSITIVE),
    "knn_eval.enabled": (False, bool),
    "knn_eval.k": (20, COUNT),
    "knn_eval.distance_func": ("euclidean", DISTANCES),
    "method_kwargs": ({}, dict),
}
MOMENTUM_RULES: Rules = {
    "momentum.base_tau": (0.99, SHARE),
    "momentum.final_tau": (1.0, SHARE),
    "momentum.classifier": (False, bool),
}
PROJECTOR_SIZES: Rules = {
    "method_kwargs.proj_hidden_dim": (REQUIRED, COUNT),
    "method_kwargs.proj_output_dim": (REQUIRED, COUNT),
}


class BaseMethod(TrainedModule):
    """A backbone, and a linear classifier that learns beside it without touching it.

    Training batches are ``[indexes (B,), [X1, X2], targets (B,)]`` with views (B, 3, H, W) and
    targets of -1 where there is no label; validation batches are ``[X, targets]``.
    """

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__()
        cfg = self.add_and_assert_specific_cfg(cfg)
        self.read_settings(cfg)
        self.classifier_lr: float = cfg.optimizer.classifier_lr * self.accumulate_grad_batches
        self.backbone_name: str = cfg.backbone.name
        self.backbone, self.features_dim = build_backbone(
            cfg.backbone.name, cfg.method, cfg.backbone.kwargs, cfg.data.dataset
        )
        self.num_classes: int = cfg.data.num_classes
        self.classifier: nn.Module = nn.Linear(self.features_dim, self.num_classes)
        self.num_large_crops: int = cfg.data.num_large_crops
        self.num_small_crops: int = cfg.data.num_small_crops
        self.num_crops = self.num_large_crops + self.num_small_crops
        self.knn_eval: bool = cfg.knn_eval.enabled
        self.knn_k: int = cfg.knn_eval.k
        # (features, targets) of this epoch's batches, on the CPU
        self._knn_train: list[tuple[Tensor, Tensor]] = []
        self._knn_val: list[tuple[Tensor, Tensor]] = []

    def on_fit_start(self) -> None:
        """Refuses a backbone that can't take the views, before the first batch is made."""
        super().on_fit_start()
        side = OmegaConf.select(self.cfg, "augmentations.0.crop_size")
        if side is None:  # whoever makes the batches knows how large they are
            return
        weight = next(self.backbone.parameters(), torch.zeros(1))
        # Statistics of a single value are none, so one image is another case than two.
        images = weight.new_zeros(min(self.batch_size, 2), 3, side, side)
        try_out(self.backbone, images, self.features_dim, self.cfg.backbone.kwargs)

    @staticmethod
    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        """Fills in the defaults of this class, and checks what is there."""
        cfg = super(BaseMethod, BaseMethod).add_and_assert_specific_cfg(cfg)
        settle(cfg, METHOD_RULES)
        return cfg

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        """The groups of the backbone and of the classifier, which has its own learning rate."""
        classifier = {"lr": self.classifier_lr, "weight_decay": 0}
        return [
            {"name": "backbone", "params": self.backbone.parameters()},
            {"name": "classifier", "params": self.classifier.parameters(), **classifier},
        ]

    def forward(self, X: Tensor) -> dict[str, Any]:
        """Images (B, 3, H, W) to ``feats`` (B, D) and ``logits`` (B, C) of the classifier."""
        feats = self.backbone(self.as_input(X))
        return {"logits": self.classifier(feats.detach()), "feats": feats}

    def base_training_step(self, X: Tensor, targets: Tensor) -> dict[str, Any]:
        """One view: what ``forward`` returns, with ``loss``, ``acc1`` and ``acc5`` (percent)."""
        out = self(X)
        return {**out, **class_metrics(out["logits"], targets)}

    def base_validation_step(self, X: Tensor, targets: Tensor) -> dict[str, Any]:
        """The same for a batch of validation."""
        return self.base_training_step(X, targets)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Any:
        """All views of a batch.

        Returns:
            a dict: a list with one entry per view for each output of ``base_training_step``,
            except that ``loss``, ``acc1`` and ``acc5`` are averaged over the views.
        """
        _, views, targets = batch
        outs = [self.base_training_step(X, targets) for X in views]
        out: dict[str, Any] = {key: [o[key] for o in outs] for key in outs[0]}
        for key in ("loss", "acc1", "acc5"):
            out[key] = sum(out[key]) / len(outs)
        self.log_dict(
            {f"train_{'class_' * (k == 'loss')}{k}": out[k] for k in ("loss", "acc1", "acc5")},
            on_epoch=True,
            sync_dist=True,
            batch_size=len(targets),
        )
        if self.knn_eval:
            if batch_idx == 0:
                self._knn_train.clear()
            self._knn_train += [_kept(feats, targets) for feats in out["feats"]]
        return out

    def validation_step(self, batch: Sequence[Any], batch_idx: int) -> dict[str, Any]:
        """One batch of validation: its size, ``val_loss``, ``val_acc1`` and ``val_acc5``."""
        X, targets = batch
        out = self.base_validation_step(X, targets)
        metrics = {f"val_{key}": out[key] for key in ("loss", "acc1", "acc5")}
        # Lightning weighs the batches by their size, and so does the host
        self.log_dict(metrics, on_epoch=True, sync_dist=True, batch_size=len(targets))
        if self.knn_eval and not self.trainer.sanity_checking:
            self._knn_val.append(_kept(out["feats"], targets))
        return {"batch_size": len(targets), **metrics}

    def on_validation_epoch_end(self) -> None:
        """Logs the accuracy of the neighbours among this epoch's training features."""
        if self._knn_train and self._knn_val:
            train, val = (
                tuple(self._from_all_processes(part) for part in zip(*kept, strict=True))
                for kept in (self._knn_train, self._knn_val)
            )
            k, distance = self.knn_k, self.cfg.knn_eval.distance_func
            accuracies = knn_accuracy(*train, *val, k=k, distance=distance)  # type: ignore
            self.log_dict(dict(zip(("val_knn_acc1", "val_knn_acc5"), accuracies, strict=True)))
        self._knn_val.clear()

    def _from_all_processes(self, batches: Sequence[Tensor]) -> NDArray[Any]:
        mine = torch.cat(list(batches)).to(self.device)
        gathered: Any = self.all_gather(mine)  # a leading dimension, but only with others
        return gathered.reshape(-1, *mine.shape[1:]).cpu().numpy()


def _kept(feats: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return feats.detach().float().cpu(), targets.cpu()


class MomentumUpdater:
    """Moves a network towards another: θ_m ← τ·θ_m + (1 − τ)·θ, τ from base to final by a cosine.

    Args:
        base_tau: τ at the first step, in [0, 1].
        final_tau: τ at the last step, in [base_tau, 1].
    """

    def __init__(self, base_tau: float = 0.996, final_tau: float = 1.0) -> None:
        if not 0 <= base_tau <= final_tau <= 1:
            allowed = f"must be in [0, 1] and at most momentum.final_tau, which is {final_tau}"
            raise bad_value("momentum.base_tau", base_tau, allowed)
        self.base_tau, self.cur_tau, self.final_tau = base_tau, base_tau, final_tau

    @torch.no_grad()
    def update(self, online: nn.Module, momentum: nn.Module) -> None:
        """One step of the parameters of ``momentum`` towards those of ``online``."""
        for p, m in zip(online.parameters(), momentum.parameters(), strict=True):
            m.lerp_(p, 1 - self.cur_tau)

    def update_tau(self, cur_step: int, max_steps: float) -> None:
        """Sets τ for step ``cur_step`` of ``max_steps``."""
        left = (math.cos(math.pi * cur_step / max_steps) + 1) / 2
        self.cur_tau = self.final_tau - (self.final_tau - self.base_tau) * left


class BaseMomentumMethod(BaseMethod):
    """A method with a second backbone that follows the first as a moving average."""

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__(cfg)
        self.momentum_backbone = frozen_copy(self.backbone)
        self.momentum_updater = MomentumUpdater(cfg.momentum.base_tau, cfg.momentum.final_tau)
        self.last_step = 0

    @staticmethod
    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        """Fills in the defaults of the moving average, and checks what is there."""
        cfg = super(BaseMomentumMethod, BaseMomentumMethod).add_and_assert_specific_cfg(cfg)
        settle(cfg, MOMENTUM_RULES)
        if cfg.momentum.classifier:
            raise bad_value("momentum.classifier", True, "only solo-learn has it", "Leave it out.")
        return cfg

    @property
    def momentum_pairs(self) -> list[tuple[Any, Any]]:
        """The pairs (online, momentum) that are averaged."""
        return [(self.backbone, self.momentum_backbone)]

    @torch.no_grad()
    def momentum_forward(self, X: Tensor) -> dict[str, Any]:
        """Images (B, 3, H, W) to ``feats`` (B, D) of the momentum backbone, without gradient."""
        return {"feats": self.momentum_backbone(self.as_input(X))}

    def _shared_step_momentum(self, X: Tensor, targets: Tensor) -> dict[str, Any]:
        return self.momentum_forward(X)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Any:
        """As the parent's, and ``momentum_feats`` and so on: a list with one entry per view."""
        out = super().training_step(batch, batch_idx)
        _, views, targets = batch
        momentum_outs = [self._shared_step_momentum(X, targets) for X in views]
        out.update({f"momentum_{k}": [o[k] for o in momentum_outs] for k in momentum_outs[0]})
        return out

    def _set_tau(self) -> None:
        self.momentum_updater.update_tau(
            self.trainer.global_step, self.trainer.estimated_stepping_batches
        )

    def on_train_start(self) -> None:
        """Starts counting where the trainer stands, which is not 0 in a resumed run."""
        self.last_step = self.trainer.global_step
        self._set_tau()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Averages the pairs once per step of the optimizer, not per accumulated batch."""
        if self.trainer.global_step > self.last_step:
            for online, momentum in self.momentum_pairs:
                self.momentum_updater.update(online, momentum)
            self.log("tau", self.momentum_updater.cur_tau)
            self._set_tau()
        self.last_step = self.trainer.global_step


class ProjectedMomentumMethod(BaseMomentumMethod, ABC):
    """The same with a projector on each backbone, one of which follows the other as well."""

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__(cfg)
        self.projector = self.make_projector(cfg.method_kwargs)
        self.momentum_projector = frozen_copy(self.projector)

    @abstractmethod
    def make_projector(self, method_kwargs: DictConfig) -> nn.Module:
        """An untrained head (B, features_dim) -> (B, proj_output_dim)."""

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        """The parent's groups and the projector."""
        return [
            *super().learnable_params,
            {"name": "projector", "params": self.projector.parameters()},
        ]

    @property
    def momentum_pairs(self) -> list[tuple[Any, Any]]:
        """The parent's pairs and the projectors."""
        return [*super().momentum_pairs, (self.projector, self.momentum_projector)]

    def forward(self, X: Tensor) -> dict[str, Any]:
        """As the parent's, and the projections ``z`` (B, D), not normalized."""
        out = super().forward(X)
        return {**out, "z": self.projector(out["feats"])}

    @torch.no_grad()
    def momentum_forward(self, X: Tensor) -> dict[str, Any]:
        """As the parent's, and the projections ``z`` (B, D), not normalized, without gradient."""
        out = super().momentum_forward(X)
        return {**out, "z": self.momentum_projector(out["feats"])}


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy with equal weights that no optimizer trains."""
    return copy.deepcopy(module).requires_grad_(False)


def check_head(key: str, inputs: int, hidden: int, outputs: int) -> None:
    """Refuses a head of two layers whose weights don't fit into this machine's memory."""
    needed = 4 * hidden * (inputs + outputs)
    check_memory(key, hidden, needed, f"a head ({inputs}, {hidden}, {outputs})")
