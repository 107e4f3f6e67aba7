"""Base classes of the methods, with solo-learn's attribute names, config keys and batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from solo_hardneg.errors import bad_value
from solo_hardneg.models.backbones import build_backbone, check_output
from solo_hardneg.standalone.knn import DISTANCES, knn_accuracy
from solo_hardneg.standalone.training import METRICS, TrainedModule, class_metrics
from solo_hardneg.validate import REQUIRED, Count, Positive, Rules, Share, check_memory

METHOD_RULES: Rules = {
    "optimizer.classifier_lr": (REQUIRED, Positive),
    "knn_eval.enabled": (False, bool),
    "knn_eval.k": (20, Count),
    "knn_eval.distance_func": ("euclidean", DISTANCES),
    "method_kwargs": ({}, dict),
}
PROJECTOR_RULES: Rules = {
    "method_kwargs.proj_hidden_dim": (REQUIRED, Count),
    "method_kwargs.proj_output_dim": (REQUIRED, Count),
}
MOMENTUM_RULES: Rules = {
    "momentum.base_tau": (0.99, Share),
    "momentum.final_tau": (1.0, Share),
    "momentum.classifier": (False, bool),  # only solo-learn has one
}


class BaseMethod(TrainedModule):
    """A backbone with a projector, and an online linear classifier that doesn't train them.

    Training batches are ``[indexes (B,), [X1, X2], targets (B,)]`` with views (B, 3, H, W) and
    target -1 for unlabelled images; validation batches are ``[X, targets]``.

    Attributes:
        projector_norm: Whether the projector normalizes its hidden layer over the batch.
    """

    config_rules: ClassVar[Rules] = {**METHOD_RULES, **PROJECTOR_RULES}
    projector_norm = False

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
        self.projector = build_mlp(
            cfg.method_kwargs, self.features_dim, "proj_hidden_dim", self.projector_norm
        )
        self.num_large_crops: int = cfg.data.num_large_crops
        self.num_small_crops: int = cfg.data.num_small_crops
        self.num_crops = self.num_large_crops + self.num_small_crops
        self.knn_eval: bool = cfg.knn_eval.enabled
        self.knn_k: int = cfg.knn_eval.k
        # (features, targets) of this epoch's batches, on the CPU
        self._knn_train: list[tuple[Tensor, Tensor]] = []
        self._knn_val: list[tuple[Tensor, Tensor]] = []

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        """Parameter groups; the classifier has its own learning rate."""
        classifier = {"lr": self.classifier_lr, "weight_decay": 0}
        return [
            {"name": "backbone", "params": self.backbone.parameters()},
            {"name": "classifier", "params": self.classifier.parameters(), **classifier},
            {"name": "projector", "params": self.projector.parameters()},
        ]

    def on_fit_start(self) -> None:
        """Raises ConfigError if the backbone can't take the views."""
        super().on_fit_start()
        side = OmegaConf.select(self.cfg, "augmentations.0.crop_size")
        if side is None:  # batches that don't come from our loaders
            return
        weight = next(self.backbone.parameters(), torch.zeros(1))
        # BatchNorm needs at least two samples.
        images = weight.new_zeros(min(self.batch_size, 2), 3, side, side)
        check_output(self.backbone, images, self.features_dim, self.cfg.backbone.kwargs)

    def forward(self, X: Tensor) -> dict[str, Any]:
        """Encodes images.

        Args:
            X: (B, 3, H, W).

        Returns:
            ``feats`` (B, features_dim), ``logits`` (B, classes) of the classifier, and the
            projections ``z`` (B, proj_output_dim), not normalized.
        """
        feats = self.backbone(self.as_input(X))
        return {
            "logits": self.classifier(feats.detach()),
            "feats": feats,
            "z": self.projector(feats),
        }

    def base_training_step(self, X: Tensor, targets: Tensor) -> dict[str, Any]:
        """Outputs of ``forward`` for one view, with ``loss``, ``acc1`` and ``acc5`` (percent)."""
        out = self(X)
        return {**out, **class_metrics(out["logits"], targets)}

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Any:
        """Encodes all views of a batch.

        Returns:
            Dict of lists, one entry per view for each output of :meth:`base_training_step`;
            ``loss``, ``acc1`` and ``acc5`` are means over the views.
        """
        _, views, targets = batch
        outs = [self.base_training_step(X, targets) for X in views]
        out: dict[str, Any] = {key: [o[key] for o in outs] for key in outs[0]}
        out.update({key: sum(out[key]) / len(outs) for key in METRICS})
        names = {"loss": "train_class_loss", "acc1": "train_acc1", "acc5": "train_acc5"}
        self.log_epoch({name: out[key] for key, name in names.items()}, targets)
        if self.knn_eval:
            if batch_idx == 0:
                self._knn_train.clear()
            self._knn_train += [_to_cpu(feats, targets) for feats in out["feats"]]
        return out

    def validation_step(self, batch: Sequence[Any], batch_idx: int) -> dict[str, Any]:
        """Logs ``val_loss``, ``val_acc1`` and ``val_acc5`` of a batch, and returns them."""
        X, targets = batch
        out = self.base_training_step(X, targets)
        metrics = {f"val_{key}": out[key] for key in METRICS}
        self.log_epoch(metrics, targets)
        if self.knn_eval and not self.trainer.sanity_checking:
            self._knn_val.append(_to_cpu(out["feats"], targets))
        return {"batch_size": len(targets), **metrics}

    def on_validation_epoch_end(self) -> None:
        """Logs the kNN accuracy among this epoch's training features."""
        if self._knn_train and self._knn_val:
            train, val = (
                tuple(self._gather_numpy(part) for part in zip(*batches, strict=True))
                for batches in (self._knn_train, self._knn_val)
            )
            k, distance = self.knn_k, self.cfg.knn_eval.distance_func
            accuracies = knn_accuracy(*train, *val, k=k, distance=distance)  # type: ignore
            self.log_dict(dict(zip(("val_knn_acc1", "val_knn_acc5"), accuracies, strict=True)))
        self._knn_val.clear()

    def _gather_numpy(self, batches: Sequence[Tensor]) -> NDArray[Any]:
        local = torch.cat(list(batches)).to(self.device)
        gathered: Any = self.all_gather(local)  # adds a dimension only if there are several ranks
        return gathered.reshape(-1, *local.shape[1:]).cpu().numpy()


def _to_cpu(feats: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return feats.detach().float().cpu(), targets.cpu()


class MomentumUpdater:
    """Exponential moving average of weights: θ_m ← τ·θ_m + (1 − τ)·θ, with a cosine schedule of τ.

    Args:
        base_tau: τ at the first step, in [0, final_tau].
        final_tau: τ at the last step, in [base_tau, 1].

    Raises:
        ConfigError: base_tau exceeds final_tau.
    """

    def __init__(self, base_tau: float = 0.996, final_tau: float = 1.0) -> None:
        if not 0 <= base_tau <= final_tau <= 1:
            allowed = f"must be in [0, 1] and at most momentum.final_tau, which is {final_tau}"
            raise bad_value("momentum.base_tau", base_tau, allowed)
        self.base_tau, self.cur_tau, self.final_tau = base_tau, base_tau, final_tau

    @torch.no_grad()
    def update(self, online: nn.Module, momentum: nn.Module) -> None:
        """Moves the parameters of ``momentum`` one step towards those of ``online``."""
        for p, m in zip(online.parameters(), momentum.parameters(), strict=True):
            m.lerp_(p, 1 - self.cur_tau)

    def update_tau(self, cur_step: int, max_steps: float) -> None:
        """Sets τ for step ``cur_step`` of ``max_steps``."""
        remaining = (math.cos(math.pi * cur_step / max_steps) + 1) / 2
        self.cur_tau = self.final_tau - (self.final_tau - self.base_tau) * remaining


class BaseMomentumMethod(BaseMethod):
    """A method with a momentum encoder: moving averages of the backbone and the projector."""

    config_rules: ClassVar[Rules] = MOMENTUM_RULES

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__(cfg)
        self.momentum_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.momentum_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.momentum_updater = MomentumUpdater(cfg.momentum.base_tau, cfg.momentum.final_tau)
        self.last_step = 0

    @property
    def momentum_pairs(self) -> list[tuple[Any, Any]]:
        """Pairs (online, momentum) of averaged modules."""
        return [
            (self.backbone, self.momentum_backbone),
            (self.projector, self.momentum_projector),
        ]

    @torch.no_grad()
    def momentum_forward(self, X: Tensor) -> dict[str, Any]:
        """Encodes images (B, 3, H, W) without gradient: ``feats`` (B, D) and ``z``."""
        feats = self.momentum_backbone(self.as_input(X))
        return {"feats": feats, "z": self.momentum_projector(feats)}

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Any:
        """Adds ``momentum_feats`` and ``momentum_z``, lists with one entry per view."""
        out = super().training_step(batch, batch_idx)
        momentum_outs = [self.momentum_forward(X) for X in batch[1]]
        out.update({f"momentum_{k}": [o[k] for o in momentum_outs] for k in momentum_outs[0]})
        return out

    def _set_tau(self) -> None:
        self.momentum_updater.update_tau(
            self.trainer.global_step, self.trainer.estimated_stepping_batches
        )

    def on_train_start(self) -> None:
        """Sets τ for the trainer's step, which isn't 0 in a resumed run."""
        self.last_step = self.trainer.global_step
        self._set_tau()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Averages the pairs once per optimizer step, not per accumulated batch."""
        if self.trainer.global_step > self.last_step:
            for online, momentum in self.momentum_pairs:
                self.momentum_updater.update(online, momentum)
            self.log("tau", self.momentum_updater.cur_tau)
            self._set_tau()
        self.last_step = self.trainer.global_step


def build_mlp(
    method_kwargs: DictConfig, inputs: int, hidden_key: str, batch_norm: bool
) -> nn.Sequential:
    """Builds a head of two layers, (B, inputs) -> (B, proj_output_dim).

    Args:
        method_kwargs: ``proj_output_dim``, and the hidden size under ``hidden_key``.
        inputs: Input width.
        hidden_key: ``proj_hidden_dim`` or ``pred_hidden_dim``.
        batch_norm: Whether the hidden layer is normalized, as in BYOL.

    Raises:
        ConfigError: The weights don't fit into this machine's memory.
    """
    hidden, outputs = method_kwargs[hidden_key], method_kwargs.proj_output_dim
    needed = 4 * hidden * (inputs + outputs)
    head = f"a head ({inputs}, {hidden}, {outputs})"
    check_memory(f"method_kwargs.{hidden_key}", hidden, needed, head)
    norm = [nn.BatchNorm1d(hidden)] if batch_norm else []
    return nn.Sequential(nn.Linear(inputs, hidden), *norm, nn.ReLU(), nn.Linear(hidden, outputs))
