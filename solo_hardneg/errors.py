"""Errors that a user can cause.

A message names the key and its value, what is allowed, and the remedy, in this order.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class HardnegError(Exception):
    """Base of all errors that this package raises on purpose."""

    def __str__(self) -> str:
        """The message, printable."""
        return printable(super().__str__())


class ConfigError(HardnegError, ValueError):
    """A config key has an invalid value."""


class DataError(HardnegError, RuntimeError):
    """Data are missing, unreadable, or too few.

    A loader's worker passes an error on as a new one of the same class, whose message is the whole
    traceback; only the original message, at its end, is kept.
    """

    def __init__(self, message: str) -> None:
        if message.startswith("Caught DataError in DataLoader worker"):
            message = re.split(r"^[\w.]*\bDataError: ", message, flags=re.MULTILINE)[-1].strip()
        super().__init__(message)


class CheckpointError(HardnegError, RuntimeError):
    """A checkpoint can't be read, or doesn't belong to this run."""


class DivergedError(HardnegError, ArithmeticError):
    """A value computed in training is not finite."""


class RanksDifferError(HardnegError, RuntimeError):
    """Ranks hold different values of something that must be equal on all."""


class MissingPackageError(HardnegError, ImportError):
    """A package of an extra is not installed."""


class HostError(HardnegError, ImportError):
    """The requested host, solo-learn or standalone, is not available."""


def printable(text: object) -> str:
    """Escapes control characters and what can't be encoded: names may come from other users."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in str(text))


def bad_value(key: str, value: Any, allowed: str, do: str = "") -> ConfigError:
    """Builds the error for one key: ``key=value: allowed. do``.

    Args:
        key: Key as on the command line, such as ``negatives.keep.band``.
        value: Its value.
        allowed: What it may hold, without a full stop.
        do: Remedy, in full sentences; empty if ``allowed`` implies it.
    """
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    shown = value if isinstance(value, str) else repr(value)
    return ConfigError(f"{key}={shown}: {allowed}." + (f" {do}" if do else ""))


def unknown_name(key: str, name: str, known: Iterable[str], what: str) -> ConfigError:
    """Builds the error for an unknown name, which lists the known ones and the nearest.

    Args:
        key: Key that holds the name, such as ``negatives``.
        name: Unknown name.
        known: Allowed names.
        what: Noun for the names, in the singular, such as ``policy``.
    """
    names = sorted(known)
    nearest = difflib.get_close_matches(str(name), names, n=1)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return ConfigError(f"{key}: unknown {what} '{name}'.{hint} Known: {', '.join(names)}.")


def require(extra: str, *packages: str) -> None:
    """Raises MissingPackageError, which names the extra, unless all packages are installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        text = f"{', '.join(missing)}: not installed. Run pip install 'solo-hardneg[{extra}]'."
        raise MissingPackageError(text)


def resolve(cfg: DictConfig) -> None:
    """Resolves all references in a config, so that none fails later.

    Raises:
        ConfigError: A reference is broken or circular.
    """
    try:
        OmegaConf.resolve(cfg)
    except (OmegaConfBaseException, RecursionError) as error:
        reason = str(error).partition("\n")[0] or "The reference is circular"
        raise bad_value(*_first_broken(cfg), f"can't be resolved. {reason}", "Fix it.") from error


def _first_broken(cfg: DictConfig) -> tuple[str, str]:
    """The dotted key of the first broken reference, and the reference."""
    pending: list[tuple[str, Any]] = [("", OmegaConf.to_container(cfg, resolve=False))]
    for path, value in pending:  # grows during the loop
        if isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            pending += [(f"{path}.{key}" if path else str(key), part) for key, part in items]
        elif isinstance(value, str) and "${" in value:
            try:
                OmegaConf.select(cfg, path)
            except (OmegaConfBaseException, RecursionError):
                return path, value
    return "config", "${...}"
