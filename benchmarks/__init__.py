"""What solo-hardneg costs: ``python -m benchmarks --help``.

Machines are shared and noisy, so times are ratios to solo-learn's loss or step in the same round of
the same run. Each command writes rows with machine, versions and commit to a CSV beside this file.
"""

import time

STARTED = time.perf_counter()  # before torch is imported, which takes seconds
