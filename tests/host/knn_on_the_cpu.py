"""``solo-hardneg run main_knn.py`` on a machine without a GPU: ``knn_on_the_cpu.py ARGUMENTS``.

main_knn.py moves everything to a GPU, and its classifier passes torchmetrics an argument that newer
versions refuse.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torchmetrics

from solo_hardneg.cli import app

_init = torchmetrics.Metric.__init__


def _without_compute_on_step(self: Any, *args: Any, compute_on_step: Any = None, **kw: Any) -> None:
    _init(self, *args, **kw)


torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
torchmetrics.Metric.__init__ = _without_compute_on_step  # type: ignore[method-assign]
sys.argv[0] = "solo-hardneg"
app()
