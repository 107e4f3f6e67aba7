"""From the config to a policy: an ordered mapping of verbs becomes one callable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import OmegaConf

from solo_hardneg.errors import ConfigError
from solo_hardneg.negatives.band import EmptyBandError
from solo_hardneg.negatives.pool import Pool, full_pool
from solo_hardneg.negatives.registry import Transform, arguments_of, available, create


class Policy:
    """What is done to the negatives: verbs, applied from top to bottom.

    Attributes:
        config: the mapping that it was built from, defaults filled in and numbers as floats:
            equal policies have equal configs, in the same order.
        needs: what it needs beside the similarities: any of ``labels``, ``indexes``, ``queue``.
        reserve: how much longer than K the queue must be, as a share of K.
    """

    def __init__(self, verbs: Mapping[str, Transform], config: Mapping[str, Any]):
        self.verbs = dict(verbs)
        self.config = dict(config)
        self.needs = frozenset().union(*(_needs(n, v) for n, v in self.verbs.items()))
        self.reserve = max((getattr(v, "reserve", 0.0) for v in self.verbs.values()), default=0.0)

    def __call__(self, pool: Pool) -> Pool:
        """Applies the verbs to a pool of negatives."""
        for verb in self.verbs.values():
            pool = verb(pool)
        return pool

    def check(self, count: int) -> None:
        """Tries the policy on one made-up query with ``count`` negatives.

        Raises:
            EmptyBandError: a band holds nothing, or all, of so many negatives.
        """
        # One class, one image for all but the first negative, so that no condition finds nothing.
        places = torch.arange(count)
        marks = (places > 0).long()
        self(
            full_pool(
                torch.linspace(-1, 1, count)[None, :],
                query_labels=torch.ones(1, dtype=torch.long),
                labels=marks,
                query_indexes=torch.ones(1, dtype=torch.long),
                indexes=marks,
                age=places,
            )
        )

    def fits(self, count: int) -> bool:
        """Whether every band holds something of ``count`` negatives."""
        try:
            self.check(count)
        except EmptyBandError:
            return False
        return True

    def __repr__(self) -> str:
        return f"Policy({json.dumps(self.config)})"


def build(config: Mapping[str, Any] | None) -> Policy:
    """Builds a policy from an ordered mapping verb → arguments.

    A verb whose arguments are ``null`` is left out, so that ``negatives.fill=null`` takes one out
    of a preset. An empty mapping, or ``None``, is the policy that leaves all negatives as they are.

    Example:
        >>> build({"keep": {"band": [0.95, 1.0]}}).needs
        frozenset()

    Raises:
        ConfigError: the mapping is none, or a verb or an argument of it can't be used.
    """
    plain = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    if plain is None:
        plain = {}
    if not isinstance(plain, Mapping):
        raise ConfigError(
            f"negatives={plain!r}: must be a mapping of policies to their arguments, such as "
            f"{{keep: {{band: [0.95, 1.0]}}}}. Known policies: {', '.join(available())}. A preset "
            "is chosen where the config is composed: negatives=hardest_5 on the command line."
        )
    settings = {str(k): arguments_of(str(k), v) for k, v in plain.items() if v is not None}
    verbs = {name: create(name, value) for name, value in settings.items()}
    _check_order(list(verbs))
    return Policy(verbs, _floats(settings))


def _check_order(names: list[str]) -> None:
    if "fill" not in names:
        return
    above = names[: names.index("fill")]
    if not {"keep", "drop"} & set(above):
        raise ConfigError(
            "negatives.fill stands above every keep and drop, and there is nothing to fill yet. "
            f"The verbs apply from top to bottom; here: {', '.join(names)}. Put fill below."
        )


def _needs(name: str, verb: Transform) -> frozenset[str]:
    registered = available()
    default = registered[name].needs if name in registered else frozenset()
    return frozenset(getattr(verb, "needs", default))


def _floats(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _floats(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_floats(v) for v in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value
