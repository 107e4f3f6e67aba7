"""Mixing classes into those of a host's module."""

from __future__ import annotations

import pickle
import sys
from types import ModuleType

import pytest

from solo_hardneg.data.mixins import add_mixin


class Mixin:
    pass


class HostImages:
    """A dataset."""


def test_mixed_classes_can_be_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("a_host")
    monkeypatch.setitem(sys.modules, "a_host", module)
    module.Images = HostImages  # type: ignore[attr-defined]
    for _ in range(2):
        add_mixin(module, ["Images", "Missing"], Mixin)
    found = pickle.loads(pickle.dumps(module.Images()))
    assert type(found).__mro__ == (module.Images, Mixin, HostImages, object)
    assert found.__doc__ == "A dataset."
