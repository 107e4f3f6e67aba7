"""The standalone host's main_pretrain.py; see the README."""

from solo_hardneg.runner import start

if __name__ == "__main__":
    start("pretrain")
