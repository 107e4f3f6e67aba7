"""Classes that stand in a host's module in the place of its own can be pickled."""

from __future__ import annotations

import pickle
import sys
from types import ModuleType

import pytest

from solo_hardneg.data.mixed import mix_into


class Mixin:
    pass


class HostImages:
    """A dataset."""


def test_it_can_be_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("a_host")
    monkeypatch.setitem(sys.modules, "a_host", module)
    module.Images = HostImages  # type: ignore[attr-defined]
    for _ in range(2):
        mix_into(module, ["Images", "Missing"], Mixin)
    found = pickle.loads(pickle.dumps(module.Images()))
    assert type(found).__mro__ == (module.Images, Mixin, HostImages, object)
    assert found.__doc__ == "A dataset."
