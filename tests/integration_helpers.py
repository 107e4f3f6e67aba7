"""What the tests that start whole programs share: finding solo-learn, running it, reading results.

Run as a script (``python integration_helpers.py JOBS``) it is the process in which
:func:`run_in_one_process` runs several of the host's programs one after another.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
GUARD = str(PROJECT / "tests" / "guard")
NO_CHECKOUT = "no solo-learn checkout at $SOLO_LEARN_DIR, ../solo-learn or ~/solo-learn"
# Of the images: solo-learn's top-5 accuracy needs five classes.
CLASSES, PER_CLASS = 6, 4


@dataclass(frozen=True)
class Result:
    """How a program ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Everything that it wrote."""
        return f"{self.out}\n{self.err}"

    def ok(self) -> Result:
        """This result, once it is sure that the program succeeded."""
        assert self.code == 0, f"exit code {self.code}\n{self.text[-6000:]}"
        return self


def solo_learn_checkout() -> Path | None:
    """The checkout of solo-learn to test in, or ``None``."""
    asked = os.environ.get("SOLO_LEARN_DIR")
    places = [Path(asked)] if asked else []
    places += [PROJECT.parent / "solo-learn", Path.home() / "solo-learn"]
    for place in places:
        if (place / "solo" / "methods" / "mocov2plus.py").is_file():
            return place.resolve()
    return None


def environment(**extra: str) -> dict[str, str]:
    """Ours, without what would decide in the tests' place, and without the network."""
    hidden = ("PYTHONPATH", "SOLO_HARDNEG_HOST", "HYDRA_FULL_ERROR")
    mine = {name: value for name, value in os.environ.items() if name not in hidden}
    extra["PYTHONPATH"] = os.pathsep.join(filter(None, [extra.get("PYTHONPATH"), GUARD]))
    # One thread, because more of them mostly wait for each other on tiny images. And wide, so
    # that nothing breaks our lines.
    return {**mine, "OMP_NUM_THREADS": "1", "COLUMNS": "240", **extra}


def run_python(
    *arguments: object,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    timeout: float = 240,
    python: str | Path = sys.executable,
) -> Result:
    """Runs ``python ARGUMENTS`` in ``cwd`` and waits for its end, or ends it after ``timeout``."""
    with subprocess.Popen(
        [str(python), *map(str, arguments)],
        cwd=cwd,
        env=environment(**(env or {})),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # the processes that it has started, too
            raise
    return Result(process.returncode, out, err)


@dataclass(frozen=True)
class Job:
    """One program for :func:`run_in_one_process`: a script and its arguments.

    In an argument, ``{checkpoint of FOLDER}`` stands for the one checkpoint that an earlier program
    has left below a folder, and ``{folder of FOLDER}`` for the folder that it lies in.
    """

    script: Path
    arguments: Sequence[object]


def run_in_one_process(jobs: Mapping[str, Job], cwd: Path, **options: Any) -> dict[str, Result]:
    """Runs scripts as ``python SCRIPT ARGUMENTS`` would, but imports the host only once.

    Importing solo-learn takes seven seconds, a tiny run of it one.
    """
    plan = cwd / "jobs.json"
    plan.write_text(
        json.dumps({n: [str(j.script), *map(str, j.arguments)] for n, j in jobs.items()})
    )
    run_python(Path(__file__), plan, cwd=cwd, **options).ok()
    answers = json.loads(plan.with_suffix(".results.json").read_text())
    return {name: Result(**answer) for name, answer in answers.items()}


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint as the strictest loader does: tensors and plain values, or an error."""
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def write_images(folder: Path, per_class: int, classes: int = CLASSES, side: int = 32) -> Path:
    """Fills a folder with one folder of small PNG files per class; each class has its colour."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(per_class)
    for label in range(classes):
        place = folder / f"class{label}"
        place.mkdir(parents=True)
        for number in range(per_class):
            pixels = generator.integers(0, 160, (side, side, 3), dtype=np.uint8)
            pixels[..., label % 3] = 170 + 15 * label
            Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


@dataclass(frozen=True)
class Images:
    """Folders of images of 6 classes: 24 to train on, 6 to validate on, the 24 without labels."""

    train: Path
    val: Path
    unlabelled: Path

    def overrides(self, val: bool = False) -> list[str]:
        """What makes a config of ours, or of solo-learn's CIFAR scripts, read them."""
        return [
            "data.dataset=custom",
            f"data.train_path={self.train}",
            f"data.val_path={self.val if val else 'null'}",
            "data.num_workers=0",
        ]


@dataclass(frozen=True)
class Run:
    """A pretraining run: how it was called, what it wrote, and its checkpoint."""

    arguments: list[str]
    result: Result
    checkpoint: Path


def only_checkpoint(folder: Path) -> Path:
    """The one checkpoint below a folder."""
    found = sorted(folder.rglob("*.ckpt"))
    assert len(found) == 1, f"{folder} holds {found}"
    return found[0]


def _filled(argument: str) -> str:
    """An argument with checkpoints in the place of what stands for them."""

    def checkpoint(match: re.Match[str]) -> str:
        file = only_checkpoint(Path(match[2]))
        return str(file if match[1] == "checkpoint" else file.parent)

    return re.sub(r"\{(checkpoint|folder) of ([^}]*)\}", checkpoint, argument)


def _main(plan: Path) -> None:
    results: dict[str, dict[str, Any]] = {}
    for name, argv in json.loads(plan.read_text()).items():
        out, err, code = io.StringIO(), io.StringIO(), 0
        sys.path.insert(0, str(Path(argv[0]).parent))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                sys.argv = [_filled(argument) for argument in argv]
                runpy.run_path(argv[0], run_name="__main__")
            except SystemExit as end:
                if isinstance(end.code, str):
                    print(end.code, file=sys.stderr)
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except Exception:
                traceback.print_exc()
                code = 1
        del sys.path[0]
        results[name] = asdict(Result(code, out.getvalue(), err.getvalue()))
    plan.with_suffix(".results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
