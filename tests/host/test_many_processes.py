"""solo-learn's own script with ``strategy=ddp``: two processes do what one does.

All ranks together take a step's images in the same order as one process, in float64: what is left
between their losses is rounding. In float32 that grows over 50 steps to a thousandth, because two
negatives that are about equally hard change places at the end of a band.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from integration_helpers import Result, run_python
from many_processes import (
    EPOCHS,
    QUEUE,
    STEPS,
    TESTS,
    Place,
    Program,
    prepare,
    run_ranks,
    watching,
)
from presets import small
from torch import Tensor

from solo_hardneg.analysis import records

pytestmark = [pytest.mark.full, pytest.mark.host, pytest.mark.timeout(900)]

RANKS = 2
CASES = [
    ("mocov2_banded", "drop_hardest_0.1_same_class"),
    ("mocov2_banded", "retain_hard"),
    ("simclr_banded", "sscl"),
]
MOCOS = [case for case in CASES if case[0].startswith("moco")]
# As users run it: in float32, mixing at random, both directions.
AS_USUAL = {"mocov2_banded": ["method_kwargs.symmetric=true"], "simclr_banded": []}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("many")
    yield prepare(folder)
    shutil.rmtree(folder)


def name_of(method: str, preset: str, world: int) -> str:
    return f"{method} {preset} {world}"


def arguments_of(method: str, preset: str) -> list[str]:
    """What chooses a preset, small enough."""
    sizes = ("method_kwargs.queue_size=", "optimizer.batch_size=")
    return [a for a in small(method, preset) if not a.startswith(sizes)]


def of_preset(place: Place, method: str, preset: str, world: int) -> Program:
    """A run of a preset with two processes, or one that does as they do."""
    file = place.folder / name_of(method, preset, world).replace(" ", "-")
    watched = watching(file, ranks=RANKS if world == 1 else 1)
    more = [
        *arguments_of(method, preset),
        "precision=64-true",
        "checkpoint.enabled=False",
        *watched,
    ]
    return Program(world, place.arguments(method, world, *more))


@pytest.fixture(scope="module")
def ended(solo_learn: Path, place: Place) -> dict[str, list[Result]]:
    """How all programs ended, rank by rank."""
    programs = {
        name_of(*run, world): of_preset(place, *run, world)
        for world in (1, RANKS)  # one process each, which take turns, at first
        for run in CASES
    }
    for method, more in AS_USUAL.items():
        watched = watching(place.folder / f"{method}-as-usual", identical=False)
        more = [*more, *arguments_of(method, "mochi"), "checkpoint.enabled=False", *watched]
        programs[f"{method} as usual"] = Program(2, place.arguments(method, 2, *more))
    return run_ranks(programs, solo_learn / "main_pretrain.py", place.folder)


def seen(place: Place, ended: dict[str, list[Result]], name: str) -> list[dict[str, Any]]:
    """What the ranks of a program saw."""
    for result in ended[name]:
        result.ok()
    stem = name.replace(" ", "-")
    files = [place.folder / f"{stem}-rank{rank}.pt" for rank in range(len(ended[name]))]
    return [torch.load(file, weights_only=True) for file in files]


def mean_loss(ranks: list[dict[str, Any]]) -> Tensor:
    """(steps,) of all ranks."""
    return torch.tensor([rank["losses"] for rank in ranks], dtype=torch.float64).mean(dim=0)


@pytest.mark.parametrize(("method", "preset"), CASES)
def test_the_loss_is_that_of_one_process(
    place: Place, ended: dict[str, list[Result]], method: str, preset: str
) -> None:
    look = functools.partial(seen, place, ended)
    (alone,) = look(name_of(method, preset, 1))
    ranks = look(name_of(method, preset, RANKS))
    for step in range(STEPS):
        together = torch.cat([rank["indexes"][step] for rank in ranks])
        assert torch.equal(together, alone["indexes"][step])
    expected = mean_loss([alone])
    assert len(expected) == STEPS == 50
    torch.testing.assert_close(mean_loss(ranks), expected, rtol=1e-10, atol=0)
    assert len(set(expected.tolist())) == STEPS
    assert (expected - expected.mean()).abs().max() > 0.1  # it does train


@pytest.mark.parametrize(("method", "preset"), MOCOS)
def test_the_queues_are_equal_and_those_of_one_process(
    place: Place, ended: dict[str, list[Result]], method: str, preset: str
) -> None:
    look = functools.partial(seen, place, ended)
    (alone,) = look(name_of(method, preset, 1))
    ranks = look(name_of(method, preset, RANKS))
    check_equal_queues(ranks)
    for buffer, expected in alone["queue"].items():
        exact = not expected.is_floating_point()
        tolerance = 0 if exact else 1e-9
        found = ranks[0]["queue"][buffer]
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def check_equal_queues(ranks: list[dict[str, Any]]) -> None:
    """After each step, and in the end."""
    assert len(ranks[0]["digests"]) == STEPS
    assert len(set(ranks[0]["digests"])) == STEPS
    first = ranks[0]["queue"]
    assert {"queue", "queue_labels", "queue_indexes", "queue_ptr"} <= first.keys()
    assert first["queue_filled"].item() == first["queue"].shape[2] >= QUEUE
    for rank in ranks:
        assert rank["digests"] == ranks[0]["digests"]
        assert all(torch.equal(value, first[name]) for name, value in rank["queue"].items())


def test_drawn_at_random_in_float32_queues_are_equal_and_losses_finite(
    place: Place, ended: dict[str, list[Result]]
) -> None:
    ranks = seen(place, ended, "mocov2_banded as usual")
    check_equal_queues(ranks)
    assert ranks[0]["queue"]["queue"].dtype == torch.float32
    for method in AS_USUAL:
        losses = mean_loss(seen(place, ended, f"{method} as usual"))
        assert losses.shape == (STEPS,)
        assert losses.isfinite().all()


def test_as_users_start_it(solo_learn: Path, place: Place) -> None:
    """Lightning starts the other process: the same program, in which ours is registered anew."""
    folder = place.folder / "as_users"
    folder.mkdir()
    more = ["negatives=hardest_5", f"checkpoint.dir={folder}", *watching(folder / "seen")]
    more += ["hardness.enabled=true", "hardness.every_n_steps=1"]
    result = run_python(
        *(solo_learn / "main_pretrain.py", *place.arguments("mocov2_banded", 2, *more)),
        cwd=folder,
        env={"PYTHONPATH": str(TESTS)},
        timeout=360,
    ).ok()
    ranks = [torch.load(folder / f"seen-rank{r}.pt", weights_only=True) for r in range(2)]
    check_equal_queues(ranks)
    assert result.text.count("Backend of the loss:") == 1
    (checkpoint,) = folder.rglob("*.ckpt")
    # solo-learn's processes make up a folder each; the records are in that of the checkpoint.
    (recorded,) = folder.rglob("hardness")
    assert recorded.parent == checkpoint.parent
    assert {*records.read(recorded).table["rank"]} == {0, 1}
    state = torch.load(checkpoint, weights_only=True)
    assert state["global_step"] == STEPS
    assert state["epoch"] == EPOCHS - 1
    assert len(state["solo_hardneg_rng"]) == 2
    assert torch.equal(state["state_dict"]["queue"], ranks[1]["queue"]["queue"])
