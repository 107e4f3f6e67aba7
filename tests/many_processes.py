"""Starts programs of solo-learn in many processes, and records what they do.

As a script (``python many_processes.py PLAN NUMBER``), runs one rank of one program after another.
It imports solo-learn once, which takes seven seconds, and forks a child for each program: 50 tiny
steps take one second.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import runpy
import secrets
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from hydra.experimental.callback import Callback
from integration_helpers import Result, environment, write_images
from torch import Tensor, nn

TESTS = Path(__file__).parent
# Of every run: global batch, images and epochs.
BATCH, CLASSES, PER_CLASS, SIDE, EPOCHS = 16, 5, 32, 8, 5
STEPS = EPOCHS * CLASSES * PER_CLASS // BATCH
QUEUE = 64
SECONDS = 120  # for each program, on a busy machine

# Two views without random numbers, so that they are equal in one process.
_VIEW = """
- rrc: {{enabled: False}}
  color_jitter: {{prob: 0.0}}
  grayscale: {{prob: 0.0}}
  gaussian_blur: {{prob: 0.0}}
  solarization: {{prob: 0.0}}
  equalization: {{prob: 0.0}}
  horizontal_flip: {{prob: {flip}}}
  crop_size: 8
  num_crops: 1
"""


@dataclass(frozen=True)
class Place:
    """A folder with 160 images of 8 x 8 pixels in five classes, and a config of two views."""

    folder: Path
    images: Path

    def arguments(self, method: str, world: int, *more: object, rate: float = 8) -> list[object]:
        """Arguments that train one of our methods in ``world`` processes, 50 steps of 16 images.

        The host scales the rate by a process's batch only: on the CPU, ``devices`` isn't a list.
        """
        return [
            *("--config-dir", self.folder / "configs", "--config-name", method),
            *("data=custom", f"data.train_path={self.images}", "data.val_path=null"),
            *("data.num_workers=0", "augmentations=plain_and_flipped", "backbone.name=tiny"),
            *("method_kwargs.proj_hidden_dim=16", "method_kwargs.proj_output_dim=16"),
            *([f"method_kwargs.queue_size={QUEUE}"] if "moco" in method else []),
            *(f"optimizer.batch_size={BATCH // world}", f"optimizer.lr={rate * world}"),
            *(f"max_epochs={EPOCHS}", "scheduler.warmup_epochs=0"),
            *("accelerator=cpu", f"devices='{world}'", "strategy=ddp", "sync_batchnorm=False"),
            *("+enable_progress_bar=False", "+enable_model_summary=False"),
            *more,
        ]


def prepare(folder: Path) -> Place:
    """Writes the images and the config that all runs read."""
    (folder / "configs" / "augmentations").mkdir(parents=True)
    views = _VIEW.format(flip=0.0) + _VIEW.format(flip=1.0)
    (folder / "configs" / "augmentations" / "plain_and_flipped.yaml").write_text(views)
    return Place(folder, write_images(folder / "images", PER_CLASS, CLASSES, SIDE))


class TinyBackbone(nn.Sequential):
    """Two layers for images of 8 x 8 pixels, without BatchNorm, which differs between ranks."""

    num_features = 32

    def __init__(self, method: str) -> None:
        width = self.num_features
        layers = nn.Linear(3 * SIDE**2, width), nn.GELU(), nn.Linear(width, width)
        super().__init__(nn.Flatten(), *layers, nn.LayerNorm(width))


def add_the_tiny_backbone() -> None:
    """Adds ``backbone.name=tiny`` to solo-learn."""
    from solo.methods import BaseMethod

    BaseMethod._BACKBONES["tiny"] = TinyBackbone


def in_the_order_of_ranks(order: Sequence[int], ranks: int) -> list[int]:
    """Reorders images so that batches of one process hold the rows of all ranks, rank by rank.

    PyTorch's sampler gives rank r of W ``order[r::W]``.
    """
    steps = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    return [image for step in steps for rank in range(ranks) for image in step[rank::ranks]]


class Watch(Callback):
    """Hydra callback in solo-learn: adds the tiny backbone, and records losses and queues.

    Random mixing depends on a query's position in the global batch, so one process mixes the same.

    Args:
        file: Prefix of each rank's recording.
        ranks: In one process, the number of ranks whose order of images to use.
        identical: Whether mixing depends on the position, or is random as usual.
    """

    def __init__(self, file: str, ranks: int = 1, identical: bool = True) -> None:
        self.file, self.ranks, self.identical = file, ranks, identical
        self.seen: dict[str, Any] = {"losses": [], "digests": [], "indexes": []}

    def on_job_start(self, config: Any, **kwargs: Any) -> None:
        from torch.utils.data.distributed import DistributedSampler

        from solo_hardneg.methods import OUR_METHODS

        cls: Any = OUR_METHODS[config.method]
        step, sample, ranks, watch = (
            cls.training_step,
            DistributedSampler.__iter__,
            self.ranks,
            self,
        )

        @functools.wraps(step)
        def training_step(method: Any, batch: Any, batch_idx: int) -> Any:
            with watch.draws(method):
                loss = step(method, batch, batch_idx)
            watch.note(method, batch, loss)
            return loss

        def on_train_end(method: Any) -> None:
            watch.seen["queue"] = queue_of(method)
            torch.save(watch.seen, f"{watch.file}-rank{method.global_rank}.pt")

        def reordered(sampler: Any) -> Iterator[int]:
            return iter(in_the_order_of_ranks([*sample(sampler)], ranks))

        add_the_tiny_backbone()
        cls.training_step, cls.on_train_end = training_step, on_train_end
        if ranks > 1:
            DistributedSampler.__iter__ = reordered

    def draws(self, method: Any) -> contextlib.AbstractContextManager[None]:
        from rows_of_ranks import draws_by_identity, rows

        if not self.identical:
            return contextlib.nullcontext()
        views = 1 if "moco" in method.cfg.method else 2
        world = method.trainer.world_size
        return draws_by_identity(rows(method.global_rank, world, BATCH, views=views))

    def note(self, method: Any, batch: Any, loss: Tensor) -> None:
        self.seen["losses"].append(loss.item())
        self.seen["indexes"].append(batch[0])
        # Of each step, since DDP copies rank 0's buffers to all ranks before the next one.
        whole = b"".join(b.numpy().tobytes() for b in queue_of(method).values())
        self.seen["digests"].append(zlib.crc32(whole))


def queue_of(method: Any) -> dict[str, Tensor]:
    """The buffers of MoCo's queue; none in SimCLR."""
    return {
        name: buffer.detach().clone().contiguous()
        for name, buffer in method.named_buffers()
        if name.startswith("queue")
    }


def watching(file: Path, ranks: int = 1, identical: bool = True) -> list[str]:
    """Overrides that record a program."""
    watch = "+hydra.callbacks.watch"
    return [
        f"{watch}._target_=many_processes.Watch",
        *(f"{watch}.file={file}", f"{watch}.ranks={ranks}", f"{watch}.identical={identical}"),
    ]


class Die(Callback):
    """Hydra callback in solo-learn that kills a rank at a step or while saving.

    Also adds the tiny backbone.

    Args:
        rank: Rank to kill.
        step: Step at which it dies; ``None`` for when its first checkpoint is saved.
        late: Whether it dies after, instead of before, the collectives of saving.
        error: Whether it raises an error instead.
    """

    def __init__(
        self, rank: int, step: int | None = None, late: bool = False, error: bool = False
    ) -> None:
        self.rank, self.step, self.late, self.error = rank, step, late, error

    def on_job_start(self, config: Any, **kwargs: Any) -> None:
        from solo_hardneg.methods import OUR_METHODS

        cls: Any = OUR_METHODS[config.method]
        step, saving, death = cls.training_step, cls.on_save_checkpoint, self

        def training_step(method: Any, batch: Any, batch_idx: int) -> Any:
            if death.step == method.trainer.global_step:
                death.die(method)
            return step(method, batch, batch_idx)

        def on_save_checkpoint(method: Any, checkpoint: Any) -> None:
            if death.late:
                saving(method, checkpoint)
            if death.step is None:
                death.die(method)
            if not death.late:
                saving(method, checkpoint)

        add_the_tiny_backbone()
        cls.training_step, cls.on_save_checkpoint = training_step, on_save_checkpoint

    def die(self, method: Any) -> None:
        if method.global_rank == self.rank:
            if self.error:
                raise ValueError("failed on purpose")
            os.kill(os.getpid(), signal.SIGKILL)


def dying(**how: Any) -> list[str]:
    """Overrides that end a rank; the arguments are those of :class:`Die`."""
    die = "+hydra.callbacks.die"
    return [f"{die}._target_=many_processes.Die", *(f"{die}.{k}={v}" for k, v in how.items())]


# ---------------------------------------------------------------- starting programs


@dataclass(frozen=True)
class Program:
    """A script's arguments, and the number of processes that run it."""

    world: int
    arguments: Sequence[object]


@dataclass(frozen=True)
class _Job:
    name: str
    argv: list[str]
    world: int
    place: int  # number of the process that runs a program of one process
    seconds: float

    def rank(self, number: int, size: int) -> int | None:
        """The rank of process ``number`` of ``size``; ``None`` if it has none."""
        if self.world == 1:
            return 0 if number == self.place % size else None
        return number if number < self.world else None

    def log(self, rank: int) -> Path:
        return Path(f"{self.name}-rank{rank}.txt".replace(" ", "-"))


def free_port() -> int:
    """A free port outside the range that the system assigns."""
    while True:
        port = 20_000 + secrets.randbelow(10_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def run_ranks(
    programs: Mapping[str, Program], script: Path, folder: Path, seconds: float = SECONDS
) -> dict[str, list[Result]]:
    """Runs ``python SCRIPT ARGUMENTS`` for one program after another, in many processes.

    They are started as by a cluster, so Lightning doesn't end the ranks of a program whose other
    ranks have died.

    Args:
        programs: Programs by name.
        script: Script of the host.
        folder: Working directory, which may hold other results.
        seconds: Time limit of each program. Slower ranks are killed, and their exit code is
            ``LATE``.

    Returns:
        Exit code and output of each program's ranks.
    """
    folder.mkdir(exist_ok=True)
    size = max(program.world for program in programs.values())
    jobs = [
        _Job(name, [str(script), *map(str, p.arguments)], p.world, place, seconds)
        for place, (name, p) in enumerate(programs.items())
    ]
    plan = folder / "plan.json"
    plan.write_text(json.dumps([size, str(script), [asdict(job) for job in jobs]]))
    shared = {"HYDRA_FULL_ERROR": "1", "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(TESTS)}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(plan), str(number)],
            cwd=folder,
            env=environment(**shared, NODE_RANK="0"),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        for number in range(size)
    ]
    try:
        end = time.monotonic() + 60 + seconds * len(jobs)
        codes = [process.wait(max(end - time.monotonic(), 1)) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert not any(codes), f"exit codes {codes} of the processes themselves"
    return {job.name: [_result(folder, job, rank) for rank in range(job.world)] for job in jobs}


LATE = 1000  # the exit code of a rank that was killed because it took too long


def _result(folder: Path, job: _Job, rank: int) -> Result:
    log = folder / job.log(rank)
    return Result(int(log.with_suffix(".code").read_text()), log.read_text(), "")


def _main(plan: Path, number: int) -> None:
    size, script, jobs = json.loads(plan.read_text())
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="imports only")
    for job in (_Job(**job) for job in jobs):
        rank = job.rank(number, size)
        if rank is not None:
            code = _run(job, rank, _meet(job.log(0).with_suffix(".port"), rank))
            job.log(rank).with_suffix(".code").write_text(str(code))


def _meet(file: Path, rank: int) -> int:
    """The port that the program's first rank has chosen, once it has no other program to finish."""
    if rank == 0:
        partial = file.with_suffix(".part")
        partial.write_text(str(free_port()))
        partial.replace(file)
    while not file.exists():
        time.sleep(0.02)
    return int(file.read_text())


def _run(job: _Job, rank: int, port: int) -> int:
    child = os.fork()
    if child == 0:
        _become(job, rank, port)
    end = time.monotonic() + job.seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return LATE


def _become(job: _Job, rank: int, port: int) -> NoReturn:
    """In the child: runs the program, and ends as it does."""
    out = os.open(job.log(rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(out, stream)
    os.environ.update(LOCAL_RANK=str(rank), WORLD_SIZE=str(job.world), MASTER_PORT=str(port))
    sys.argv = job.argv
    runpy.run_path(job.argv[0], run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]))
