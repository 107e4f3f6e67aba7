"""A rank that dies ends the run of solo-learn's script with an error; no other rank waits for it.

Most programs are started as by a cluster, so the other ranks must notice by themselves. Two are
started by Lightning, which also ends them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from integration_helpers import Result, environment
from many_processes import (
    BATCH,
    CLASSES,
    PER_CLASS,
    TESTS,
    Place,
    Program,
    dying,
    prepare,
    run_ranks,
)

pytestmark = [pytest.mark.full, pytest.mark.host, pytest.mark.timeout(900)]

SECONDS = 120
KILLED = -signal.SIGKILL
LOST = "Connection closed by peer|Connection reset by peer|Broken pipe"  # gloo's words
WORLD, STEP = 2, 13
# Method, and how a rank dies.
DEATHS: dict[str, tuple[str, dict[str, Any]]] = {
    "killed 0": ("mocov2_banded", {"rank": 0, "step": STEP}),
    "killed 1": ("simclr_banded", {"rank": 1, "step": STEP}),
    "fails": ("simclr_banded", {"rank": 1, "step": STEP, "error": True}),
    "killed before saving": ("mocov2_banded", {"rank": 0}),
    "killed in saving": ("mocov2_banded", {"rank": 1, "late": True}),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("dying")
    yield prepare(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def damaged(place: Place) -> Place:
    """The place, with a damaged image that rank 1 loads at step 6 of epoch 0."""
    images = Path(shutil.copytree(place.images, place.folder / "damaged"))
    seed = 5  # configs/common/run.yaml; PyTorch's sampler shuffles by seed + epoch
    order = torch.randperm(CLASSES * PER_CLASS, generator=torch.Generator().manual_seed(seed))
    number = order[1::WORLD][6 * BATCH // WORLD]
    sorted(images.rglob("*.png"))[number].write_text("no image")
    return replace(place, images=images)


@pytest.fixture(scope="module")
def ended(solo_learn: Path, place: Place, damaged: Place) -> dict[str, list[Result]]:
    """Results of each program's ranks."""
    programs = {
        name: Program(WORLD, [*place.arguments(method, WORLD), "negatives=all", *dying(**how)])
        for name, (method, how) in DEATHS.items()
    }
    arguments = [*damaged.arguments("mocov2_banded", WORLD), "negatives=all", *dying(rank=WORLD)]
    programs["damaged"] = Program(WORLD, arguments)
    return run_ranks(programs, solo_learn / "main_pretrain.py", place.folder, SECONDS)


@pytest.mark.parametrize("name", DEATHS)
def test_all_ranks_end_with_an_error(ended: dict[str, list[Result]], name: str) -> None:
    _, how = DEATHS[name]
    dead, other = ended[name][how["rank"]], ended[name][1 - how["rank"]]
    if how.get("error"):
        assert dead.code == 1, dead.text[-3000:]
        assert "ValueError: failed on purpose" in dead.text
    else:
        assert dead.code == KILLED, dead.text[-3000:]
    assert other.code == 1, other.text[-3000:]
    assert re.search(LOST, other.text)
    assert "failed on purpose" not in other.text


def test_damaged_image_on_one_rank_ends_all(
    ended: dict[str, list[Result]],
) -> None:
    other, dead = ended["damaged"]
    assert (dead.code, other.code) == (1, 1), dead.text[-3000:] + other.text[-3000:]
    assert "UnidentifiedImageError: cannot identify image file" in dead.text
    assert "UnidentifiedImageError" not in other.text
    assert re.search(LOST, other.text)


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_started_by_lightning(solo_learn: Path, place: Place, rank: int) -> None:
    """Rank 0 starts rank 1; no process stays behind, whichever is killed."""
    arguments = [
        *place.arguments("mocov2_banded", WORLD),
        "negatives=all",
        *dying(rank=rank, step=STEP),
    ]
    with subprocess.Popen(
        [sys.executable, solo_learn / "main_pretrain.py", *map(str, arguments)],
        cwd=place.folder,
        env=environment(PYTHONPATH=str(TESTS)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as program:
        try:
            text, _ = program.communicate(timeout=3 * SECONDS)  # until all have closed the pipe
            all_gone = wait_for_end(program.pid, SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
    assert all_gone
    # The end of rank 1 is noticed by gloo in rank 0, or by Lightning, which then kills rank 0.
    assert program.returncode in ([KILLED] if rank == 0 else [1, KILLED]), text[-3000:]
    assert re.search(f"{LOST}|terminated with code", text)


def wait_for_end(group: int, seconds: float) -> bool:
    """Whether all processes of a group end within that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False
