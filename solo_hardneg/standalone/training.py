"""What pretraining and linear evaluation share: settings, optimizer, schedule, class metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR

from solo_hardneg.errors import DivergedError, bad_value, unknown_name
from solo_hardneg.standalone.checks import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    REQUIRED,
    Rules,
    settle,
)
from solo_hardneg.step_report import StepReport

OPTIMIZERS = ("sgd", "adam", "adamw", "lars")
SCHEDULERS = ("warmup_cosine", "step", "none")
TRAINING_RULES: Rules = {
    "max_epochs": (REQUIRED, COUNT),
    "accumulate_grad_batches": (1, COUNT),
    "backbone.name": (REQUIRED, str),
    "backbone.kwargs": ({}, dict),
    "optimizer.name": (REQUIRED, OPTIMIZERS),
    "optimizer.batch_size": (REQUIRED, COUNT),
    "optimizer.lr": (REQUIRED, POSITIVE),
    "optimizer.weight_decay": (0, NOT_NEGATIVE),
    "optimizer.kwargs": ({}, dict),
    "optimizer.exclude_bias_n_norm_wd": (False, bool),
    "scheduler.name": (REQUIRED, SCHEDULERS),
    "scheduler.interval": ("step", ("step", "epoch")),
    "scheduler.lr_decay_steps": (None, None),
    "scheduler.min_lr": (0.0, NOT_NEGATIVE),
    "scheduler.warmup_start_lr": (3e-5, NOT_NEGATIVE),
    "scheduler.warmup_epochs": (10, NOT_NEGATIVE),
    "performance.disable_channel_last": (False, bool),
}


def class_metrics(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Cross-entropy and accuracies of a batch; images without a label (target -1) don't count.

    Args:
        logits: (B, C).
        targets: (B,), integers in -1 ... C-1.

    Returns:
        ``loss``, the mean over labelled images; ``acc1`` and ``acc5`` in percent of them (of the
        best min(5, C)). All are 0, with gradient 0, where no image has a label.
    """
    labelled = (targets != -1).sum().clamp(min=1)
    loss = F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum") / labelled
    best = logits.detach().topk(min(5, logits.shape[1]), dim=1).indices
    hits = best == targets[:, None]  # -1 is no class, so it never hits
    return {
        "loss": loss,
        "acc1": 100 * hits[:, 0].sum() / labelled,
        "acc5": 100 * hits.sum() / labelled,
    }


def warmup_cosine(
    step: int, lr: float, warmup: float, total: float, start_lr: float, min_lr: float
) -> float:
    """The learning rate at a step: linear from ``start_lr`` to ``lr``, then a cosine to ``min_lr``.

    Args:
        step: from 0.
        lr: the peak, reached at step ``warmup - 1``, as in the host.
        warmup: steps of warming up; 0 starts at the peak.
        total: steps in all. After them the rate stays at ``min_lr``.
        start_lr: the rate at step 0 if there is a warm-up.
        min_lr: the rate at the end.
    """
    if step < warmup:
        return start_lr + min(step / max(warmup - 1, 1), 1) * (lr - start_lr)
    done = min((step - warmup) / max(total - warmup, 1), 1)
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * done)) / 2


class WarmupCosine(LambdaLR):
    """:func:`warmup_cosine` for each parameter group; the rate that a group has is its peak.

    Only the step is kept in checkpoints, not the shape: a run that is resumed with more epochs
    follows the longer schedule.

    Args:
        optimizer: whose rates to set.
        shape: ``warmup``, ``total``, ``start_lr`` and ``min_lr``.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, **shape: float) -> None:
        def factor(peak: float) -> Any:
            return lambda step: warmup_cosine(step, peak, **shape) / peak

        super().__init__(optimizer, [factor(group["lr"]) for group in optimizer.param_groups])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on at the step of a state, which may be that of the host's schedule."""
        if "lr_lambdas" not in state_dict:
            step = {name: state_dict[name] for name in ("last_epoch", "_step_count", "_last_lr")}
            state_dict = {**step, "lr_lambdas": [None] * len(self.lr_lambdas)}
        super().load_state_dict(state_dict)


def split_by_dimension(groups: Iterable[Mapping[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    """Parts each group into its matrices and its vectors (biases, norms); these get ``changes``."""
    parts = []
    for group in groups:
        params = list(group["params"])
        matrices = [p for p in params if p.ndim > 1]
        vectors = [p for p in params if p.ndim <= 1]
        name = f"{group.get('name', 'all')}_no_decay"
        parts.append({**group, "params": matrices})
        parts.append({**group, "params": vectors, "name": name, **changes})
    return [part for part in parts if part["params"]]


def build_optimizer(
    name: str,
    groups: list[dict[str, Any]],
    lr: float,
    weight_decay: float,
    kwargs: Mapping[str, Any],
    exclude_bias_n_norm_wd: bool = False,
) -> torch.optim.Optimizer:
    """Builds an optimizer from the host's names and arguments.

    Args:
        name: one of ``OPTIMIZERS``.
        groups: parameter groups, as torch takes them.
        lr: for groups without their own.
        weight_decay: for groups without their own.
        kwargs: the rest. LARS takes the host's ``eta``, ``clip_lr``, ``exclude_bias_n_norm``.
        exclude_bias_n_norm_wd: no weight decay for biases and norms.

    Raises:
        ConfigError: the name isn't known, or the optimizer doesn't take the arguments.
    """
    extra: dict[str, Any] = {k: _plain(v) for k, v in kwargs.items()}
    groups = [{**group, "params": list(group["params"])} for group in groups]
    if exclude_bias_n_norm_wd:
        groups = split_by_dimension(groups, weight_decay=0)
    optimizer: Any = {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }.get(name)
    if name == "lars":
        from timm.optim import Lars as optimizer  # timm takes a second to import

        extra["trust_coeff"] = extra.pop("eta", 1e-3)
        extra["trust_clip"] = extra.pop("clip_lr", False)
        extra["always_adapt"] = True
        if extra.pop("exclude_bias_n_norm", False):
            groups = split_by_dimension(groups, weight_decay=0, always_adapt=False)
    elif optimizer is None:
        raise unknown_name("optimizer.name", name, OPTIMIZERS, "optimizer")
    settings = {"lr": lr, "weight_decay": weight_decay, **extra}
    try:
        _try_out(optimizer, groups, settings)
        return optimizer(groups, **settings)
    except Exception as error:  # torch and timm check some of it, and stumble over the rest
        raise bad_value("optimizer.kwargs", dict(kwargs), f"{name} refuses it: {error}") from error


def _try_out(optimizer: Any, groups: list[dict[str, Any]], settings: Mapping[str, Any]) -> None:
    """Takes two steps with a parameter of its own: some settings are looked at only then."""
    first = next((p for group in groups for p in group["params"]), None)
    if first is not None:
        made_up = torch.nn.Parameter(torch.zeros_like(first.reshape(-1)[:1]))
        made_up.grad = torch.zeros_like(made_up)
        trial = optimizer([made_up], **settings)
        trial.step()
        trial.step()


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


class TrainedModule(LightningModule):
    """A module that reads its training settings from the config, under the host's names."""

    _loss_report: StepReport | None = None  # of a step whose backward pass is under way

    @staticmethod
    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        """Fills in the defaults of the training settings, and checks what is there."""
        settle(cfg, TRAINING_RULES)
        steps = cfg.scheduler.lr_decay_steps
        if cfg.scheduler.name == "step" and not OmegaConf.is_list(steps):
            allowed = "must be a list of epochs, such as [60,80], for scheduler.name=step"
            raise bad_value("scheduler.lr_decay_steps", steps, allowed)
        return cfg

    def read_settings(self, cfg: DictConfig) -> None:
        """Takes over a checked config, and the settings that the host's classes name, too."""
        self.cfg = cfg
        self.max_epochs: int = cfg.max_epochs
        self.batch_size: int = cfg.optimizer.batch_size
        self.no_channel_last: bool = cfg.performance.disable_channel_last
        # A step learns from so many batches: the rates grow with them, as in the host.
        self.accumulate_grad_batches: int = cfg.accumulate_grad_batches
        self.lr: float = cfg.optimizer.lr * self.accumulate_grad_batches
        self.min_lr: float = cfg.scheduler.min_lr * self.accumulate_grad_batches
        self.warmup_start_lr = cfg.scheduler.warmup_start_lr * self.accumulate_grad_batches

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        """The parameter groups that are trained, each with a ``name``."""
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        """The optimizer and, unless it is none, the schedule of its learning rates."""
        settings, schedule = self.cfg.optimizer, self.cfg.scheduler
        optimizer = build_optimizer(
            settings.name,
            self.learnable_params,
            self.lr,
            settings.weight_decay,
            settings.kwargs,
            settings.exclude_bias_n_norm_wd,
        )
        if schedule.name == "none":
            return optimizer
        if schedule.name == "step":
            return [optimizer], [MultiStepLR(optimizer, list(schedule.lr_decay_steps), gamma=0.1)]
        total: float = self.max_epochs
        if schedule.interval == "step":
            total = self.trainer.estimated_stepping_batches
        warmup = schedule.warmup_epochs * total / self.max_epochs
        shape = {"start_lr": self.warmup_start_lr, "min_lr": self.min_lr}
        rates = WarmupCosine(optimizer, warmup=warmup, total=total, **shape)
        return [optimizer], [{"scheduler": rates, "interval": schedule.interval}]

    def on_before_backward(self, loss: Tensor) -> None:
        """Shares among the ranks whether the loss is finite, without waiting for it."""
        self._loss_report = StepReport({"finite": loss.isfinite(), "loss": loss})

    def on_after_backward(self) -> None:
        """Ends a run that has nothing more to learn from, on all ranks alike.

        Raises:
            DivergedError: the loss isn't finite. The weights have not changed.
        """
        report, self._loss_report = self._loss_report, None
        values = {} if report is None else report.read()
        if not all(values.get("finite", ())):
            do = "Lower optimizer.lr, warm up longer, or raise method_kwargs.temperature."
            text = f"Step {self.global_step}, rank {self.global_rank}: the loss is"
            raise DivergedError(f"{text} {values['loss'][self.global_rank]}. {do}")

    def as_input(self, X: Tensor) -> Tensor:
        """Images (B, 3, H, W) in the memory format that the backbone is fast with."""
        return X if self.no_channel_last else X.to(memory_format=torch.channels_last)
