"""Auto-resume in both hosts: finds the run to resume, and reports why others were skipped."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from solo_hardneg.distributed import gather_objects
from solo_hardneg.errors import CheckpointError, printable
from solo_hardneg.files import read_config, resolved
from solo_hardneg.models.checkpoints import newest_checkpoint

# Keys whose values must be equal for a run to be resumed; the host's list.
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
_LISTED = 10  # skipped runs that are printed
_OTHER_NAME = "it has another name"

_found: Path | None = None  # result of the last search in this process


class _Run(NamedTuple):
    """A run with a checkpoint; ``mismatch`` is the reason not to resume it."""

    written: float
    checkpoint: Path
    wandb_id: str | None
    mismatch: str | None


def find_checkpoint(
    folder: Path, cfg: DictConfig, max_hours: float, keys: Sequence[str] = SHOULD_MATCH
) -> tuple[Path | None, str | None]:
    """Returns the newest checkpoint of a matching run and the run's wandb id.

    Prints the choice, and why other runs of this name were skipped. In another run's ``args.json``
    only references to the same file are resolved; any other, such as ``${oc.env:USER}``, must be
    the same text in this run's config.

    Args:
        folder: Searched recursively.
        cfg: This run's parsed config.
        max_hours: Older checkpoints are skipped.
        keys: Keys that must be equal.
    """
    global _found
    accepted = _accepted_values(cfg, keys)
    found = [_examine(args, accepted, max_hours) for args in folder.rglob("args.json")]
    runs = sorted((run for run in found if run is not None), key=lambda run: run.written)
    matching = [run for run in runs if run.mismatch is None]
    skipped = [run for run in runs if run.mismatch not in (None, _OTHER_NAME)]
    chosen = matching[-1] if matching else None
    if chosen is not None:
        among = f", the newest of {len(matching)} matching runs" if len(matching) > 1 else ""
        _log(f"resuming {printable(chosen.checkpoint)}{among}.")
    for run in skipped[::-1][:_LISTED]:
        _log(f"skipped {printable(run.checkpoint)}: {run.mismatch}.")
    if len(skipped) > _LISTED:
        _log(f"skipped {len(skipped) - _LISTED} older ones.")
    if chosen is None:
        others = sum(run.mismatch == _OTHER_NAME for run in runs)
        named = f" ({others} of other names)" if others else ""
        _log(f"no run to resume in {printable(folder)}{named}; starting from scratch.")
        if skipped:
            _log("to resume one of them, use its settings or +resume_from_checkpoint=PATH.")
    _found = chosen.checkpoint if chosen else None
    return (chosen.checkpoint, chosen.wandb_id) if chosen else (None, None)


def _examine(args: Path, accepted: Mapping[str, Sequence[Any]], max_hours: float) -> _Run | None:
    """Compares the run of an ``args.json`` with this one; ``None`` if it has no checkpoint."""
    try:
        newest = newest_checkpoint(args.parent)
        if newest is None or not args.is_file():
            return None
        written = newest.stat().st_mtime
    except OSError:  # another process has just removed it
        return None
    try:
        config = read_config(args)
    except (OSError, ValueError) as error:
        return _Run(written, newest, None, f"its args.json can't be read ({_shorten(str(error))})")
    values = {key: _value_at(config, key) for key in accepted}
    differing = [key for key, value in values.items() if value not in accepted[key]]
    mismatch: str | None = None
    if "name" in differing:
        mismatch = _OTHER_NAME
    elif differing:
        mismatch = "; ".join(
            f"{key} is {_shorten(values[key])} there, {_shorten(accepted[key][0])} here"
            for key in differing
        )
    elif written < time.time() - max_hours * 3600:
        mismatch = f"its checkpoint is older than auto_resume.max_hours={max_hours:g}"
    wandb_id = config.get("wandb_run_id")
    return _Run(written, newest, wandb_id if isinstance(wandb_id, str) else None, mismatch)


def _accepted_values(cfg: DictConfig, keys: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """This run's value of each key: resolved, and as its own ``args.json`` will be read."""
    unresolved: Any = OmegaConf.to_container(cfg)
    as_written = resolved(unresolved)
    accepted = {}
    for key in keys:
        value = OmegaConf.select(cfg, key)
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True)
        accepted[key] = (None if value == "None" else value, _value_at(as_written, key))
    return accepted


def _value_at(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; solo-learn writes the word None for no value."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return None if value == "None" else value


def _shorten(value: Any) -> str:
    text = printable(value if isinstance(value, str) else json.dumps(value, default=str))
    return text if len(text) <= 80 else f"{text[:77]}..."


@rank_zero_only
def _log(text: str) -> None:
    print(f"auto_resume: {text}")


def check_agreement() -> None:
    """Refuses a run that some ranks would resume and others start anew, which would deadlock.

    All ranks must call it together, before Lightning loads a checkpoint.

    Raises:
        CheckpointError: :func:`find_checkpoint` found a checkpoint on some ranks only.
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


def replace_solo_learn_search() -> None:
    """Makes solo-learn's auto-resume search with :func:`find_checkpoint`; idempotent.

    solo-learn's own search resolves references in other users' ``args.json``, fails with a
    traceback at a damaged one, and doesn't report why a run was skipped.
    """
    from solo.utils.auto_resumer import AutoResumer

    def find(self: Any, cfg: DictConfig) -> tuple[Path | None, str | None]:
        hours = self.max_hours.total_seconds() / 3600
        return find_checkpoint(Path(self.checkpoint_dir), cfg, hours, self.SHOULD_MATCH)

    AutoResumer.find_checkpoint = find
