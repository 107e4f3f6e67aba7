"""The exponentials of negatives: those of hidden ones are exactly 0."""

from __future__ import annotations

import math

import pytest
import torch

from solo_hardneg.kernels.chunked import exponentials


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exponentials(dtype: torch.dtype) -> None:
    logits = torch.tensor([0.0, -1.0, -78.0, -79.5, -90.0, -1e9, -math.inf, math.nan], dtype=dtype)
    # Twice, for vectors of eight and for what remains of them are computed apart.
    found = exponentials(torch.cat([logits, logits[:5]]))
    torch.testing.assert_close(found[:3], logits[:3].exp())
    assert (found[3:7] == 0).all()
    assert found[7].isnan()
    assert found[8:].tolist() == found[:5].tolist()
