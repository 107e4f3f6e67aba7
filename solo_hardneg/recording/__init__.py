"""Records statistics of a run's negatives.

``probes`` → ``statistics`` → ``recorder`` → ``writer`` and ``records`` (Parquet).
"""
