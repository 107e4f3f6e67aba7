"""Whatever stands in our part of a config inside solo-learn passes, or is one of our errors.

solo-learn parses the edited config first, as its ``main_pretrain.py`` does; what it doesn't take is
its own affair. Then our methods check what is theirs. As a script, with solo-learn importable, this
tries as many cases as its argument says, prints the first failing one, shrunk, or how they ended.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fuzz_strategies import cases, composed, edited
from hypothesis import HealthCheck, given, settings
from integration_helpers import PROJECT, run_python
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from solo_hardneg import plugin
from solo_hardneg.errors import HardnegError

OUR_GROUPS = ("negatives", "method_kwargs", "hardness", "backend", "momentum")
NAMES = ("mocov2_banded", "mocov2_sscl", "simclr_banded", "simclr_sscl", "labels")


@pytest.mark.full
@pytest.mark.host
def test_our_part_passes_or_is_refused(solo_learn: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog"):  # solo-learn counts the classes of data.train_path
        (tmp_path / name).mkdir()
    examples = settings.default.max_examples
    paths = (solo_learn, PROJECT, PROJECT / "tests")
    env = {"PYTHONPATH": ":".join(map(str, paths))}
    result = run_python(__file__, examples, cwd=tmp_path, env=env, timeout=3600).ok()
    counts = json.loads(result.out.strip().splitlines()[-1])
    assert set(counts) == {"passed", "refused", "refused by solo-learn"}
    # One that says no to everything would pass the rest, too.
    assert counts["passed"] > examples / 20
    assert counts["refused"] > examples / 4


def how_it_ends(name: str, edits: list[Any]) -> str:
    """``passed``, ``refused``, or ``refused by solo-learn``; raises anything else."""
    from solo.args.pretrain import parse_cfg
    from solo.methods import METHODS

    from solo_hardneg.analysis.settings import read_settings

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
        frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        own = [name for name in frames if "/solo_hardneg/" in name or "/solo/" in name]
        if own and "/solo/" in own[-1]:  # its code, not ours, is the one that fails
            return "refused by solo-learn"
        raise
    return "passed"


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
