"""The config group ``hardness``: what is refused, and by which message."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from solo_hardneg.errors import ConfigError
from solo_hardneg.recording.settings import Hardness, read_hardness


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"queries": 0}, r"hardness\.queries=0: must be at least 1"),
        ({"every_n_steps": 1.5}, r"hardness\.every_n_steps=1\.5: must be a whole"),
        ({"percentiles": "many"}, r"hardness\.percentiles=many: must be a whole number"),
        ({"percentiles": 10_001}, r"hardness\.percentiles=10001: must be at most 10000"),
        ({"enabled": "yes-please"}, r"hardness\.enabled=yes-please: must be true or false"),
        ({"dir": None}, r"hardness\.dir=None: must be a word or a path"),
        ({"dir": ""}, r"hardness\.dir=: must be the name of a folder"),
        ({"dir": "x" * 256}, r"hardness\.dir=x+: must be the name of a folder"),
        ({"synsets": "nowhere.csv"}, r"hardness\.synsets=nowhere\.csv: is no such file"),
        ({"query": 3}, r"hardness: unknown setting 'query'\. Did you mean 'queries'"),
        (True, r"hardness=True: must hold several keys"),
    ],
)
def test_refused_values(group: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_hardness(OmegaConf.create({"hardness": group}))


def test_a_misspelt_group_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"hardnes: is not read by anything\. Did you mean"):
        read_hardness(OmegaConf.create({"hardnes": {"enabled": True}}))
    assert read_hardness(OmegaConf.create({"hardnes": {"other": 1}})) == Hardness()


def test_defaults_without_the_group() -> None:
    assert read_hardness(OmegaConf.create({"hardness": None})) == Hardness()
    assert not Hardness().enabled
