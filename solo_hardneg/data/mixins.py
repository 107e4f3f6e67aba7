"""Adds mixins to a host's classes, in the host's module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def add_mixin(module: Any, names: Iterable[str], mixin: type) -> None:
    """Replaces classes of a module by subclasses of ``mixin`` and themselves, in this order.

    Missing names are skipped, and calling it again is harmless. The subclasses can be pickled: they
    keep the module and name of the classes that they replace.
    """
    for name in names:
        base = getattr(module, name, None)
        if base is not None and not issubclass(base, mixin):
            parts = {"__module__": module.__name__, "__doc__": base.__doc__}
            setattr(module, name, type(name, (mixin, base), parts))
