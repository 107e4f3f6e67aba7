"""Where the CPU would have to wait for the device, and need not.

Operations on a GPU are enqueued. To read a value, or to have a result whose size depends on values
(``nonzero``), the CPU waits until all that is enqueued is done, and then the GPU waits for the
CPU. So the path of a training step never does that on a GPU. On a CPU it saves work.
"""

from __future__ import annotations

from torch import Tensor


def is_free(tensor: Tensor) -> bool:
    """Whether reading values of a tensor costs no wait."""
    return tensor.device.type == "cpu"
