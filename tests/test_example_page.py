"""The worked example in ``docs``: all commands of the page, in order and with few steps."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from integration_helpers import PROJECT, environment, run_python

from solo_hardneg.reproduce.experiment import load_experiment, load_scale
from solo_hardneg.reproduce.grid import make_cells
from solo_hardneg.reproduce.overrides import sort_overrides

SHORTER = "++limit_train_batches=3 ++limit_val_batches=1 +linear.limit_train_batches=3"
PAGE = PROJECT / "docs" / "is_it_the_hard_negatives.md"


def blocks(*languages: str) -> list[tuple[str, str]]:
    """Returns the page's code blocks as (language, code)."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [(language, code) for language, code in found if language in languages]


def test_the_experiment_on_the_page_can_be_loaded(tmp_path: Path) -> None:
    [(_, text)] = blocks("yaml")
    (tmp_path / "mine.yaml").write_text(text)
    mine = load_experiment(str(tmp_path / "mine.yaml"))
    rows, scale, user = mine.select_rows([]), load_scale("paper"), sort_overrides([])
    cells = make_cells(mine, scale, rows, range(3), user, images=1000)
    assert len(cells) == 9


@pytest.mark.full
@pytest.mark.timeout(900)
def test_the_page_runs_from_pretraining_to_the_report(tmp_path: Path) -> None:
    # The tests' environment comes first in PATH.
    path = os.pathsep.join([str(Path(sys.executable).parent), environment()["PATH"]])
    env = {"PATH": path, "SOLO_HARDNEG_HOST": "standalone"}
    env |= {"HF_HUB_OFFLINE": "0", "NLTK_DATA": "nowhere"}  # a user's, not the tests'
    start = "import subprocess, sys; sys.exit(subprocess.call(['bash', '-ec', sys.argv[1]]))"
    printed = ""
    for language, code in blocks("bash", "python"):
        if "solo-hardneg reproduce" in code:
            code = f"{code.rstrip()} {SHORTER}\n"
        command = [code] if language == "python" else [start, code]
        printed += run_python("-c", *command, cwd=tmp_path, env=env, timeout=600).ok().out
    assert "To be run: all-seed0, hardest_5-seed0, easiest_95-seed0" in printed
    assert re.search(r"hardest_5: [\d.]+ ± [\d.]+ %, in the paper 66\.7 %", printed)
    assert re.search(r"softmax mass of the hardest 5 %: \d+%", printed)
    table = pd.read_csv(tmp_path / "reproduced/cai_figure2-digits-minute/table.csv")
    seeds = table.drop_duplicates("row").set_index("row").seeds
    assert seeds.loc[["all", "hardest_5", "easiest_95"]].eq(2).all()
    report = (tmp_path / "report" / "report.html").read_text()
    for group in ("MoCo v2: all", "MoCo v2: hardest_5", "MoCo v2: easiest_95"):
        assert group in report
