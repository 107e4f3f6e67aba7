"""``python -m benchmarks COMMAND``; ``--help`` lists the commands."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

app = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True)


class Host(StrEnum):
    """Whose trainer and baseline a step uses."""

    solo = "solo"
    standalone = "standalone"


class Device(StrEnum):
    """Where ``gpu`` runs."""

    cuda = "cuda"
    cpu = "cpu"


Threads = Annotated[int, typer.Option(help="PyTorch's threads; 0 for its default")]
Backend = Annotated[str, typer.Option(help="our backend")]
Backbone = Annotated[str, typer.Option(help="a timm name")]
BatchSize = Annotated[int, typer.Option(help="batch size, per rank")]
QueueSize = Annotated[int, typer.Option(help="queue size")]
Pixels = Annotated[int, typer.Option(help="side of a view")]
Rounds = Annotated[int, typer.Option(help="timed rounds")]
HostName = Annotated[
    Host | None, typer.Option(help="default: solo with a checkout of solo-learn, else standalone")
]


def _parse_numbers(text: str, name: str) -> list[int]:
    try:
        numbers = [int(part.replace("_", "")) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise typer.BadParameter(f"{name}={text}: must be whole numbers above 0, such as 64,256")
    return numbers


def _parse_names(text: str, name: str, known: Iterable[str]) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [one for one in names if one not in known]
    if unknown:
        choices = ", ".join(known)
        raise typer.BadParameter(f"{name}={text}: unknown {unknown[0]}. Choose from: {choices}")
    return names


def _parse_backends(text: str) -> tuple[str, ...]:
    from benchmarks.candidates import BACKENDS

    return _parse_names(text, "backends", BACKENDS)


def _set_threads(threads: int) -> None:
    if threads:
        torch.set_num_threads(threads)


@app.command()
def loss(
    n: Annotated[str, typer.Option(help="queries N, separated by commas")] = "64,256,1024",
    k: Annotated[
        str, typer.Option(help="keys K, separated by commas")
    ] = "1024,4096,16384,65536,262144",
    d: Annotated[str, typer.Option(help="dimensions D, separated by commas")] = "128,256",
    backends: Annotated[
        str, typer.Option(help="our backends, separated by commas")
    ] = "auto,dense,chunked,numba,triton",
    rounds: Annotated[int, typer.Option(help="timed rounds; 0 for some seconds of them")] = 0,
    libraries: Annotated[bool, typer.Option(help="compare other libraries")] = True,
    quick: Annotated[bool, typer.Option(help="one small size, written to no file")] = False,
    threads: Threads = 0,
) -> None:
    """Compare the loss alone with solo-learn's and other libraries'."""
    queries, keys = _parse_numbers(n, "n"), _parse_numbers(k, "k")
    dimensions, names = _parse_numbers(d, "d"), _parse_backends(backends)
    _set_threads(threads)
    from benchmarks.loss import run_loss

    if quick:
        run_loss([(16, 512, 16)], names, rounds=2, file=None, libraries=libraries)
        return
    sizes = [(a, b, c) for c in dimensions for b in keys for a in queries]
    run_loss(sizes, names, rounds or None, libraries=libraries)


@app.command()
def step(
    n: BatchSize = 256,
    k: QueueSize = 65536,
    backbone: Backbone = "resnet18",
    pixels: Pixels = 32,
    rounds: Rounds = 5,
    backend: Backend = "auto",
    host: HostName = None,
    threads: Threads = 0,
) -> None:
    """Compare a whole training step with the host's MoCo v2+."""
    _parse_backends(backend)
    from benchmarks.reference import choose_host

    choose_host(host)
    _set_threads(threads)
    from benchmarks.step import run_step

    print(run_step(n, k, backbone, pixels, rounds, backend).iloc[:, :18].to_string(index=False))


@app.command()
def ranks(
    n: BatchSize = 64,
    k: QueueSize = 65536,
    backbone: Backbone = "resnet18",
    pixels: Pixels = 8,
    rounds: Rounds = 9,
) -> None:
    """Compare a step on two ranks, with and without the queue in DDP's broadcast."""
    from benchmarks.ranks import run_ranks

    print(run_ranks(n, k, backbone, pixels, rounds).iloc[:, :13].to_string(index=False))


@app.command()
def loader(
    train_path: Annotated[Path, typer.Option(help="folder of cifar-100-python")] = Path("datasets"),
    n: BatchSize = 256,
    workers: Annotated[str, typer.Option(help="separated by commas")] = "1,2",
    batches: Annotated[int, typer.Option(help="batches of a round")] = 8,
    threads: Threads = 0,
) -> None:
    """Measure the loaders' images per second."""
    numbers = _parse_numbers(workers, "workers")
    _set_threads(threads)
    from benchmarks.loader import run_loader

    print(run_loader(train_path, n, numbers, batches).to_string(index=False))


@app.command()
def recorder(
    method: Annotated[str, typer.Option(help="a config's name")] = "mocov2_banded",
    k: QueueSize = 65536,
    n: BatchSize = 256,
    pixels: Pixels = 32,
    steps: Annotated[int, typer.Option(help="steps to train")] = 12,
    backbone: Backbone = "resnet18",
    negatives: Annotated[str, typer.Option(help="a preset, for our methods")] = "all",
    threads: Threads = 0,
) -> None:
    """Measure what recording costs."""
    _set_threads(threads)
    from benchmarks.recorder import run_recorder

    table = run_recorder(method, k, n, pixels, steps, backbone, negatives)
    print(table.to_string(index=False))


@app.command()
def chunks(
    n: Annotated[str, typer.Option(help="images, separated by commas")] = "256,1024,4096",
    chunk: Annotated[str, typer.Option(help="images in the encoder, separated by commas")] = "64",
    backbone: Backbone = "resnet18",
    pixels: Pixels = 8,
) -> None:
    """Measure the memory of a SimCLR step in chunks of the batch, and without."""
    from benchmarks.chunks import run_chunks

    sizes = [0, *_parse_numbers(chunk, "chunk")]
    table = run_chunks(_parse_numbers(n, "n"), sizes, backbone, pixels)
    print(table.iloc[:, :6].to_string(index=False))


@app.command()
def gpu(
    out: Annotated[Path, typer.Option(help="folder of the CSVs")],
    minutes: Annotated[
        float, typer.Option(min=0.01, max=1440, help="for everything, from the start on")
    ] = 8.0,
    data: Annotated[
        Path | None, typer.Option(help="folder of cifar-100-python; nothing is downloaded")
    ] = None,
    device: Annotated[Device, typer.Option(help="cpu rehearses")] = Device.cuda,
    tiny: Annotated[bool, typer.Option(help="smallest sizes, for a rehearsal")] = False,
    parts: Annotated[
        str, typer.Option(help="parts to run, separated by commas")
    ] = "tests,waits,loss,step,loader,accuracy",
    checkpoints: Annotated[
        Path | None, typer.Option(help="folder of trained networks; by default OUT/checkpoints")
    ] = None,
    commit: Annotated[str, typer.Option(help="commit of the code, without git")] = "",
    host: HostName = None,
) -> None:
    """Run everything that a GPU must show, within minutes, most important first.

    tests: all backends against the dense one. waits: how often a training step waits for the
    device, in our methods and the host's. loss: time and memory of all backends and of solo-learn's
    loss, at K = 65,536 and 16,384, in float32 and bfloat16, beside the roofline. step: whole steps
    against the host's MoCo v2+, at the sizes of CIFAR and ImageNet. loader: images per second of
    PIL and resident data. accuracy: SimCLR, DCL, HCL and SSCL on CIFAR-100 for as many epochs as
    fit, with linear evaluation.

    Each part writes OUT/PART.csv as it runs; OUT/parts.csv lists what was done, failed or was
    skipped. Another call with the same OUT, device and commit runs only what is missing, and
    resumes accuracy from its checkpoints.
    """
    from benchmarks.gpu import run_gpu
    from benchmarks.parts import PARTS
    from benchmarks.provenance import COMMIT
    from benchmarks.reference import choose_host
    from benchmarks.worker import Job

    chosen = _parse_names(parts, "parts", [part.name for part in PARTS])
    if data is not None and not (data / "cifar-100-python").is_dir():
        raise typer.BadParameter(f"data={data}: holds no cifar-100-python. Name its parent folder.")
    if commit:
        os.environ[COMMIT] = commit
    choose_host(host)
    place = None if data is None else data.expanduser().resolve()
    out = out.expanduser().resolve()
    folder = (checkpoints or out / "checkpoints").expanduser().resolve()
    job = Job(out, folder, place, tiny, device is Device.cuda)
    try:
        run_gpu(job, minutes, chosen)
    except RuntimeError as error:
        raise typer.BadParameter(str(error)) from error


@app.command()
def plots() -> None:
    """Draw the README's figures from the CSVs."""
    from benchmarks.figures import save_plots

    for path in save_plots():
        print(path)


@app.command()
def table() -> None:
    """Print the README's tables from the CSVs."""
    from benchmarks import figures

    tables = figures.target_table(), figures.main_table(), figures.loader_table()
    print("\n\n".join(map(figures.as_markdown_table, tables)))


@app.command(hidden=True)
def peaks(n: int, k: int, d: int, backends: str, names: str) -> None:
    """Print the peak memory of candidates as JSON, for ``loss``."""
    from benchmarks.candidates import Candidate
    from benchmarks.loss import measure_peaks

    candidates = [Candidate(*name) for name in json.loads(names)]
    print(json.dumps(measure_peaks((n, k, d), _parse_backends(backends), candidates)))


@app.command(hidden=True)
def step_peaks(n: int, k: int, backbone: str, pixels: int, backend: str) -> None:
    """Print the peak memory of steps as JSON, for ``step``."""
    from benchmarks.step import measure_step_peaks

    print(json.dumps(measure_step_peaks(n, k, backbone, pixels, backend)))


@app.command(hidden=True)
def chunk(n: int, size: int, backbone: str, pixels: int) -> None:
    """Print memory and time of a step as JSON, for ``chunks``."""
    from benchmarks.chunks import measure_chunk

    print(json.dumps(measure_chunk(n, size, backbone, pixels)))


if __name__ == "__main__":
    app()
