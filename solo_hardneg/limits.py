"""What this machine can hold, and where its user may write: known before a run, and asked then."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from solo_hardneg.errors import bad_value


def check_memory(key: str, value: Any, needed: int, what: str) -> None:
    """Refuses a size that this machine can't hold, before anything of that size is made.

    Args:
        key, value: the setting that asks for it.
        needed: bytes.
        what: what is so large, as the beginning of a sentence.

    Raises:
        ConfigError: it needs more than all of the machine's memory.
    """
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        sizes = f"{what} needs {needed / 2**30:.3g} GiB of memory, and this machine has"
        raise bad_value(key, value, f"{sizes} {there / 2**30:.3g}", "Make it smaller.")


def check_queue_memory(size: int, dimensions: Any) -> None:
    """Refuses a queue that this machine can't hold.

    The hosts make two of float32, and a policy is tried on one query's similarities.

    Raises:
        ConfigError: it needs more than all of the machine's memory.
    """
    if isinstance(dimensions, int):  # what else it may be, the host says
        needed = size * (2 * 4 * dimensions + 64)
        check_memory("method_kwargs.queue_size", size, needed, "the queue")


def check_writable(key: str, value: str) -> None:
    """Refuses a folder that can't be made, or written to.

    Raises:
        ConfigError: something is in its way, or this user may not write there.
    """
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
