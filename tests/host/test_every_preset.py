"""Every config composes inside solo-learn, and every preset trains there, in both families."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration_helpers import PROJECT, Images, Job, Result, run_in_one_process, run_python
from presets import MIXING, PRESETS, RUNS, WITH_A_QUEUE, small

pytestmark = [pytest.mark.full, pytest.mark.host]


@pytest.fixture(scope="module")
def runs(
    solo_learn: Path, images: Images, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Result]]:
    """Three steps of every preset with both families, and of the baselines, in one process."""
    folder = tmp_path_factory.mktemp("presets")
    few = [
        *("data=custom", *images.overrides(), "data.suggest.crop_size=32"),
        *("max_epochs=1", "method_kwargs.proj_output_dim=16", "checkpoint.enabled=False"),
    ]
    queue = "method_kwargs.queue_size=32"
    tiny = ["optimizer.batch_size=8", "method_kwargs.proj_hidden_dim=16"]
    others = {
        "mocov2_sscl": [*tiny, *MIXING, queue],
        "simclr_sscl": [*tiny, *MIXING],
        "byol": [*tiny, "method_kwargs.pred_hidden_dim=16"],
    }
    jobs = {f"{m} {preset}": ["--config-name", m, *few, *small(m, preset)] for m, preset in RUNS}
    jobs |= {method: ["--config-name", method, *few, *more] for method, more in others.items()}
    main = solo_learn / "main_pretrain.py"
    yield run_in_one_process(
        {name: Job(main, arguments) for name, arguments in jobs.items()}, cwd=folder, timeout=420
    )
    shutil.rmtree(folder)


@pytest.mark.parametrize(("method", "preset"), RUNS)
def test_every_preset_trains(runs: dict[str, Result], method: str, preset: str) -> None:
    result = runs[f"{method} {preset}"].ok()
    assert "3/3" in result.out  # the bar, after the last of three batches


@pytest.mark.parametrize("method", ["mocov2_sscl", "simclr_sscl", "byol"])
def test_every_other_method_trains_from_its_config(runs: dict[str, Result], method: str) -> None:
    assert "3/3" in runs[method].ok().out


def test_every_config_composes_and_parses(solo_learn: Path, images: Images) -> None:
    script = Path(__file__).with_name("walk_configs.py")
    result = run_python(
        *(script, PROJECT / "configs", images.train),
        cwd=solo_learn,
        env={"PYTHONPATH": str(solo_learn)},
    ).ok()
    found = json.loads(result.out.splitlines()[-1])
    assert len(found) == 8 * 6 + 4 * len(PRESETS)
    refused = {what: error for what, error in found.items() if error}
    # In SimCLR, what needs a queue; and nothing else.
    assert set(refused) == {
        f"simclr_{kind} negatives={preset} data=imagenet"
        for kind in ("banded", "sscl")
        for preset in WITH_A_QUEUE
    }
    for error in refused.values():
        assert re.match(r"ConfigError: negatives=.*needs a queue", error)
