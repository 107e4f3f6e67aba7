"""Under torch.distributed: the ranks together do what one process does with the whole batch."""

from __future__ import annotations

import functools
import multiprocessing
import os
import re
import signal
import time
from collections import Counter
from multiprocessing import connection
from pathlib import Path
from typing import Any

import distributed_workers as workers
import pytest
import torch
from distributed_losses import CASES, CUTS, IMAGES, rows, simclr_loss, weights_of_use
from distributed_workers import BATCH, QUEUE, STEPS, TRAININGS
from torch import Tensor

pytestmark = pytest.mark.full

MOCOS = [name for name, training in TRAININGS.items() if training.moco]
Ranks = list[dict[str, Any]]


class WorkerError(Exception):
    """A process of a distributed run failed or did not end."""


def start(
    work: workers.Work, world: int, folder: Path, seconds: float = 100
) -> list[dict[str, Any]]:
    """Runs ``work(rank, world)`` in as many processes; what each returned, by rank.

    Raises:
        WorkerError: one failed, or some are not done after ``seconds``; with their tracebacks.
    """
    context = multiprocessing.get_context("forkserver")
    # Imported once for all processes.
    context.set_forkserver_preload(["solo_hardneg.methods", "lightning.pytorch.strategies"])
    arguments = [(work, rank, world, folder, seconds) for rank in range(world)]
    processes = [context.Process(target=workers.run, args=a, daemon=True) for a in arguments]
    for process in processes:
        process.start()
    end = time.monotonic() + seconds
    try:
        while alive := [p for p in processes if p.exitcode is None]:
            left = end - time.monotonic()
            if left <= 0 or any(p.exitcode for p in processes):
                break
            connection.wait([p.sentinel for p in alive], left)
    finally:
        codes = [p.exitcode for p in processes]
        _end(processes)
    if any(code != 0 for code in codes):
        found = [*sorted(folder.glob("*.error")), *sorted(folder.glob("*.stacks"))]
        texts = [f"{file.name}:\n{file.read_text()}" for file in found if file.stat().st_size]
        raise WorkerError("\n".join([f"exit codes {codes} (None: did not end)", *texts]))
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world)]


def _end(processes: list[Any]) -> None:
    """Has those that still run write down where they are, and ends them."""
    running = [p for p in processes if p.exitcode is None]
    for process in running:
        os.kill(process.pid, signal.SIGUSR1)
    if running:
        time.sleep(0.5)
    for process in processes:
        process.kill()
        process.join()


@pytest.fixture(scope="module", params=[2, 4], ids=["two", "four"])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What each rank found; each number of processes is started once."""
    return start(workers.everything, request.param, tmp_path_factory.mktemp("ranks"))


def close(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def mean(ranks: Ranks, *path: Any) -> Tensor:
    return torch.stack(
        [functools.reduce(lambda part, key: part[key], path, r) for r in ranks]
    ).mean(0)


# ---------------------------------------------------------------- processes


def test_a_failing_process_fails_the_test_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="(?s)rank1.error:.*ValueError: no such luck"):
        start(workers.fails, 2, tmp_path)


def test_processes_that_wait_for_each_other_fail_the_test_and_say_where(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(WorkerError, match=r"(?s)\[None, None\].*rank0.stacks:.* in hangs"):
        start(workers.hangs, 2, tmp_path, seconds=3)
    assert time.monotonic() - began < 15


# ---------------------------------------------------------------- errors of one rank


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("nothing", ""),
        ("ours", r"ConfigError: Rank 1: a=1: too small"),
        ("on all", r"DataError: b=2: is not there"),
        ("synsets", r"ConfigError: Rank 1: hardness\.synsets=no-file: is no such file"),
        ("folder", r"ConfigError: Rank 1: hardness\.dir=.* holds the records of another run"),
        ("write", r"DataError: Rank 1: hardness\.dir=.*\(No space left on device\)\. Make room"),
        ("checkpoint", r"CheckpointError: Rank 1: resume_from_checkpoint=x: there is no such file"),
        (
            "auto_resume",
            r"CheckpointError: auto_resume\.enabled=True found .*x\.ckpt, but not on .* 0",
        ),
    ],
)
def test_an_error_of_one_rank_is_raised_on_all(ranks: Ranks, what: str, expected: str) -> None:
    (said,) = {found["errors"][what] for found in ranks}
    assert re.match(expected, said) if expected else said == ""


def test_a_bug_on_one_rank_keeps_its_traceback_there(ranks: Ranks) -> None:
    first, second, *_ = (found["errors"]["a bug"] for found in ranks)
    assert first == "HardnegError: Rank 1: ZeroDivisionError: 1/0"
    assert second == "ZeroDivisionError: 1/0"


# ---------------------------------------------------------------- SimCLR's loss


@functools.cache
def simclr_alone(case: str, dtype: torch.dtype) -> dict[str, Tensor]:
    return simclr_loss(case, dtype)


def gradients_of_the_mean(ranks: Ranks, *key: str) -> Tensor:
    """Of the ranks' mean loss, with respect to the rows in one process's order."""
    gradient = torch.zeros(2 * IMAGES, 6, dtype=torch.float64)
    for rank, found in enumerate(ranks):
        mine = rows(rank, len(ranks), IMAGES)
        gradient[mine] = found["simclr"][key]["gradient"].double() / len(ranks)
    return gradient


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("case", CASES)
def test_simclr_of_all_ranks_is_that_of_one_process(
    ranks: Ranks, case: str, dtype: torch.dtype, tolerance: float
) -> None:
    alone = simclr_alone(case, dtype)
    close(mean(ranks, "simclr", (case, str(dtype)), "loss"), alone["loss"], tolerance)
    close(gradients_of_the_mean(ranks, case, str(dtype)), alone["gradient"].double(), tolerance)


@pytest.mark.parametrize("case", CASES)
def test_in_blocks_too(ranks: Ranks, case: str) -> None:
    alone = simclr_alone(case, torch.float64)
    close(mean(ranks, "simclr", (case, "chunked"), "loss"), alone["loss"], 1e-9)
    close(gradients_of_the_mean(ranks, case, "chunked"), alone["gradient"], 1e-9)


@pytest.mark.parametrize("case", CASES)
def test_without_the_gradient_of_gather_it_would_not_be(ranks: Ranks, case: str) -> None:
    alone = simclr_alone(case, torch.float64)
    for cut in CUTS:
        close(mean(ranks, "simclr", (case, cut), "loss"), alone["loss"])
        off = (gradients_of_the_mean(ranks, case, cut) - alone["gradient"]).abs()
        assert off.max() > 1e-3, cut


def test_the_policies_differ_and_so_do_their_gradients() -> None:
    same = {"drop image": "none"}  # the query's own image is no negative in the first place
    found = {case: simclr_alone(case, torch.float64) for case in CASES}
    assert len({f["loss"].item() for f in found.values()}) == len(CASES) - len(same)
    for case, twin in same.items():
        assert found[case]["loss"] == found[twin]["loss"]
    assert min(f["gradient"].norm(dim=1).min() for f in found.values()) > 1e-4


# ---------------------------------------------------------------- random mixing


def test_ranks_draw_apart_reproducibly_and_stay_in_step(ranks: Ranks) -> None:
    mixing = [found["mixing"] for found in ranks]
    for mine in mixing:
        assert torch.equal(mine["first"], mine["again"])
        assert not torch.equal(mine["first"], mine["other"])
        for name in ("first", "again", "other"):
            assert torch.equal(mine[f"{name} state"], mixing[0][f"{name} state"])
    for name in ("first", "other"):
        draws = {tuple(mine[name].flatten().tolist()) for mine in mixing}
        assert len(draws) == len(ranks)


# ---------------------------------------------------------------- gather


def test_gather_returns_gradient_to_all_who_are_used_and_as_much_as_they_are(ranks: Ranks) -> None:
    world = len(ranks)
    parts = [torch.arange(6.0, dtype=torch.float64).reshape(2, 3) + 10 * r for r in range(world)]
    uses = sum(weights_of_use(rank, world) for rank in range(world))
    expected = (uses * 2 * torch.cat(parts)).split(2)
    for found, part, gradient in zip(ranks, parts, expected, strict=True):
        assert torch.equal(found["gather"]["values"], torch.cat(parts))
        close(found["gather"]["gradient"], gradient)
        close(found["gather"]["turned gradient"], 2 * world * part)
    assert not ranks[0]["gather"]["gradient"].any()


def test_gather_takes_tensors_of_any_layout_and_kind(ranks: Ranks) -> None:
    world = len(ranks)
    parts = [torch.arange(6.0, dtype=torch.float64).reshape(2, 3) + 10 * r for r in range(world)]
    for found in (f["gather"] for f in ranks):
        for name in ("turned", "turned, no gradient"):
            assert torch.equal(found[name], torch.cat([p.T for p in parts]))
        assert torch.equal(found["every other column"], torch.cat([p[:, ::2] for p in parts]))
        assert torch.equal(found["integers"], torch.arange(3 * world))
        small = torch.cat([(p > 12).to(torch.uint8).T for p in parts])
        close(found["short integers, turned"], small, 0)
        assert torch.equal(found["truths"], torch.cat([p[:, 0] > 12 for p in parts]))
        assert found["asks for gradient"] == (True, False)


def test_all_ranks_end_by_what_one_has_computed(ranks: Ranks) -> None:
    found = [rank["diverging"] for rank in ranks]
    (image,) = {said["image"] for said in found}
    assert image.startswith(
        "Step 7: not all outputs are finite. rank 1: 1 of its 2 images hold NaN or infinity "
        "(indexes 3). Weights and queue are unchanged."
    )
    for rank, said in enumerate(found):
        assert said["loss"].startswith(
            f"Step 8, rank {rank}: the loss is {'nan' if rank == 1 else 0.0}"
        )
        which = "norm.running_var" if rank == 1 else "those of another rank"
        assert said["weight"].startswith(
            f"Step 9, rank {rank}: not all weights are finite ({which}"
        )


def test_a_queue_that_differs_on_one_rank_is_said_with_its_rank(ranks: Ranks) -> None:
    (said,) = {rank["diverging"]["queue"] for rank in ranks}
    assert said.startswith("Epoch 5: the queue is not the same on all ranks.")
    assert "on rank 1: queue." in said


def test_the_queue_is_not_broadcast_and_an_epochs_end_sees_one_that_differs(ranks: Ranks) -> None:
    (said,) = {rank["flipped"] for rank in ranks}
    assert said.startswith("Epoch 0: the queue is not the same on all ranks.")
    assert "on rank 1: queue." in said


# ---------------------------------------------------------------- what a step costs


@pytest.mark.parametrize("name", TRAININGS)
def test_a_step_waits_once_and_shares_one_small_report(ranks: Ranks, name: str) -> None:
    """Beside it, it has no collective that the host's own step doesn't have."""
    like = "host's moco" if name in MOCOS else "host's simclr"
    for steps in (rank["one step"] for rank in ranks):
        (wait,) = steps[name]["waits"]
        assert "step_report.py" in wait
        ours, theirs = (Counter(steps[n]["collectives"]) for n in (name, like))
        gathered = ours.pop("allgather_"), theirs.pop("allgather_")
        # The keys of both views are one, labels and indexes another one; a host has two, and the
        # standalone host's check of the loss.
        assert gathered == (4 if name == "moco retain" else 3, 3)
        assert not ours - theirs
        assert "broadcast_" not in ours


# ---------------------------------------------------------------- training


@functools.cache
def trained_alone(name: str) -> dict[str, Any]:
    return workers.train(name)


@pytest.mark.parametrize("name", TRAININGS)
def test_gradients_and_parameters_are_those_of_one_process(ranks: Ranks, name: str) -> None:
    alone = trained_alone(name)
    close(mean(ranks, "train", name, "losses"), alone["losses"])
    for found in (f["train"][name] for f in ranks):
        for what in ("first gradient", "last gradient", "parameters"):
            close(found[what], alone[what])
        assert torch.equal(found["parameters"], ranks[0]["train"][name]["parameters"])
    assert alone["last gradient"].abs().max() > 1e-3


@pytest.mark.parametrize("name", MOCOS)
def test_queues_are_equal_on_all_ranks_and_those_of_one_process(ranks: Ranks, name: str) -> None:
    alone, first = trained_alone(name)["queue"], ranks[0]["train"][name]["queue"]
    assert ("queue_serial" in first) == ("queue_hardness" in first) == (name == "moco retain")
    for found in (f["train"][name]["queue"] for f in ranks):
        assert found.keys() == alone.keys()
        for buffer, value in found.items():
            assert torch.equal(value, first[buffer]), buffer
            close(value, alone[buffer], 1e-9 if value.is_floating_point() else 0)
    assert first["queue_filled"].item() == first["queue"].shape[2]
    assert torch.equal(first["queue_labels"], first["queue_indexes"] % 3)


@pytest.mark.parametrize("name", MOCOS)
def test_the_queue_holds_the_newest_keys_of_all_ranks_in_their_order(
    ranks: Ranks, name: str
) -> None:
    queue = ranks[-1]["train"][name]["queue"]
    length = QUEUE + (6 if name == "moco fill" else 0)
    assert queue["queue"].shape[2] == length
    assert queue["queue_ptr"].item() == STEPS * BATCH % length
    everything = torch.arange(STEPS * BATCH)  # image i was the i-th, rank after rank
    if name == "moco retain":
        assert torch.equal(queue["queue_serial"], queue["queue_indexes"])
        assert set(queue["queue_indexes"].tolist()) > set(everything[-BATCH:].tolist())
        assert not torch.equal(queue["queue_indexes"].sort().values, everything[-length:])
        return
    expected = torch.empty(length, dtype=torch.long)
    for image in everything.tolist():
        expected[image % length] = image
    assert torch.equal(queue["queue_indexes"], expected)


@pytest.mark.parametrize("name", TRAININGS)
def test_what_is_logged_has_one_name_and_one_value_on_all_ranks(ranks: Ranks, name: str) -> None:
    alone, first = trained_alone(name), ranks[0]["train"][name]
    names = [noted for _, noted in alone["reported"]]
    for found in (f["train"][name] for f in ranks):
        assert [noted for _, noted in found["reported"]] == names
        close(found["logged"], first["logged"], 0)
        close(found["logged"], alone["logged"], 1e-5)  # the trainer averages in float32
    assert {f"negatives/{n}" for noted in names for n in noted} <= first["logged"].keys()


def test_a_rank_that_has_an_image_twice_logs_what_the_others_log(ranks: Ranks) -> None:
    counts = [[count for count, _ in f["train"]["simclr twice"]["reported"]] for f in ranks]
    assert all(len(step) == 2 for step in counts[0])
    assert all(len(step) == 1 for others in counts[1:] for step in others)
    noted = {tuple(n) for f in ranks for _, n in f["train"]["simclr twice"]["reported"]}
    assert noted == {("floored", "mix_short", "synthetic")}
