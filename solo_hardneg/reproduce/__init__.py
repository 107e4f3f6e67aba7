"""The papers' tables, run again: ``solo-hardneg reproduce NAME``.

One direction: ``experiment`` (a grid of rows, from ``configs/paper``) → ``cells`` (a row and a seed
with its two configs) → ``sweep`` (Hydra's multirun over those that have no result) → ``cell`` (the
process that trains and evaluates one) → ``results`` (a file each) → ``table`` and ``claims`` →
``page``.
"""
