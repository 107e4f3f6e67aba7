"""Looking at negatives: recording a run, studying a checkpoint, reporting runs side by side.

Data flow one way: a run's pools (``taps``) → ``statistics`` → ``recorder`` → ``records`` (Parquet),
or a checkpoint (``encoder``) → ``statistics`` → ``study`` (arrays); both → ``plots`` → ``report``.
"""
