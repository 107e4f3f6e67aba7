"""What a checkpoint says of the experiment it belongs to.

A host's auto-resume finds a run by its name and dataset, not by its negatives, and would go on
with another policy's weights. So our checkpoints say whose they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from solo_hardneg.errors import CheckpointError

KEY = "solo_hardneg"
VERSION = 1

Values = Mapping[str, Any]
_TIMES = {"from_epoch": 0.0, "until_epoch": None}  # what every verb has, in all versions
_UNKNOWN = object()


def write(checkpoint: dict[str, Any], identity: Values, defaults: Values) -> None:
    """Stores the identity and today's defaults in a checkpoint.

    Args:
        checkpoint: Checkpoint to add them to.
        identity: What must be equal for a run to go on from it, in plain values;
            ``negatives`` holds all arguments of each verb.
        defaults: Values that a later version can compare with its own: of keys of the identity,
            and under ``negatives`` those of each verb's arguments.
    """
    checkpoint[KEY] = {
        "version": VERSION,
        "identity": json.dumps(identity),
        "defaults": json.dumps(defaults, default=str),
    }


def verify(checkpoint: Values, identity: Values, defaults: Values) -> None:
    """Refuses a checkpoint that doesn't belong to this experiment.

    The checkpoint may be of another version. An argument that one of the two doesn't know must have
    its default in the other one. A default that has changed since keeps its old value in the
    checkpoint, so a run goes on from it by setting that value.

    Raises:
        CheckpointError: it has no identity, one of another format, or another one; the message
            names what differs and how to get on.
    """
    way_out = (
        "Start a run of its own with another name=, or with auto_resume.enabled=False and no "
        "resume_from_checkpoint; or set these keys as the checkpoint has them."
    )
    stored = checkpoint.get(KEY)
    if not isinstance(stored, Mapping) or "identity" not in stored:
        raise CheckpointError(
            "This checkpoint is not one of a solo-hardneg method: it does not say which policy its "
            f"queue and weights come from. {way_out}"
        )
    if stored.get("version") != VERSION:
        raise CheckpointError(
            f"This checkpoint was written in version {stored.get('version')} of its format, and "
            f"this is version {VERSION}. Use the release of solo-hardneg that wrote it."
        )
    there = json.loads(stored["identity"])
    were = json.loads(stored.get("defaults", "{}"))  # the first releases didn't store them
    here, are = (json.loads(json.dumps(part, default=str)) for part in (identity, defaults))
    differing = _differing(there, here, were, are)
    if differing:
        changed = _changed_defaults(*_policies(there, here, were, are))
        lines = "; ".join(
            changed
            if key == "negatives" and changed
            else f"{key}: {json.dumps(there.get(key))} there, {json.dumps(here.get(key))} here"
            for key in differing
        )
        raise CheckpointError(f"This checkpoint belongs to another policy ({lines}). {way_out}")


def _policies(*parts: Values) -> list[Values]:
    return [part.get("negatives", {}) for part in parts]


def _differing(there: Values, here: Values, were: Values, are: Values) -> list[str]:
    """Keys of two identities that differ, given the defaults of both."""
    found = [key for key in _unequal(there, here, were, are) if key != "negatives"]
    policies = _policies(there, here, were, are)
    same = list(policies[0]) == list(policies[1]) and not _unequal_arguments(*policies)
    return found if same else ["negatives", *found]


def _unequal_arguments(
    there: Values, here: Values, were: Values, are: Values
) -> list[tuple[str, str]]:
    """Verbs and arguments in which two policies of the same verbs differ."""
    return [
        (verb, name)
        for verb in here
        for name in _unequal(
            there[verb], here[verb], _TIMES | were.get(verb, {}), _TIMES | are.get(verb, {})
        )
    ]


def _changed_defaults(there: Values, here: Values, were: Values, are: Values) -> str:
    """What is said of policies that differ in nothing but defaults; empty for any others."""
    if list(there) != list(here):
        return ""
    lines = []
    for verb, name in _unequal_arguments(there, here, were, are):
        then, now = (part.get(verb, {}).get(name, _UNKNOWN) for part in (were, are))
        if there[verb].get(name) != then or here[verb].get(name) != now:
            return ""
        key, before = f"negatives.{verb}.{name}", json.dumps(then)
        lines.append(
            f"{key}: its default was {before} when this checkpoint was written, and is "
            f"{json.dumps(now)} now; set {key}={before}"
        )
    return "; ".join(lines)


def _unequal(there: Values, here: Values, were: Values, are: Values) -> list[str]:
    """Names of two mappings whose values differ; a missing one has its default.

    What one side doesn't know at all has the other side's default there.
    """
    then, now = {**were, **there}, {**are, **here}
    return [
        name
        for name in {**here, **there}
        if then.get(name, are.get(name, _UNKNOWN)) != now.get(name, were.get(name, _UNKNOWN))
    ]
