"""Hydra used inside a program that may be Hydra's own, or a notebook."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig


@contextmanager
def nested_hydra() -> Iterator[None]:
    """Lets Hydra be initialized anew inside, and puts back what the caller had of it.

    That is Hydra itself, its config and, as Hydra's programs set up logging, the root logger.
    """
    root = logging.getLogger()
    hydra, config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    level, handlers = root.level, root.handlers[:]
    GlobalHydra.instance().hydra = None
    try:
        yield
    finally:  # Hydra may have put other instances in the place of these
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = hydra, config
        root.level, root.handlers[:] = level, handlers
