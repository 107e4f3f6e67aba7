"""The parts of ``python -m benchmarks gpu``, most important first, and the sizes they run at.

Here are names and sizes; what measures is imported by the process that does it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.worker import Job, NotPossible, Report

Units = dict[str, Callable[[Report], None]]
NO_DATA = "needs --data FOLDER, the folder that holds cifar-100-python"


@dataclass(frozen=True)
class Part:
    """One CSV.

    Attributes:
        name: of the CSV.
        share: of the time, beside the shares of the other parts. Time that one leaves goes to the
            later ones.
        least: seconds that it takes at least.
        units: what it does, by name.
        goes_on: whether it is never done, and each call goes on with it.
    """

    name: str
    share: float
    least: float
    units: Callable[[Job], Units]
    goes_on: bool = False


def no_units(job: Job) -> Units:
    """Of a process that says only what the device is."""
    return {}


def tests(job: Job) -> Units:
    """The tests that need a GPU: all backends and policies against the dense one."""
    files = {"kernels": "kernels/test_on_a_gpu.py", "losses": "test_cuda.py"}
    return {name: partial(_tests, job, file) for name, file in files.items()}


def _tests(job: Job, file: str, report: Report) -> None:
    from benchmarks.device_tests import run_tests

    run_tests(file, job.gpu, report)


def waits(job: Job) -> Units:
    """How often a training step waits for the device, ours and the host's."""
    return {family: partial(_waits, job, family) for family in ("moco", "simclr")}


def _waits(job: Job, family: str, report: Report) -> None:
    from benchmarks.waits import FAMILIES, run_waits

    methods = FAMILIES[family]
    if job.tiny:
        run_waits([*methods[:2], methods[-1]], 20, 2000, 8, steps=1, report=report)
    else:
        run_waits(methods, 256, 65536, 32, steps=5, report=report)


def loss(job: Job) -> Units:
    """The loss alone: time and memory of all backends and the host's, beside the limit.

    What is compiled for the device has units of its own: a fault in it ends its process.
    """
    found: Units = {}
    for keys in (2048,) if job.tiny else (65536, 16384):
        for precision in ("32-true", "bf16-mixed", "bf16-true"):
            for backends in (("auto", "dense", "chunked"), ("triton",)):
                name = f"K={keys}, {precision}, {' '.join(backends)}"
                found[name] = partial(_loss, job, keys, precision, backends)
    return found


def _loss(job: Job, keys: int, precision: str, backends: tuple[str, ...], report: Report) -> None:
    from benchmarks import limits
    from benchmarks import precision as formats
    from benchmarks.loss import compare

    queries, dimensions = (16, 16) if job.tiny else (256, 128)
    refused: dict[tuple[str, str], str] = {}
    table = compare(
        *(queries, keys, dimensions, backends, 1 if job.tiny else 20, False, precision, refused),
        **{"here": True, "until": report.until, "calls": 5 if job.gpu else 1},
    )
    rate = limits.rates(dimensions, formats.product_dtype(precision))
    element = formats.dtype(precision).itemsize
    report.rows(limits.beside_limits(table.assign(precision=precision), rate, element))
    for (backend, policy), error in refused.items():
        what = {"candidate": backend, "policy": policy, "backend": backend}
        report.row(**what, N=queries, K=keys, D=dimensions, precision=precision, error=error)


def step(job: Job) -> Units:
    """The whole step against the host's MoCo v2+, at CIFAR's and at ImageNet's size."""
    cifar = (
        (8, 64, "resnet18", 8, "cifar100") if job.tiny else (256, 65536, "resnet18", 32, "cifar100")
    )
    imagenet = (
        (4, 64, "resnet18", 32, "imagenet")
        if job.tiny
        else (256, 65536, "resnet50", 224, "imagenet")
    )
    return {
        "CIFAR, bf16-mixed": partial(_step, job, *cifar, "bf16-mixed"),
        "ImageNet, bf16-mixed": partial(_step, job, *imagenet, "bf16-mixed"),
        "CIFAR, 32-true": partial(_step, job, *cifar, "32-true"),
    }


def _step(
    job: Job,
    batch: int,
    queue: int,
    backbone: str,
    pixels: int,
    data: str,
    precision: str,
    report: Report,
) -> None:
    from benchmarks.step import run_step

    rounds = 1 if job.tiny else 10
    sizes = batch, queue, backbone, pixels, rounds
    how: dict[str, Any] = {"file": None, "until": report.until, "here": True}
    how["warm_up"] = 1 if job.tiny else 3
    table = run_step(*sizes, precision=precision, data=data, **how)
    report.rows(table.assign(data=data, precision=precision))


def loader(job: Job) -> Units:
    """Images per second: PIL, resident and, on files, DALI where it is installed."""
    return {"small images": partial(_small_images, job), "JPEGs": partial(_jpegs, job)}


def _workers(job: Job) -> list[int]:
    return [1] if job.tiny else [max(1, (os.cpu_count() or 1) - 1)]


def _small_images(job: Job, report: Report) -> None:
    from benchmarks.loader import run_loader

    data, path, crop = dataset(job)
    batch, batches, rounds = (32, 3, 1) if job.tiny else (256, 20, 3)
    how: dict[str, Any] = {"file": None, "data": data, "crop": crop, "until": report.until}
    report.rows(run_loader(path, batch, _workers(job), batches, rounds, **how))


def _jpegs(job: Job, report: Report) -> None:
    from benchmarks.load import make_images
    from benchmarks.loader import run_loader

    images, copies, side, batch = (16, 4, 32, 8) if job.tiny else (512, 8, 224, 64)
    batches, rounds = (3, 1) if job.tiny else (15, 3)
    how: dict[str, Any] = {"file": None, "data": "custom", "crop": side, "until": report.until}
    with tempfile.TemporaryDirectory() as place:
        folder = make_images(Path(place), images, side, copies)
        report.rows(run_loader(folder, batch, _workers(job), batches, rounds, **how))


def dataset(job: Job) -> tuple[str, str, int]:
    """The small images at hand: their config, their folder and the pixels of a side.

    Raises:
        NotPossible: no dataset was given. A rehearsal falls back on scikit-learn's digits.
    """
    if job.data is not None:
        return "cifar100", str(job.data), 8 if job.tiny else 32
    if job.tiny:
        return "digits", "builtin", 8
    raise NotPossible(NO_DATA)


def accuracy(job: Job) -> Units:
    """What SimCLR, DCL, HCL and SSCL learn in the time that is left."""
    names = ("plan", "simclr", "dcl", "hcl", "sscl")
    return {name: partial(_accuracy, job, name) for name in names}


def _accuracy(job: Job, name: str, report: Report) -> None:
    from benchmarks import accuracy as room

    place = dataset(job)
    if name == "plan":
        room.plan(job, place, report)
    else:
        room.train_and_evaluate(job, place, name, report)


PARTS = (
    Part("tests", 4, 20, tests),
    Part("waits", 2, 15, waits),
    Part("loss", 4, 15, loss),
    Part("step", 4, 20, step),
    Part("loader", 2, 10, loader),
    Part("accuracy", 6, 30, accuracy, goes_on=True),
)
