"""Number formats of a run, under Lightning's names for them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")


def dtype(precision: str) -> torch.dtype:
    """The format that tensors have outside autocast."""
    return torch.bfloat16 if precision == "bf16-true" else torch.float32


def product_dtype(precision: str) -> torch.dtype:
    """The format that matrix products are allowed to use."""
    return torch.float32 if precision == "32-true" else torch.bfloat16


def label(precision: str) -> str:
    """What the column ``dtype`` of a CSV says."""
    name = str(dtype(precision)).removeprefix("torch.")
    return f"{name}, autocast to bfloat16" if precision == "bf16-mixed" else name


def autocast(precision: str) -> AbstractContextManager:
    """Autocast on the benchmarked device, where the precision asks for it."""
    if precision != "bf16-mixed":
        return nullcontext()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.autocast(device, dtype=torch.bfloat16)
