"""Contrastive losses, fast and readable.

``compile`` turns a policy into what kernels need, ``dispatch`` chooses a backend. ``dense`` is the
readable reference; for the others, ``blockwise`` has a kernel reduce each block of queries to a few
numbers, from which ``formula`` makes the loss. A backend's library is imported when it is chosen.
"""
