"""Runs of days that nothing breaks: checkpoints that are whole, and signals that save.

:mod:`.checkpoint_io` writes and reads checkpoints, :mod:`.reading` knows what is in them and which
others there are, :mod:`.stopping` ends a run. All three work in both hosts.
"""
