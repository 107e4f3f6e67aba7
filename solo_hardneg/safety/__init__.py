"""Whole checkpoints, and runs that save before they end; in both hosts.

``checkpoint_io`` writes and reads checkpoints, ``auto_resume`` finds the one to resume and
``resumed_settings`` applies changed settings to it; ``signals`` and ``limits`` end a run.
"""
