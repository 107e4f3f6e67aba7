"""Called by the Hydra plug-in and by Lightning: adds our methods and callbacks to a host's runs."""

from __future__ import annotations

import sys
from typing import Any

from solo_hardneg.errors import HostError

_registered = False


def register() -> None:
    """Adds our methods to the host's ``METHODS``, the dict in which its scripts look them up.

    In solo-learn, also lets its loaders follow our rules for image files, its DALI loaders run
    without a GPU, and its auto-resume report its choice. Idempotent.

    Raises:
        HostError: Another class has one of our names, or solo-learn is running although the
            standalone host was requested.
    """
    global _registered
    from solo_hardneg import host
    from solo_hardneg.data.dali import extend_dali_loaders
    from solo_hardneg.environment import print_any_text
    from solo_hardneg.methods import OUR_METHODS
    from solo_hardneg.safety.auto_resume import replace_solo_learn_search

    print_any_text()
    if host.NAME == "standalone" and "solo.methods" in sys.modules:
        raise HostError(
            f"{host.VARIABLE}=standalone: this is a program of solo-learn, which looks up methods "
            "in its own list only. Unset the variable, or use `solo-hardneg pretrain`."
        )
    for name, ours in OUR_METHODS.items():
        registered = host.METHODS.setdefault(name, ours)
        if registered is not ours:
            raise HostError(
                f"The method name '{name}' is already used in the host's METHODS by "
                f"{registered.__module__}.{registered.__qualname__}, so it can't be "
                f"{ours.__module__}.{ours.__qualname__}. Rename or remove the other."
            )
    if host.NAME == "solo":
        from solo_hardneg.data.solo_learn import extend_loaders

        extend_loaders()
        extend_dali_loaders()
        replace_solo_learn_search()
    _registered = True


def callbacks() -> list[Any]:
    """Returns the callbacks that Lightning adds to every trainer in a host's program, in order.

    Any program on the machine that makes a trainer calls this, so nothing is imported unless our
    methods are registered. Those of ``safety`` and the warning act in every run; the makers of
    views (``data.format=resident``) and the recorder, which sees those views, only if the config
    enables them.
    """
    if not _registered:
        return []
    from solo_hardneg.data.resident.callback import ResidentData
    from solo_hardneg.methods.simclr import WarnOfFewNegatives
    from solo_hardneg.recording.recorder import Recorder
    from solo_hardneg.safety.checkpoint_io import SafeCheckpoints
    from solo_hardneg.safety.limits import TrainingLimits
    from solo_hardneg.safety.resumed_settings import ResumedSettings
    from solo_hardneg.safety.signals import StopOnSignal

    safety = [SafeCheckpoints(), StopOnSignal(), TrainingLimits(), ResumedSettings()]
    return [*safety, WarnOfFewNegatives(), ResidentData(), Recorder()]
