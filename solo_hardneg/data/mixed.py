"""Mixes our classes into a host's, in the host's module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def mix_into(module: Any, names: Iterable[str], mixin: type) -> None:
    """Replaces classes of a module by subclasses of them and ``mixin``, which comes first.

    Names that the module lacks are passed over. Calling it again is harmless. The subclasses can
    be pickled: they have the module and name of the classes that they replace.
    """
    for name in names:
        base = getattr(module, name, None)
        if base is not None and not issubclass(base, mixin):
            parts = {"__module__": module.__name__, "__doc__": base.__doc__}
            setattr(module, name, type(name, (mixin, base), parts))
