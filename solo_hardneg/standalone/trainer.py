"""The keys of a config that are Lightning's, checked before there is anything to train."""

from __future__ import annotations

import logging
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, Union

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers.logger import DummyLogger
from omegaconf import DictConfig, OmegaConf

from solo_hardneg.errors import ConfigError, bad_value

_OURS = ("logger", "callbacks", "enable_checkpointing")  # made by the run, not read


def trainer_settings(cfg: DictConfig) -> dict[str, Any]:
    """What of a config is handed on to Lightning's ``Trainer``, as plain values.

    Raises:
        ConfigError: one of them is still ``???``.
    """
    plain: dict[str, Any] = {}
    for key in map(str, cfg):
        if key in _hints() and key not in _OURS:
            if OmegaConf.is_missing(cfg, key):
                raise bad_value(key, "???", "must be set", "Set it, or take it out.")
            value = cfg[key]
            plain[key] = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return plain


def check_kinds(cfg: DictConfig) -> None:
    """Refuses what isn't of the kind that the ``Trainer`` is annotated with.

    Lightning itself finds out late, or not at all: a word in the place of a number of steps ends
    a run at its first comparison.

    Raises:
        ConfigError: names the key, and what it may hold. Null is allowed: it is as if left out.
    """
    for key, value in trainer_settings(cfg).items():
        hint = _hints()[key]
        if value is not None and not fits(value, hint):
            raise bad_value(key, value, f"must be {_shown(hint)}, as Lightning's Trainer has it")


def check_trainer(cfg: DictConfig, train_batches: int | None, val_batches: int | None) -> None:
    """Refuses what Lightning would refuse, on this machine and with so many batches.

    Args:
        cfg: a parsed config.
        train_batches, val_batches: how many there are; ``None``: not known, or no validation.

    Raises:
        ConfigError: names the key, if it is a single one, and what Lightning says.
    """
    settings = trainer_settings(cfg)
    own = {
        "logger": DummyLogger(),
        "callbacks": [LearningRateMonitor("epoch")],
        "enable_checkpointing": cfg.checkpoint.enabled,
    }
    error = _refusal({**settings, **own})
    if error is not None:
        do = "What it takes depends on the machine, too."
        for key, value in settings.items():
            others = {name: v for name, v in settings.items() if name != key}
            if value is not None and _refusal({**others, **own}) is None:
                raise bad_value(key, value, f"Lightning's Trainer refuses it: {_said(error)}", do)
        raise ConfigError(f"Lightning's Trainer refuses the config: {_said(error)}. {do}")
    _check_batches(settings, train_batches, val_batches)


def _check_batches(settings: Mapping[str, Any], train: int | None, val: int | None) -> None:
    parts = {"limit_train_batches": train, "limit_val_batches": val}
    for key, there in [*parts.items(), *(("overfit_batches", part) for part in parts.values())]:
        share = settings.get(key)
        if isinstance(share, float) and there and 0 < share * there < 1:
            allowed = f"is less than one of {there} batches; it must be at least {1 / there:.2g}"
            raise bad_value(key, share, allowed)
    limit, every = settings.get("limit_train_batches"), settings.get("val_check_interval")
    if isinstance(every, int | float) and not every > 0:
        raise bad_value("val_check_interval", every, "must be above 0", "1.0 is once an epoch.")
    if train is None or val is None:
        return
    if isinstance(limit, int):
        train = min(train, limit)
    elif limit is not None:
        train = int(train * limit)
    by_epoch = settings.get("check_val_every_n_epoch", 1) is not None
    if isinstance(every, int) and every > train and by_epoch:
        allowed = f"must be at most {train}, the number of batches in an epoch"
        raise bad_value("val_check_interval", every, allowed, "A share, such as 1.0, will do.")


@cache
def _hints() -> dict[str, Any]:
    return typing.get_type_hints(Trainer.__init__)


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is what an annotation says; a whole number is a float, too."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in inner)
    if origin is Literal:
        return any(value == word and type(value) is type(word) for word in inner)
    if origin is list:
        return isinstance(value, list) and all(fits(part, inner[0]) for part in value)
    if origin is dict:
        pairs = value.items() if isinstance(value, Mapping) else [(None, None)]
        return all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in pairs)
    if hint in (int, float):
        if hint is int and isinstance(value, float):
            return value.is_integer()  # max_steps=1e5
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(hint, type) and isinstance(value, hint)


def _shown(hint: Any) -> str:
    """An annotation for people: without what can't stand in a config."""
    return " or ".join(dict.fromkeys(_words(hint)))


def _words(hint: Any) -> list[str]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return [word for part in inner for word in _words(part)]
    if origin is Literal:
        return [str(word) for word in inner]
    if origin in (list, dict):
        kind = "a list of" if origin is list else "a mapping to"
        return [f"{kind} whole numbers"] if inner[-1] is int else []
    words = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}
    return [words[hint]] if hint in words else []


def _refusal(settings: dict[str, Any]) -> Exception | None:
    """What Lightning says against these settings; it makes a trainer, and says nothing else."""
    try:
        with _quiet():
            Trainer(**settings)
    except Exception as error:  # Lightning has a dozen kinds, and asks torch and others as well
        return error
    return None


def _said(error: Exception) -> str:
    """The first line of what an error says, without the full stop."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).strip().rstrip(".:!")


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is logged: the trainer that trains will say it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
