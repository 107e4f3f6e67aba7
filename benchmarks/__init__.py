"""What things cost: ``python -m benchmarks --help``.

Speeds are ratios to the host's loss (or step) in the same round of the same run, because machines
are shared and noisy. Each command writes its rows, with machine, versions and commit, to a CSV
beside this file; ``plots`` and ``table`` read those.
"""

import time

STARTED = time.perf_counter()  # before torch is imported, which takes seconds
