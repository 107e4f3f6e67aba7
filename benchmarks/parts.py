"""The parts of ``python -m benchmarks gpu`` and their sizes, most important first.

Modules that measure are imported by the processes that run them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.precision import PRECISIONS, training_precision
from benchmarks.worker import Job, NotPossible, Report, Units


@dataclass(frozen=True)
class Part:
    """One CSV.

    Attributes:
        name: Name of the CSV.
        share: Share of the remaining time, relative to the later parts.
        least: Seconds that the part needs at least.
        make_units: Returns what to run, by name.
        resumes: Whether another call goes on with finished units.
    """

    name: str
    share: float
    least: float
    make_units: Callable[[Job], Units]
    resumes: bool = False


def no_units(job: Job) -> Units:
    """Nothing: the process only reports its provenance."""
    return {}


# ---------------------------------------------------------------------- tests, waits


def test_units(job: Job) -> Units:
    """The tests that need a GPU: all backends and policies against the dense one."""
    files = {"kernels": "kernels/test_on_a_gpu.py", "losses": "test_cuda.py"}
    return {name: partial(_run_tests, job, file) for name, file in files.items()}


def _run_tests(job: Job, file: str, report: Report) -> None:
    from benchmarks.device_tests import run_tests

    run_tests(file, job.gpu, report)


def wait_units(job: Job) -> Units:
    """How often a training step waits for the device, in our methods and the host's."""
    return {family: partial(_run_waits, job, family) for family in ("moco", "simclr")}


def _run_waits(job: Job, family: str, report: Report) -> None:
    from benchmarks.waits import FAMILIES, run_waits

    methods = FAMILIES[family]
    if job.tiny:
        run_waits([*methods[:2], methods[-1]], 20, 2000, 8, steps=1, report=report)
    else:
        run_waits(methods, 256, 65536, 32, steps=5, report=report)


# ---------------------------------------------------------------------- loss, step


def loss_units(job: Job) -> Units:
    """The loss alone: time and memory of all backends and the host's, beside the roofline.

    Triton has units apart, because a fault in a kernel ends the process.
    """
    units: Units = {}
    for keys in (2048,) if job.tiny else (65536, 16384):
        for precision in PRECISIONS:
            for backends in (("auto", "dense", "chunked"), ("triton",)):
                name = f"K={keys}, {precision}, {' '.join(backends)}"
                units[name] = partial(_run_loss, job, keys, precision, backends)
    return units


def _run_loss(
    job: Job, keys: int, precision: str, backends: tuple[str, ...], report: Report
) -> None:
    from benchmarks.candidates import Refused
    from benchmarks.loss import compare_losses
    from benchmarks.precision import product_dtype, tensor_dtype
    from benchmarks.roofline import add_roofline, measure_rates

    queries, dimensions, rounds = (16, 16, 1) if job.tiny else (256, 128, 20)
    refused: Refused = {}
    table = compare_losses(
        (queries, keys, dimensions),
        backends,
        rounds,
        libraries=False,
        precision=precision,
        refused=refused,
        in_process=True,
        until=report.until,
        repeats=5 if job.gpu else 1,
    )
    rates = measure_rates(dimensions, product_dtype(precision))
    element = tensor_dtype(precision).itemsize
    report.add_rows(add_roofline(table.assign(precision=precision), rates, element))
    sizes = {"N": queries, "K": keys, "D": dimensions, "precision": precision}
    for candidate, error in refused.items():
        report.add_row(**candidate._asdict(), **sizes, error=error)


def step_units(job: Job) -> Units:
    """Whole steps against the host's MoCo v2+, at the sizes of CIFAR and ImageNet."""
    if job.tiny:
        cifar = (8, 64, "resnet18", 8, "cifar100")
        imagenet = (4, 64, "resnet18", 32, "imagenet")
    else:
        cifar = (256, 65536, "resnet18", 32, "cifar100")
        imagenet = (256, 65536, "resnet50", 224, "imagenet")
    usual = training_precision()
    return {
        f"CIFAR, {usual}": partial(_run_step, job, *cifar, usual),
        f"ImageNet, {usual}": partial(_run_step, job, *imagenet, usual),
        "CIFAR, 32-true": partial(_run_step, job, *cifar, "32-true"),
    }


def _run_step(
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

    rounds, warm_up = (1, 1) if job.tiny else (10, 3)
    table = run_step(
        batch,
        queue,
        backbone,
        pixels,
        rounds,
        file=None,
        precision=precision,
        data=data,
        until=report.until,
        warm_up=warm_up,
        in_process=True,
    )
    report.add_rows(table.assign(data=data, precision=precision))


# ---------------------------------------------------------------------- loader


def loader_units(job: Job) -> Units:
    """Images per second of PIL and resident data."""
    return {"small images": partial(_run_small_images, job), "JPEGs": partial(_run_jpegs, job)}


def _run_small_images(job: Job, report: Report) -> None:
    data, path, crop = _small_dataset(job)
    batch, batches, rounds = (32, 3, 1) if job.tiny else (256, 20, 3)
    _run_loader(job, path, batch, batches, rounds, report, data=data, crop=crop)


def _small_dataset(job: Job) -> tuple[str, str, int]:
    """Config, folder and side of a view of CIFAR-100; of scikit-learn's digits in a rehearsal.

    Raises:
        NotPossible: CIFAR-100 isn't given.
    """
    if job.data is not None:
        return "cifar100", str(job.data), 8 if job.tiny else 32
    if job.tiny:
        return "digits", "builtin", 8
    raise NotPossible("needs --data FOLDER, the folder that holds cifar-100-python")


def _run_jpegs(job: Job, report: Report) -> None:
    from benchmarks.loader import make_jpegs

    images, copies, side = (16, 4, 32) if job.tiny else (512, 8, 224)
    batch, batches, rounds = (8, 3, 1) if job.tiny else (64, 15, 3)
    with tempfile.TemporaryDirectory() as place:
        folder = make_jpegs(Path(place), images, side, copies)
        _run_loader(job, folder, batch, batches, rounds, report, data="custom", crop=side)


def _run_loader(
    job: Job,
    path: Path | str,
    batch: int,
    batches: int,
    rounds: int,
    report: Report,
    **images: Any,
) -> None:
    from benchmarks.loader import run_loader

    workers = [1] if job.tiny else [max(1, (os.cpu_count() or 1) - 1)]
    options = {"file": None, "until": report.until, **images}
    report.add_rows(run_loader(path, batch, workers, batches, rounds, **options))


# ---------------------------------------------------------------------- accuracy


def accuracy_units(job: Job) -> Units:
    """Linear accuracy of SimCLR, DCL, HCL and SSCL after as many epochs as fit."""
    names = ("plan", "simclr", "dcl", "hcl", "sscl")
    return {name: partial(_run_accuracy, job, name) for name in names}


def _run_accuracy(job: Job, name: str, report: Report) -> None:
    from benchmarks import accuracy

    dataset = _small_dataset(job)
    if name == "plan":
        accuracy.make_plan(job, dataset, report)
    else:
        accuracy.train_and_evaluate(job, dataset, name, report)


PARTS = (
    Part("tests", 4, 20, test_units),
    Part("waits", 2, 15, wait_units),
    Part("loss", 4, 15, loss_units),
    Part("step", 4, 20, step_units),
    Part("loader", 2, 10, loader_units),
    Part("accuracy", 6, 30, accuracy_units, resumes=True),
)
