"""Resuming with optimization settings that differ from the checkpoint's.

Lightning restores optimizer and scheduler states as they are. They contain learning rates, weight
decay and the schedule's shape, which would override the config.
"""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from omegaconf import DictConfig, OmegaConf
from torch.optim.lr_scheduler import ReduceLROnPlateau

from solo_hardneg.errors import CheckpointError, printable
from solo_hardneg.files import flatten
from solo_hardneg.host import config_of
from solo_hardneg.models.checkpoints import epochs_done
from solo_hardneg.safety.checkpoint_io import resume_source

KEY = "solo_hardneg_optimization"
_STEPS = "steps of an epoch"
# These change the shape of an optimizer's state.
_STATE_KEYS = (
    "optimizer.name",
    "optimizer.exclude_bias_n_norm_wd",
    "optimizer.kwargs.exclude_bias_n_norm",
    "optimizer.kwargs.amsgrad",
)
_SCHEDULE_KEYS = ("scheduler.name", "scheduler.interval")
# Entries of a parameter group, and of a scheduler's state, that don't come from the config.
_NOT_SETTINGS = (
    *("params", "name", "lr", "initial_lr"),
    *("foreach", "fused", "capturable", "differentiable", "maximize"),
)
_NOT_SHAPE = ("last_epoch", "base_lrs", "verbose")

Differences = dict[str, tuple[Any, Any]]  # key -> (the checkpoint's value, this run's)


class ResumedSettings(Callback):
    """Trains a resumed run with the settings of its config, and prints what differs.

    Checkpoints store the optimization settings. On resume, learning rates, weight decay, other
    optimizer arguments and the schedule are this run's, as if they had been from the start. An
    optimizer that can't use the checkpoint's state is refused. If all settings are equal, the
    checkpoint's states stay untouched.
    """

    def __init__(self) -> None:
        self._settings: dict[str, Any] = {}
        self._checkpoint: dict[str, Any] | None = None

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keeps the checkpoint until the optimizers exist."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._checkpoint = checkpoint

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes this run's settings into the states that Lightning is about to restore.

        Raises:
            CheckpointError: The checkpoint's optimizer is a different one.
        """
        cfg, checkpoint = config_of(trainer, pl_module), self._checkpoint
        self._checkpoint = None
        if cfg is None or not trainer.optimizers:
            return
        self._settings = optimization_settings(cfg, trainer)
        if checkpoint is None or not checkpoint.get("optimizer_states"):
            return
        stored = _stored_settings(checkpoint)
        if stored is not None:
            differing = differences(stored, self._settings)
        else:  # an older version wrote it
            differing = differences_of_states(trainer, checkpoint)
        _check_optimizer(trainer, checkpoint, differing)
        behind = any(
            config.interval == "epoch"
            and _scheduler_step(checkpoint, number) != epochs_done(checkpoint)
            for number, config in enumerate(trainer.lr_scheduler_configs)
        )
        if behind or differing.keys() - {"seed"}:
            _apply_settings(trainer, checkpoint, differing)
        if differing and trainer.is_global_zero:
            print(printable(_describe_changes(cfg, resume_source(trainer), differing)))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Stores the settings."""
        if self._settings:
            checkpoint[KEY] = json.dumps(self._settings)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Resets the callback for another run."""
        self._settings, self._checkpoint = {}, None


# ---------------------------------------------------------------------- comparing


def optimization_settings(cfg: DictConfig, trainer: Trainer) -> dict[str, Any]:
    """Returns the optimization settings as dotted keys and plain values; learning rates scaled."""
    settings: dict[str, Any] = {}
    for section in ("optimizer", "scheduler", "accumulate_grad_batches", "seed"):
        value = OmegaConf.select(cfg, section)
        value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        settings.update(flatten(value, section))
    settings["max_epochs"], settings["max_steps"] = trainer.max_epochs, trainer.max_steps
    _ = trainer.estimated_stepping_batches  # counts the batches
    batches = trainer.num_training_batches
    if math.isfinite(batches):
        settings[_STEPS] = math.ceil(batches / trainer.accumulate_grad_batches)
    return settings


def _stored_settings(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        stored = json.loads(checkpoint.get(KEY, ""))
    except (TypeError, ValueError, RecursionError):  # absent, or not written by this package
        return None
    return stored if isinstance(stored, dict) else None


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Differences:
    """Returns the keys whose values differ; an absent key equals null."""
    pairs = {key: (there.get(key), here.get(key)) for key in {**there, **here}}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def differences_of_states(trainer: Trainer, checkpoint: Mapping[str, Any]) -> Differences:
    """Returns the differences that optimizer and scheduler states reveal."""
    found: Differences = {}
    for optimizer, state in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=False):
        groups = zip(state["param_groups"], optimizer.param_groups, strict=False)
        for number, pair in enumerate(groups):
            there, here = (_group_settings(group) for group in pair)
            kinds = tuple("adam" if "betas" in group else "sgd" for group in (there, here))
            if any((key in there) != (key in here) for key in ("momentum", "betas")):
                return {"optimizer.name": (kinds[0], kinds[1])}
            name = pair[1].get("name", f"group {number}")
            changed = differences(there, here)
            common = there.keys() & here.keys()
            found |= {f"{key} of {name}": changed[key] for key in changed if key in common}
    before = [_schedule_shape(state) for state in checkpoint.get("lr_schedulers", [])]
    now = [_schedule_shape(c.scheduler.state_dict()) for c in trainer.lr_scheduler_configs]
    if [shape.keys() for shape in before] != [shape.keys() for shape in now]:
        kinds = tuple(
            " and ".join(f"one with {', '.join(sorted(shape))}" for shape in shapes) or "none"
            for shapes in (before, now)
        )
        return {**found, "scheduler.name": (kinds[0], kinds[1])}
    for there, here in zip(before, now, strict=True):
        changed = differences(there, here)
        found |= {f"{key} of the schedule": pair for key, pair in changed.items()}
    return found


def _group_settings(group: Mapping[str, Any]) -> dict[str, Any]:
    settings = {
        key: list(value) if OmegaConf.is_config(value) or isinstance(value, tuple) else value
        for key, value in group.items()
        if key not in _NOT_SETTINGS
    }
    return {**settings, "lr": group.get("initial_lr", group["lr"])}


def _schedule_shape(state: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's arguments, whose names identify its class; functions aren't stored."""
    return {
        key: None if key == "lr_lambdas" else value
        for key, value in state.items()
        if key not in _NOT_SHAPE and not key.startswith("_")
    }


def _check_optimizer(
    trainer: Trainer, checkpoint: Mapping[str, Any], differing: Differences
) -> None:
    """Refuses an optimizer that can't use the checkpoint's state.

    Raises:
        CheckpointError: Names key, values and remedy.
    """
    changed = {key: differing[key] for key in _STATE_KEYS if key in differing}
    before = [state["param_groups"] for state in checkpoint["optimizer_states"]]
    now = [optimizer.param_groups for optimizer in trainer.optimizers]
    there, here = (
        [[len(group["params"]) for group in groups] for groups in optimizers]
        for optimizers in (before, now)
    )
    if not changed and there == here:
        return
    what = _format(changed or {"parameters in each group of the optimizer": (there, here)})
    raise CheckpointError(
        f"{resume_source(trainer)}: the optimizer can't use the checkpoint's state ({what}). "
        "Set it as in the checkpoint, or start a new run with another name=, or with "
        "auto_resume.enabled=False and no resume_from_checkpoint."
    )


# ---------------------------------------------------------------------- applying


def _scheduler_step(checkpoint: Mapping[str, Any], number: int) -> int | None:
    states = checkpoint.get("lr_schedulers", [])
    return states[number].get("last_epoch") if number < len(states) else None


def _apply_settings(trainer: Trainer, checkpoint: dict[str, Any], differing: Differences) -> None:
    """Replaces a checkpoint's settings by those of the new optimizers and schedulers.

    Args:
        trainer: Its schedulers are advanced to the checkpoint's step.
        checkpoint: Changed in place; the optimizers' momenta stay.
        differing: Settings that differ. If an epoch now has another number of steps, the schedule
            continues at the same epoch.
    """
    there, here = differing.get(_STEPS, (None, None))
    ratio = here / there if isinstance(there, int) and here and there > 0 else 1.0
    same_schedule = not any(key in differing for key in _SCHEDULE_KEYS)
    states = list(checkpoint.get("lr_schedulers", []))
    for number, config in enumerate(trainer.lr_scheduler_configs):
        if isinstance(config.scheduler, ReduceLROnPlateau):  # follows metrics, not steps
            continue
        saved = _scheduler_step(checkpoint, number) if same_schedule else None
        if config.interval == "epoch":
            steps = epochs_done(checkpoint)
        else:
            steps = round((checkpoint["global_step"] if saved is None else saved) * ratio)
            steps = int(min(steps, trainer.estimated_stepping_batches))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch expects an optimizer step first
            for _ in range(steps):
                config.scheduler.step()
        states[number : number + 1] = [config.scheduler.state_dict()]
    checkpoint["lr_schedulers"] = states
    for optimizer, state in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=True):
        state["param_groups"] = [
            {**new, "params": saved_group["params"]}
            for new, saved_group in zip(optimizer.param_groups, state["param_groups"], strict=True)
        ]


# ---------------------------------------------------------------------- reporting


def _describe_changes(cfg: DictConfig, source: str, differing: Differences) -> str:
    texts = []
    applied = {key: pair for key, pair in differing.items() if key != "seed"}
    if applied:
        texts.append(
            f"{source} was trained with other settings: {_format(applied)}. This run uses its own. "
            "(Learning rates are scaled, as in args.json.)"
        )
    if _STEPS in differing:
        texts.append("The schedule continues at the same share of its epochs.")
        base, final = (OmegaConf.select(cfg, f"momentum.{end}_tau") for end in ("base", "final"))
        if base != final:
            texts.append("The schedule of momentum.base_tau counts steps and isn't moved.")
    if "seed" in differing:
        seed = differing["seed"][1]
        texts.append(f"seed={seed} has no effect on the state that the checkpoint restores.")
    return " ".join(texts)


def _format(differing: Differences) -> str:
    texts = []
    for key, pair in differing.items():
        there, here = (dict(value) if isinstance(value, Counter) else value for value in pair)
        texts.append(f"{key}: {there} there, {here} here")
    return "; ".join(texts)
