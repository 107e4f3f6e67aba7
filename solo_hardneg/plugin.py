"""What the Hydra plug-in calls: our methods enter the host's list."""

from __future__ import annotations

import sys

from solo_hardneg.errors import HostError


def register() -> None:
    """Adds our methods to the host's ``METHODS``, the very dict that its scripts look into.

    Calling it again is harmless.

    Raises:
        HostError: a name is taken by somebody else's class, or solo-learn is running and the
            other host was asked for.
    """
    from solo_hardneg import host
    from solo_hardneg.methods import OUR_METHODS

    if host.NAME == "standalone" and "solo.methods" in sys.modules:
        raise HostError(
            f"{host.VARIABLE}=standalone: this is a program of solo-learn, which looks for methods "
            "in its own list only. Unset the variable, or use `solo-hardneg pretrain`."
        )
    for name, ours in OUR_METHODS.items():
        theirs = host.METHODS.setdefault(name, ours)
        if theirs is not ours:
            raise HostError(
                f"The method name '{name}' is taken in the host's METHODS by "
                f"{theirs.__module__}.{theirs.__qualname__}, so "
                f"{ours.__module__}.{ours.__qualname__} can't have it. Rename or remove the other."
            )
