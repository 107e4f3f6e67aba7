"""``python -m benchmarks COMMAND``; ``--help`` lists them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import torch
import typer

app = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True)
Threads = Annotated[int, typer.Option(help="PyTorch's; 0: as it is")]
OUR_BACKENDS = ("auto", "dense", "chunked", "numba", "triton")


def _numbers(text: str, name: str) -> list[int]:
    try:
        found = [int(part.replace("_", "")) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise typer.BadParameter(f"{name}={text}: must be whole numbers above 0, such as 64,256")
    return found


def _backends(text: str) -> tuple[str, ...]:
    found = tuple(text.split(","))
    unknown = [name for name in found if name not in OUR_BACKENDS]
    if unknown:
        known = ", ".join(OUR_BACKENDS)
        raise typer.BadParameter(
            f"backends={text}: unknown backend {unknown[0]}. Choose from: {known}"
        )
    return found


def _use(threads: int) -> None:
    if threads:
        torch.set_num_threads(threads)


@app.command()
def loss(
    n: Annotated[str, typer.Option(help="N, with commas")] = "64,256,1024",
    k: Annotated[str, typer.Option(help="K, with commas")] = "1024,4096,16384,65536,262144",
    d: Annotated[str, typer.Option(help="D, with commas")] = "128,256",
    backends: Annotated[str, typer.Option(help="of ours")] = "auto,dense,chunked,numba,triton",
    rounds: Annotated[int, typer.Option(help="0: as many as are worth it")] = 0,
    libraries: Annotated[bool, typer.Option(help="compare other libraries, too")] = True,
    quick: Annotated[bool, typer.Option(help="one small size; writes no file")] = False,
    threads: Threads = 0,
) -> None:
    """The loss alone, against the host's and other libraries'."""
    queries, keys, dimensions = _numbers(n, "n"), _numbers(k, "k"), _numbers(d, "d")
    chosen = _backends(backends)
    _use(threads)
    from benchmarks import loss as room

    if quick:
        room.run([(16, 512, 16)], chosen, rounds=2, file=None, libraries=libraries)
        return
    sizes = [(a, b, c) for c in dimensions for b in keys for a in queries]
    room.run(sizes, chosen, rounds or None, libraries=libraries)


@app.command()
def simclr(
    b: Annotated[str, typer.Option(help="images, with commas")] = "256,1024",
    d: Annotated[int, typer.Option(help="D")] = 128,
    backends: Annotated[str, typer.Option(help="of ours")] = "auto,dense,chunked",
    rounds: Annotated[int, typer.Option(help="0: as many as are worth it")] = 0,
    threads: Threads = 0,
) -> None:
    """SimCLR's loss alone, against the host's."""
    batches, chosen = _numbers(b, "b"), _backends(backends)
    _use(threads)
    from benchmarks.simclr import run_simclr

    run_simclr(batches, d, chosen, rounds or None)


@app.command()
def scaling(
    backends: Annotated[str, typer.Option(help="of ours")] = "chunked,numba", threads: Threads = 0
) -> None:
    """How time and memory grow with K and with N, with fitted exponents."""
    chosen = _backends(backends)
    _use(threads)
    from benchmarks.scaling import run_scaling

    print(run_scaling(chosen).to_string(index=False))


@app.command()
def step(
    n: Annotated[int, typer.Option(help="batch size")] = 256,
    k: Annotated[int, typer.Option(help="queue size")] = 65536,
    backbone: Annotated[str, typer.Option()] = "resnet18",
    pixels: Annotated[int, typer.Option(help="of a side")] = 32,
    rounds: Annotated[int, typer.Option()] = 5,
    backend: Annotated[str, typer.Option()] = "auto",
    host: Annotated[
        str, typer.Option(help="solo or standalone; solo where there is a checkout")
    ] = "",
    threads: Threads = 0,
) -> None:
    """A whole training step against the host's MoCo v2+."""
    if host not in ("", "solo", "standalone"):
        raise typer.BadParameter(f"host={host}: must be solo or standalone")
    _backends(backend)
    from benchmarks.hosts import use_host

    use_host(host)
    _use(threads)
    from benchmarks.step import run_step

    print(run_step(n, k, backbone, pixels, rounds, backend).iloc[:, :18].to_string(index=False))


@app.command()
def ranks(
    n: Annotated[int, typer.Option(help="batch size of a rank")] = 64,
    k: Annotated[int, typer.Option(help="queue size")] = 65536,
    backbone: Annotated[str, typer.Option()] = "resnet18",
    pixels: Annotated[int, typer.Option(help="of a side")] = 8,
    rounds: Annotated[int, typer.Option()] = 9,
) -> None:
    """A step on two ranks, with and without the queue in DDP's broadcast."""
    from benchmarks.ranks import run_ranks

    print(run_ranks(n, k, backbone, pixels, rounds).iloc[:, :13].to_string(index=False))


@app.command()
def loader(
    train_path: Annotated[Path, typer.Option(help="folder of cifar-100-python")] = Path("datasets"),
    n: Annotated[int, typer.Option(help="batch size")] = 256,
    workers: Annotated[str, typer.Option(help="with commas")] = "1,2",
    batches: Annotated[int, typer.Option()] = 8,
    threads: Threads = 0,
) -> None:
    """Images per second of the loader."""
    numbers = _numbers(workers, "workers")
    _use(threads)
    from benchmarks.loader import run_loader

    print(run_loader(train_path, n, numbers, batches).to_string(index=False))


@app.command()
def load(
    images: Annotated[
        Path | None, typer.Option(help="a folder per class; made up if left out")
    ] = None,
    n: Annotated[int, typer.Option(help="batch size")] = 32,
    k: Annotated[int, typer.Option(help="queue size")] = 4096,
    steps: Annotated[int, typer.Option(help="of a run")] = 50,
    rounds: Annotated[int, typer.Option()] = 3,
    pixels: Annotated[int, typer.Option(help="of a side of the views")] = 64,
    backbone: Annotated[str, typer.Option()] = "resnet18",
) -> None:
    """Whole runs inside solo-learn: its baseline and ours, recorded or not, folder and DALI."""
    from benchmarks.load import run_load

    found = run_load(images, n, steps, rounds, pixels, k, backbone)
    print(found.iloc[:, :11].to_string(index=False))


@app.command()
def limits(threads: Threads = 0) -> None:
    """What was measured beside what the machine would take at least."""
    _use(threads)
    from benchmarks.limits import run_limits

    print(run_limits().to_string(index=False))


@app.command()
def recorder(
    method: Annotated[str, typer.Option(help="a config's name")] = "mocov2_banded",
    k: Annotated[int, typer.Option(help="queue size")] = 65536,
    n: Annotated[int, typer.Option(help="batch size")] = 256,
    pixels: Annotated[int, typer.Option(help="of a side")] = 32,
    steps: Annotated[int, typer.Option(help="how many")] = 12,
    backbone: Annotated[str, typer.Option()] = "resnet18",
    negatives: Annotated[str, typer.Option(help="preset; of ours only")] = "all",
    threads: Threads = 0,
) -> None:
    """What recording costs."""
    _use(threads)
    from benchmarks.recorder import run_recorder

    table = run_recorder(method, k, n, pixels, steps, backbone, negatives)
    print(table.to_string(index=False))


@app.command()
def gpu(
    out: Annotated[Path, typer.Option(help="folder for the CSVs")],
    minutes: Annotated[float, typer.Option(help="for everything, from the start on")] = 8.0,
    data: Annotated[
        Path | None, typer.Option(help="folder that holds cifar-100-python; nothing is downloaded")
    ] = None,
    device: Annotated[str, typer.Option(help="cuda; cpu rehearses")] = "cuda",
    tiny: Annotated[bool, typer.Option(help="smallest sizes, for a rehearsal")] = False,
    parts: Annotated[
        str, typer.Option(help="of those above, with commas")
    ] = "tests,waits,loss,step,loader,accuracy",
    checkpoints: Annotated[
        Path | None, typer.Option(help="folder for trained networks; OUT/checkpoints if left out")
    ] = None,
    commit: Annotated[str, typer.Option(help="of the code, where git can't tell")] = "",
    host: Annotated[
        str, typer.Option(help="solo or standalone; solo where there is a checkout")
    ] = "",
) -> None:
    """All that a GPU should show, within minutes, most important first.

    tests: the kernels' tests, all backends against the dense one. waits: how often a training step
    waits for the device, ours and the host's. loss: time and memory of all backends and the host's
    at K = 65,536 and 16,384, in float32 and bfloat16, beside the limit by bytes and flops. step:
    whole steps against the host's MoCo v2+, at CIFAR's and ImageNet's size. loader: images per
    second by PIL, resident and DALI. accuracy: SimCLR, DCL, HCL and SSCL on CIFAR-100 for as many
    epochs as fit, with linear evaluation.

    Each part writes OUT/PART.csv as it goes; OUT/parts.csv says what was done, what failed, and
    what was skipped for lack of time. What has been done on this device and commit isn't repeated
    by another call with the same OUT; accuracy goes on from its checkpoints.
    """
    from benchmarks.parts import PARTS

    if host not in ("", "solo", "standalone"):
        raise typer.BadParameter(f"host={host}: must be solo or standalone")
    if device not in ("cuda", "cpu"):
        raise typer.BadParameter(f"device={device}: must be cuda or cpu")
    if not 0 < minutes < float("inf"):
        raise typer.BadParameter(f"minutes={minutes}: must be a number above 0")
    known = [part.name for part in PARTS]
    chosen = tuple(parts.split(","))
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise typer.BadParameter(
            f"parts={parts}: unknown part {unknown[0]}. Choose from: {', '.join(known)}"
        )
    if data is not None and not (data / "cifar-100-python").is_dir():
        raise typer.BadParameter(f"data={data}: holds no cifar-100-python. Point it at its parent.")
    from benchmarks.gpu import default_checkpoints, run_gpu
    from benchmarks.hosts import use_host
    from benchmarks.provenance import COMMIT
    from benchmarks.worker import Job

    if commit:
        os.environ[COMMIT] = commit
    use_host(host)
    out = out.expanduser().resolve()
    folder = (checkpoints or default_checkpoints(out)).expanduser().resolve()
    place = None if data is None else data.expanduser().resolve()
    job = Job(out, folder, place, tiny, device == "cuda")
    try:
        run_gpu(job, minutes, chosen)
    except RuntimeError as error:
        raise typer.BadParameter(str(error)) from error


@app.command(hidden=True)
def peaks(n: int, k: int, d: int, backends: str, names: str) -> None:
    """Peak memory, for ``loss``, as JSON in the last line."""
    from benchmarks.loss import peaks as room

    print(json.dumps(room(n, k, d, _backends(backends), json.loads(names))))


@app.command(hidden=True)
def simclr_peaks(b: int, d: int, backends: str, names: str) -> None:
    """Peak memory, for ``simclr``, as JSON in the last line."""
    from benchmarks.simclr import peaks as room

    print(json.dumps(room(b, d, _backends(backends), json.loads(names))))


@app.command(hidden=True)
def step_peaks(n: int, k: int, backbone: str, pixels: int, backend: str) -> None:
    """Peak memory, for ``step``, as JSON in the last line."""
    from benchmarks.step import step_peaks as room

    print(json.dumps(room(n, k, backbone, pixels, backend)))


@app.command()
def plots() -> None:
    """Draws the README's pictures from the CSVs."""
    from benchmarks.figures import save_plots

    for path in save_plots():
        print(path)


@app.command()
def table() -> None:
    """Prints the README's tables from the CSVs."""
    from benchmarks import figures

    print(figures.markdown(figures.target_table()))
    print()
    print(figures.markdown(figures.main_table()))
    print()
    print(figures.markdown(figures.loader_table()))
    print()
    print(figures.markdown(figures.load_table()))


if __name__ == "__main__":
    app()
