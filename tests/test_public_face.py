"""What ``import solo_hardneg`` offers."""

from __future__ import annotations

import pytest

import solo_hardneg
from solo_hardneg import losses, negatives


def test_its_names_are_those_of_their_modules() -> None:
    assert solo_hardneg.build_policy is negatives.build
    assert solo_hardneg.available_policies is negatives.available
    assert solo_hardneg.mocov2plus_loss_func is losses.mocov2plus_loss_func
    assert solo_hardneg.simclr_loss_func is losses.simclr_loss_func
    assert set(solo_hardneg.__all__) <= set(dir(solo_hardneg))


def test_other_names_are_unknown() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'build'"):
        _ = solo_hardneg.build
