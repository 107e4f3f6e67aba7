"""The errors a user can cause.

Each says which key has which value, what is allowed, and what to do, in that order, because
that is the order in which the person who reads it needs to know.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class HardnegError(Exception):
    """The base of all errors that this package raises on purpose."""

    def __str__(self) -> str:
        """The message, printable."""
        return printable(super().__str__())


class ConfigError(HardnegError, ValueError):
    """A key of the config has a value that can't be used."""


class DataError(HardnegError, RuntimeError):
    """The data are not there, can't be read, or don't suffice.

    The loader's worker processes hand an error on as a new one of the same class, whose message is
    the whole traceback of the first. What counts is the message that this ends in.
    """

    def __init__(self, message: str) -> None:
        if message.startswith("Caught DataError in DataLoader worker"):
            message = re.split(r"^[\w.]*\bDataError: ", message, flags=re.MULTILINE)[-1].strip()
        super().__init__(message)


class CheckpointError(HardnegError, RuntimeError):
    """A checkpoint can't be read, or doesn't belong to this run."""


class DivergedError(HardnegError, ArithmeticError):
    """Something that the training computed is not a finite number."""


class RanksDifferError(HardnegError, RuntimeError):
    """The processes of a run hold different values of what must be the same on all of them."""


class HostError(HardnegError, ImportError):
    """The host (solo-learn or the standalone one) that was asked for can't be had."""


def printable(text: object) -> str:
    """Escapes what a terminal would obey, or can't encode: names may be other people's."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in str(text))


def bad_value(key: str, value: Any, allowed: str, do: str = "") -> ConfigError:
    """Builds the error for one key: ``key=value: allowed. do``.

    Args:
        key: the key as one writes it on the command line, such as ``negatives.keep.band``.
        value: what it holds.
        allowed: what it may hold, as a sentence without its full stop.
        do: what to do about it, as a sentence or several; empty if ``allowed`` says it all.
    """
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    shown = value if isinstance(value, str) else repr(value)
    return ConfigError(f"{key}={shown}: {allowed}." + (f" {do}" if do else ""))


def unknown_name(key: str, name: str, known: Iterable[str], what: str) -> ConfigError:
    """Builds the error for a name that isn't known: it lists the known ones and the nearest.

    Args:
        key: where the name stands, such as ``negatives``.
        name: the unknown name.
        known: the names that may stand there.
        what: what the names are called, in the singular, such as ``policy``.
    """
    names = sorted(known)
    nearest = difflib.get_close_matches(str(name), names, n=1)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return ConfigError(f"{key}: unknown {what} '{name}'.{hint} Known: {', '.join(names)}.")


def resolve(cfg: DictConfig) -> None:
    """Puts values in the place of all references in a config, so that none breaks later.

    Raises:
        ConfigError: a reference leads nowhere, or to itself.
    """
    try:
        OmegaConf.resolve(cfg)
    except (OmegaConfBaseException, RecursionError) as error:
        reason = str(error).partition("\n")[0] or "a reference leads to itself"
        raise bad_value(*_first_broken(cfg), f"can't be resolved. {reason}", "Mend it.") from error


def _first_broken(cfg: DictConfig) -> tuple[str, str]:
    """The dotted key of a reference that leads nowhere, and the reference."""
    waiting: list[tuple[str, Any]] = [("", OmegaConf.to_container(cfg, resolve=False))]
    for path, value in waiting:  # grows meanwhile
        if isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(f"{path}.{key}" if path else str(key), part) for key, part in items]
        elif isinstance(value, str) and "${" in value:
            try:
                OmegaConf.select(cfg, path)
            except (OmegaConfBaseException, RecursionError):
                return path, value
    return "config", "${...}"
