"""The papers' study of trained encoders: ``encoder`` → ``measure`` → ``figures`` → ``output``."""

from solo_hardneg.errors import require

require("report", "matplotlib", "pandas")
