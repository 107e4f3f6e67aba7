"""How a scale shortens the published settings, and which other settings follow in proportion."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from solo_hardneg.reproduce.experiment import Scale
from solo_hardneg.reproduce.overrides import compose_config, drop_overridden

# SSCL's sizes of ``mix`` are for this batch and this queue (sections 4.1.2 and 4.4).
MIX_BATCH, MIX_QUEUE = 256, 16384
_MIX_MINIMA = {"hardest": 2, "pairs": 1, "queries": 1}


def scale_config(
    config: str, base: Sequence[str], user: Sequence[str], scale: Scale, images: int
) -> tuple[DictConfig, list[str]]:
    """Applies a scale to a config.

    Args:
        config: Config of pretraining, or ``linear``.
        base: The experiment's overrides.
        user: The user's overrides. They take precedence, and other settings follow them, too.
        scale: The scale.
        images: Number of training images.

    Returns:
        The config, and the overrides that were added.
    """
    published = compose_config(config, base)
    wanted = [*base, *user]
    cuts = _cuts(compose_config(config, wanted), scale, images, config == "linear")
    changes = drop_overridden(cuts, user)
    proportional = _proportional(published, compose_config(config, [*wanted, *changes]))
    changes += drop_overridden(proportional, user)
    return compose_config(config, [*wanted, *changes]), changes


def _cuts(cfg: DictConfig, scale: Scale, images: int, linear: bool) -> list[str]:
    """Overrides that the scale sets itself."""
    changes = []
    epochs = scale.linear_epochs if linear else scale.epochs
    if epochs is not None and cfg.max_epochs != epochs:
        changes.append(f"max_epochs={epochs}")
    if scale.images is not None and images > scale.images:
        changes.append(f"++data.fraction={scale.images / images:g}")
    if linear:
        return changes
    if scale.backbone is not None and cfg.backbone.name != scale.backbone:
        changes.append(f"backbone.name={scale.backbone}")
    for key, maximum in (
        ("optimizer.batch_size", scale.batch_size),
        ("method_kwargs.queue_size", scale.queue_size),
    ):
        size = OmegaConf.select(cfg, key)
        if maximum is not None and size is not None and size > maximum:
            changes.append(f"{key}={maximum}")
    return changes


def _proportional(published: DictConfig, cfg: DictConfig) -> list[str]:
    """Scales warm-up and decay steps by the epochs, and ``mix`` by the queue or the batch."""
    changes = []
    if cfg.max_epochs != published.max_epochs:
        ratio = cfg.max_epochs / published.max_epochs
        warmup = round(published.scheduler.warmup_epochs * ratio, 3)
        if warmup != cfg.scheduler.warmup_epochs:
            changes.append(f"scheduler.warmup_epochs={warmup:g}")
        if steps := published.scheduler.get("lr_decay_steps"):
            fewer = ",".join(str(max(1, round(step * ratio))) for step in steps)
            changes.append(f"++scheduler.lr_decay_steps=[{fewer}]")
    queue = OmegaConf.select(cfg, "method_kwargs.queue_size")
    share = cfg.optimizer.batch_size / MIX_BATCH if queue is None else queue / MIX_QUEUE
    mix = OmegaConf.select(cfg, "negatives.mix") or {}
    for size, minimum in _MIX_MINIMA.items():
        value = mix.get(size)
        if share < 1 and isinstance(value, int) and value > 0:
            changes.append(f"negatives.mix.{size}={max(minimum, round(value * share))}")
    return changes
