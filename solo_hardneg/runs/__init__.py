"""What lies in the folders of runs, and which runs are seeds of one experiment."""

from solo_hardneg.errors import require

require("report", "pandas")
