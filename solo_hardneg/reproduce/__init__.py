"""The papers' tables, reproduced: ``solo-hardneg reproduce NAME``.

``experiment`` and ``scaling`` → ``grid`` (cells) → ``launch`` → ``worker`` and ``train`` (a process
per cell) → ``store`` (a file per result) → ``table`` and ``claims`` → ``render``.
"""

from solo_hardneg.errors import require

require("report", "filelock", "pandas")
