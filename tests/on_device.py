"""The device of the tests that want a GPU; SOLO_HARDNEG_TEST_DEVICE=cpu rehearses them."""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = os.environ.get("SOLO_HARDNEG_TEST_DEVICE", "cuda")
REHEARSAL = DEVICE == "cpu"
needs_device = pytest.mark.skipif(
    not REHEARSAL and not torch.cuda.is_available(), reason="no CUDA device"
)
