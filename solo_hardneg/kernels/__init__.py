"""The losses of :mod:`solo_hardneg.losses`, fast, without ever holding N×M similarities.

Where data flows: a policy becomes a :mod:`plan`, :mod:`backends` chooses who follows it, and the
:mod:`driver` has a kernel reduce each block of queries to a few numbers, of which the readable
formula makes the loss. Libraries that a backend needs are imported when it is chosen.
"""

from solo_hardneg.kernels.work import loss_of, plan_work

__all__ = ["loss_of", "plan_work"]
