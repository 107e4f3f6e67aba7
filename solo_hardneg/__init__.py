"""Contrastive methods for solo-learn that choose, mix and weigh their negatives.

Importing this package imports nothing else: ``solo_hardneg.losses``, ``solo_hardneg.negatives``
and the rest are loaded when they are asked for.
"""

__version__ = "0.1.0"
