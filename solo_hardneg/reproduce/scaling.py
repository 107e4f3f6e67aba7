"""How a scale changes the published settings, and what keeps its proportion to what was changed."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from solo_hardneg.reproduce.experiment import Scale
from solo_hardneg.reproduce.overrides import composed, unless_asked

# The sizes of ``mix`` are SSCL's, of a batch of 256 and a queue of 16,384 (sections 4.1.2 and 4.4).
MIX_BATCH, MIX_QUEUE = 256, 16384
_MIX_SIZES = {"hardest": 2, "pairs": 1, "queries": 1}  # and the least that each can be


def scaled(
    config: str, base: Sequence[str], asked: Sequence[str], scale: Scale, images: int
) -> tuple[DictConfig, list[str]]:
    """A config at a scale, and the overrides that the scale has made.

    Args:
        config: of pretraining, or ``linear``.
        base: the experiment's overrides.
        asked: the user's, which win; what isn't asked for keeps its proportion to them as well.
        scale: how much smaller.
        images: how many there are to train on.
    """
    published = composed(config, base)
    plain = composed(config, [*base, *asked])
    changes = unless_asked(asked, _smaller(plain, scale, images, config == "linear"))
    cfg = composed(config, [*base, *asked, *changes])
    changes += unless_asked(asked, _in_proportion(published, cfg))
    return composed(config, [*base, *asked, *changes]), changes


def _smaller(cfg: DictConfig, scale: Scale, images: int, linear: bool) -> list[str]:
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
    for key, most in (
        ("optimizer.batch_size", scale.batch_size),
        ("method_kwargs.queue_size", scale.queue_size),
    ):
        size = OmegaConf.select(cfg, key)
        if most is not None and size is not None and size > most:
            changes.append(f"{key}={most}")
    return changes


def _in_proportion(published: DictConfig, cfg: DictConfig) -> list[str]:
    """Warm-up and steps of decay follow the epochs; synthetic negatives the batch or the queue."""
    changes = []
    if cfg.max_epochs != published.max_epochs:
        ratio = cfg.max_epochs / published.max_epochs
        warmup = round(published.scheduler.warmup_epochs * ratio, 3)
        if warmup != cfg.scheduler.warmup_epochs:
            changes.append(f"scheduler.warmup_epochs={warmup:g}")
        if steps := published.scheduler.get("lr_decay_steps"):
            fewer = [max(1, round(step * ratio)) for step in steps]
            changes.append(f"++scheduler.lr_decay_steps={fewer}".replace(" ", ""))
    queue = OmegaConf.select(cfg, "method_kwargs.queue_size")
    if queue is not None:
        share = min(1.0, queue / MIX_QUEUE)
    else:
        share = min(1.0, cfg.optimizer.batch_size / MIX_BATCH)
    mix = OmegaConf.select(cfg, "negatives.mix") or {}
    for size, least in _MIX_SIZES.items():
        value = mix.get(size)
        if share < 1 and isinstance(value, int) and value > 0:
            changes.append(f"negatives.mix.{size}={max(least, round(value * share))}")
    return changes
