"""``python -m solo_hardneg`` is the command ``solo-hardneg``."""

from solo_hardneg.cli import app

if __name__ == "__main__":
    app(prog_name="solo-hardneg")
