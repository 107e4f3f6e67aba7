"""What a trainer of either host tells of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from omegaconf import DictConfig


def config_of(trainer: Trainer, module: Any) -> DictConfig | None:
    """The run's config: the module's or, in solo-learn's linear evaluation, its checkpointer's."""
    for holder in (module, *trainer.callbacks):  # type: ignore[attr-defined]
        cfg = getattr(holder, "cfg", None)
        if isinstance(cfg, DictConfig):
            return cfg
    return None


def host_checkpointer(trainer: Trainer) -> Any | None:
    """The host's callback that writes checkpoints by ``save(trainer)``, if there is one."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if callable(getattr(callback, "save", None)) and hasattr(callback, "cfg"):
            return callback
    return None


def run_folder(trainer: Trainer) -> Path | None:
    """Where a host's callback writes checkpoints: solo-learn calls it path, we call it folder."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        place = getattr(callback, "path", None) or getattr(callback, "folder", None)
        if isinstance(getattr(callback, "cfg", None), DictConfig) and place is not None:
            return Path(place)
    return None
