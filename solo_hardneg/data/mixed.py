"""Classes of ours and a host's in one, in the place of the host's."""

from __future__ import annotations

from types import ModuleType


def mixed(module: ModuleType, name: str, ours: type, theirs: type) -> type:
    """A class of both, ours first, which pickle finds where it is going to be bound.

    Args:
        module, name: where that is.
        ours, theirs: the classes.
    """
    parts = {"__module__": module.__name__, "__doc__": theirs.__doc__}
    return type(name, (ours, theirs), parts)
