"""What all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings
from integration_helpers import NO_CHECKOUT, solo_learn_checkout

# How long an example takes says more of the machine than of the code.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


@pytest.fixture(scope="session")
def solo_learn() -> Path:
    """The checkout of solo-learn, which no test changes: outputs go to temporary folders."""
    checkout = solo_learn_checkout()
    if checkout is None:
        pytest.skip(NO_CHECKOUT)
    return checkout
