"""Resuming with other settings of the optimization than a checkpoint was trained with.

Lightning restores the states of optimizers and schedules as they are. They hold learning rates,
weight decay and the shape of the schedule, too, which would overrule what the config says.
"""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from omegaconf import DictConfig, OmegaConf
from torch.optim.lr_scheduler import ReduceLROnPlateau

from solo_hardneg.errors import CheckpointError, printable
from solo_hardneg.safety.checkpoint_io import resumed_from
from solo_hardneg.safety.reading import epochs_done
from solo_hardneg.trainers import config_of

KEY = "solo_hardneg_optimization"
# With these, an optimizer's state is of another shape.
_OF_THE_STATE = (
    "optimizer.name",
    "optimizer.exclude_bias_n_norm_wd",
    "optimizer.kwargs.exclude_bias_n_norm",
    "optimizer.kwargs.amsgrad",
)
_STEPS = "steps of an epoch"
_KIND_OF_SCHEDULE = ("scheduler.name", "scheduler.interval")
# Of a parameter group: what doesn't come from the config.
_NOT_SETTINGS = (
    *("params", "name", "lr", "initial_lr"),
    *("foreach", "fused", "capturable", "differentiable", "maximize"),
)
# Of a schedule's state: what doesn't come from the config.
_PROGRESS = ("last_epoch", "base_lrs", "verbose")

Differences = dict[str, tuple[Any, Any]]  # key -> (the checkpoint's value, this run's)


class ResumedSettings(Callback):
    """Has a resumed run train with the settings that its config says.

    Checkpoints store the settings of the optimization. On a resume, learning rates, weight decay,
    the optimizer's other arguments and the schedule are this run's: the schedule goes on as if it
    had always been this one. What differs is printed. Only an optimizer whose state can't be used
    is refused. Equal settings leave everything as the checkpoint has it.
    """

    def __init__(self) -> None:
        self._settings: dict[str, Any] = {}
        self._checkpoint: dict[str, Any] | None = None

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keeps the checkpoint until there are optimizers."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._checkpoint = checkpoint

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts this run's settings into the states that Lightning is about to restore.

        Raises:
            CheckpointError: the checkpoint's optimizer is another one.
        """
        cfg, checkpoint = config_of(trainer, pl_module), self._checkpoint
        self._checkpoint = None
        if cfg is None or not trainer.optimizers:
            return
        self._settings = read_settings(cfg, trainer)
        if checkpoint is None or not checkpoint.get("optimizer_states"):
            return
        stored = _stored(checkpoint)
        if stored is not None:
            differing = differences(stored, self._settings)
        else:  # an older version wrote it
            differing = differences_of_states(trainer, checkpoint)
        _check_optimizer(trainer, checkpoint, differing)
        ratio = _ratio(differing)
        behind = any(
            config.interval == "epoch" and _saved_step(checkpoint, i) != epochs_done(checkpoint)
            for i, config in enumerate(trainer.lr_scheduler_configs)
        )
        shown = {key: pair for key, pair in differing.items() if key != "seed"}
        if shown or behind:
            same_kind = not any(key in differing for key in _KIND_OF_SCHEDULE)
            _apply(trainer, checkpoint, ratio, same_kind)
        if differing and trainer.is_global_zero:
            print(printable(_said(cfg, resumed_from(trainer), differing)))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Stores the settings that the run is trained with."""
        if self._settings:
            checkpoint[KEY] = json.dumps(self._settings)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets the run."""
        self._settings, self._checkpoint = {}, None


def read_settings(cfg: DictConfig, trainer: Trainer) -> dict[str, Any]:
    """The settings of the optimization as dotted keys and plain values; learning rates scaled."""
    found: dict[str, Any] = {}
    for section in ("optimizer", "scheduler", "accumulate_grad_batches", "seed"):
        value = OmegaConf.select(cfg, section)
        value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        found.update(_flat(section, value))
    found["max_epochs"], found["max_steps"] = trainer.max_epochs, trainer.max_steps
    _ = trainer.estimated_stepping_batches  # counts the batches
    batches = trainer.num_training_batches
    if math.isfinite(batches):
        found[_STEPS] = math.ceil(batches / trainer.accumulate_grad_batches)
    return found


def _stored(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        stored = json.loads(checkpoint.get(KEY, ""))
    except (TypeError, ValueError, RecursionError):  # none, or nothing that we have written
        return None
    return stored if isinstance(stored, dict) else None


def _flat(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {key: value}
    return {k: v for name, part in value.items() for k, v in _flat(f"{key}.{name}", part).items()}


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Differences:
    """What differs; a key that isn't there is as good as null."""
    pairs = {key: (there.get(key), here.get(key)) for key in {**there, **here}}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def differences_of_states(trainer: Trainer, checkpoint: Mapping[str, Any]) -> Differences:
    """What differs, as far as the states of optimizers and schedules show it."""
    found: Differences = {}
    for optimizer, state in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=False):
        groups = zip(state["param_groups"], optimizer.param_groups, strict=False)
        for number, (there, here) in enumerate(groups):
            name = here.get("name", f"group {number}")
            theirs, ours = _settings_of(there), _settings_of(here)
            if any((key in theirs) != (key in ours) for key in ("momentum", "betas")):
                kinds = ("adam" if "betas" in group else "sgd" for group in (theirs, ours))
                return {"optimizer.name": (next(kinds), next(kinds))}
            common = theirs.keys() & ours.keys()
            pairs = differences({k: theirs[k] for k in common}, {k: ours[k] for k in common})
            found.update({f"{key} of {name}": pair for key, pair in pairs.items()})
    schedules = [_shape(state) for state in checkpoint.get("lr_schedulers", [])]
    made = [_shape(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs]
    if [shape.keys() for shape in schedules] != [shape.keys() for shape in made]:
        found["scheduler.name"] = (_kinds(schedules), _kinds(made))
        return found
    for before, now in zip(schedules, made, strict=True):
        pairs = differences(before, now)
        found.update({f"{key} of the schedule": pair for key, pair in pairs.items()})
    return found


def _shape(schedule: Mapping[str, Any]) -> dict[str, Any]:
    """Of a schedule's state: its arguments, by which its kind is known; functions aren't stored."""
    return {
        key: None if key == "lr_lambdas" else value
        for key, value in schedule.items()
        if key not in _PROGRESS and not key.startswith("_")
    }


def _kinds(shapes: Sequence[Mapping[str, Any]]) -> str:
    return " and ".join(f"one with {', '.join(sorted(shape))}" for shape in shapes) or "none"


def _settings_of(group: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        key: list(value) if OmegaConf.is_config(value) or isinstance(value, tuple) else value
        for key, value in group.items()
        if key not in _NOT_SETTINGS
    }
    return {**found, "lr": group.get("initial_lr", group["lr"])}


def _check_optimizer(
    trainer: Trainer, checkpoint: Mapping[str, Any], differing: Differences
) -> None:
    """Refuses an optimizer that can't go on from the checkpoint's state.

    Raises:
        CheckpointError: it names key, values and remedy.
    """
    keys = [key for key in _OF_THE_STATE if key in differing]
    sizes = [
        [[len(group["params"]) for group in groups] for groups in both]
        for both in (
            [state["param_groups"] for state in checkpoint["optimizer_states"]],
            [optimizer.param_groups for optimizer in trainer.optimizers],
        )
    ]
    if not keys and sizes[0] == sizes[1]:
        return
    what = _shown({key: differing[key] for key in keys}) or (
        f"parameters in each group of the optimizer: {sizes[0]} there, {sizes[1]} here"
    )
    raise CheckpointError(
        f"{resumed_from(trainer)}: the optimizer can't go on from the checkpoint's state ({what}). "
        "Set it as the checkpoint has it, or start a run of its own: another name=, or "
        "auto_resume.enabled=False and no resume_from_checkpoint."
    )


def _ratio(differing: Differences) -> float:
    """Steps of an epoch here, for one there."""
    there, here = differing.get(_STEPS, (None, None))
    return here / there if isinstance(there, int) and here and there > 0 else 1.0


def _saved_step(checkpoint: Mapping[str, Any], number: int) -> int | None:
    states = checkpoint.get("lr_schedulers", [])
    return states[number].get("last_epoch") if number < len(states) else None


def _apply(trainer: Trainer, checkpoint: dict[str, Any], ratio: float, same_kind: bool) -> None:
    """Changes a checkpoint's states to what the freshly made optimizers and schedules say.

    Args:
        trainer: its schedules are moved on to where the checkpoint stands.
        checkpoint: changed in place; the optimizers' momenta stay.
        ratio: steps of an epoch here, for one there.
        same_kind: whether the checkpoint's schedule counts what this run's does.
    """
    states = list(checkpoint.get("lr_schedulers", []))
    for number, config in enumerate(trainer.lr_scheduler_configs):
        if isinstance(config.scheduler, ReduceLROnPlateau):  # follows metrics, not steps
            continue
        saved = _saved_step(checkpoint, number) if same_kind else None
        if config.interval == "epoch":
            steps = epochs_done(checkpoint)
        else:
            steps = round((checkpoint["global_step"] if saved is None else saved) * ratio)
            steps = int(min(steps, trainer.estimated_stepping_batches))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wants the optimizer to take a step before
            for _ in range(steps):
                config.scheduler.step()
        states[number : number + 1] = [config.scheduler.state_dict()]
    checkpoint["lr_schedulers"] = states
    for optimizer, state in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=True):
        state["param_groups"] = [
            {**ours, "params": theirs["params"]}
            for ours, theirs in zip(optimizer.param_groups, state["param_groups"], strict=True)
        ]


def _said(cfg: DictConfig, source: str, differing: Differences) -> str:
    """What is printed of a resume with other settings."""
    applied = {key: pair for key, pair in differing.items() if key != "seed"}
    text = ""
    if applied:
        text = (
            f"{source} was trained with other settings: {_shown(applied)}. The run goes on with "
            "its own. (Learning rates are scaled, as in args.json.)"
        )
    if _STEPS in differing:
        text += " The schedule goes on at the same share of its epochs."
        base, final = (OmegaConf.select(cfg, f"momentum.{end}_tau") for end in ("base", "final"))
        if base != final:
            text += " The course of momentum.base_tau counts steps, and isn't moved."
    if "seed" in differing:
        text += f" seed={differing['seed'][1]} has no effect on what the checkpoint holds."
    return text.strip()


def _shown(differing: Differences) -> str:
    pairs = ((key, *map(_plain, pair)) for key, pair in differing.items())
    return "; ".join(f"{key}: {there} there, {here} here" for key, there, here in pairs)


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Counter) else value
