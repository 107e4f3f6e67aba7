"""Fuzzing inside solo-learn: ``python fuzz_in_solo_learn.py EXAMPLES``, with solo-learn importable.

solo-learn parses the edited config first, as its ``main_pretrain.py`` does; what it doesn't take is
its own affair. Then our methods check what is theirs: that passes, or is one of our errors. The
first failing case is printed, shrunk; otherwise the last line says in JSON how the cases ended.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from fuzz_strategies import cases, composed, edited
from hypothesis import HealthCheck, given, settings
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from solo_hardneg import plugin
from solo_hardneg.analysis.settings import read_settings
from solo_hardneg.errors import HardnegError

OUR_GROUPS = ("negatives", "method_kwargs", "hardness", "backend", "momentum")
NAMES = ("mocov2_banded", "mocov2_sscl", "simclr_banded", "simclr_sscl", "labels")


def how_it_ends(name: str, edits: list[Any]) -> str:
    """``passed``, ``refused``, or ``refused by solo-learn``; raises anything else."""
    from solo.args.pretrain import parse_cfg
    from solo.methods import METHODS

    overrides = [("set", "data.dataset", "custom"), ("set", "data.train_path", str(Path.cwd()))]
    config = edited(edited(composed(name), edits), [*overrides, ("set", "data.val_path", None)])
    config["optimizer"]["classifier_lr"] = 0.1
    try:
        cfg = OmegaConf.create(config)
        OmegaConf.set_struct(cfg, False)
        cfg = parse_cfg(cfg)
    except (OmegaConfBaseException, AssertionError, AttributeError, TypeError, ValueError):
        return "refused by solo-learn"
    try:
        cfg = METHODS[cfg.method].add_and_assert_specific_cfg(cfg)
        read_settings(cfg)
    except HardnegError as error:
        return "refused" if str(error) else "refused without a word"
    except Exception as error:
        if _is_of_solo_learn(error):
            return "refused by solo-learn"
        raise
    return "passed"


def _is_of_solo_learn(error: Exception) -> bool:
    """Whether solo-learn's code, not ours, is the one that fails, or that asks who fails."""
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    own = [name for name in frames if "/solo_hardneg/" in name or "/solo/" in name]
    return bool(own) and "/solo/" in own[-1]


def main(examples: int) -> None:
    """Tries so many cases."""
    plugin.register()
    counts: Counter[str] = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases(*NAMES, groups=OUR_GROUPS))
    def try_one(case: Any) -> None:
        counts[how_it_ends(*case)] += 1

    try_one()
    print(json.dumps(counts))


if __name__ == "__main__":
    main(int(sys.argv[1]))
