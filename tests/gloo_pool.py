"""A pool of processes that form one gloo group and run functions one after another."""

from __future__ import annotations

import faulthandler
import io
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


class WorkerError(Exception):
    """A rank failed or did not answer; the message has the tracebacks."""


class GlooPool:
    """``world`` processes that start at the first call, and again after a failure.

    Args:
        world: Number of ranks.
        folder: Folder for the rendezvous and for stack traces.
    """

    def __init__(self, world: int, folder: Path) -> None:
        self.world, self.folder, self._starts = world, folder, 0
        self._pipes: list[connection.Connection] = []
        self._processes: list[ForkServerProcess] = []

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        # Imported once for all processes.
        context.set_forkserver_preload(["solo_hardneg.methods", "lightning.pytorch.strategies"])
        self._starts += 1
        store = self.folder / f"store{self._starts}"
        for rank in range(self.world):
            pipe, workers_end = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, self.world, store, workers_end), daemon=True
            )
            process.start()
            workers_end.close()  # so that the pipe closes with the process
            self._pipes.append(pipe)
            self._processes.append(process)

    def run(self, work: Callable[..., Any], *arguments: Any, seconds: float = 100) -> list[Any]:
        """Calls ``work(rank, world, *arguments)`` in each process; returns the results by rank.

        Raises:
            WorkerError: A rank failed, or has not ended after ``seconds``.
        """
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((work, arguments))
        end = time.monotonic() + seconds
        results: dict[int, Any] = {}
        problems: dict[int, str] = {}
        while waiting := [p for r, p in enumerate(self._pipes) if r not in results | problems]:
            left = end - time.monotonic()
            # The others may be waiting for a failed one.
            ready = connection.wait(waiting, min(left, 1) if problems else max(left, 0))
            if not ready:
                break
            for rank in map(self._pipes.index, ready):
                try:
                    done, content = self._pipes[rank].recv()
                except EOFError:
                    done, content = False, "it died"
                if done:
                    results[rank] = torch.load(io.BytesIO(content), weights_only=True)
                else:
                    problems[rank] = f"rank {rank} failed:\n{content}"
        if len(results) < self.world:
            for rank in set(range(self.world)) - results.keys() - problems.keys():
                problems[rank] = f"rank {rank} did not end:\n{self._stacks(rank)}"
            self.close()
            raise WorkerError("\n".join(problems.values()))
        return [results[rank] for rank in range(self.world)]

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._pipes = [], []

    def _stacks(self, rank: int) -> str:
        """Stack traces of a rank that hangs."""
        os.kill(self._processes[rank].pid or 0, signal.SIGUSR1)
        time.sleep(0.5)
        return (self.folder / f"rank{rank}.stacks").read_text()


def _serve(rank: int, world: int, store: Path, pipe: connection.Connection) -> None:
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0")  # started from outside, to Lightning
    with (store.parent / f"rank{rank}.stacks").open("w") as stacks:
        faulthandler.register(signal.SIGUSR1, file=stacks)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=600),
        )
        while True:
            work, arguments = pipe.recv()
            try:
                buffer = io.BytesIO()
                torch.save(work(rank, world, *arguments), buffer)
                pipe.send((True, buffer.getvalue()))
            except BaseException:
                pipe.send((False, traceback.format_exc()))
