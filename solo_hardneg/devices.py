"""Where the CPU would have to wait for the device.

Operations on a GPU are enqueued. To read a value, or to make a result whose size depends on values
(``nonzero``), the CPU waits until everything enqueued is done. A training step never does that on a
GPU; on a CPU it saves work.
"""

from __future__ import annotations

from torch import Tensor


def reads_are_free(tensor: Tensor) -> bool:
    """Whether reading the tensor's values costs no wait."""
    return tensor.device.type == "cpu"
