"""Inside solo-learn, any value of our config keys passes or ends in a HardnegError.

solo-learn parses the edited config first and may refuse it; then our methods check their keys. As
a script, this tries ``argv[1]`` cases and prints the first failing one, or counts of the outcomes.
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
    for name in ("cat", "dog"):  # classes of data.train_path
        (tmp_path / name).mkdir()
    examples = settings.default.max_examples
    paths = (solo_learn, PROJECT, PROJECT / "tests")
    env = {"PYTHONPATH": ":".join(map(str, paths))}
    result = run_python(__file__, examples, cwd=tmp_path, env=env, timeout=3600).ok()
    counts = json.loads(result.out.strip().splitlines()[-1])
    assert set(counts) <= {"passed", "refused", "refused by solo-learn"}
    assert counts["passed"] > examples / 20
    assert counts["refused"] > examples / 4


def how_it_ends(name: str, edits: list[Any]) -> str:
    """Returns ``passed``, ``refused``, or ``refused by solo-learn``; raises other errors."""
    from solo.args.pretrain import parse_cfg
    from solo.methods import METHODS

    from solo_hardneg.recording.settings import read_hardness

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
        read_hardness(cfg)
    except HardnegError as error:
        return "refused" if str(error) else "refused without a word"
    except Exception as error:
        frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        own = [name for name in frames if "/solo_hardneg/" in name or "/solo/" in name]
        if own and "/solo/" in own[-1]:
            return "refused by solo-learn"
        raise
    return "passed"


def main(examples: int) -> None:
    """Tries ``examples`` cases and prints counts of the outcomes."""
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
