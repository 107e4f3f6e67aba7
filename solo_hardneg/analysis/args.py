"""The config that a run wrote into its ``args.json``: the references in it are filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

_FOREIGN = re.compile(r"\$\{(?!oc\.select:)[^}]*?:")  # a resolver other than this one


def resolved(args: Mapping[str, Any]) -> dict[str, Any]:
    """The config with its references filled in, which solo-learn writes as they stand.

    Only references to the config itself: no other's ``args.json`` shall read this machine's
    environment into a report. Where they can't be filled in, they stay.
    """
    if _FOREIGN.search(json.dumps(args)):
        return dict(args)
    try:
        plain: Any = OmegaConf.to_container(OmegaConf.create(dict(args)), resolve=True)
    except (OmegaConfBaseException, ValueError):
        return dict(args)
    return plain
