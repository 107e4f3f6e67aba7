"""A run of solo-learn's script resumes with another number of processes.

The global batch stays, so the losses equal those of the uninterrupted run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from integration_helpers import Result
from many_processes import EPOCHS, STEPS, Place, Program, prepare, run_ranks, watching

from solo_hardneg.recording import records

pytestmark = [pytest.mark.full, pytest.mark.host]

# Method, and number of processes before and after.
CHANGES = [("mocov2_banded", 2, 1), ("mocov2_banded", 1, 2)]
DONE = 2  # epochs before the change
MORE = [
    *("negatives=hardest_5", "precision=64-true", "+checkpoint.keep_prev=True"),
    *("hardness.enabled=True", "hardness.every_n_steps=1", "hardness.queries=4"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("other_number")
    yield prepare(folder)
    shutil.rmtree(folder)


def program(place: Place, name: str, method: str, world: int, *more: str) -> Program:
    """A run that writes checkpoints, records and losses to the folder ``name``."""
    folder = place.folder / name
    folder.mkdir(exist_ok=True)
    where = [f"checkpoint.dir={folder / 'runs'}", f"hardness.dir={folder / 'hardness'}"]
    watched = watching(folder / "seen")
    return Program(world, place.arguments(method, world, *MORE, *where, *watched, *more))


def resume_from(folder: Path) -> str:
    """The override that resumes the checkpoint before the change."""
    (checkpoint,) = folder.rglob(f"*ep={DONE - 1}.ckpt")
    return f"+resume_from_checkpoint='{checkpoint}'"


@pytest.fixture(scope="module")
def whole(solo_learn: Path, place: Place) -> None:
    """Uninterrupted runs in one and in two processes."""
    names = {f"{method}-{old}": (method, old) for method, old, _ in CHANGES}
    programs = {name: program(place, name, *run) for name, run in names.items()}
    for results in run_ranks(programs, solo_learn / "main_pretrain.py", place.folder).values():
        for result in results:
            result.ok()


@pytest.fixture(scope="module")
def ended(solo_learn: Path, place: Place, whole: None) -> dict[str, list[Result]]:
    """Results of the resumed runs."""
    programs = {}
    for method, old, new in CHANGES:
        name, begun = f"{method}-{old}-to-{new}", place.folder / f"{method}-{old}"
        shutil.copytree(begun / "hardness", place.folder / name / "hardness")
        programs[name] = program(place, name, method, new, resume_from(begun))
    begun = place.folder / "mocov2_banded-2"
    more = [resume_from(begun), "optimizer.batch_size=8"]
    programs["indivisible"] = program(place, "indivisible", "mocov2_banded", 3, *more)
    return run_ranks(programs, solo_learn / "main_pretrain.py", place.folder)


def losses(folder: Path, world: int) -> torch.Tensor:
    """(steps,) mean loss over the ranks."""
    seen = [torch.load(folder / f"seen-rank{r}.pt", weights_only=True) for r in range(world)]
    assert all(s["digests"] == seen[0]["digests"] for s in seen)
    return torch.tensor([s["losses"] for s in seen], dtype=torch.float64).mean(dim=0)


@pytest.mark.parametrize(("method", "old", "new"), CHANGES)
def test_losses_continue(
    place: Place, ended: dict[str, list[Result]], method: str, old: int, new: int
) -> None:
    for result in ended[f"{method}-{old}-to-{new}"]:
        result.ok()
    expected = losses(place.folder / f"{method}-{old}", old)
    found = losses(place.folder / f"{method}-{old}-to-{new}", new)
    before = DONE * STEPS // EPOCHS
    assert (len(expected), len(found)) == (STEPS, STEPS - before)
    # Lightning loads the checkpoint before it converts the module to float64, which rounds it.
    torch.testing.assert_close(found, expected[before:], rtol=1e-6, atol=0)
    assert (expected[before:] - expected[before]).abs().max() > 0.01


@pytest.mark.parametrize(("method", "old", "new"), CHANGES)
def test_warns_once_that_random_states_are_not_restored(
    ended: dict[str, list[Result]], method: str, old: int, new: int
) -> None:
    first, *others = [result.text for result in ended[f"{method}-{old}-to-{new}"]]
    processes = "1 process" if old == 1 else f"{old} processes"
    warning = (
        f"has the random states of {processes}, and this run has {new}: random numbers start anew"
    )
    assert first.count(warning) == 1
    assert not any("random states" in text for text in others)


@pytest.mark.parametrize(("method", "old", "new"), CHANGES)
def test_repeated_epochs_have_the_records_of_the_new_ranks(
    place: Place, ended: dict[str, list[Result]], method: str, old: int, new: int
) -> None:
    folder = place.folder / f"{method}-{old}-to-{new}" / "hardness"
    ranks = {epoch: old if epoch < DONE else new for epoch in range(EPOCHS)}
    assert sorted(file.name for file in folder.iterdir()) == [
        f"epoch0000{epoch}-rank{r}.parquet" for epoch in ranks for r in range(ranks[epoch])
    ]
    table = records.read_records(folder).table
    steps = table[table["quantity"] == "similarity"]
    per_epoch = steps.groupby("epoch")["rank"].nunique().to_dict()
    assert per_epoch == ranks


def test_queue_that_does_not_hold_whole_batches_is_refused(ended: dict[str, list[Result]]) -> None:
    for result in ended["indivisible"]:
        assert result.code == 1
        assert (
            "method_kwargs.queue_size=64: must be a multiple of the global batch of 24 images"
            in (result.text)
        )
