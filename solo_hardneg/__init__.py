"""Contrastive methods for solo-learn that choose, mix and weigh their negatives.

    import solo_hardneg

    policy = solo_hardneg.build_policy({"keep": {"band": [0.95, 1.0]}})
    loss = solo_hardneg.mocov2plus_loss_func(query, key, queue, temperature=0.2, policy=policy)

Importing this package imports nothing else; names are loaded when they are used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from solo_hardneg.losses import mocov2plus_loss_func, simclr_loss_func
    from solo_hardneg.negatives import available as available_policies
    from solo_hardneg.negatives import build as build_policy

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "available_policies",
    "build_policy",
    "mocov2plus_loss_func",
    "simclr_loss_func",
]

_HOMES = {
    "available_policies": ("negatives", "available"),
    "build_policy": ("negatives", "build"),
    "mocov2plus_loss_func": ("losses", "mocov2plus_loss_func"),
    "simclr_loss_func": ("losses", "simclr_loss_func"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
