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


def write(checkpoint: dict[str, Any], identity: Mapping[str, Any]) -> None:
    """Puts the identity (plain values only) into a checkpoint."""
    checkpoint[KEY] = {"version": VERSION, "identity": json.dumps(identity)}


def verify(checkpoint: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuses a checkpoint that doesn't belong to this experiment.

    Raises:
        CheckpointError: it has no identity, one of another version, or another one; the message
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
    found = json.loads(stored["identity"])
    # As text, because the order of the verbs counts, and dictionaries are equal in any order.
    texts = {
        k: (json.dumps(found.get(k)), json.dumps(identity.get(k))) for k in {**identity, **found}
    }
    differing = {k: pair for k, pair in texts.items() if pair[0] != pair[1]}
    if differing:
        lines = "; ".join(f"{k}: {a} there, {b} here" for k, (a, b) in differing.items())
        raise CheckpointError(f"This checkpoint belongs to another policy ({lines}). {way_out}")
