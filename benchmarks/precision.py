"""Number formats, by Lightning's names for them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")


def training_precision() -> str:
    """That of whole trainings.

    ``32-true`` on a CPU: one without bfloat16 instructions convolves bfloat16 40 times slower.
    """
    return "bf16-mixed" if torch.cuda.is_available() else "32-true"


def tensor_dtype(precision: str) -> torch.dtype:
    """The format of tensors outside autocast."""
    return torch.bfloat16 if precision == "bf16-true" else torch.float32


def product_dtype(precision: str) -> torch.dtype:
    """The format of matrix products."""
    return torch.float32 if precision == "32-true" else torch.bfloat16


def dtype_label(precision: str) -> str:
    """The value of the CSVs' column ``dtype``."""
    name = str(tensor_dtype(precision)).removeprefix("torch.")
    return f"{name}, autocast to bfloat16" if precision == "bf16-mixed" else name


def autocast(precision: str) -> AbstractContextManager:
    """Autocast on the benchmarked device, if the precision is a mixed one."""
    if precision != "bf16-mixed":
        return nullcontext()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.autocast(device, dtype=torch.bfloat16)
