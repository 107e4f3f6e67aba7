"""Runs side by side in one HTML page: ``history``, ``comparison``, ``tables`` → ``page``."""

from solo_hardneg.errors import require

require("report", "jinja2", "matplotlib", "pandas")
