"""What the Hydra plug-in and Lightning call: our methods and callbacks enter the host's runs."""

from __future__ import annotations

import sys
from typing import Any

from solo_hardneg.errors import HostError

_registered = False


def register() -> None:
    """Adds our methods to the host's ``METHODS``, the very dict that its scripts look into.

    In solo-learn, its loaders follow our rules of what an image is, those of DALI run without a
    GPU, and its auto-resume says what it takes and leaves.

    Calling it again is harmless.

    Raises:
        HostError: a name is taken by somebody else's class, or solo-learn is running and the
            other host was asked for.
    """
    global _registered
    from solo_hardneg import host
    from solo_hardneg.dali import extend_solo_learn
    from solo_hardneg.environment import print_any_text
    from solo_hardneg.methods import OUR_METHODS
    from solo_hardneg.safety import auto_resume

    print_any_text()
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
    if host.NAME == "solo":
        from solo_hardneg.data.solo_learn import extend_loaders

        extend_loaders()
        extend_solo_learn()
        auto_resume.extend_solo_learn()
    _registered = True


def callbacks() -> list[Any]:
    """The callbacks that Lightning adds to every trainer in a host's program, in this order.

    Any program on the machine that makes a trainer calls this, so it imports nothing before our
    methods are registered in the process. First those that keep a run safe, and a warning for the
    hosts' SimCLR, in all runs alike. The others do nothing unless the config enables them: the one
    that makes the views (``data.format=resident``), and the recorder, which looks at them.
    """
    if not _registered:
        return []
    from solo_hardneg.analysis.recorder import Recorder
    from solo_hardneg.methods.no_negatives import NoNegatives
    from solo_hardneg.resident.callback import ResidentData
    from solo_hardneg.safety.checkpoint_io import SafeCheckpoints
    from solo_hardneg.safety.ending import Ending
    from solo_hardneg.safety.settings import ResumedSettings
    from solo_hardneg.safety.stopping import Stopping

    safe = [SafeCheckpoints(), Stopping(), Ending(), ResumedSettings()]
    return [*safe, NoNegatives(), ResidentData(), Recorder()]
