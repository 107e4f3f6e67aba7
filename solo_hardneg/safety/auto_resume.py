"""Auto-resume in both hosts: finds the run to go on with, and says why others are left alone."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from solo_hardneg.analysis.untrusted import read_config, resolved
from solo_hardneg.distributed import gather_objects
from solo_hardneg.errors import CheckpointError, printable
from solo_hardneg.safety.reading import newest_checkpoint

# What must be equal for a run to be resumed by itself; the host's list.
SHOULD_MATCH = (
    "name",
    "backbone",
    "method",
    "data.dataset",
    "max_epochs",
    "optimizer.name",
    "optimizer.batch_size",
    "optimizer.lr",
    "optimizer.weight_decay",
    "wandb.project",
    "wandb.entity",
    "pretrained_feature_extractor",
)
_SHOWN = 10  # runs of this name that are listed with the reason
_found: Path | None = None  # what this process has found last


def find_checkpoint(
    folder: Path, cfg: DictConfig, max_hours: float, keys: Sequence[str] = SHOULD_MATCH
) -> tuple[Path | None, str | None]:
    """The newest checkpoint of a run like this one, and the run's wandb id.

    Prints which run is taken, and for other runs of this name why they aren't. Nothing in their
    ``args.json`` is resolved but references to the same file; what asks for more, as
    ``${oc.env:USER}``, must be the same text in this run's config.

    Args:
        folder: the runs lie somewhere below it.
        cfg: this run's parsed config.
        max_hours: age of the oldest checkpoint to consider.
        keys: what must be equal.
    """
    mine = {key: _mine(cfg, key) for key in keys}
    container: Any = OmegaConf.to_container(cfg)
    as_written = resolved(container)  # as this run's own args.json will be read
    allowed = {key: (mine[key], _select(as_written, key)) for key in keys}
    oldest = time.time() - max_hours * 3600
    matching: list[tuple[float, Path, str | None]] = []
    left: list[tuple[float, Path, str]] = []
    others = 0
    for args in folder.rglob("args.json"):
        try:
            newest = newest_checkpoint(args.parent)
            written = newest.stat().st_mtime if newest is not None and args.is_file() else None
        except OSError:  # another process has just removed it
            continue
        if newest is None or written is None:
            continue
        try:
            theirs = read_config(args)
        except (OSError, ValueError) as error:
            left.append((written, newest, f"its args.json can't be read ({_short(str(error))})"))
            continue
        found = {key: _select(theirs, key) for key in keys}
        if "name" in keys and found["name"] not in allowed["name"]:
            others += 1
            continue
        differing = [key for key in keys if found[key] not in allowed[key]]
        if differing:
            pairs = (f"{k} is {_short(found[k])} there, {_short(mine[k])} here" for k in differing)
            left.append((written, newest, "; ".join(pairs)))
        elif written < oldest:
            reason = f"its checkpoint is older than auto_resume.max_hours={max_hours:g}"
            left.append((written, newest, reason))
        else:
            wandb_id = theirs.get("wandb_run_id")
            matching.append((written, newest, wandb_id if isinstance(wandb_id, str) else None))
    chosen = max(matching, key=lambda run: run[0], default=None)
    _report(folder, None if chosen is None else chosen[1], len(matching), left, others)
    global _found
    _found = None if chosen is None else chosen[1]
    return (None, None) if chosen is None else chosen[1:]


def check_agreement() -> None:
    """Refuses a run that some processes would resume and others start, waiting for each other.

    All ranks must call it together, before Lightning loads a checkpoint.

    Raises:
        CheckpointError: :func:`find_checkpoint` has found one on some ranks only.
    """
    found = gather_objects(None if _found is None else str(_found))
    lacking = [rank for rank, path in enumerate(found) if path is None]
    if 0 < len(lacking) < len(found):
        path = next(path for path in found if path is not None)
        ranks = ", ".join(map(str, lacking[:8])) + (", ..." if len(lacking) > 8 else "")
        raise CheckpointError(
            f"auto_resume.enabled=True found {path}, but not on the ranks {ranks}. Set "
            "checkpoint.dir to a folder that all processes share."
        )


@rank_zero_only
def _report(
    folder: Path,
    chosen: Path | None,
    matching: int,
    left: list[tuple[float, Path, str]],
    others: int,
) -> None:
    """Prints which run is resumed, and why those of the same name aren't."""
    if chosen is not None:
        of = f", the newest of {matching} runs with these settings" if matching > 1 else ""
        print(f"auto_resume: {printable(chosen)} is resumed{of}.")
    for _, path, reason in sorted(left, reverse=True)[:_SHOWN]:
        print(f"auto_resume: {printable(path)} is left: {reason}.")
    if len(left) > _SHOWN:
        print(f"auto_resume: {len(left) - _SHOWN} older ones are left, too.")
    if chosen is None:
        named = f" ({others} of other names)" if others else ""
        place = printable(folder)
        print(f"auto_resume: no run to resume in {place}{named}; this one starts from scratch.")
    if chosen is None and left:
        do = "+resume_from_checkpoint=PATH, or the settings that it was trained with"
        print(f"To go on with one of them: {do}.")


def extend_solo_learn() -> None:
    """Lets solo-learn's auto-resume find runs by :func:`find_checkpoint`.

    Its own resolves what others' ``args.json`` refer to, ends with a traceback at a damaged one,
    and doesn't say why a run is left. Calling it again is harmless.
    """
    from solo.utils.auto_resumer import AutoResumer

    def find(self: Any, cfg: DictConfig) -> tuple[Path | None, str | None]:
        hours = self.max_hours.total_seconds() / 3600
        return find_checkpoint(Path(self.checkpoint_dir), cfg, hours, self.SHOULD_MATCH)

    AutoResumer.find_checkpoint = find


def _mine(cfg: DictConfig, key: str) -> Any:
    """This run's value; the host takes the word None for none."""
    value = OmegaConf.select(cfg, key)
    value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    return None if value == "None" else value


def _select(args: Mapping[str, Any], key: str) -> Any:
    value: Any = args
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return None if value == "None" else value


def _short(value: Any) -> str:
    text = printable(value if isinstance(value, str) else json.dumps(value, default=str))
    return text if len(text) <= 80 else f"{text[:77]}..."
