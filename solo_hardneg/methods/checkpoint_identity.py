"""The experiment that a checkpoint belongs to.

A host's auto-resume matches a run's name and dataset but not its negatives, so it would resume
another policy's checkpoint. Our checkpoints store an identity, and refuse any other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from solo_hardneg.errors import CheckpointError

KEY = "solo_hardneg"
VERSION = 1

Values = Mapping[str, Any]
_TIMES = {"from_epoch": 0.0, "until_epoch": None}  # arguments of every verb, in all versions
_UNKNOWN = object()
_REMEDY = (
    "Start a new run with another name=, or with auto_resume.enabled=False and no "
    "resume_from_checkpoint; or set these keys as in the checkpoint."
)


def store_identity(checkpoint: dict[str, Any], identity: Values, defaults: Values) -> None:
    """Stores the identity and the current defaults in a checkpoint.

    Args:
        checkpoint: Checkpoint to add them to.
        identity: Plain values that must be equal to resume; ``negatives`` holds all arguments of
            each verb.
        defaults: Defaults of keys of the identity, and under ``negatives`` of each verb's
            arguments, for comparison in a later version.
    """
    checkpoint[KEY] = {
        "version": VERSION,
        "identity": json.dumps(identity),
        "defaults": json.dumps(defaults, default=str),
    }


def check_identity(checkpoint: Values, identity: Values, defaults: Values) -> None:
    """Refuses a checkpoint of another experiment.

    The checkpoint may be from another version. An argument unknown to one of the two versions must
    have its default in the other. A default that has changed since keeps its old value in the
    checkpoint, so setting that value resumes the run.

    Raises:
        CheckpointError: The identity is missing, of another format, or differs; the message names
            what differs and the remedy.
    """
    stored = checkpoint.get(KEY)
    if not isinstance(stored, Mapping) or "identity" not in stored:
        raise CheckpointError(
            "This checkpoint is not one of a solo-hardneg method: it does not store the policy of "
            f"its queue and weights. {_REMEDY}"
        )
    if stored.get("version") != VERSION:
        raise CheckpointError(
            f"This checkpoint has version {stored.get('version')} of the format, and this is "
            f"version {VERSION}. Use the release of solo-hardneg that wrote it."
        )
    there = json.loads(stored["identity"])
    old_defaults = json.loads(stored.get("defaults", "{}"))  # absent in the first releases
    here, new_defaults = (json.loads(json.dumps(v, default=str)) for v in (identity, defaults))
    parts = (there, here, old_defaults, new_defaults)
    differing = [key for key in _differing_names(*parts) if key != "negatives"]
    texts = [
        _policy_difference(*(part.get("negatives", {}) for part in parts)),
        *(_show_pair(key, there.get(key), here.get(key)) for key in differing),
    ]
    if any(texts):
        found = "; ".join(text for text in texts if text)
        raise CheckpointError(f"This checkpoint belongs to another policy ({found}). {_REMEDY}")


def _policy_difference(
    there: Values, here: Values, old_defaults: Values, new_defaults: Values
) -> str:
    """Describes how two policies differ; empty if they are equal.

    If only defaults differ, names each, with the value that restores it.
    """
    whole = _show_pair("negatives", there, here)
    if list(there) != list(here):
        return whole
    texts = []
    for verb in here:
        old, new = (_TIMES | part.get(verb, {}) for part in (old_defaults, new_defaults))
        for name in _differing_names(there[verb], here[verb], old, new):
            then, now = old.get(name, _UNKNOWN), new.get(name, _UNKNOWN)
            if there[verb].get(name) != then or here[verb].get(name) != now:
                return whole
            key, before = f"negatives.{verb}.{name}", json.dumps(then)
            texts.append(
                f"{key}: its default was {before} when this checkpoint was written, and is "
                f"{json.dumps(now)} now; set {key}={before}"
            )
    return "; ".join(texts)


def _differing_names(
    there: Values, here: Values, old_defaults: Values, new_defaults: Values
) -> list[str]:
    """Names whose values differ; a missing value is that side's default, or else the other's."""
    then, now = {**old_defaults, **there}, {**new_defaults, **here}
    return [
        name
        for name in {**here, **there}
        if then.get(name, new_defaults.get(name, _UNKNOWN))
        != now.get(name, old_defaults.get(name, _UNKNOWN))
    ]


def _show_pair(key: str, there: Any, here: Any) -> str:
    return f"{key}: {json.dumps(there)} there, {json.dumps(here)} here"
