"""Composes and parses every config, dataset and preset in one process of solo-learn.

Run in its checkout: ``python walk_configs.py CONFIGS FOLDER``; the folder replaces all datasets.
Prints a JSON mapping from each case to its error or ``null``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from solo.args.linear import parse_cfg as parse_linear
from solo.args.pretrain import parse_cfg as parse_pretrain
from solo.methods import METHODS

from solo_hardneg.runner import config_names


def names(folder: Path) -> list[str]:
    """Names of the configs in a folder."""
    return sorted(file.stem for file in folder.glob("*.yaml"))


def parse(name: str, overrides: list[str]) -> DictConfig:
    """Composes and parses a config as ``main_pretrain.py`` or ``main_linear.py``."""
    cfg = compose(name, overrides)
    OmegaConf.set_struct(cfg, False)
    if name == "linear":
        return parse_linear(cfg)
    cfg = parse_pretrain(cfg)
    return METHODS[cfg.method].add_and_assert_specific_cfg(cfg)


def main(configs: Path, images: str) -> None:
    """Parses all configs and prints the errors."""
    paths = [f"data.train_path={images}", f"data.val_path={images}"]
    paths.append("pretrained_feature_extractor=none.ckpt")
    datasets = [name for name in names(configs / "data") if name != "digits"]
    jobs = [(name, ["data=cifar10"]) for name in config_names()]
    jobs += [("mocov2_banded", [f"data={data}"]) for data in datasets]
    for name in ("mocov2_banded", "simclr_banded"):
        for preset in names(configs / "negatives"):
            jobs.append((name, [f"negatives={preset}", "data=imagenet"]))
    found = {}
    for name, overrides in jobs:
        used = paths if name == "linear" else paths[:2]
        try:
            parse(name, [*overrides, *used])
            error = None
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        found[" ".join([name, *overrides])] = error
    print(json.dumps(found))


if __name__ == "__main__":
    # A folder without configs, as in solo-learn's own programs.
    with initialize_config_dir(sys.argv[2], version_base="1.2"):
        main(Path(sys.argv[1]), sys.argv[2])
