"""``python -m solo_hardneg`` is the command ``solo-hardneg``."""

from solo_hardneg.cli import app

app(prog_name="solo-hardneg")
