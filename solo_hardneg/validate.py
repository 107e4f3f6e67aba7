"""Validation of config groups (by pydantic), verbs' arguments, sizes and folders."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from solo_hardneg.errors import ConfigError, bad_value, unknown_name


def is_number(value: Any) -> bool:
    """Whether it is a finite number, NumPy's included, and no boolean."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    return number and abs(value) < math.inf


def real(key: str, value: Any, allowed: str, do: str = "", **ends: float) -> float:
    """Reads a verb's argument that is a number within bounds.

    Args:
        key: Key in the message.
        value: Its value.
        allowed, do: Words of the message, see :func:`solo_hardneg.errors.bad_value`.
        ends: Bounds: ``least`` and ``most`` are inclusive, ``above`` and ``below`` exclusive.

    Raises:
        ConfigError: It is no number, or out of bounds.
    """
    if not is_number(value) or not (
        ends.get("least", -math.inf) <= value <= ends.get("most", math.inf)
        and ends.get("above", -math.inf) < value < ends.get("below", math.inf)
    ):
        raise bad_value(key, value, allowed, do)
    return float(value)


def whole(key: str, value: Any, least: int, do: str = "", most: float = math.inf) -> int:
    """Reads a verb's argument that is a whole number within inclusive bounds; 32.0 is one.

    Raises:
        ConfigError: It is no whole number, or out of bounds.
    """
    if not is_number(value) or value != int(value) or not least <= value <= most:
        limit = f" and at most {most}" if most < math.inf else ""
        raise bad_value(key, value, f"must be a whole number of at least {least}{limit}", do)
    return int(value)


def check_memory(key: str, value: Any, needed: int, what: str) -> None:
    """Refuses a size that exceeds this machine's memory, before anything is allocated.

    Args:
        key, value: The setting.
        needed: Bytes.
        what: What needs them, as the beginning of a sentence.

    Raises:
        ConfigError: It needs more than all of the machine's memory.
    """
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        sizes = f"{what} needs {needed / 2**30:.3g} GiB of memory, and this machine has"
        raise bad_value(key, value, f"{sizes} {there / 2**30:.3g}", "Make it smaller.")


def check_queue_memory(size: int, dimensions: Any) -> None:
    """Refuses a queue that exceeds this machine's memory.

    The hosts make two of float32, and a policy's dry run holds one query's similarities.

    Raises:
        ConfigError: It needs more than all of the machine's memory.
    """
    if isinstance(dimensions, int):  # what else it may be, the host says
        needed = size * (2 * 4 * dimensions + 64)
        check_memory("method_kwargs.queue_size", size, needed, "the queue")


def check_writable(key: str, value: str) -> None:
    """Raises ConfigError unless a folder can be made and written to by this user."""
    try:
        place = Path(value).expanduser().absolute()
        while not place.exists() and place != place.parent:
            place = place.parent
        good = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, no such user
        raise bad_value(key, value, f"can't be a folder: {error}", "Choose another one.") from error
    if not good:
        text = f"{place} is no folder that this user may write to"
        raise bad_value(key, value, text, "Choose another one.")


REQUIRED = object()  # default of a key that must be given

# Far above any sensible value, and far below what overflows once scaled, in float32 or int64.
_FAR, _FAR_WHOLE = 1e9, 2**31 - 1


Count = Annotated[int, Field(ge=1, le=_FAR_WHOLE)]
Whole = Annotated[int, Field(ge=0, le=_FAR_WHOLE)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, le=_FAR, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, le=_FAR, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1, pattern="^[^\\x00]*$")] | None

# Pydantic's complaints in our words; others keep pydantic's.
_ALLOWED = {
    "bool_type": "must be true or false",
    "dict_type": "must hold several keys, not a value",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int_type": "must be a whole number",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "list_type": "must be a list",
    "model_type": "must hold several keys, not a value",
    "string_pattern_mismatch": "must hold no NUL",
    "string_too_short": "must not be empty",
    "string_type": "must be a word or a path; put numbers in quotes",
}

# Dotted key -> (default, type). A tuple of names stands for one of them.
Rules = Mapping[str, tuple[Any, Any]]


class Settings(BaseModel):
    """Base class of config groups that are checked as a whole; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Group = TypeVar("Group", bound=Settings)


def read_group(model: type[Group], key: str, value: Any) -> Group:
    """Reads a config group.

    Raises:
        ConfigError: It is no mapping, a key is unknown, or a value can't be used.
    """
    try:
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}: can't be resolved. {error}") from error
    try:
        return model.model_validate({} if plain is None else plain)
    except ValidationError as error:
        raise refusal(key, error, model.model_fields) from None


def apply_rules(cfg: DictConfig, rules: Rules) -> None:
    """Fills in the defaults of a table, and checks every key in it.

    Raises:
        ConfigError: A required key is not set, or a value can't be used.
    """
    for key, (default, kind) in rules.items():
        parent = key.rpartition(".")[0]
        if parent and not OmegaConf.is_dict(read(cfg, parent, OmegaConf.create())):
            do = f"Write {parent}.name={read(cfg, parent)}, for instance."
            raise bad_value(parent, read(cfg, parent), "must hold several keys, not a value", do)
        value = read(cfg, key, default)
        if value is REQUIRED:
            text = f"{key}: is not set, and has no default. Add {key}=... to the command"
            raise ConfigError(f"{text} or the config.")
        check_type(key, value, Literal[kind] if isinstance(kind, tuple) else kind)
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)


def check_type(key: str, value: Any, kind: Any) -> None:
    """Raises ConfigError unless a value is of a type, as pydantic reads it."""
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    try:
        TypeAdapter(kind).validate_python(plain, strict=True)
    except ValidationError as error:
        raise refusal(key, error) from None


def refusal(key: str, error: ValidationError, known: Iterable[str] = ()) -> ConfigError:
    """Translates pydantic's first complaint into our form: key, value, what is allowed.

    Args:
        key: Key of what was validated.
        error: Pydantic's error.
        known: The keys that may stand below ``key``.
    """
    first = error.errors(include_url=False)[0]
    names = [str(name) for name in first["loc"]]
    if first["type"] == "extra_forbidden" and len(names) == 1:
        return unknown_name(key, names[0], known, "setting")
    path = ".".join([key, *names])
    if first["type"] == "literal_error":
        words = re.findall(r"'([^']*)'", first["ctx"]["expected"])
        what = path.removesuffix(".name").split(".")[-1]
        return unknown_name(path, str(first["input"]), words, what)
    allowed = _ALLOWED.get(first["type"], first["msg"].replace("Input should", "must"))
    return bad_value(path, first["input"], allowed.format_map(first.get("ctx", {})))


def read(cfg: DictConfig, key: str, default: Any = None) -> Any:
    """The value of a dotted key; ``default`` if it is absent, null, ``???`` or "None"."""
    try:
        value = OmegaConf.select(cfg, key)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}: can't be resolved. {error}") from error
    return default if value is None or value == "None" else value


def number_of_devices(cfg: DictConfig) -> int:
    """Number of devices that ``cfg.devices`` asks for.

    The host scales the learning rate by ``len(devices)``. Values for which that isn't the number of
    devices that Lightning takes are refused: the run would silently train at another rate.
    """
    devices = read(cfg, "devices", 1)
    if isinstance(devices, int) and not isinstance(devices, bool) and devices > 0:
        return devices
    if OmegaConf.is_list(devices) and len(devices):
        return len(devices)
    if devices in ("0", "1"):
        return 1
    allowed = "must be a list such as [0,1], a whole number above 0, or '1'"
    do = "The learning rate is scaled by how many there are."
    raise bad_value("devices", devices, allowed, do)
